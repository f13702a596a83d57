"""From a run to the rows of its table: one for each cell, with intervals, and with marks for the best of each group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from invdiff.evaluation.store import Line, Run
from invdiff.files.pages.tables import BEST, TIED
from invdiff.scores.calibration import pooled
from invdiff.scores.statistics import Interval, Paired, mean_interval, paired

GROUP = ("data", "operator", "noise", "seed", "prior")
"""The settings by which rows are comparable: cells that agree in them restore the same measurements."""

ENOUGH = 6
"""The least number of images with which the p-value of a signed-rank test can fall below 5 %."""


@dataclass(frozen=True)
class Score:
    """A number for each image by which a method is judged. sign: -1 where smaller is better."""

    key: str
    title: str
    digits: int
    about: str
    sign: int = 1


SCORES = (
    Score("psnr", "PSNR (dB)", 2, "of the mean of the samples; larger is better"),
    Score("ssim", "SSIM", 4, "of the mean of the samples; larger is better"),
    Score("single.psnr", "PSNR, one sample", 2, "mean over the single samples, never the best of them"),
    Score("single.ssim", "SSIM, one sample", 4, "mean over the single samples, never the best of them"),
    Score("psnr_y", "PSNR, Y (dB)", 2, "luma channel, of the mean of the samples; larger is better"),
    Score("ssim_y", "SSIM, Y", 4, "luma channel, of the mean of the samples; larger is better"),
    Score("lpips", "LPIPS", 4, "perceptual distance; smaller is better", -1),
    Score("lpips_vgg", "LPIPS, VGG", 4, "perceptual distance by another network; smaller is better", -1),
    Score("dists", "DISTS", 4, "perceptual distance; smaller is better", -1),
    Score("crps", "CRPS", 5, "of the samples, image range [0, 1]; smaller is better", -1),
)


@dataclass(frozen=True)
class Row:
    """One cell. `images` are its scored results, `failures` the errors, both by image key; `scores` by Score.key."""

    cell: Mapping[str, Any]
    images: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, str]
    values: Mapping[str, Mapping[str, float]]  # score -> image -> number
    scores: Mapping[str, Interval]
    seconds: float | None
    memory: float | None
    marks: Mapping[str, str] = field(default_factory=dict)
    against_best: Mapping[str, Paired] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Solver, steps and samples, as far as the cell says."""
        cell = self.cell
        parts = [str(cell["solver"])]
        parts += [f"{cell['steps']} steps"] if cell.get("steps") is not None else []
        parts += [f"{cell['samples']} samples"] if cell.get("samples", 1) > 1 else []
        return ", ".join(parts)

    @property
    def gain(self) -> float | None:
        """PSNR over that of the measurement, in dB; None where y is no image."""
        pairs = [(one["psnr"], one["before"]["psnr"]) for one in self.images.values() if one.get("before")]
        return float(np.mean([float(after) - float(before) for after, before in pairs])) if pairs else None

    @property
    def calibrations(self) -> list[Mapping[str, Any]]:
        """The calibration records of the images that have one."""
        return [one["calibration"] for one in self.images.values() if one.get("calibration")]

    @property
    def calibration(self) -> dict[str, Any] | None:
        """The calibration of all images together; None where there is none."""
        return pooled(self.calibrations) if self.calibrations else None

    def mean(self, key: str) -> float | None:
        """The mean of a number over the images that have it."""
        found = [float(one[key]) for one in self.images.values() if one.get(key) is not None]
        return float(np.mean(found)) if found else None


@dataclass(frozen=True)
class Group:
    """Comparable rows: equal data, operator, noise, seed and prior."""

    settings: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """The settings in one line."""
        said = self.settings
        return f"{said['data']}, {said['operator']}, noise {said['noise']}, seed {said['seed']}, prior {said['prior']}"

    @property
    def images(self) -> list[str]:
        """The keys of all images that any of the rows has finished, in order."""
        return sorted({image for row in self.rows for image in row.images})


