"""Plots of a run: quality against cost, calibration, one method against another image by image.

matplotlib is imported here alone, and only when a plot is made. Figures are objects of their own, without pyplot's global
state, and their files hold no date, so that equal runs give equal bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from invdiff.evaluation.report.rows import Group, Row, compare

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MARKERS = "osD^vP*Xp<>h"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
"""By Okabe and Ito, distinct for any colour vision; with the markers, 24 methods look different."""

Styles = Mapping[str, int]

DECADE = 6.3
"""The least ratio of the ends of a logarithmic axis, so that it holds at least two of the ticks 1, 2, 5, 10, ..."""

NAMED = 24
"""The most rows with a line of their own in a plot."""


def render(figure: Figure) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG."""
    import matplotlib

    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    with matplotlib.rc_context({"svg.hashsalt": "invdiff"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _figure(title: str, panels: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * panels, 4.2), layout="constrained")
    figure.suptitle(
        title if len(title) <= 52 * panels else f"{title[: 52 * panels - 2]}..", fontsize=9, parse_math=False
    )
    return figure, np.atleast_1d(figure.subplots(1, panels)).tolist()


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(alpha=0.3)


def _plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis, not as powers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _room(low: float, high: float) -> tuple[float, float]:
    """The ends of a logarithmic axis from `low` to `high` with a margin, not narrower than DECADE."""
    wider = max(1.2, math.sqrt(DECADE * low / high))
    return low / wider, high * wider


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 5}


def _short(label: str) -> str:
    return label if len(label) <= 40 else f"{label[:38]}.."


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    if handles:
        legend = figure.legend(
            list(handles.values()), list(map(_short, handles)), loc="outside right upper", fontsize=8
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _line(row: Row) -> str:
    """The name that rows share which differ only in their steps."""
    return str(row.cell["solver"]) + (f", {row.cell['samples']} samples" if row.cell.get("samples", 1) > 1 else "")


def styles(groups: Sequence[Group]) -> Styles:
    """A number for each line and each row, so that a method looks the same in the plots of all groups."""
    rows = [row for group in groups for row in group.rows]
    lines, labels = (dict.fromkeys(map(name, rows)) for name in (_line, lambda row: row.label))
    return {name: at for at, name in enumerate(dict.fromkeys([*lines, *labels]))}


def cost(group: Group, styles: Styles) -> Figure:
    """PSNR with its interval against network calls and against seconds, a line for each solver over its step counts."""
    figure, panels = _figure(group.title, 2)
    lines: dict[str, list[Row]] = {}
    for row in group.rows:
        if "psnr" in row.scores and np.isfinite(row.scores["psnr"].mean):
            lines.setdefault(_line(row), []).append(row)
    best = sorted(lines, key=lambda name: -max(row.scores["psnr"].mean for row in lines[name]))
    handles: dict[str, Any] = {}
    _cost(panels[0], "network calls", {name: lines[name] for name in best[:NAMED]}, styles, handles, _calls)
    _cost(panels[1], "seconds", {name: lines[name] for name in best[:NAMED]}, styles, handles, lambda row: row.seconds)
    _legend(figure, handles)
    return figure


def _calls(row: Row) -> float | None:
    return row.mean("nfe")


def _cost(
    axes: Axes,
    unit: str,
    lines: Mapping[str, Sequence[Row]],
    styles: Styles,
    handles: dict[str, Any],
    price: Callable[[Row], float | None],
) -> None:
    """Draw one panel and add its lines to `handles`."""
    _frame(axes, f"PSNR against {unit}", f"{unit} for each image", "PSNR (dB)")
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    prices: list[float] = []
    for name, rows in lines.items():
        points = sorted(
            (at, it.mean, it.low, it.high) for row in rows for it in [row.scores["psnr"]] if (at := price(row))
        )
        if points:
            x, y, low, high = np.array(points).T
            bars = np.nan_to_num([y - low, high - y]).clip(0)
            look = _look(styles[name])
            handles[name] = axes.errorbar(x, y, bars, linewidth=1, elinewidth=0.7, capsize=2, **look)
            prices += x.tolist()
    if prices:
        axes.set_xlim(_room(min(prices), max(prices)))
    else:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color="grey")


def image_by_image(group: Group, first: Row, second: Row) -> Figure:
    """PSNR of two rows on the images that both have; above the diagonal the second is better."""
    figure, (axes,) = _figure(group.title, 1)
    a, b = first.values.get("psnr", {}), second.values.get("psnr", {})
    points = np.array([(a[image], b[image]) for image in a if image in b]).reshape(-1, 2)
    test = compare(b, a)
    title = "no test below two images"
    if test is not None:
        title = f"second minus first {test.difference.mean:+.2f} dB, p = {test.p_value:.2g}, {len(points)} images"
    _frame(axes, title, f"PSNR (dB), {_short(first.label)}", f"PSNR (dB), {_short(second.label)}")
    finite = points[np.isfinite(points).all(1)]
    axes.plot(finite[:, 0], finite[:, 1], ".", color=COLOURS[0], alpha=0.7)
    if len(finite):
        ends = [float(finite.min()), float(finite.max())]
        axes.plot(ends, ends, color="0.5", linewidth=1)
    axes.set_aspect("equal", "datalim")
    return figure


def calibrated(group: Group, styles: Styles) -> Figure | None:
    """Coverage against the nominal level, ranks of the truth, spread against error; None without calibration records."""
    known = [(row, found) for row in group.rows if (found := row.calibration)][:NAMED]
    if not known:
        return None
    figure, (coverage, ranks, spread) = _figure(group.title, 3)
    _frame(coverage, "coverage of central intervals", "nominal", "share of the true pixel values inside")
    _frame(ranks, "rank of the truth among the samples", "rank, 0 to 1", "density; 1 where calibrated")
    _frame(
        spread,
        "spread against error, an image a point",
        "rms error of the mean",
        "rms standard deviation x sqrt(1 + 1/n)",
    )
    coverage.plot([0, 1], [0, 1], color="0.5", linewidth=1)
    ranks.axhline(1, color="0.5", linewidth=1)
    handles: dict[str, Any] = {}
    for row, found in known:
        look, levels = _look(styles[row.label]), sorted(found["coverage"], key=float)
        shares = [found["coverage"][level] for level in levels]
        (handles[row.label],) = coverage.plot(list(map(float, levels)), shares, linewidth=1, **look)
        count = len(found["ranks"])
        edges, density = np.linspace(0, 1, count + 1), count * np.array(found["ranks"])
        ranks.stairs(density, edges, color=look["color"], linewidth=1.2)
        ranks.plot((edges[1:] + edges[:-1]) / 2, density, linestyle="", **look)
        # For calibrated samples the error of the mean is sqrt(1 + 1/n) times their spread.
        spreads = [math.sqrt(1 + 1 / (count - 1)) * one["spread"] for one in row.calibrations]
        spread.plot([one["error"] for one in row.calibrations], spreads, linestyle="", alpha=0.7, **look)
    coverage.set(xlim=(0, 1), ylim=(0, 1))
    ranks.set(xlim=(0, 1), ylim=(0, None))
    spread.set(xscale="log", yscale="log")
    _plain_ticks(spread.xaxis)
    _plain_ticks(spread.yaxis)
    shown = [np.asarray(axis, float) for line in spread.lines for axis in line.get_data()]
    if points := [value for axis in shown for value in axis.tolist() if value > 0]:
        ends = _room(min(points), max(points))
        spread.plot(ends, ends, color="0.5", linewidth=1)
        spread.set(xlim=ends, ylim=ends)
    _legend(figure, handles)
    return figure
