"""The tables of one run, and its rows as CSV with every digit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from invdiff.evaluation.report.rows import ENOUGH, GROUP, SCORES, Group, Row, Score
from invdiff.evaluation.store import Run
from invdiff.files.pages.tables import BEST, Block, Column, Entry, Line, Table, csv_text, interval, number

LEGEND = (
    "In brackets: 95 % bootstrap interval of the mean over the images. {best}: the best of its group (same data, operator, "
    "noise, seed and prior) on the images that all of its rows have, leaving aside rows with less than half of the images. "
    "{tied}: not significantly worse than the best in a signed-rank test on the images that both have, at 5 %, each pair by "
    f"itself; below {ENOUGH} images that test cannot tell, and only the best is marked."
)
SIMULATION_LEGEND = (
    "Images are drawn from the prior, measured and restored several times; among samples of the posterior the truth has "
    "every rank equally often. {best}: no evidence against that."
)
CALIBRATION_LEGEND = (
    "Coverage: share of the true pixel values inside the central intervals of each nominal level. Spread / error: rms "
    "standard deviation of n samples, times the root of 1 + 1/n, over the rms error of their mean. Calibrated samples are "
    "covered as often as the level says, with a ratio of 1; a smaller ratio means that the samples are too narrow."
)

Shown = tuple[Column, Callable[[Row], Entry]]


def table(groups: Sequence[Group]) -> Table:
    """The results: a block for each group, a line for each cell, and the columns that any cell needs."""
    shown = _columns([row for group in groups for row in group.rows])
    blocks = [
        Block(
            group.title,
            [
                Line(str(row.cell["solver"]), [entry(row) for _, entry in shown], str(row.cell["command"]), facts(row))
                for row in group.rows
            ],
        )
        for group in groups
    ]
    return Table("solver", [column for column, _ in shown], blocks, LEGEND)


def _columns(rows: Sequence[Row]) -> list[Shown]:
    several = any(row.cell.get("samples", 1) > 1 for row in rows)
    present = {key for row in rows for key in row.scores}
    found: list[Shown] = [
        (Column("steps", "steps", "noise levels, as asked for"), lambda row: number(row.cell.get("steps"), 0))
    ]
    if several:
        about = "samples for each image, whose mean is scored"
        found.append((Column("samples", "samples", about), lambda row: number(row.cell.get("samples", 1), 0)))
    for score in SCORES:
        if score.key in present:
            found.append((Column(score.key, score.title, score.about), _scored(score)))
    if any("fid" in row.cell for row in rows):
        about = (
            "Frechet Inception distance of the set of restored images from the set of truths; little below thousands"
        )
        found.append((Column("fid", "FID", about), lambda row: number(row.cell.get("fid"), 1)))
    gain = Column("gain", "gain (dB)", "PSNR minus that of the measurement")
    residual = Column("residual", "residual", "||y - A x|| / (sigma_y sqrt m), about 1 where the noise is explained")
    memory = Column("memory", "MB", "peak memory in megabytes, the largest of the images")
    return [
        *found,
        (gain, lambda row: number(row.gain, 2, "+")),
        (residual, lambda row: number(row.mean("residual"), 3)),
        (Column("nfe", "NFE", "network calls for each image"), lambda row: number(row.mean("nfe"), 0)),
        (Column("seconds", "s/image", "seconds for each image"), lambda row: significant(row.seconds)),
        (memory, lambda row: number(row.memory, 0)),
        (Column("images", "images", "images done, and those that failed"), _count),
    ]


def significant(value: float | None) -> Entry:
    """A number with three significant digits."""
    if not value or not math.isfinite(value):
        return number(value, 0)
    return number(value, max(0, 2 - math.floor(math.log10(abs(value)))))


def _count(row: Row) -> Entry:
    done, failed = len(row.images), len(row.failures)
    return Entry(f"{done}, {failed} failed" if failed else str(done), done)


def _scored(score: Score) -> Callable[[Row], Entry]:
    def entry(row: Row) -> Entry:
        if score.key not in row.scores:
            return Entry()
        it, test = row.scores[score.key], row.against_best.get(score.key)
        about = ""
        if test is not None:
            ahead = score.sign * test.difference.mean
            about = f"the best minus this, on shared images: {ahead:+.{score.digits}f}, p = {test.p_value:.2g}"
        spread = interval(it.low, it.high, score.digits)
        return replace(number(it.mean, score.digits), mark=row.marks.get(score.key, ""), spread=spread, about=about)

    return entry


def facts(row: Row) -> str:
    """The cell's name in the folder of the run, and the solver's settings as resolved."""
    resolved = next((one["solver"] for one in row.images.values() if one.get("solver")), None)
    text = f"cell {row.cell['id']}"
    return text if resolved is None else f"{text}, {json.dumps(resolved, ensure_ascii=False)}"


def calibration_table(groups: Sequence[Group]) -> Table | None:
    """Spread over error, CRPS and coverage of the rows that have calibration records; None without any."""
    known = [(group, row, found) for group in groups for row in group.rows if (found := row.calibration)]
    if not known:
        return None
    levels = sorted({level for _, _, found in known for level in found["coverage"]}, key=float)
    heads = [
        Column("samples", "samples", "for each image"),
        Column("images", "images", "with calibration records"),
        Column("ratio", "spread / error", "about 1 where the samples are calibrated"),
        Column("crps", "CRPS", "continuous ranked probability score, smaller is better"),
        *(Column(f"coverage {level}", f"coverage {float(level):.0%}", "of the central intervals") for level in levels),
    ]
    blocks: dict[str, list[Line]] = {}
    for group, row, found in known:
        entries = [number(row.cell.get("samples"), 0), number(found["images"], 0)]
        entries += [number(found["spread_over_error"], 3), number(found["crps"], 5)]
        entries += [number(found["coverage"].get(level), 3) for level in levels]
        blocks.setdefault(group.title, []).append(Line(row.label, entries))
    return Table("solver", heads, [Block(title, lines) for title, lines in blocks.items()], CALIBRATION_LEGEND)


def simulation_table(run: Run) -> Table | None:
    """The tests with images of the prior itself (`invdiff.exactness.sbc`); None if there are none."""
    known = [(cell, run.simulations[cell["id"]]) for cell in run.cells if cell["id"] in run.simulations]
    if not known:
        return None
    heads = [
        Column("draws", "images", "drawn from the prior"),
        Column("samples", "samples", "of each"),
        Column("p", "p-value", "of all quantities together, if the samples were of the posterior"),
        Column(
            "bias",
            "largest bias",
            "of the ranks of a quantity from 1/2, on a scale of 0 to 1; above 0: samples too small",
        ),
        Column("spread", "widest spread", "of the quantity farthest from 1; above 1: samples too narrow, or biased"),
        Column("worst", "clearest in", "the quantity of the smallest p-value"),
    ]
    blocks: dict[str, list[Line]] = {}
    for cell, found in known:
        quantities = found["quantities"]
        bias = max((one["bias"] for one in quantities.values()), key=abs)
        spread = max((one["spread"] for one in quantities.values()), key=lambda value: abs(math.log(max(value, 1e-9))))
        worst = min(quantities, key=lambda name: quantities[name]["p_value"])
        p_value = Entry(f"{found['p_value']:.2g}", found["p_value"], mark=BEST if found["calibrated"] else "")
        entries = [number(found["draws"], 0), number(found["samples"], 0), p_value]
        entries += [number(bias, 3, "+"), number(spread, 2), Entry(worst)]
        title = ", ".join(str(cell[key]) for key in ("operator", "noise", "prior", "seed"))
        name = f"{cell['solver']}, {cell['steps']} steps" if cell.get("steps") else str(cell["solver"])
        blocks.setdefault(title, []).append(Line(name, entries, str(cell["command"])))
    return Table("solver", heads, [Block(title, lines) for title, lines in blocks.items()], SIMULATION_LEGEND)


def as_csv(groups: Sequence[Group]) -> str:
    """A line for each cell: its settings, every number unrounded, and the command that repeats it."""
    keys = [score.key for score in SCORES if any(score.key in row.scores for group in groups for row in group.rows)]
    return csv_text(_record(row, keys) for group in groups for row in group.rows)


def _record(row: Row, keys: Iterable[str]) -> dict[str, Any]:
    record: dict[str, Any] = {name: row.cell.get(name) for name in ("id", *GROUP, "solver", "steps", "samples")}
    for key in keys:
        it, test = row.scores.get(key), row.against_best.get(key)
        record |= {key: it and it.mean, f"{key}_low": it and it.low, f"{key}_high": it and it.high}
        record |= {f"{key}_mark": row.marks.get(key), f"{key}_p_against_best": test and test.p_value}
    record |= {"gain": row.gain, "residual": row.mean("residual"), "nfe": row.mean("nfe")}
    record |= {"seconds_per_image": row.seconds, "peak_memory_mb": row.memory}
    return record | {"images": len(row.images), "failed": len(row.failures), "command": row.cell["command"]}
