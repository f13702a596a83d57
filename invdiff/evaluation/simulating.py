"""Simulation-based calibration (`invdiff.exactness.sbc`) of the cells of an evaluation that ask for it."""

from __future__ import annotations

from collections.abc import Callable

from invdiff.errors import InvdiffError
from invdiff.evaluation.plan import Plan, Task
from invdiff.evaluation.runner import EVERYTHING, Share
from invdiff.evaluation.scoring import plain
from invdiff.evaluation.store import SIMULATIONS, Store, load
from invdiff.exactness import sbc

SIDE = 64
"""Pixels a side of the images drawn from the prior, unless the data are cropped or the prior has a shape of its own."""

Report = Callable[[Task, sbc.Simulation | str], None]


def simulate(
    plan: Plan,
    store: Store,
    share: Share = EVERYTHING,
    batch_size: int | None = None,
    report: Report = lambda task, found: None,
) -> None:
    """Test each cell that has `simulations` and is not tested yet, and append the results.

    report: called with the task and its result, or the reason why it could not be tested, as text.
    """
    done = load(store.folder).simulations
    wanted = [task for task in plan.tasks if task.cell.simulations]
    for task in wanted[share.index :: share.count]:
        if task.id in done:
            continue
        try:
            found = _tested(task, batch_size)
        except InvdiffError as error:
            report(task, str(error))
            continue
        store.append_cell(SIMULATIONS, task.id, plain(found.record()))
        report(task, found)


def _tested(task: Task, batch_size: int | None) -> sbc.Simulation:
    cell, side = task.cell, task.data.crop or SIDE
    shape = getattr(task.prior, "shape", None) or task.operator.usable_shape((task.prior.channels or 3, side, side))
    return sbc.simulate(
        task.prior,
        task.operator,
        cell.noise,
        task.solver,
        cell.steps if task.solver == "auto" else None,
        shape=tuple(shape),
        draws=cell.simulations,
        samples=cell.samples,
        seed=cell.seed,
        batch_size=batch_size,
    )
