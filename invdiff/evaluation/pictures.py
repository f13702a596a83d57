"""The pictures that a report shows: truth, measurement, restoration and uncertainty of the first images of each data set."""

from __future__ import annotations

from pathlib import Path

import torch

from invdiff.evaluation.plan import Plan, Task
from invdiff.files.images import write_image
from invdiff.restoration.solution import Solution
from invdiff.scores.comparison import as_image

STD_WHITE = 0.25
"""The standard deviation, in [0, 1] units, that is white in a map of uncertainty."""


class Album:
    """Writes 8-bit PNGs below RUN/pictures, each once. count: of the first images of each data set; None: of all."""

    def __init__(self, folder: Path, plan: Plan, count: int | None) -> None:
        self.folder = folder / "pictures"
        self._kept = {task.data.name: {source.key for source in task.sources[:count]} for task in plan.tasks}

    def add(self, task: Task, key: str, solution: Solution, truth: torch.Tensor, y: torch.Tensor, row: int) -> None:
        """The pictures of one row of a batch, if its image is among the first."""
        if key not in self._kept[task.data.name] or truth.shape[1] not in (1, 3):
            return
        name = file_name(key)
        write_image(self.folder / task.id / f"{name}-restored.png", solution.mean[row])
        if len(solution.samples) > 1:
            write_image(self.folder / task.id / f"{name}-std.png", solution.std[row] / STD_WHITE)
        self._once(self.folder / task.data.name / f"{name}-truth.png", truth[row])
        degraded = as_image(y[row], tuple(truth.shape[1:]))
        if degraded is not None:
            self._once(self.folder / "measured" / task.measurement / f"{name}-measured.png", degraded)

    def _once(self, path: Path, image: torch.Tensor) -> None:
        if not path.exists():
            write_image(path, image)


def file_name(key: str) -> str:
    """A key, which may hold folders, as the name of a file."""
    return key.replace("/", "__").replace("\\", "__")
