"""Noise that is drawn ahead of time is the noise that is drawn on demand."""

from __future__ import annotations

import threading

import pytest
import torch

from invdiff.machine.draws_ahead import Ahead
from invdiff.machine.random import generator

CPU = torch.device("cpu")
PLANS = {
    "the same again and again": [(torch.randn, (3, 8, 8))] * 5,
    "others between": [
        (torch.randn, (4,)),
        *[(torch.randn, (40,))] * 3,
        (torch.rand, (40,)),
        *[(torch.randn, (40,))] * 3,
    ],
    "in turns": [(torch.randn, (30,)), (torch.rand, ())] * 4,
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_those_of_drawing_on_demand(plan: list, dtype: torch.dtype) -> None:
    demanded, ahead = ([generator(0, image, 0) for image in range(3)] for _ in range(2))
    draws = Ahead(ahead, dtype, CPU, pinned=False)
    for make, shape in plan:
        expected = torch.stack([make(shape, generator=g, dtype=dtype) for g in demanded])
        assert torch.equal(draws(make, shape), expected)
    draws.undo()
    for one, other in zip(demanded, ahead, strict=True):
        assert torch.equal(one.get_state(), other.get_state())


def test_numbers_for_a_caller_in_inference_mode() -> None:
    with torch.inference_mode():
        draws = Ahead([generator(0, 0, 0)], torch.float32, CPU, pinned=False)
        found = [draws(torch.randn, (6,)) for _ in range(3)]
    source = generator(0, 0, 0)
    assert torch.equal(torch.cat(found), torch.stack([torch.randn(6, generator=source) for _ in range(3)]))


def test_the_next_rows_are_drawn_before_they_are_asked_for() -> None:
    source, drawn, third = generator(0, 0, 0), [0], threading.Event()

    def make(shape: tuple[int, ...], **options: object) -> torch.Tensor:
        drawn[0] += 1
        if drawn[0] == 3:
            third.set()
        return torch.randn(shape, **options)  # type: ignore[call-overload, no-any-return]

    draws = Ahead([source], torch.float32, CPU, pinned=False)
    draws(make, (5,))
    assert drawn == [1]
    draws(make, (5,))
    assert third.wait(10)
    draws.undo()
    twin = generator(0, 0, 0)
    torch.randn(2, 5, generator=twin)
    assert torch.equal(torch.randn(3, generator=source), torch.randn(3, generator=twin))
