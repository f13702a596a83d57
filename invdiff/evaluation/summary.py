"""The means over the images of each cell of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.evaluation.store import Run, load

MEASURES = ("psnr", "ssim", "psnr_y", "ssim_y", "lpips", "lpips_vgg", "dists", "residual", "nfe")


@dataclass(frozen=True)
class Summary:
    """A cell. images: with numbers; failed: without; values: name -> mean over the images, NaN where nothing was measured."""

    cell: Mapping[str, Any]
    images: int
    failed: int
    values: Mapping[str, float]

    @property
    def label(self) -> str:
        return str(self.cell["label"])

    def text(self, name: str, digits: int) -> str:
        """A value for a table, with so many decimals; - where there is none."""
        value = self.values.get(name, math.nan)
        return "-" if math.isnan(value) else f"{value:.{digits}f}"


def summaries(run: Run | str | Path) -> list[Summary]:
    """A row for each cell of a run, or of the run in a folder, in its order."""
    run = run if isinstance(run, Run) else load(run)
    found = []
    for cell in run.cells:
        name, lines = cell["id"], run.of(cell["id"])
        places = [(name, line["image"]) for line in lines]
        values = {key: mean([line[key] for line in lines if key in line]) for key in MEASURES}
        singles = [line["single"] for line in lines]
        values |= {f"single_{key}": mean([each[key] for each in singles if key in each]) for key in ("psnr", "ssim")}
        seen = [line["before"] for line in lines if line["before"]]
        values |= {f"before_{key}": mean([before[key] for before in seen if key in before]) for key in ("psnr", "ssim")}
        values["seconds"] = mean([run.timings[place]["seconds"] for place in places if place in run.timings])
        values["fid"] = run.sets.get(name, {}).get("fid", math.nan)
        failed = sum(line["cell"] == name and "error" in line for line in run.results)
        found.append(Summary(cell, len(lines), failed, values))
    return found


def mean(values: Sequence[Any]) -> float:
    """The mean of numbers, of which an infinite one may be text; NaN if there are none."""
    return math.fsum(map(float, values)) / len(values) if values else math.nan