def groups(run: Run) -> list[Group]:
    """The rows of a run in comparable groups, in the order of run.json, those of one group marked."""
    results: dict[str, dict[str, Line]] = {}
    for line in run.results:
        results.setdefault(line["cell"], {})[line["image"]] = line
    found: dict[tuple[str, ...], list[Row]] = {}
    for cell in run.cells:
        cell = {**cell, **{key: value for key, value in run.sets.get(cell["id"], {}).items() if key == "fid"}}
        row = _row(cell, dict(sorted(results.get(cell["id"], {}).items())), run.timings)
        found.setdefault(tuple(str(cell[name]) for name in GROUP), []).append(row)
    return [Group(dict(zip(GROUP, key, strict=True)), _marked(rows)) for key, rows in found.items()]


def _row(cell: Line, results: Mapping[str, Line], costs: Mapping[tuple[str, str], Line]) -> Row:
    images = {image: one for image, one in results.items() if "error" not in one}
    failures = {image: str(one["error"]) for image, one in results.items() if "error" in one}
    values: dict[str, dict[str, float]] = {}
    for image, one in images.items():
        for key, number in _numbers(one, cell).items():
            values.setdefault(key, {})[image] = number
    timings = [costs[cell["id"], image] for image in images if (cell["id"], image) in costs]
    seconds = [float(one["seconds"]) for one in timings]
    memory = [float(one["peak_memory_mb"]) for one in timings if one.get("peak_memory_mb") is not None]
    return Row(
        cell,
        images,
        failures,
        values,
        {key: mean_interval(list(by_image.values())) for key, by_image in values.items()},
        float(np.mean(seconds)) if seconds else None,
        max(memory, default=None),
    )


def _numbers(result: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, float]:
    """The scores of one image by Score.key; those of single samples only where there are several."""
    nested = {f"single.{key}": number for key, number in (result.get("single") or {}).items()}
    flat = {**result, **(nested if cell.get("samples", 1) > 1 else {}), **(result.get("calibration") or {})}
    return {score.key: float(flat[score.key]) for score in SCORES if flat.get(score.key) is not None}


def compare(first: Mapping[str, float], second: Mapping[str, float], sign: int = 1) -> Paired | None:
    """first minus second, times sign, on the images with finite scores of both; None below two such images."""
    shared = [image for image in first if math.isfinite(first[image]) and math.isfinite(second.get(image, math.nan))]
    if len(shared) < 2:
        return None
    return paired([sign * first[image] for image in shared], [sign * second[image] for image in shared])


def _marked(rows: list[Row]) -> list[Row]:
    """The rows with their marks: for each score the best, and those that the test does not find worse.

    A mean over fewer images may be larger only because the hard ones are missing. So the best row is the one that is best
    on the images that all rows have; rows with less than half of the images are left aside, as they would leave too few.
    """
    for score in SCORES:
        able: list[Mapping[str, float]] = [row.values[score.key] for row in rows if score.key in row.values]
        if len(able) < 2:
            continue
        whole = [values for values in able if 2 * len(values) >= max(map(len, able))]
        shared = sorted(set.intersection(*map(set, whole))) or max(map(sorted, whole), key=len)
        full = [row for row in rows if set(shared) <= row.values.get(score.key, {}).keys()]
        best = max(full, key=lambda row: score.sign * np.mean([row.values[score.key][image] for image in shared]))
        rows = [_against(row, best, score) if score.key in row.values else row for row in rows]
    return rows


def _against(row: Row, best: Row, score: Score) -> Row:
    if row.cell["id"] == best.cell["id"]:
        return replace(row, marks={**row.marks, score.key: BEST})
    test = compare(best.values[score.key], row.values[score.key], score.sign)
    if test is None:
        return row
    tied = test.better != "first" and test.difference.n >= ENOUGH
    marks = {**row.marks, score.key: TIED} if tied else row.marks
    return replace(row, marks=marks, against_best={**row.against_best, score.key: test})
