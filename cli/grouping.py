"""Which inputs of `invdiff restore` run together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .files import Job
    from .reading import Reading

HELD = 4
"""Batches of measurements that wait in memory for others of their size."""


def batches(
    readings: Iterable[tuple[Job, Future[Reading]]],
    size: int,
    alone: bool,
    fail: Callable[[Job, Exception], None],
) -> Iterator[list[Reading]]:
    """Readings of one shape, operator and noise, up to `size`, wherever they stand among the inputs.

    alone: whether each runs by itself. No name comes twice in a batch: random numbers are keyed by names. fail: told of
    each input that could not be read.
    """
    groups: list[list[Reading]] = []
    for job, future in readings:
        try:
            reading = future.result()
        except Exception as error:
            fail(job, error)
            continue
        # How many samples "auto" takes must not depend on the neighbours, nor the average of a noise that varies.
        if size == 1 or alone or reading.problem.noise_model.signal_dependent:
            yield [reading]
            continue
        group = next((group for group in groups if _belongs(reading, group)), None)
        if group is None:
            groups.append(group := [])
        group.append(reading)
        if len(group) == size or sum(map(len, groups)) >= HELD * size:
            fullest = max(groups, key=len)
            groups.remove(fullest)
            yield fullest
    yield from groups


def _belongs(reading: Reading, group: Sequence[Reading]) -> bool:
    alike = _kind(reading) == _kind(group[0])
    return alike and all(reading.job.key != other.job.key for other in group)


def _kind(reading: Reading) -> tuple[Any, ...]:
    return reading.problem.y.shape, reading.problem.operator, reading.problem.noise_model
