"""epsilon, x_0, v and score are the same information."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from invdiff.diffusion.parameterization import (
    FORMS,
    PREDICTIONS,
    check_prediction,
    convert,
    to_clean,
    to_epsilon,
    to_score,
    to_velocity,
)
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import UsageError

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


# Any form into any other

LINEAR = Schedule.named("linear")


def every_form(x_0, noise, t):
    """What a perfect network of each kind would say at time t, from definitions: mu by Bayes' rule, score by autograd, and
    EDM's F as the one that its preconditioning turns into x_0."""
    abar = LINEAR.alphas_bar[t]
    x_t = abar**0.5 * x_0 + (1 - abar) ** 0.5 * noise
    x = x_t.clone().requires_grad_()
    (score,) = torch.autograd.grad((-0.5 * (x - abar**0.5 * x_0) ** 2 / (1 - abar)).sum(), x)
    velocity = abar**0.5 * noise - (1 - abar) ** 0.5 * x_0
    forms = {"epsilon": noise, "sample": x_0, "v_prediction": velocity, "score": score}
    forms |= {"mean": LINEAR.posterior(x_t, x_0, t).mean, "edm": edm_network(x_0, x_t, LINEAR.sigmas[t], 1.0)}
    return x_t, forms


def edm_network(x_0, x_t, sigma, sigma_data):
    """F with D(x; sigma) = c_skip x + c_out F = x_0 for x = x_0 + sigma n  (Karras et al. 2022, table 1)."""
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / math.sqrt(sigma**2 + sigma_data**2)
    return (x_0 - c_skip * x_t * math.sqrt(1 + sigma**2)) / c_out


@pytest.mark.parametrize("source, target", list(itertools.product(FORMS, FORMS)))
def test_every_form_becomes_every_other(pair, source, target):
    x_0, noise = pair
    for t in (0, 1, 10, 300, 999):
        x_t, forms = every_form(x_0, noise, t)
        abar, alpha = LINEAR.alphas_bar[t], LINEAR.alphas[t]
        # The largest factor between two forms: 1 / sqrt(abar) = 160, 1 / sqrt(1 - abar) = 100, sqrt(1 - abar) / beta = 100;
        # the worst conversion takes two of them, and 1 - abar itself has lost four digits.
        scale = float(forms[target].abs().max())

        def check(factor, t=t, x_t=x_t, forms=forms, abar=abar, alpha=alpha, scale=scale):
            result = convert(source, target, factor * forms[source], x_t, abar, alpha)
            torch.testing.assert_close(result, forms[target], rtol=0, atol=1e-10 * scale)

        check(1.0)
        for mutation in (math.sqrt(2), -1.0):
            with pytest.raises(AssertionError):
                check(mutation)


def test_only_sigma_data_of_one_makes_edm_a_v_network(pair):
    x_0, noise = pair
    x_t, forms = every_form(x_0, noise, 300)
    sigma, abar = LINEAR.sigmas[300], LINEAR.alphas_bar[300]
    for sigma_data in (1.0, 0.5):
        network = edm_network(x_0, x_t, sigma, sigma_data)
        assert torch.allclose(network, -forms["v_prediction"]) == (sigma_data == 1.0)
        c_in = 1 / math.sqrt(sigma**2 + sigma_data**2)
        assert torch.allclose(c_in * x_t / abar**0.5, x_t) == (sigma_data == 1.0)  # what the network is shown


def test_convert_refuses_what_it_cannot_do():
    zero = torch.zeros(1)
    with pytest.raises(UsageError, match="Did you mean 'score'"):
        convert("epsilon", "scores", zero, zero, 0.5)
    for source, target in (("mean", "epsilon"), ("epsilon", "mean")):
        with pytest.raises(UsageError, match="pass alpha="):
            convert(source, target, zero, zero, 0.5)
    assert convert("mean", "mean", zero, zero, 0.5) is zero
