"""FID, a score of a set of images, from the pictures that a run then keeps of all its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from invdiff.evaluation.pictures import file_name
from invdiff.evaluation.plan import Plan, Task
from invdiff.evaluation.store import SETS, Store, load
from invdiff.files.images import read_image
from invdiff.scores import perceptual

SET_METRICS = ("fid",)


def wanted(plan: Plan) -> bool:
    """Whether the protocol asks for a metric of sets that is at hand; all pictures are kept then."""
    asked = plan.suite.protocol.perceptual
    return any(name in asked and not perceptual.missing(name) for name in SET_METRICS)


def measure(plan: Plan, store: Store, notify: Callable[[str], None] = lambda text: None) -> None:
    """Append the FID of each cell whose number of images has changed since it was measured last.

    notify: called with the reason where a cell has no FID, because its pictures were not kept."""
    if not wanted(plan):
        return
    run = load(store.folder)
    for task in plan.tasks:
        keys = [line["image"] for line in run.of(task.id)]
        if len(keys) < 2 or run.sets.get(task.id, {}).get("images") == len(keys):
            continue
        pairs = [_files(store.folder / "pictures", task, key) for key in keys]
        lost = sum(not path.is_file() for pair in pairs for path in pair)
        if lost:
            notify(f"no FID of {task.cell.label}: {lost} pictures were not kept; evaluate into a new folder")
            continue
        value = perceptual.frechet_distance(map(_read, pairs), task.prior.device)
        store.append_cell(SETS, task.id, {"images": len(keys), "fid": round(value, 4)})


def _files(folder: Path, task: Task, key: str) -> tuple[Path, Path]:
    """The files of the restored image and of the truth."""
    name = file_name(key)
    return folder / task.id / f"{name}-restored.png", folder / task.data.name / f"{name}-truth.png"


def _read(files: tuple[Path, Path]) -> tuple[torch.Tensor, torch.Tensor]:
    restored, truth = (read_image(path).tensor[None] for path in files)
    return restored, truth
