"""Which inputs of `invdiff restore` run together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .files import Job
    from .restoring import Measurement

HELD = 4
"""Batches of measurements that wait in memory for others of their size."""


def batches(
    readings: Iterable[tuple[Job, Future[Measurement]]],
    size: int,
    alone: bool,
    fail: Callable[[Job, Exception], None],
) -> Iterator[list[Measurement]]:
    """Measurements of one shape, operator and noise, up to `size`, wherever they stand among the inputs.

    alone: whether each runs by itself. No name comes twice in a batch: random numbers are keyed by names. fail: told of
    each input that could not be read.
    """
    groups: list[list[Measurement]] = []
    for job, reading in readings:
        try:
            measurement = reading.result()
        except Exception as error:
            fail(job, error)
            continue
        # How many samples "auto" takes must not depend on the neighbours, nor the average of a noise that varies.
        if size == 1 or alone or measurement.noise.signal_dependent:
            yield [measurement]
            continue
        group = next((group for group in groups if _belongs(measurement, group)), None)
        if group is None:
            groups.append(group := [])
        group.append(measurement)
        if len(group) == size or sum(map(len, groups)) >= HELD * size:
            fullest = max(groups, key=len)
            groups.remove(fullest)
            yield fullest
    yield from groups


def _belongs(measurement: Measurement, group: Sequence[Measurement]) -> bool:
    alike = _kind(measurement) == _kind(group[0])
    return alike and all(measurement.job.key != other.job.key for other in group)


def _kind(measurement: Measurement) -> tuple[Any, ...]:
    return measurement.y.shape, measurement.operator, measurement.noise
