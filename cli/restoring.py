"""The work of `invdiff restore`: read, batch, solve and write, where one bad image does not stop the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from invdiff.machine.threads import Background, prepared

from . import errors
from .files import Job
from .grouping import batches
from .reading import Reading, read
from .restore_settings import Settings
from .writing import finish

if TYPE_CHECKING:
    from invdiff.restoration.solution import Solution

AHEAD = 2
"""Batches that are read before, or written after, the one in the network."""


def run(jobs: Sequence[Job], settings: Settings) -> int:
    """Restore and write every job; the exit code. One that fails does not stop the others, if there are any."""
    from invdiff.problem.problem import Problem
    from invdiff.restoration.api import solve

    failed: list[Job] = []

    def fail(job: Job, error: Exception) -> None:
        line = errors.explain(error)
        if line is None or len(jobs) == 1:
            raise error
        failed.append(job)
        click.echo(errors.about(job.source, line), err=True)

    def attempt(batch: Sequence[Reading]) -> None:
        try:
            solution = solve(
                Problem.batch([reading.problem for reading in batch]),
                settings.prior,
                settings.solver,
                samples=settings.samples,
                tolerance=settings.tolerance,
                seed=settings.seed,
                batch_size=settings.batch_size,
                ids=[reading.job.key for reading in batch],
                progress=not settings.quiet and sys.stderr.isatty(),
                **settings.hyperparameters,
            )
        except Exception as error:
            if len(batch) == 1:
                return fail(batch[0].job, error)
        else:
            for index, reading in enumerate(batch):
                behind.submit(close, reading, solution, index, len(batch))
            return None
        # One bad image must not take the others with it. Outside the except block, whose traceback would keep the failed
        # attempt's tensors in memory.
        for reading in batch:
            attempt([reading])
        return None

    def close(reading: Reading, solution: Solution, index: int, count: int) -> None:
        try:
            finish(reading, solution, index, count, settings)
        except Exception as error:
            fail(reading.job, error)

    with Background(AHEAD * settings.batch_size) as behind:
        readings = prepared(partial(read, settings=settings), jobs, AHEAD * settings.batch_size)
        for batch in batches(readings, settings.batch_size, settings.samples == "auto", fail):
            attempt(batch)
    if failed:
        names = ", ".join(job.source.name for job in failed)
        click.echo(f"restored {len(jobs) - len(failed)} of {len(jobs)} images; failed: {names}", err=True)
    return 1 if failed else 0
