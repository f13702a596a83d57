"""The pictures that a run keeps for its report: truth, measurement, restoration and spread of the first images."""

from __future__ import annotations

from pathlib import Path

import torch

from invdiff.evaluation.plan import Plan, Task
from invdiff.files.images import write_image
from invdiff.restoration.solution import Solution
from invdiff.scores.comparison import as_image

STD_WHITE = 0.25
"""The standard deviation of samples, in [0, 1] units, that is white in its picture."""


class Album:
    """Writes 8-bit PNGs below RUN/pictures. count: of the first so many images of each data set, None for all of them."""

    def __init__(self, folder: Path, plan: Plan, count: int | None) -> None:
        self.folder: Path = folder / "pictures"
        self._kept = {task.data.name: {source.key for source in task.sources[:count]} for task in plan.tasks}

    def add(self, task: Task, key: str, solution: Solution, truth: torch.Tensor, y: torch.Tensor, row: int) -> None:
        """Write the pictures of one row of a batch, if its image is among the first."""
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
    """The key of an image, which may hold folders, as part of a file's name."""
    return key.replace("/", "__").replace("\\", "__")
