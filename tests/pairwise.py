"""Products of test parameters, thinned: the few rows of a table in which every pair of values still meets.

`pytest` runs the thinned table; the other rows bear the marker `full`, which `--full` adds and `-m full` runs alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Sequence
from itertools import combinations
from typing import Any

import pytest


def pairs(**factors: Hashable) -> set[Hashable]:
    """What a row made of these factors shows: each pair of their values."""
    return set(combinations(factors.items(), 2))


def chosen(rows: Sequence[Collection[Hashable]]) -> set[int]:
    """Indices of rows that together show all that all rows show, by the greedy cover: the row that adds most comes next,
    and of two alike the earlier one. The answer depends on nothing but the rows."""
    left = set[Hashable]().union(*rows)
    queue = [(-len(row), index) for index, row in enumerate(rows)]
    heapq.heapify(queue)
    found: set[int] = set()
    while left:
        bound, index = heapq.heappop(queue)
        if (gain := len(left.intersection(rows[index]))) == -bound:
            found.add(index)
            left.difference_update(rows[index])
        elif gain:
            heapq.heappush(queue, (-gain, index))
    return found


def thinned(cases: Sequence[Any], rows: Sequence[Collection[Hashable]]) -> list[Any]:
    """The `pytest.param`s as they are where `chosen(rows)` has them, the others with the marker `full`."""
    kept = chosen(rows)
    return [
        case if index in kept else pytest.param(*case.values, marks=(*case.marks, pytest.mark.full), id=case.id)
        for index, case in enumerate(cases)
    ]
