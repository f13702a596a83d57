"""What is measured of a whole cell, after its images: FID, and the test with images of the prior itself."""

from __future__ import annotations

from collections.abc import Callable

from invdiff.errors import InvdiffError
from invdiff.evaluation.pictures import file_name
from invdiff.evaluation.plan import Plan, Task
from invdiff.evaluation.runner import EVERYTHING, Share
from invdiff.evaluation.scoring import plain
from invdiff.evaluation.store import SETS, SIMULATIONS, Store, load
from invdiff.exactness import sbc
from invdiff.files.images import read_image
from invdiff.scores import perceptual

SIDE = 64
"""Pixels a side of the images drawn from the prior, unless the data are cropped or the prior has a shape of its own."""

Report = Callable[[Task, sbc.Simulation | str], None]


def needs_all_pictures(plan: Plan) -> bool:
    """Whether the protocol asks for FID and FID is available: it is computed from the pictures of all images."""
    return "fid" in plan.suite.protocol.perceptual and not perceptual.missing("fid")


def finish(
    plan: Plan,
    store: Store,
    share: Share = EVERYTHING,
    batch_size: int | None = None,
    report: Report = lambda task, found: None,
    notify: Callable[[str], None] = lambda text: None,
) -> None:
    """Append what is measured of whole cells and is not in the store yet.

    report: called with a task and the result of its simulations, or the reason why there is none, as text; notify: called
    with the reason where a cell has no FID, because its pictures were not kept.
    """
    run = load(store.folder)
    for task in plan.tasks if needs_all_pictures(plan) else []:
        keys = [line["image"] for line in run.of(task.id)]
        if len(keys) < 2 or run.sets.get(task.id, {}).get("images") == len(keys):
            continue
        folder, names = store.folder / "pictures", list(map(file_name, keys))
        restored = [folder / task.id / f"{name}-restored.png" for name in names]
        truths = [folder / task.data.name / f"{name}-truth.png" for name in names]
        lost = sum(not path.is_file() for path in (*restored, *truths))
        if lost:
            notify(f"no FID of {task.cell.label}: {lost} pictures were not kept; evaluate into a new folder")
            continue
        images = [(read_image(path).tensor[None] for path in paths) for paths in (restored, truths)]
        value = perceptual.frechet_distance(zip(*images, strict=True), task.prior.device)
        store.append_cell(SETS, task.id, {"images": len(keys), "fid": round(value, 4)})
    for task in [task for task in plan.tasks if task.cell.simulations][share.index :: share.count]:
        if task.id in run.simulations:
            continue
        try:
            found = _simulated(task, batch_size)
        except InvdiffError as error:
            report(task, str(error))
            continue
        store.append_cell(SIMULATIONS, task.id, plain(found.record()))
        report(task, found)


def _simulated(task: Task, batch_size: int | None) -> sbc.Simulation:
    cell, side = task.cell, task.data.crop or SIDE
    shape = getattr(task.prior, "shape", None) or task.operator.usable_shape((task.prior.channels or 3, side, side))
    steps = cell.steps if task.solver == "auto" else None
    return sbc.simulate(
        task.prior, task.operator, cell.noise, task.solver, steps, shape=tuple(shape), draws=cell.simulations,
        samples=cell.samples, seed=cell.seed, batch_size=batch_size,
    )  # fmt: skip
