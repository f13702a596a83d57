"""How long an evaluation will take: a solver's own seconds for a call, measured on one image, times the calls to come."""

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
"""Network calls of a measurement."""


@dataclass(frozen=True)
class Estimate:
    """What one cell still takes: images, network calls for all of them, and seconds, None where the trial failed."""

    label: str
    images: int
    calls: int
    seconds: float | None


def estimate(plan: Plan, done: set[Place], limit: int | None = None) -> list[Estimate]:
    """For each cell, by a short run of its solver on the first image that is to be done; time grows with the pixels."""
    rates: dict[tuple[object, ...], float | None] = {}
    found = []
    for task in plan.tasks:
        left = [source for source in task.sources[:limit] if (task.id, source.key) not in done]
        pixels, calls, seconds = 0, 0, 0.0
        rate: float | None = 0.0
        if left:
            first = _first(task, left)
            if first is None:
                found.append(Estimate(task.cell.label, len(left), 0, None))
                continue
            solver = solver_for(task, tuple(first.shape))
            kind = (solver.name, task.operator.family, task.data.name, task.cell.prior)
            if kind not in rates:
                rates[kind] = _rate(task, solver, first)
            rate = rates[kind]
            calls = len(left) * solver.nfe * -(-task.cell.samples // solver.population)
            sizes = [source.size() if task.data.crop is None else None for source in left]
            pixels = first.shape[-2] * first.shape[-1]
            share = sum(1.0 if size is None else math.prod(size) / pixels for size in sizes) / len(left)
            seconds = calls * (rate or 0.0) * share
        found.append(Estimate(task.cell.label, len(left), calls, None if rate is None else seconds))
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
    """Seconds for a network call of this solver, its own work included."""
    try:
        short = within(solver.spec, TRIED) or solver
        y = degrade(truth[None], task.operator, task.cell.noise)

        def run() -> None:
            restore(y, task.operator, task.cell.noise, task.prior, short)

        run()  # the first one pays for what is made once
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) / short.nfe
    except (InvdiffError, MemoryError):
        return None
