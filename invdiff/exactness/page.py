"""A validation as one self-contained HTML page: the tables, and the toys' samples over the true posterior density."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.exactness import text as report
from invdiff.exactness.measures import significant
from invdiff.exactness.problems import ExactProblem
from invdiff.exactness.running import Measured, Row
from invdiff.files.pages.rendering import data_uri, render

MARK = "invdiff validate"
"""Text near the beginning of the page and of the JSON file, by which a later run knows that it may replace them."""
GRID = 160  # points a side of the density
PANELS = 5  # in a row
DOTS = 600  # samples a panel: more hide the density


def page(measured: Sequence[Measured], skipped: Sequence[tuple[str, str]], about: dict[str, Any]) -> str:
    """The HTML document. skipped: operators left out, with the reason; about: command, seed, seconds, versions."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return render(
        Path(__file__).with_name("validation.html"),
        MARK,
        title="How exactly the solvers sample p(x | y)",
        summary=f"seed {about['seed']}, {about['seconds']:.0f} seconds; {versions}",
        command=about["command"],
        table=report.summary(measured),
        columns=list(report.COLUMNS.items()),
        families=[
            {"title": report.TITLES[family], "tables": [_shown(*one) for one in report.tables(family, found)]}
            for family, found in report.by_family(measured).items()
        ],
        skipped=skipped,
    )


def _shown(table: report.Table, of: Sequence[Measured]) -> dict[str, Any]:
    """What the template shows of a table."""
    plotted = any(row.shown is not None for part in of for row in part.rows)
    return {
        "name": of[0].case.label,
        "table": table,
        "picture": data_uri(picture(of[0]), "image/png") if plotted else "",
        "failures": report.failures(of),
    }


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
