"""What only particle methods have to keep: weights, resampling, memory, and convergence to the exact posterior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from laws import reference_particles
from laws.test_solver_laws import make_problem, path_error

import invdiff
from invdiff import operators, solvers
from invdiff.errors import NumericalError, UsageError
from invdiff.machine.random import Draws, generator
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.problem.problem import Problem
from invdiff.restoration.loop import run
from invdiff.solvers import fps_smc, mcg_diff, particles, tds
from invdiff.solvers.particles import effective_size, systematic

METHODS = ["mcg_diff", "tds", "tds:spread=0.25", "fps_smc"]


@pytest.mark.parametrize("operator_spec", ["downsample:factor=2", "inpaint:keep=0.6,seed=1", "linear"])
@pytest.mark.parametrize("spec", ["tds:particles=3", "tds:particles=3,twist=scalar", "tds:particles=2,twist=tweedie"])
def test_path_of_the_papers_kernel(spec: str, operator_spec: str) -> None:
    """With spread=0 a population can end as copies of one particle, which the law of different samples excludes."""
    assert path_error(spec, operator_spec) < 1e-8


ACTING = [
    ("mcg_diff:particles=4", "eta", 0.97),
    ("mcg_diff:particles=4,kappa=0.01", "kappa", 0.011),
    ("mcg_diff:particles=4", "threshold", 0.0),
    ("tds:particles=4,twist=scalar", "data_std", 0.52),
    ("tds:particles=4,spread=0.4", "spread", 0.41),
    ("tds:particles=4", "threshold", 0.0),
    ("fps_smc:particles=4,fresh=0.5", "fresh", 0.52),
    ("fps_smc:particles=4", "threshold", 0.0),
]


@pytest.mark.parametrize(("spec", "name", "value"), ACTING)
def test_path_law_catches_a_wrong_hyperparameter(spec: str, name: str, value: float) -> None:
    """Mutation twin of the path law."""
    assert path_error(spec, "downsample:factor=2", settings={name: value}) > 1e-5


def test_systematic_resampling() -> None:
    """Particle i is taken floor or ceil of N w_i times, N w_i on average over u, and rows do not see each other."""
    weights = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.01, 0.01, 0.01, 0.97]], dtype=torch.float64)
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.stack([_counts(systematic(weights.log() + 7, u.expand(2, 1))) for u in grid])
    assert ((counts >= (4 * weights).floor()) & (counts <= (4 * weights).ceil())).all()
    torch.testing.assert_close(counts.mean(0), 4 * weights, rtol=0, atol=2e-3)  # a grid of 1000 points u
    for index in systematic(torch.zeros(3, 5), torch.tensor([[0.001], [0.5], [0.999]])):
        assert index.tolist() == [0, 1, 2, 3, 4]  # equal weights change nothing


def _counts(index: torch.Tensor) -> torch.Tensor:
    return torch.stack([(index == i).sum(1) for i in range(index.shape[1])], 1).double()


def test_effective_size() -> None:
    """N for equal weights, 1 for a single one, and no overflow for log weights of any size."""
    table = torch.tensor([[3.0, 3.0, 3.0], [0.0, -2000.0, -2000.0], [1e4, 1e4, -1e4]], dtype=torch.float64)
    torch.testing.assert_close(effective_size(table), torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("spec", METHODS)
def test_chunks_change_nothing(spec: str) -> None:
    problem, prior, _ = make_problem("downsample:factor=2")
    settings = dict(operator=problem.operator, noise=problem.sigma_y, prior=prior, steps=4, particles=5, samples=5)
    whole = invdiff.restore(problem.y, solver=spec, **settings)
    parts = invdiff.restore(problem.y, solver=spec, chunk=2, **settings)
    torch.testing.assert_close(whole.samples, parts.samples, rtol=0, atol=1e-10)
    assert whole.nfe == parts.nfe == 20


@pytest.mark.parametrize("spec", METHODS)
def test_effective_sample_size_is_reported(spec: str) -> None:
    """(runs, images, moves), between 1 and N; one run of N particles gives N samples."""
    problem, prior, _ = make_problem("downsample:factor=2")
    solution = invdiff.restore(
        problem.y, problem.operator, problem.sigma_y, prior=prior, solver=spec, steps=4, particles=5, samples=5
    )
    ess = solution.diagnostics["ess"]
    assert ess.shape == (1, 1, 4) and (ess >= 1 - 1e-9).all() and (ess <= 5 + 1e-9).all()
    assert len(solution.samples) == 5


def test_particles_that_cannot_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how many would, and that many pass."""
    free = type("Memory", (), {"available": 10 * 6 * 64 * 8 + 100})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    problem, prior, _ = make_problem("identity")
    settings = dict(operator=problem.operator, noise=problem.sigma_y, prior=prior, solver="fps_smc", steps=2)
    with pytest.raises(UsageError, match=r"fps_smc: 11 particles of 1x8x8 values.*particles=10 would fit"):
        invdiff.restore(problem.y, particles=11, **settings)
    invdiff.restore(problem.y, particles=10, **settings)


