"""Operators, registries and plug-in files that several threads use at once."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from invdiff import operators
from invdiff.operator.from_file import load_class
from invdiff.specs.registry import Registry

THREADS = 8


def together(task: Callable[[int], object]) -> list[object]:
    """task(0), task(1), ... in threads that start at once and change places often; their results. Raises what one raised."""
    results: list[object] = [None] * THREADS
    errors: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            barrier.wait()
            results[number] = task(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    return results


def test_an_operator_keeps_tables_of_many_shapes_for_many_threads() -> None:
    operator = operators.get("identity")

    def hammer(number: int) -> None:
        for k in range(4000):
            key = (f"kind {k % 3}", (k * (number + 1)) % 11)
            assert operator.cached(key, lambda key=key: list(key)) == list(key)

    together(hammer)
    kinds = [key[0] for key in operator._cache]
    assert all(kinds.count(kind) <= 4 for kind in kinds)


def test_all_threads_get_the_value_that_was_made_first() -> None:
    operator = operators.get("identity")
    assert len(set(map(id, together(lambda number: operator.cached("told", set))))) == 1


@pytest.mark.parametrize("spec", ["mri_multicoil:acceleration=2,coils=3", "gaussian_blur:sigma=1"])
def test_threads_of_two_precisions_get_their_own_tables(spec: str) -> None:
    """A table that is cast for one thread must not be read by another that asked for another precision."""
    operator = operators.get(spec)
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = {dtype: operator.A(x.to(dtype)) for dtype in (torch.float64, torch.float32)}

    def hammer(number: int) -> None:
        dtype = (torch.float64, torch.float32)[number % 2]
        for _ in range(60):
            y = operator.A(x.to(dtype))
            assert y.dtype == dtype and torch.equal(y, expected[dtype])

    together(hammer)


def test_a_constant_that_is_cast_by_two_threads_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads change places between the moment a cast is kept and the moment it is answered."""
    from invdiff.operators.tools.tables import Constant

    @contextlib.contextmanager
    def changing_places(mode: bool = True) -> Iterator[None]:
        yield
        time.sleep(1e-5)

    monkeypatch.setattr(torch, "inference_mode", changing_places)

    constant = Constant(torch.arange(4.0, dtype=torch.float64))
    like = (torch.zeros((), dtype=torch.float64), torch.zeros(()))

    def hammer(number: int) -> None:
        for _ in range(100):
            assert constant.like(like[number % 2]).dtype == like[number % 2].dtype

    together(hammer)


def test_plug_ins_are_all_there_for_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        dist = None

        def __init__(self, name: str) -> None:
            self.name, self.value = name, f"math:{name}"

    def slow(group: str) -> list[Point]:
        time.sleep(0.05)
        return [Point("sin"), Point("cos")]

    monkeypatch.setattr(importlib.metadata, "entry_points", slow)
    registry = Registry("function", {"tan": "math:tan"}, group="functions")
    assert set(map(tuple, together(lambda number: list(registry)))) == {("cos", "sin", "tan")}


def test_a_file_runs_once_for_all_threads(tmp_path: Path) -> None:
    path = tmp_path / "op.py"
    path.write_text(
        "import time\nfrom dataclasses import dataclass\nfrom invdiff.operator import Operator\ntime.sleep(0.05)\n"
        "@dataclass(frozen=True, eq=False)\nclass Twice(Operator):\n    def A(self, x):\n        return 2 * x\n"
    )
    classes = together(lambda number: load_class(str(path))[0])
    assert len(set(classes)) == 1
