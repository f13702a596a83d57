"""How long an evaluation will take: seconds for a network call of each solver, measured on one image, times the calls."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from invdiff.errors import InvdiffError
from invdiff.evaluation.datasets import Source
from invdiff.evaluation.plan import Plan, Task
from invdiff.evaluation.runner import Batch, read
from invdiff.evaluation.store import Place
from invdiff.problem.simulation import degrade
from invdiff.restoration.api import restore
from invdiff.restoration.auto import choose
from invdiff.restoration.recommendation import within
from invdiff.solvers.solver import Solver

TRIED = 2
"""Network calls of the restoration that is timed."""


@dataclass(frozen=True)
class Estimate:
    """The cost of one cell. images: still to do; calls: network calls for all of them; seconds: None if the trial failed."""

    label: str
    images: int
    calls: int
    seconds: float | None


def estimate(plan: Plan, done: set[Place], limit: int | None = None) -> list[Estimate]:
    """The cost of each cell, by a short run of its solver on the first image to be done; time is taken to grow with the
    pixels."""
    rates: dict[tuple[object, ...], float | None] = {}
    found = []
    for task in plan.tasks:
        left = [source for source in task.sources[:limit] if (task.id, source.key) not in done]
        first = _first(task, left)
        if first is None:
            found.append(Estimate(task.cell.label, len(left), 0, None if left else 0.0))
            continue
        solver = solver_for(task, tuple(first.shape))
        kind = (solver.name, task.operator.family, task.data.name, task.cell.prior)
        if kind not in rates:
            rates[kind] = _rate(task, solver, first)
        rate, pixels = rates[kind], first.shape[-2] * first.shape[-1]
        calls = len(left) * solver.nfe * -(-task.cell.samples // solver.population)
        sizes = [source.size() if task.data.crop is None else None for source in left]
        share = sum(1.0 if size is None else math.prod(size) / pixels for size in sizes) / len(left)
        found.append(Estimate(task.cell.label, len(left), calls, None if rate is None else calls * rate * share))
    return found


def _first(task: Task, sources: Sequence[Source]) -> torch.Tensor | None:
    """The first image that can be read, as the task takes it."""
    for source in sources:
        image = read(Batch(task, [source], frozenset()))[source.key]
        if not isinstance(image, str):
            return image
    return None


def solver_for(task: Task, shape: tuple[int, ...]) -> Solver:
    """The solver of a task, with "auto" chosen for an image of this shape."""
    if isinstance(task.solver, Solver):
        return task.solver
    from invdiff.noise import Gaussian, noise_model

    model = noise_model(task.cell.noise)
    sigma = model.sigma if isinstance(model, Gaussian) else 0.05
    return choose(task.operator, shape, sigma, task.cell.steps, several=task.cell.samples > 1)


def _rate(task: Task, solver: Solver, truth: torch.Tensor) -> float | None:
    """Seconds for a network call of this solver, its other work included; None where it fails."""
    try:
        short = within(solver.spec, TRIED) or solver
        y = degrade(truth[None], task.operator, task.cell.noise)

        def run() -> None:
            restore(y, task.operator, task.cell.noise, task.prior, short)

        run()  # the first run makes what is kept for the later ones
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) / short.nfe
    except (InvdiffError, MemoryError):
        return None
