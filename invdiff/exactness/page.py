"""A validation as one self-contained HTML page: the tables, and the toys' samples over the true posterior density."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from invdiff.exactness import text as report
from invdiff.exactness.measures import LIMIT, MEASURES, Score, significant
from invdiff.exactness.problems import FAMILIES, MIXTURE, ExactProblem
from invdiff.exactness.running import EXACT, Measured, Row

GRID = 160  # points a side of the density
PANELS = 5  # in a row
DOTS = 600  # samples a panel: more hide the density

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1250px; padding: 0 1em; color: #1c1c1c }
table { border-collapse: collapse; margin: .5em 0 2em; font-variant-numeric: tabular-nums }
th, td { padding: .15em .7em; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap }
th { border-bottom: 2px solid #888; font-weight: 600 } td:first-child, th:first-child, td.left { text-align: left }
td.off { color: #b3261e } td.exact { color: #116329; font-weight: 600 } tr.floor td { color: #666; font-style: italic }
img { max-width: 100%; border: 1px solid #e4e4e4 } h3 { margin-bottom: 0 } .note { color: #555 } dt { font-weight: 600 }
.wide { overflow-x: auto }
"""


def page(measured: Sequence[Measured], skipped: Sequence[tuple[str, str]], about: dict[str, Any]) -> str:
    """The HTML document. about: command, seed, seconds, versions."""
    body = ["<h1>How exactly the solvers sample p(x | y)</h1>", _about(about), "<h2>Summary</h2>"]
    body.append(f"<pre>{html.escape(report.summary(measured))}</pre>")
    body.append("<h2>What the columns are</h2><dl>")
    body += [f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in MEASURES.items()]
    body.append(
        f"<dt>red, or verdict</dt><dd>more than {LIMIT:g} standard errors off what exact, independent samples of the same "
        "number score; hover over a number to see theirs</dd></dl>"
    )
    for family in FAMILIES:
        found = [part for part in measured if part.case.family == family]
        if not found:
            continue
        body.append(f"<h2>{html.escape(report.TITLES[family])}</h2>")
        if family == MIXTURE:
            body.append(f"<pre>{html.escape(report.mixture_table(found))}</pre>")
        for part in found:
            body.append(f"<h3>{html.escape(part.case.label)}</h3><p class=note>{html.escape(report.heading(part))}</p>")
            if any(row.shown is not None for row in part.rows):
                body.append(_image(picture(part), f"samples over the true density, {part.case.label}"))
            body.append(_table(part))
    if skipped:
        body.append("<h2>Left out</h2><ul>")
        body += [f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in skipped]
        body.append("</ul>")
    title = "<title>invdiff validate</title>"
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{title}<style>{STYLE}</style></head>'
    return "\n".join([head, "<body>", *body, "</body></html>"]) + "\n"


def _about(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    facts = f"seed {about['seed']}, {about['seconds']:.0f} seconds; {versions}"
    return f"<p class=note><code>{html.escape(about['command'])}</code><br>{html.escape(facts)}</p>"


def _table(part: Measured) -> str:
    head = ("solver", *report.COLUMNS, "calls", "seconds", "verdict")
    lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>", *map(_line, part.rows)]
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _line(row: Row) -> str:
    exact = row.solver == EXACT
    name = html.escape(row.solver)
    if row.failure:
        return f'<tr><td>{name}</td><td class="left" colspan="9">{html.escape(row.failure)}</td></tr>'
    cost = ("", "") if exact else (report.calls(row), f"{row.seconds:.1f}")
    kind = "exact" if row.verdict == "exact" else "off"
    end = "<td></td>" if exact else f'<td class="left {kind}">{html.escape(row.verdict)}</td>'
    scores = "".join(_cell(row.scores.get(measure)) for measure in report.COLUMNS)
    costs = "".join(f"<td>{text}</td>" for text in cost)
    return f"<tr{' class=floor' if exact else ''}><td>{name}</td>{scores}{costs}{end}</tr>"


def _cell(score: Score | None) -> str:
    if score is None:
        return "<td>-</td>"
    title = f"exact samples: {significant(score.floor)} +- {score.error:.2g}; {score.deviation:.1f} standard errors off"
    return f'<td{"" if score.exact else " class=off"} title="{title}">{significant(score.value)}</td>'


def _image(png: bytes, words: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<p><img alt="{html.escape(words)}" src="data:image/png;base64,{data}"></p>'


def picture(part: Measured) -> bytes:
    """A PNG: a panel for each solver of a two-dimensional case, its samples over the true posterior density."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in part.rows if row.shown is not None]
    problem = part.yardsticks[0].problem
    window, density, prior = densities(problem)
    line = observed_line(problem)
    lines = -(-len(rows) // PANELS)
    figure = Figure(figsize=(2.5 * min(PANELS, len(rows)), 2.75 * lines), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, min(PANELS, len(rows)), squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for axes, row in zip(panels, rows, strict=False):
        # The root makes the thin parts visible; half of the colours is enough and leaves the dots readable.
        peak = 1.6 * float(np.sqrt(density.max()))
        axes.imshow(np.sqrt(density), origin="lower", extent=window, cmap="Blues", vmin=0, vmax=peak)
        axes.contour(prior, levels=[0.05 * float(prior.max())], extent=window, colors="0.65", linewidths=0.6)
        dots = np.zeros((0, 2)) if row.shown is None else row.shown[:DOTS].numpy()
        axes.plot(dots[:, 0], dots[:, 1], ".", color="#c2330a", markersize=3, markeredgewidth=0, alpha=0.7)
        axes.plot(*line, color="0.4", linewidth=0.7, linestyle=(0, (5, 4)))
        axes.set(xlim=window[:2], ylim=window[2:], aspect="equal")
        name = row.solver if len(row.solver) < 36 else f"{row.solver[:34]}.."
        axes.set_title(f"{name}\n{_distance(row)}", fontsize=8, parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _distance(row: Row) -> str:
    score = row.scores["wasserstein"]
    return f"W1 {significant(score.value)}, floor {significant(score.floor)}"


def observed_line(problem: ExactProblem) -> np.ndarray:
    """Two far ends of the line A x = y in the plane, as (x's, y's): what the measurement says without its noise."""
    row, value = problem.matrix[0].numpy(), float(problem.problem.y.flatten()[0])
    foot, along = row * value / (row @ row), np.array([-row[1], row[0]]) / np.linalg.norm(row)
    return np.stack([foot - 9 * along, foot + 9 * along], 1)


def densities(problem: ExactProblem) -> tuple[tuple[float, float, float, float], np.ndarray, np.ndarray]:
    """(left, right, bottom, top), and p(x | y) and p(x) on a GRID x GRID raster over that window of the plane, [row, column].

    The window holds the prior with a margin, so samples far outside of it are not seen.
    """
    means = problem.prior.means.reshape(-1, 2)
    margin = 0.12 * float(means.max() - means.min())
    low, high = float(means.min()) - margin, float(means.max()) + margin
    ticks = torch.linspace(low, high, GRID, dtype=torch.float64)
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    points = torch.stack([columns.flatten(), rows.flatten()], 1).reshape(-1, *problem.prior.shape)
    exact, prior = (p.log_prob(points).exp().reshape(GRID, GRID).numpy() for p in (problem.posterior, problem.prior))
    return (low, high, low, high), exact, prior
