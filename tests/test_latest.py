"""The latest transform of a measurement is kept, and never answers for another."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

import invdiff
from invdiff import operators
from invdiff.operator.kept import LARGEST, Latest, lasting
from invdiff.priors.gaussian import GaussianPrior
from invdiff.solvers import first_level


def test_one_tensor_is_transformed_once() -> None:
    asked = []

    def double(y: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        return 2 * y

    latest, y = Latest(), lasting(torch.ones(3))
    assert latest.of(y, double) is latest.of(y, double) and len(asked) == 1
    y[0] = 5  # written to
    assert latest.of(y, double)[0] == 10 and len(asked) == 2
    other = lasting(torch.ones(3))
    assert latest.of(other, double)[0] == 2 and latest.of(y, double)[0] == 10 and len(asked) == 4
    for copied in (copy.deepcopy(latest), copy.copy(latest)):
        assert copied.of(y, double)[0] == 10
    assert len(asked) == 6
    with torch.inference_mode():
        inner = lasting(torch.ones(3))
        latest.of(inner, double)
        inner[0] = 7
        assert latest.of(inner, double)[0] == 14
    large = lasting(torch.ones(1).expand(LARGEST + 1))
    asked.clear()
    latest.of(large, double), latest.of(large, double)
    assert len(asked) == 2


def test_it_holds_no_tensor_that_is_gone() -> None:
    latest = Latest()
    for value in range(20):  # the memory of one is given to the next: an address is no name
        y = lasting(torch.full((1000,), float(value)))
        assert latest.of(y, lambda y: y + 1)[0] == value + 1
        gone = weakref.ref(y)
        del y
        assert gone() is None


def test_the_data_step_follows_its_measurement() -> None:
    operator, z = operators.get("gaussian_blur:sigma=1"), torch.rand(2, 3, 16, 16)
    y = lasting(operator.A(torch.rand(2, 3, 16, 16)))
    fresh = operators.get("gaussian_blur:sigma=1")
    operator.prox_l2(z, y, 3.0)
    y += 0.5
    assert torch.equal(operator.prox_l2(z, y, 3.0), fresh.prox_l2(z, y.clone(), 3.0))
    y.requires_grad_(True)
    (gradient,) = torch.autograd.grad(operator.prox_l2(z, y, 3.0).sum(), y)
    assert float(gradient.abs().sum()) > 0


def test_numbers_that_numpy_writes_are_seen() -> None:
    """Which tells no version: a camera's buffer, say. Whether restored before or not."""
    buffer = np.random.default_rng(0).random((1, 3, 16, 16), dtype=np.float32)
    y, z, operator = torch.from_numpy(buffer), torch.rand(1, 3, 16, 16), operators.get("gaussian_blur:sigma=1")
    prior = GaussianPrior(torch.full((3, 16, 16), 0.5), 0.05)
    for _ in range(2):
        found = operator.prox_l2(z, y, 3.0)
        assert torch.equal(found, operators.get("gaussian_blur:sigma=1").prox_l2(z, y, 3.0))
        restored = invdiff.restore(y, operator, 0.05, prior=prior, solver="diffpir", steps=3).samples
        fresh = invdiff.restore(
            y.clone(), "gaussian_blur:sigma=1", 0.05, prior=prior, solver="diffpir", steps=3
        ).samples
        assert torch.equal(restored, fresh)
        buffer += 0.5


@pytest.mark.parametrize("spec", ["gaussian_blur:sigma=1", "inpaint:keep=0.5"])
def test_a_run_transforms_its_measurement_once(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, of = [], Latest.of

    def counting(self: Latest, y: torch.Tensor, f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return of(self, y, lambda y: asked.append(1) or f(y))

    monkeypatch.setattr(Latest, "of", counting)
    operator, prior = operators.get(spec), GaussianPrior(torch.full((3, 16, 16), 0.5), 0.05)
    y = invdiff.degrade(torch.rand(1, 3, 16, 16), operator, noise=0.05)
    invdiff.restore(y, operator, 0.05, prior=prior, solver="pigdm", steps=6)
    assert asked == [1]


def test_samples_and_images_share_what_an_operator_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four samples of three images, in batches of two: one decomposition, one first level."""
    made: list[str] = []
    blur, prepare, errors = operators.GaussianBlur, operators.GaussianBlur._make_engine, first_level._errors
    monkeypatch.setattr(blur, "_make_engine", lambda self, size: made.append("engine") or prepare(self, size))
    monkeypatch.setattr(first_level, "_errors", lambda *arguments: made.append("level") or errors(*arguments))
    operator, prior = operators.get("gaussian_blur:sigma=1"), GaussianPrior(torch.full((3, 16, 16), 0.5), 0.05)
    y = invdiff.degrade(torch.rand(3, 3, 16, 16), operator, noise=0.05)
    invdiff.restore(y, operator, 0.05, prior=prior, solver="diffpir", steps=3, samples=4, batch_size=2)
    invdiff.restore(y, operator, 0.05, prior=prior, solver="dpir", steps=3, batch_size=2)
    assert made == ["engine", "level"]
