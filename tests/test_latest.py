"""The latest transform of a measurement is kept, and never answers for another."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

import invdiff
from invdiff import operators
from invdiff.latest import LARGEST, Latest
from invdiff.priors.gaussian import GaussianPrior
from invdiff.solvers import first_level


def test_one_tensor_is_transformed_once() -> None:
    asked = []

    def double(y: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        return 2 * y

    latest, y = Latest(), torch.ones(3)
    assert latest.of(y, double) is latest.of(y, double) and len(asked) == 1
    y[0] = 5  # written to
    assert latest.of(y, double)[0] == 10 and len(asked) == 2
    other = torch.ones(3)
    assert latest.of(other, double)[0] == 2 and latest.of(y, double)[0] == 10 and len(asked) == 4
    for copied in (copy.deepcopy(latest), copy.copy(latest)):
        assert copied.of(y, double)[0] == 10
    assert len(asked) == 6
    with torch.inference_mode():
        inner = torch.ones(3)
        latest.of(inner, double)
        inner[0] = 7
        assert latest.of(inner, double)[0] == 14
    large = torch.ones(1).expand(LARGEST + 1)
    asked.clear()
    latest.of(large, double), latest.of(large, double)
    assert len(asked) == 2


def test_it_holds_no_tensor_that_is_gone() -> None:
    latest = Latest()
    for value in range(20):  # the memory of one is given to the next: an address is no name
        y = torch.full((1000,), float(value))
        assert latest.of(y, lambda y: y + 1)[0] == value + 1
        del y
        gc.collect()


def test_the_data_step_follows_its_measurement() -> None:
    operator, z = operators.get("gaussian_blur:sigma=1"), torch.rand(2, 3, 16, 16)
    y = operator.A(torch.rand(2, 3, 16, 16))
    fresh = operators.get("gaussian_blur:sigma=1")
    operator.prox_l2(z, y, 3.0)
    y += 0.5
    assert torch.equal(operator.prox_l2(z, y, 3.0), fresh.prox_l2(z, y.clone(), 3.0))
    y.requires_grad_(True)
    (gradient,) = torch.autograd.grad(operator.prox_l2(z, y, 3.0).sum(), y)
    assert float(gradient.abs().sum()) > 0


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
