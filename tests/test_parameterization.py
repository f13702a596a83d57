"""epsilon, x_0, v and score are the same information."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff.errors import UsageError
from invdiff.parameterization import PREDICTIONS, check_prediction, to_clean, to_epsilon, to_score, to_velocity

ABARS = (1 - 1e-4, 0.9, 0.5, 0.1, 4e-5)


@pytest.fixture
def pair():
    x_0, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x_0, noise


def outputs(x_0, noise, abar):
    """What a perfect network of each kind would say."""
    return {"epsilon": noise, "sample": x_0, "v_prediction": abar**0.5 * noise - (1 - abar) ** 0.5 * x_0}


def assert_same(a, b, abar):
    # epsilon is divided by sqrt(abar), or by sqrt(1 - abar) the other way: the rounding grows by as much.
    tolerance = 1e-14 / min(abar, 1 - abar) ** 0.5
    torch.testing.assert_close(a, b, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("abar", ABARS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_the_clean_image(pair, prediction, abar):
    x_0, noise = pair
    x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise
    output = outputs(x_0, noise, abar)[prediction]
    assert_same(to_clean(prediction, output, x_t, abar), x_0, abar)
    assert_same(to_epsilon(x_0, x_t, abar), noise, abar)
    assert_same(to_velocity(x_0, noise, abar), outputs(x_0, noise, abar)["v_prediction"], abar)
    with pytest.raises(AssertionError):
        assert_same(to_clean(prediction, math.sqrt(2) * output, x_t, abar), x_0, abar)


def test_abar_may_differ_from_image_to_image(pair):
    x_0, noise = pair
    abar = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64).reshape(-1, 1, 1, 1)
    x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise
    together = to_clean("epsilon", noise, x_t, abar)
    for b in range(3):
        torch.testing.assert_close(together[b], to_clean("epsilon", noise[b], x_t[b], float(abar[b])))


def test_score_is_the_gradient_of_the_log_density(pair):
    """For x_0 ~ N(0, v), x_t ~ N(0, abar v + 1 - abar): autograd of its log density is the score."""
    abar, v = 0.6, 0.3
    x_t = pair[0].clone().requires_grad_()
    marginal = abar * v + 1 - abar
    (gradient,) = torch.autograd.grad((-0.5 * x_t**2 / marginal).sum(), x_t)
    clean = abar**0.5 * v / marginal * x_t.detach()

    def check(factor):
        score = to_score(factor * to_epsilon(clean, x_t.detach(), abar), abar)
        torch.testing.assert_close(score, gradient, rtol=1e-12, atol=1e-14)

    check(1.0)
    for mutation in (math.sqrt(2), -1.0):
        with pytest.raises(AssertionError):
            check(mutation)


def test_unknown_prediction_is_refused():
    assert check_prediction("epsilon") == "epsilon"
    with pytest.raises(UsageError, match="Did you mean 'v_prediction'"):
        to_clean("v_predicton", torch.zeros(1), torch.zeros(1), 0.5)
