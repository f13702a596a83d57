"""Corrections with other transitions than their paper's, and where a path starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from together import Together

from invdiff import operators, samplers, solvers
from invdiff.errors import UsageError
from invdiff.machine.random import Draws, generator
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.priors.prior import CountedPrior, Prior
from invdiff.problem.problem import Problem
from invdiff.restoration.loop import run
from invdiff.samplers.transitions import Estimate
from invdiff.solvers.solver import OWN, TRANSITIONS, Correction, Solver

N, SIGMA_Y = 4, 0.2
OTHERS = [name for name in TRANSITIONS if name != OWN]


@dataclass(frozen=True)
class Exact(Solver):
    """The exact E[x_0 | x, y] of a Gaussian prior: what every conditional transition must turn into the posterior.
    `offset` and `factor` spoil it."""

    name: ClassVar[str] = "exact_conditional"
    interchangeable: ClassVar[bool] = True
    posterior: Any = None

    def correction(self, problem: Problem, prior: Any) -> Correction:
        return lambda x, sigma, next_sigma: Estimate(prior.denoise(x, sigma), self.posterior.denoise(x, sigma))


def gaussian_problem(factor: float = 1.0) -> tuple[Problem, GaussianPrior, GaussianPrior]:
    rng = np.random.default_rng(0)
    A, root = rng.normal(size=(2, N)), rng.normal(size=(N, N)) / 4
    prior = GaussianPrior(
        torch.full((N,), 0.5, dtype=torch.float64), torch.from_numpy(root @ root.T + 0.02 * np.eye(N))
    )
    y = torch.from_numpy(rng.normal(size=(1, 2)))
    problem = Problem(operators.get("linear", matrix=A), y, SIGMA_Y, (N,))
    return problem, prior, prior.posterior(A, y[0], factor * SIGMA_Y)


def final(problem: Problem, prior: Any, solver: Solver, noise: Draws, count: int) -> torch.Tensor:
    *_, last = run(problem.rows([0] * count), prior, solver, noise)
    return last.x


def deviations(x: torch.Tensor, exact: GaussianPrior) -> float:
    """Largest error of mean and covariance in standard errors of n samples."""
    n, covariance = len(x), exact.covariance()
    variance = covariance.diagonal()
    of_mean = (x.mean(0) - exact.mean()).abs() / (variance / n).sqrt()
    error = (torch.cov(x.T) - covariance).abs()
    of_covariance = error / ((torch.outer(variance, variance) + covariance**2) / n).sqrt()
    return float(torch.cat([of_mean, of_covariance.flatten()]).max())


@pytest.mark.parametrize("transition", OTHERS)
@pytest.mark.parametrize("factor", [1.0, 2**0.5])
def test_an_exact_correction_reaches_the_posterior(transition: str, factor: float) -> None:
    """Within 5 standard errors of 3000 samples, at as many calls as make the discretisation small beside them: first
    order ones at 600. The mutation twin has sigma_y off by sqrt(2)."""
    problem, prior, exact = gaussian_problem()
    _, _, used = gaussian_problem(factor)
    steps = 100 if transition in ("heun", "dpmpp") else 600
    solver = Exact(transition=transition, steps=steps, posterior=used, sigma_max=20, sigma_min=1e-3)
    found = deviations(final(problem, prior, solver, Together(3000, (N,)), 3000), exact)
    assert (found < 5) == (factor == 1.0), found


@pytest.mark.parametrize("transition", OTHERS)
def test_without_guidance_it_is_the_sampler(transition: str) -> None:
    problem, prior, _ = gaussian_problem()
    solver = solvers.get("pigdm", weight=0, transition=transition, steps=9, sigma_max=5)
    found = final(problem, prior, solver, Draws([generator(0, 0, k) for k in range(3)], (N,), problem.y), 3)
    noise = Draws([generator(0, 0, k) for k in range(3)], (N,), problem.y)
    levels = solver.levels(problem, prior)
    x = solver.start(problem.rows([0] * 3), prior, levels[0], noise)
    with torch.no_grad():
        *_, last = samplers.get(transition).walk(prior, x, levels, noise)
    torch.testing.assert_close(found, last.x, rtol=0, atol=1e-12)


def test_guidance_by_the_score_is_tweedies_formula() -> None:
    """PiGDM with nu = the prior's variance has the exact score where the prior is N(m, nu I)."""
    A = np.random.default_rng(1).normal(size=(2, N))
    prior = GaussianPrior(torch.full((N,), 0.5, dtype=torch.float64), 0.04)
    y = torch.tensor([[0.3, 0.9]], dtype=torch.float64)
    problem, exact = Problem(operators.get("linear", matrix=A), y, SIGMA_Y, (N,)), prior.posterior(A, y[0], SIGMA_Y)
    x = torch.randn(1, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for weight, agrees in ((1.0, True), (1.1, False)):
        correction = solvers.get("pigdm", data_std=0.2, weight=weight).correction(problem, prior)
        for sigma in (0.01, 0.3, 4.0):
            error = float((correction(x, sigma, sigma).mean(sigma) - exact.denoise(x, sigma)).abs().max())
            assert (error < 1e-10) == agrees, (sigma, error)


@pytest.mark.parametrize("name", solvers.names())
def test_a_transition_fits_or_is_refused(name: str) -> None:
    if solvers.REGISTRY[name].interchangeable:
        assert solvers.get(name, transition="heun").transition == "heun"
    else:
        with pytest.raises(UsageError, match=r"transition='heun' does not fit.*diffpir.*pigdm"):
            solvers.get(name, transition="heun")


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_calls_with_a_transition(transition: str, steps: int) -> None:
    problem, prior, _ = gaussian_problem()
    solver = solvers.get("diffpir", transition=transition, steps=steps)
    counted = CountedPrior(prior)
    states = list(run(problem, counted, solver, Draws([generator(0, 0, 0)], (N,), problem.y)))
    assert states[-1].nfe == counted.calls == solver.nfe <= steps
    assert [state.steps for state in states] == [len(states)] * len(states) and states[-1].next_sigma == 0


@pytest.mark.parametrize("initial", ["noise", "prior"])
def test_where_a_path_starts(initial: str) -> None:
    """Mean and variance of the first level: N(1/2, sigma^2 + 1/4), and those of the noised prior."""
    problem, _, _ = gaussian_problem()
    prior = GaussianMixturePrior(torch.tensor([[0.0] * N, [3.0] * N], dtype=torch.float64), 0.01, [0.25, 0.75])
    noise = Together(4000, (N,))
    x = solvers.get("pigdm", initial=initial).start(problem.rows([0] * 4000), prior, 2.0, noise)
    mean, variance = (0.5, 4.25) if initial == "noise" else (2.25, 4 + 0.01 + 9 * 0.25 * 0.75)
    assert ((x.mean(0) - mean).abs() < 5 * (variance / 4000) ** 0.5).all()
    assert ((x.var(0) / variance - 1).abs() < 5 * (2 / 4000) ** 0.5).all()


class Network(Prior):
    """It has a denoiser and nothing else."""

    def denoise(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        return x / (1 + sigma**2)


def test_a_prior_that_cannot_be_sampled_cannot_start() -> None:
    problem, prior, _ = gaussian_problem()
    solver = solvers.get("pigdm", initial="prior", steps=2)
    noise = Draws([generator(0, 0, 0)], (N,), problem.y)
    assert torch.isfinite(list(run(problem, prior, solver, noise))[-1].x).all()
    with pytest.raises(UsageError, match="initial=prior needs a prior that can be sampled directly"):
        list(run(problem, Network(), solver, noise))


@pytest.mark.parametrize("spacing", ["timestep", "quadratic"])
def test_more_steps_than_the_schedule_has_are_refused(spacing: str) -> None:
    problem, prior, _ = gaussian_problem()
    assert len(solvers.get("diffpir", steps=1000, spacing=spacing).levels(problem, prior)) == 1000
    with pytest.raises(UsageError, match=r"schedule of 1000.*got 1001; spacing=log takes any number"):
        solvers.get("diffpir", steps=1001, spacing=spacing).levels(problem, prior)
    assert len(solvers.get("diffpir", steps=1001).levels(problem, prior)) == 1001
