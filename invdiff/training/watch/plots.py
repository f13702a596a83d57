"""Plots of a training: report.png, one page at the end, and loss_per_level.png at each validation.

matplotlib is imported here alone, and only when a plot is made. Figures are objects of their own: no pyplot, whose
global state is not safe among threads and would need a choice of backend.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from invdiff.files.atomic import atomic_path
from invdiff.training.config import TrainingConfig
from invdiff.training.watch.curves import column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

LEVEL_CURVES = 6
"""How many of the validations the plot of the loss per level shows."""


def levels_figure(levels: Rows) -> Figure:
    """The noise error over t, of validations from the first to the last. levels: rows of levels.csv.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), dpi=100, layout="constrained")
    _plot_levels(figure.subplots(), levels)
    return figure


def report_figure(
    title: str,
    rows: Rows,
    levels: Rows,
    history: tuple[np.ndarray, np.ndarray, np.ndarray],
    picture: Path | None,
) -> Figure:
    """One page: loss, PSNR, PSNR by size, loss per level, learning rate, the last samples.

    rows and levels: of log.csv and levels.csv; history: steps, losses, learning rates; picture: a PNG file.
    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 9.6), dpi=100, layout="constrained")
    figure.suptitle(title, parse_math=False)  # a folder's name may hold a dollar sign
    layout: list[Any] = [["loss"] * 4 + ["psnr"] * 4 + ["sizes"] * 4, ["levels"] * 3 + ["rate"] * 3 + ["samples"] * 6]
    axes = figure.subplot_mosaic(layout)
    _plot_loss(axes["loss"], rows, history)
    _plot_psnr(axes["psnr"], rows)
    _plot_sizes(axes["sizes"], rows)
    _plot_levels(axes["levels"], levels)
    _plot_rate(axes["rate"], rows, history)
    _show_picture(axes["samples"], picture)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all. Raises ImageError where it cannot be written."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def report_title(name: str, config: TrainingConfig, rows: Rows, step: int, seconds: float) -> str:
    """Two lines of facts: how long and how good, then what was trained."""
    facts = [name, f"{step} steps", f"{seconds / 3600:.2f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"]
    last = rows[-1] if rows else {}
    score, speed = (float(column([last], key)[0]) for key in ("psnr_25", "images_per_second"))
    facts += [f"{score:.2f} dB at 25/255"] if math.isfinite(score) else []
    facts += [f"{speed:.3g} images/s"] if math.isfinite(speed) else []
    widths = "-".join(map(str, config.widths))
    network = [f"widths {widths}", f"blocks {config.blocks}", f"channels {config.channels}"]
    network += [f"predicts {config.prediction}", f"weighting {config.weighting}", f"{config.schedule} schedule"]
    network += [f"crops {', '.join(map(str, sorted(set(config.crops))))}", f"{config.pixels} pixels a batch"]
    return f"{'   '.join(facts)}\n{'   '.join(network)}"


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def _empty(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, color="grey")


def _plot_loss(axes: Axes, rows: Rows, history: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _frame(axes, "loss", "step", "loss")
    steps = column(rows, "step")
    seen, losses, _ = history
    if not len(seen):
        seen, losses = steps, column(rows, "loss")
    lines = [(seen, losses, "training"), (steps, column(rows, "val_loss"), "validation: noise error, t uniform")]
    drawn = [line for line in lines if np.isfinite(line[1]).any()]
    for index, (x, y, label) in enumerate(drawn):
        axes.plot(x, y, label=label, linewidth=1, marker="." if index else None)
    if not drawn:
        return _empty(axes, "no step was finished")
    if all((y[np.isfinite(y)] > 0).all() for _, y, _ in drawn):  # with learned uncertainty it falls below zero
        axes.set_yscale("log")
    axes.legend()


def _plot_psnr(axes: Axes, rows: Rows) -> None:
    _frame(axes, "denoising of held-back images", "step", "PSNR (dB)")
    steps = column(rows, "step")
    names = list(dict.fromkeys(name for row in rows for name in row if re.fullmatch(r"psnr_\d+", name)))
    for name in names:
        values = column(rows, name)
        (line,) = axes.plot(steps, values, marker=".")
        text = f"{name.removeprefix('psnr_')}/255\n{values[-1]:.2f} dB"
        if math.isfinite(values[-1]):
            place: dict[str, Any] = {
                "xytext": (6, 0),
                "textcoords": "offset points",
                "va": "center",
                "fontsize": "small",
            }
            axes.annotate(text, (steps[-1], values[-1]), color=line.get_color(), annotation_clip=False, **place)
    if not names:
        return _empty(axes, "no validation yet")
    if steps[-1] > steps[0]:
        axes.set_xlim(right=steps[-1] + 0.2 * (steps[-1] - steps[0]))  # room for the texts


def _plot_sizes(axes: Axes, rows: Rows) -> None:
    """Differences, because those between sizes are hundredths of a dB and those between noise levels ten dB."""
    last = rows[-1] if rows else {}
    scores: dict[str, dict[int, float]] = {}
    for name in last:
        if match := re.fullmatch(r"psnr_(\d+)_at_(\d+)", name):
            scores.setdefault(match[1], {})[int(match[2])] = float(column([last], name)[0])
    sides = sorted({side for by_side in scores.values() for side in by_side})
    _frame(axes, "the same pixels inside larger windows", "side of the window (pixels)", "PSNR difference (dB)")
    if len(sides) < 2:
        return _empty(axes, "needs held-back images of\nat least 128 x 128 pixels")
    for sigma, by_side in scores.items():
        differences = [by_side.get(side, math.nan) - by_side.get(sides[-1], math.nan) for side in sides]
        axes.plot(range(len(sides)), differences, marker="o", label=f"{sigma}/255")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(sides)), [str(side) for side in sides])
    axes.set_ylabel(f"PSNR minus that at {sides[-1]} (dB)")
    axes.legend(title="noise", fontsize="small")


def _plot_levels(axes: Axes, levels: Rows) -> None:
    _frame(
        axes,
        "noise error by noise level, in training",
        "t + 1, from the lower end of each bin",
        "mean squared error of the noise",
    )
    chosen = sorted({round(index) for index in np.linspace(0, len(levels) - 1, LEVEL_CURVES)}) if levels else []
    for index in chosen:
        row = levels[index]
        points = [(int(name[2:]), float(column([row], name)[0])) for name in row if name.startswith("t_")]
        points = [(t + 1, error) for t, error in points if error > 0]  # not those without a draw so far (NaN)
        shade = 0.85 * (1 - index / max(1, len(levels) - 1))  # the last one is black
        axes.loglog(*np.array(points).reshape(-1, 2).T, marker=".", color=str(shade), label=f"step {row['step']}")
    if not chosen:
        return _empty(axes, "no validation yet")
    axes.legend(fontsize="small")


def _plot_rate(axes: Axes, rows: Rows, history: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    _frame(axes, "learning rate", "step", "learning rate")
    steps, rates = (history[0], history[2]) if len(history[0]) else (column(rows, "step"), column(rows, "lr"))
    if not np.isfinite(rates).any():
        return _empty(axes, "not recorded")
    axes.plot(steps, rates)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _show_picture(axes: Axes, picture: Path | None) -> None:
    axes.set_axis_off()
    if picture is None:
        return _empty(axes, "no samples were drawn")
    from PIL import Image

    with Image.open(picture) as image:
        axes.imshow(np.asarray(image.convert("RGB")))
    axes.set_title(f"samples and denoised images, {picture.stem}")
