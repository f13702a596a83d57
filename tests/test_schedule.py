"""Noise schedules against diffusers, against their own definition, and against the continuous limit."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch

from invdiff.diffusion.schedule import Schedule, cosine_betas, linear_betas, scaled_linear_betas
from invdiff.errors import UsageError

DIFFUSERS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "quadratic": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
NAMES = sorted(DIFFUSERS)
FORMULAS = {
    "linear": lambda t, T: 1e-4 + (0.02 - 1e-4) * t / (T - 1),
    "scaled_linear": lambda t, T: (math.sqrt(1e-4) + (math.sqrt(0.02) - math.sqrt(1e-4)) * t / (T - 1)) ** 2,
    "quadratic": lambda t, T: (math.sqrt(1e-4) + (math.sqrt(0.02) - math.sqrt(1e-4)) * t / (T - 1)) ** 2,
    "cosine": lambda t, T: min(
        0.999,
        1
        - (math.cos(((t + 1) / T + 0.008) / 1.008 * math.pi / 2) / math.cos((t / T + 0.008) / 1.008 * math.pi / 2))
        ** 2,
    ),
}


def close(a, b, rtol=1e-12, atol=0.0):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


def must_fail(check, *arguments):
    """The mutation twin: the same check has to notice a wrong value."""
    with pytest.raises(AssertionError):
        check(*arguments)


def diffusers_scheduler(name: str, **options):
    """diffusers builds its tables in torch.float32; here in float64, by what that name stands for while it does."""
    from diffusers import DDPMScheduler

    with mock.patch.object(torch, "float32", torch.float64):
        scheduler = DDPMScheduler(beta_schedule=DIFFUSERS[name], clip_sample=False, **options)
    assert scheduler.betas.dtype == torch.float64
    return scheduler


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_those_of_diffusers(name):
    theirs = diffusers_scheduler(name)

    def check(ours):
        close(ours.betas, theirs.betas)
        close(ours.alphas_bar, theirs.alphas_cumprod)

    check(Schedule.named(name))
    check(Schedule.from_diffusers(theirs))
    check(Schedule.from_diffusers(dict(theirs.config)))
    must_fail(check, Schedule(Schedule.named(name).betas * (1 + 1e-9)))


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_their_formula(name):
    schedule = Schedule.named(name, 300)
    betas = np.array([FORMULAS[name](t, 300) for t in range(300)])
    close(schedule.betas, betas)
    close(schedule.alphas, 1 - betas)
    close(schedule.alphas_bar, [math.prod(1 - betas[: t + 1]) for t in range(300)], rtol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_default_tables_of_diffusers_agree_to_float32(name):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_schedule=DIFFUSERS[name])
    close(theirs.betas.double(), Schedule.named(name).betas, rtol=2e-6)


def test_trained_betas_are_taken_as_they_are():
    betas = [0.1, 0.3, 0.2]
    close(Schedule.from_diffusers({"trained_betas": betas, "beta_schedule": "linear"}).betas, betas)


@pytest.mark.parametrize("name", NAMES)
def test_posterior_is_that_of_diffusers(name):
    theirs, ours = diffusers_scheduler(name, prediction_type="sample"), Schedule.named(name)
    generator = torch.Generator().manual_seed(0)
    x_t, x_0 = torch.randn(2, 1, 1, 2, 2, generator=generator, dtype=torch.float64)

    def check_variance(scale):
        for t in (1, 2, 10, 500, 998, 999):
            close(scale * ours.posterior_variances[t], theirs._get_variance(t), rtol=1e-9)

    def check_mean(x_0_scale):
        for t in (0, 1, 2, 10, 500, 999):
            with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: torch.zeros(shape)):
                step = theirs.step(x_0, t, x_t).prev_sample
            close(ours.posterior(x_t, x_0_scale * x_0, t).mean, step, rtol=1e-9, atol=1e-12)

    check_variance(1.0)
    must_fail(check_variance, math.sqrt(2))
    check_mean(1.0)
    must_fail(check_mean, math.sqrt(2))


@pytest.mark.parametrize("name", NAMES)
def test_posterior_follows_from_bayes_rule(name):
    """x_{t-1} and x_t are jointly Gaussian given x_0: regress the first on the second."""
    schedule, x_0, x_t = Schedule.named(name, 200), *torch.tensor([0.7, -1.3], dtype=torch.float64)
    before = schedule.alphas_bar_previous

    def check(factor):
        for t in range(200):
            mean_before, variance_before = math.sqrt(before[t]) * x_0, 1 - before[t]
            step = schedule.step(mean_before, t)
            covariance = math.sqrt(schedule.alphas[t]) * variance_before
            gain = covariance / (schedule.alphas[t] * variance_before + step.variance)
            posterior = schedule.posterior(x_t, x_0, t)
            close(posterior.mean, mean_before + gain * (x_t - step.mean), rtol=1e-9)
            # 1 - abar_t is a difference of numbers near 1: its error is eps / (1 - abar_t).
            close(factor * posterior.variance, variance_before - gain * covariance, rtol=1e-9, atol=1e-15)

    check(1.0)
    must_fail(check, math.sqrt(2))


@pytest.mark.parametrize("name", NAMES)
def test_iterated_steps_give_the_marginal_exactly(name):
    schedule = Schedule.named(name, 300)

    def check(factor):
        mean, variance = torch.tensor(1.0, dtype=torch.float64), 0.0
        for t in range(300):
            step = schedule.step(mean, t)
            mean, variance = step.mean, schedule.alphas[t] * variance + factor * step.variance
            marginal = schedule.marginal(torch.tensor(1.0, dtype=torch.float64), t)
            close(mean, marginal.mean, rtol=1e-10)
            close(variance, marginal.variance, rtol=1e-10, atol=1e-15)

    check(1.0)
    must_fail(check, math.sqrt(2))


def test_simulated_chain_has_the_moments_of_the_marginal():
    count, x_0 = 40_000, 0.8
    schedule = Schedule.named("linear", 40, 1e-3, 0.1)

    def check(factor):
        generator = torch.Generator().manual_seed(0)
        x = torch.full((count,), x_0, dtype=torch.float64)
        for t in range(40):
            step = schedule.step(x, t)
            noise = torch.randn(count, generator=generator, dtype=torch.float64)
            x = step.mean + math.sqrt(factor * step.variance) * noise
            marginal = schedule.marginal(torch.tensor(x_0), t)
            assert abs(float(x.mean() - marginal.mean)) < 5 * math.sqrt(marginal.variance / count)
            assert abs(float(x.var()) / marginal.variance - 1) < 5 * math.sqrt(2 / count)

    check(1.0)
    must_fail(check, math.sqrt(2))


def test_simulated_reverse_step_undoes_a_forward_step():
    """x_t ~ q(x_t | x_0), then x_{t-1} ~ q(x_{t-1} | x_t, x_0), must be q(x_{t-1} | x_0)."""
    count, x_0, t = 40_000, torch.tensor(0.8, dtype=torch.float64), 20
    schedule = Schedule.named("linear", 40, 1e-3, 0.1)

    def check(factor):
        noise = torch.randn(2, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        now, before = schedule.marginal(x_0, t), schedule.marginal(x_0, t - 1)
        posterior = schedule.posterior(now.mean + math.sqrt(now.variance) * noise[0], x_0, t)
        x = posterior.mean + math.sqrt(factor * posterior.variance) * noise[1]
        assert abs(float(x.mean() - before.mean)) < 5 * math.sqrt(before.variance / count)
        assert abs(float(x.var()) / before.variance - 1) < 5 * math.sqrt(2 / count)

    check(1.0)
    must_fail(check, 2.0)


@pytest.mark.parametrize("name", NAMES)
def test_sigma_and_snr_are_the_same_information(name):
    schedule = Schedule.named(name)
    close(schedule.snr, 1 / schedule.sigmas**2, rtol=1e-10)
    close(1 / (1 + schedule.sigmas**2), schedule.alphas_bar, rtol=1e-10)
    assert (np.diff(schedule.sigmas) > 0).all()
    close(schedule.alphas_bar_previous[1:], schedule.alphas_bar[:-1])
    assert schedule.alphas_bar_previous[0] == 1


@pytest.mark.parametrize("name", NAMES)
def test_t_and_sigma_are_inverse_for_fractional_t(name):
    schedule = Schedule.named(name)
    t = np.linspace(0, 999, 3001)

    def check(factor):
        close(schedule.t(factor * schedule.sigma(t)), t, rtol=1e-9, atol=1e-9)

    check(1.0)
    must_fail(check, math.sqrt(2))
    assert (np.diff(schedule.sigma(t)) > 0).all()
    close(schedule.sigma(np.arange(1000)), schedule.sigmas)
    assert isinstance(float(schedule.t(schedule.sigma(3.5))), float)
    assert schedule.t(schedule.sigmas[0] / 2) == 0
    assert schedule.t(schedule.sigmas[-1] * 2) == 999


def limit_errors(factor=1.0):
    """|log abar_T + int_0^1 beta| and the Euler-Maruyama error in the variance; T = 100 .. 800, beta = 0.1 .. 20."""
    integral = (0.1 + 20) / 2
    log_errors, variance_errors, steps = [], [], (100, 200, 400, 800)
    for T in steps:
        schedule = Schedule.named("linear", T, 0.1 / T, 20 / T)
        log_errors.append(abs(math.log(schedule.alphas_bar[-1]) + integral))
        half = T // 2  # at the end the variance is 1 whatever the schedule: look half way
        mean, variance = torch.tensor(1.0, dtype=torch.float64), 0.0
        for t in range(half):
            s = (t + 1) / T
            slope = 1 + float(schedule.drift(torch.tensor(1.0, dtype=torch.float64), s)) / T
            mean, variance = mean * slope, variance * slope**2 + factor * schedule.diffusion(s) ** 2 / T
        variance_errors.append(abs(variance - (1 - schedule.alphas_bar[half - 1])))
    return [np.polyfit(np.log(steps), np.log(errors), 1)[0] for errors in (log_errors, variance_errors)]


def test_the_chain_converges_to_the_vp_sde_at_first_order():
    slopes = limit_errors()
    # First order; the next term of the expansion is a few per cent of the first at T = 100.
    assert all(abs(slope + 1) < 0.1 for slope in slopes), slopes
    assert abs(limit_errors(factor=math.sqrt(2))[1] + 1) > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_beta_of_the_sde_passes_through_the_table(name):
    schedule = Schedule.named(name, 100)
    close(schedule.beta((np.arange(100) + 1) / 100), 100 * schedule.betas, rtol=1e-9)
    assert schedule.diffusion(0.5) ** 2 == pytest.approx(schedule.beta(0.5))
    assert float(schedule.drift(torch.tensor(2.0), 0.5)) == pytest.approx(-float(schedule.beta(0.5)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Schedule.named("linaer"), "Did you mean 'linear'"),
        (lambda: Schedule.named("linear", 0), "positive whole number"),
        (lambda: Schedule.named("linear", 2.5), "positive whole number"),
        (lambda: Schedule.named("linear", 10, 0.3, 0.2), "start <= end"),
        (lambda: Schedule.named("cosine", 10, start=0.1, end=0.2), "leave them out"),
        (lambda: Schedule(np.array([0.1, np.nan])), "between 0 and 1"),
        (lambda: Schedule(np.array([0.1, 1.0])), "between 0 and 1"),
        (lambda: Schedule(np.zeros((2, 2))), "vector"),
        (lambda: Schedule(np.zeros(0)), "vector"),
        (lambda: Schedule.from_diffusers({"beta_schedule": "sigmoid"}), "unknown diffusers beta_schedule"),
        (lambda: Schedule.from_diffusers({"rescale_betas_zero_snr": True}), "zero terminal SNR"),
        (lambda: Schedule.named("linear").sigma(1000), "t must lie in"),
        (lambda: Schedule.named("linear").sigma(-0.1), "t must lie in"),
        (lambda: Schedule.named("linear").t(0.0), "sigma must be positive"),
        (lambda: Schedule.named("linear").t(float("nan")), "sigma must be positive"),
        (lambda: Schedule.named("linear").step(torch.zeros(1), 1000), "whole number from 0 to 999"),
        (lambda: Schedule.named("linear").posterior(torch.zeros(1), torch.zeros(1), 0.5), "whole number"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_equality_is_that_of_the_tables():
    assert Schedule.named("quadratic") == Schedule.named("scaled_linear")
    assert Schedule.named("linear") != Schedule.named("cosine")
    close(linear_betas(3, 0.1, 0.3), [0.1, 0.2, 0.3])
    close(scaled_linear_betas(2, 0.01, 0.04), [0.01, 0.04])
    assert cosine_betas(10)[-1] == 0.999
    assert len(Schedule.named("linear", 7)) == 7