class Squared(operators.get("identity").__class__):
    linear = False
    has_svd = False
    A_vjp = invdiff.operator.Operator.A_vjp

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x**2


class Doubled(Squared):
    def A(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def flat(value: float) -> torch.Tensor:
    return torch.full((1, 8, 8), value, dtype=torch.float64)


def test_the_scalar_twist_follows_the_slope_of_a_curve() -> None:
    """y = x^5 has slope 5 at 1: a twist that takes it for 1 overshoots, step by step further."""
    curve = operators.get("gamma:exponent=5")
    n = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, prior = curve.A(0.7 + 0.2 * n[0]) + 0.02 * n[1], GaussianPrior(flat(0.7), 0.04)
    solution = invdiff.restore(y, curve, 0.02, prior=prior, solver="tds:particles=1", steps=20)
    assert float(solution.residual) < 2
    with pytest.raises(NumericalError):
        invdiff.restore(y, curve, 0.02, prior=prior, solver="tds:particles=1,twist=plain", steps=20)


def test_the_scalar_twist_of_a_curve_that_is_straight_is_that_of_the_line() -> None:
    y, prior = flat(0.9)[None], GaussianPrior(flat(0.5), 0.05)
    settings = dict(noise=0.1, prior=prior, solver="tds:twist=scalar,particles=4", steps=5)
    line = invdiff.restore(y, 2 * operators.get("identity"), **settings).mean
    curve = invdiff.restore(y, Doubled(), **settings).mean
    other = invdiff.restore(y, Squared(), **settings).mean
    assert torch.allclose(curve, line, atol=1e-9) and not torch.allclose(other, line, atol=1e-2)


def test_a_nonlinear_operator_is_followed() -> None:
    y, prior = flat(0.3)[None], GaussianPrior(flat(0.5), 0.05)
    x = invdiff.restore(y, Squared(), 0.05, prior=prior, solver="tds", steps=30).mean
    # y says |x| = sqrt(0.3), with a deviation of 0.05 / (2 sqrt(0.3)) = 0.046 a pixel; the prior (0.22) pulls by 4 % of 0.05.
    assert abs(float(x.mean()) - 0.3**0.5) < 0.046, float(x.mean())


# Convergence. Two modes, of unequal weight, told apart by a third number as well: what y says decides the mode weights.
MEANS = torch.tensor([[0.2, 0.2, 0.0], [0.9, 0.7, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.7, 0.3], dtype=torch.float64)
DEVIATION, NOISE = 0.1, 0.2
MATRIX = np.array([[1.0, 0.5, 0.0]])
RUNS = 60
COUNTS = [64, 256, 1024]
SPECS = {
    "tds": "tds:spread=0.1,steps=40,sigma_min=0.03",
    "mcg_diff": "mcg_diff:steps=60,sigma_min=0.01",
    "fps_smc": "fps_smc:steps=60,sigma_min=0.02",
}


def mode_weights(spec: str, count: int, runs: int = RUNS) -> np.ndarray:
    """The share of the second mode in `runs` populations of `count` particles."""
    prior, problem, _ = mixture()
    solver = solvers.get(spec, particles=count, sigma_max=8.0, initial="prior")
    noise = Draws([generator(3, spec, k) for k in range(runs)], (3,), problem.y)
    *_, last = run(problem.rows([0] * runs), prior, solver, noise)
    assert last.population is not None
    distance = (last.population[..., None, :] - MEANS).norm(dim=-1)
    return (distance[..., 1] < distance[..., 0]).double().mean(1).numpy()


def mixture() -> tuple[GaussianMixturePrior, Problem, float]:
    """The prior, the problem, and the exact weight of the second mode."""
    prior = GaussianMixturePrior(MEANS, torch.tensor([[DEVIATION**2]]), WEIGHTS)
    operator, y = operators.get("linear", matrix=MATRIX), torch.tensor([[0.75]], dtype=torch.float64)
    return prior, Problem(operator, y, NOISE, (3,)), float(prior.posterior(MATRIX, y[0], NOISE).weights[1])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_mode_weights_converge_to_the_exact_posterior(spec: str) -> None:
    """The mean of many populations is exact, and the error of one falls as N^(-1/2)."""
    exact = mixture()[2]
    found = [mode_weights(spec, count) for count in COUNTS]
    errors = [float(np.sqrt(np.mean((shares - exact) ** 2))) for shares in found]
    slope = np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]
    # log of a root mean square of R values deviates by 1 / sqrt(2 R); over log 16 between the outer counts that is a slope
    # of 0.047. Five of them.
    assert abs(slope + 0.5) < 5 * (2 / (2 * RUNS)) ** 0.5 / np.log(16), (slope, errors)
    off = abs(found[-1].mean() - exact) / (found[-1].std() / RUNS**0.5)
    assert off < 5, (found[-1].mean(), exact, off)


class _NoProposal(tds._Twisted):
    """Forgets that particles were moved by the proposal and not by the model."""

    def move(self, view, sigma, next_sigma, draws):
        x, gained = super().move(view, sigma, next_sigma, draws)
        k = (next_sigma / sigma) ** 2
        drift = (1 - k) * (view.estimate - view.clean)
        total = next_sigma**2 * (1 - k) + (1 - k) ** 2 * tds._variance(sigma, self.settings.spread)
        fresh = x - torch.lerp(view.clean, view.x, k) - drift
        return x, gained + particles.inner(drift, 2 * fresh + drift) / (2 * total)


class _NoEvidence(mcg_diff._Guided):
    """Guides the particles and forgets to weigh them."""

    def look(self, x, sigma, next_sigma, rows):
        view = super().look(x, sigma, next_sigma, rows)
        return replace(view, log_weight=0 * view.log_weight)


class _NoFilterEvidence(fps_smc._Filtering):
    """The same."""

    def _log_evidence(self, *given):
        return 0 * super()._log_evidence(*given)


@pytest.mark.parametrize("name", ["tds", "mcg_diff", "fps_smc"])
def test_convergence_law_catches_a_wrong_weight(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation twins: without the proposal's density, and without the evidence."""
    monkeypatch.setattr(tds, "_Twisted", _NoProposal)
    monkeypatch.setattr(mcg_diff, "_Guided", _NoEvidence)
    monkeypatch.setattr(fps_smc, "_Filtering", _NoFilterEvidence)
    exact, runs = mixture()[2], 4 * RUNS  # one path of y serves a whole population of fps_smc, so these scatter more
    shares = mode_weights(SPECS[name], COUNTS[0], runs)
    assert abs(shares.mean() - exact) / (shares.std() / runs**0.5) > 5, (shares.mean(), exact)


def test_a_moment_matched_walk_of_a_gaussian_is_exact_with_few_levels() -> None:
    """For N(mu, nu I) with spread = data_std = sqrt(nu) every move and twist is exact: all weights are equal, and mean and
    covariance of 4000 particles after 5 levels lie within 5 standard errors."""
    rng = np.random.default_rng(1)
    matrix, mean, count = rng.normal(size=(2, 4)), rng.uniform(0.2, 0.8, 4), 4000
    prior = GaussianPrior(torch.from_numpy(mean), 0.04)
    y = torch.from_numpy(matrix @ mean + rng.normal(size=2))[None]
    problem = Problem(operators.get("linear", matrix=matrix), y, 0.1, (4,))
    exact = prior.posterior(matrix, y[0], 0.1)
    solver = solvers.get("tds", particles=count, steps=5, spread=0.2, data_std=0.2, initial="prior", threshold=0)
    *_, last = run(problem, prior, solver, Draws([generator(0, 0, 0)], (4,), y))
    assert last.population is not None
    # The first level is weighted by its twist; without a resampling these weights stay to the end as they are.
    samples = last.population[0].numpy()
    covariance, variance = exact.covariance().numpy(), np.diag(exact.covariance().numpy())
    size = float(last.diagnostics["ess"][0])
    off = np.abs(samples.mean(0) - exact.mean().numpy()) / np.sqrt(variance / size)
    of_covariance = np.abs(np.cov(samples.T) - covariance) / np.sqrt(
        (np.outer(variance, variance) + covariance**2) / size
    )
    assert off.max() < 5 and of_covariance.max() < 5, (off, of_covariance, size)


def test_every_spec_is_of_a_particle_method() -> None:
    assert {solvers.get(spec).name for spec in reference_particles.SPECS} == {"mcg_diff", "tds", "fps_smc"}
