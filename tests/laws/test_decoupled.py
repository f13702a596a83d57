"""Laws of the decoupled, split and variational methods and of the measurement SDE, beyond those that every solver obeys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from laws import reference, reference_decoupled
from laws.test_solver_laws import SIGMA_Y, Replay, final, make_problem, path_error

from invdiff import operators, solvers
from invdiff.errors import UsageError
from invdiff.machine.random import Draws
from invdiff.operator.contract import Operator
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.problem.problem import Problem
from invdiff.solvers import conditional

Moments = tuple[np.ndarray, np.ndarray]


def gaussian(matrix: np.ndarray, sigma_y: float = SIGMA_Y) -> tuple[Problem, GaussianPrior, reference.GaussianProblem]:
    """Two correlated pixels, and a measurement of them."""
    matrix = np.atleast_2d(np.asarray(matrix, float))
    mean, covariance = np.array([0.3, 0.6]), 0.0625 * np.array([[1.0, 0.8], [0.8, 1.0]])
    y = matrix @ np.array([0.5, 0.4]) + 0.1
    operator = operators.get("linear", matrix=torch.from_numpy(matrix))
    prior = GaussianPrior(torch.from_numpy(mean), torch.from_numpy(covariance))
    problem = Problem(operator, torch.from_numpy(y)[None], sigma_y, (2,))
    return problem, prior, reference.GaussianProblem(matrix, y, sigma_y, mean, covariance)


def moments(problem: Problem, prior: GaussianPrior, solver: solvers.Solver) -> Moments:
    """Exact mean and covariance of our own solver's sample, from its response to unit noises."""
    n = math.prod(problem.image_shape)
    return reference.response(
        lambda units: final(problem.rows([0] * units.rows), prior, solver, Replay(units, problem.image_shape)).numpy(),
        n,
    )


def distance(found: Moments, exact: Moments) -> float:
    """The largest error of mean (in posterior deviations) and covariance (over the largest variance)."""
    scale = float(np.diag(exact[1]).max())
    return max(float(np.abs(found[0] - exact[0]).max()) / scale**0.5, float(np.abs(found[1] - exact[1]).max()) / scale)


def extrapolated(coarse: Moments, fine: Moments) -> Moments:
    """What an error of first order tends to, from its values at n and 2 n steps."""
    return 2 * fine[0] - coarse[0], 2 * fine[1] - coarse[1]


def slope(sizes: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


# A hyperparameter that acts, the solver it acts in, and a value close to its own (whole numbers: the next).
ACTING = [
    ("daps", "spread", 1.03),
    ("daps", "data_std", 1.03),
    ("daps", "ode_steps", None),
    ("daps:sampler=langevin,langevin_steps=3", "langevin_size", 1.03),
    ("daps:sampler=langevin,langevin_steps=3", "langevin_steps", None),
    ("pnp_dm", "calls", None),
    ("pnp_dm:sampler=langevin,langevin_steps=3", "langevin_size", 1.03),
    ("red_diff", "lam", 1.03),
    ("red_diff", "rate", 1.03),
    ("dpir:settled=0", "lam", 1.03),
]


@pytest.mark.parametrize(("spec", "name", "factor"), ACTING)
def test_path_law_catches_a_wrong_hyperparameter(spec: str, name: str, factor: float | None) -> None:
    """Mutation twin of the path law: one hyperparameter a little off in the recursion is seen."""
    value = getattr(solvers.get(spec), name)
    changed = value + 1 if factor is None else value * factor
    assert path_error(spec, "downsample:factor=2", settings={name: changed}) > 1e-5


@pytest.mark.parametrize(
    "spec", ["identity", "gaussian_blur:sigma=0.7,size=3,boundary=valid", "motion_blur:length=2,angle=30,boundary=reflect",
             "inpaint:keep=0.6,seed=1", "linear"]
)  # fmt: skip
@pytest.mark.parametrize("factor", [1.0, 1.03])
def test_exact_draw_has_the_moments_of_its_gaussian(spec: str, factor: float) -> None:
    """With and without a decomposition; a spread 3 % off (the mutation twin) is seen."""
    problem, _, oracle = make_problem(spec)
    centre, r = torch.linspace(0, 1, oracle.n, dtype=torch.float64).reshape(1, *problem.image_shape), 0.2

    def draw(units: reference.Units) -> np.ndarray:
        rows, noise = problem.rows([0] * units.rows), Replay(units, problem.image_shape)
        return conditional.draw_exactly(rows, centre.expand(units.rows, *problem.image_shape), factor * r, noise)

    mean, covariance = reference.response(lambda units: draw(units).flatten(1).numpy(), oracle.n)
    exact = np.linalg.inv(oracle.A.T @ oracle.A / SIGMA_Y**2 + np.eye(oracle.n) / r**2)
    exact_mean = exact @ (oracle.A.T @ oracle.y / SIGMA_Y**2 + centre.flatten().numpy() / r**2)
    error = max(np.abs(mean - exact_mean).max(), np.abs(covariance - exact).max() / r**2)
    assert (error < 1e-8) == (factor == 1.0), error


def test_langevin_has_the_variance_of_its_step_size() -> None:
    """For A = I the steps are affine: after K of them the variance is (1 - (1 - h l)^2K) / (l (1 - h l / 2))."""
    problem, _, _ = gaussian(np.eye(2))
    r, size, steps = 0.2, 0.3, 40

    def draw(units: reference.Units) -> np.ndarray:
        rows, noise = problem.rows([0] * units.rows), Replay(units, (2,))
        centre = torch.full((units.rows, 2), 0.4, dtype=torch.float64)
        return conditional.draw_by_langevin(rows, centre, r, noise, steps, size).numpy()

    mean, covariance = reference.response(draw, 2)
    curvature = 1 / r**2 + 1 / SIGMA_Y**2
    variance = (1 - (1 - size) ** (2 * steps)) / (curvature * (1 - size / 2))
    np.testing.assert_allclose(covariance, variance * np.eye(2), atol=1e-9)
    exact_mean = (problem.y[0].numpy() / SIGMA_Y**2 + 0.4 / r**2) / curvature
    np.testing.assert_allclose(mean, exact_mean, atol=1e-5)


def test_curvature_is_the_squared_norm_of_the_jacobian() -> None:
    problem, _, oracle = make_problem("linear")
    x = torch.full((1, *problem.image_shape), 0.3, dtype=torch.float64)
    u = problem.operator.A_adjoint(problem.y)
    for _ in range(200):
        square, u = conditional.squared_norm(problem.operator, x, u)
    assert float(square) == pytest.approx(np.linalg.norm(oracle.A, 2) ** 2, rel=1e-9)


@dataclass(frozen=True, eq=False)
class Saturating(Operator):
    """y = tanh(2 x), pixel by pixel."""

    name: ClassVar[str] = "saturating"
    linear: ClassVar[bool] = False

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(2 * x)


NONLINEAR = [
    "daps:langevin_steps=4",
    "daps:ode_steps=2,sampler=langevin,langevin_steps=3",
    "pnp_dm:calls=2,langevin_steps=4",
    "red_diff",
]


@pytest.mark.parametrize("spec", NONLINEAR)
@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_path_equals_the_dense_recursion_for_a_nonlinear_operator(spec: str, factor: float) -> None:
    """As the law for the registered operators, which are linear; a slope 2 % off (the mutation twin) is seen."""
    problem, prior, oracle = make_problem("identity")
    y = np.tanh(oracle.y)
    slope_2 = 2 * factor
    dense = reference_decoupled.Nonlinear(
        oracle, y, lambda x: np.tanh(slope_2 * x), lambda x, v: slope_2 / np.cosh(slope_2 * x) ** 2 * v
    )
    problem = Problem(Saturating(), torch.from_numpy(y).reshape(problem.y.shape), SIGMA_Y, problem.image_shape)
    solver, rows = solvers.get(spec, steps=6), 3
    levels = solver.levels(problem, prior)
    ours = final(problem.rows([0] * rows), prior, solver, Replay(reference.Draws(2, rows, 64), problem.image_shape))
    theirs = reference_decoupled.WALKS[solver.name](dense, solver.settings(), levels, reference.Draws(2, rows, 64))
    error = np.abs(ours.flatten(1).numpy() - theirs).max()
    assert (error < 1e-8) == (factor == 1.0), error


def test_split_gibbs_samples_the_posterior_of_a_nonlinear_operator() -> None:
    """One saturating pixel, many times over: mean and deviation against quadrature, within 5 standard errors of n
    samples and a tenth of the deviation for the coupling and the step sizes."""
    n, mean, deviation, sigma_y, y = 1500, 0.4, 0.25, 0.1, 0.8
    prior = GaussianPrior(torch.full((1,), mean, dtype=torch.float64), deviation**2)
    problem = Problem(Saturating(), torch.full((n, 1), y, dtype=torch.float64), sigma_y, (1,))
    chain = dict(steps=30, calls=32, langevin_steps=60, langevin_size=0.2, sigma_max=0.5, sigma_min=0.04)
    solver = solvers.get("pnp_dm", **chain)
    x = final(problem, prior, solver, Replay(reference.Draws(0, n, 1), (1,))).flatten().numpy()
    grid = np.linspace(-2, 3, 20001)
    weights = np.exp(-((grid - mean) ** 2) / (2 * deviation**2) - (np.tanh(2 * grid) - y) ** 2 / (2 * sigma_y**2))
    weights /= weights.sum()
    exact = float(weights @ grid)
    exact_std = float(weights @ (grid - exact) ** 2) ** 0.5
    share = 0.1
    assert abs(x.mean() - exact) < exact_std * (5 / n**0.5 + share)
    assert abs(x.std() / exact_std - 1) < 5 / (2 * n) ** 0.5 + share
    wide = Problem(Saturating(), problem.y, 1.5 * sigma_y, (1,))
    twin = final(wide, prior, solver, Replay(reference.Draws(0, n, 1), (1,))).flatten().numpy()
    # mutation twin: a likelihood half as wide again
    assert abs(twin.std() / exact_std - 1) > 5 / (2 * n) ** 0.5 + share


def test_likelihood_step_asks_for_what_it_needs() -> None:
    assert solvers.get("daps:sampler=exact").unmet(Saturating()) == ["linear"]
    assert solvers.get("daps").unmet(Saturating()) == solvers.get("pnp_dm").unmet(Saturating()) == []
    assert solvers.get("ddrm").unmet(Saturating()) == ["linear"]
    with pytest.raises(UsageError, match=r"daps needs a linear operator.*solvers that work: .*pnp_dm, red_diff"):
        solvers.check(solvers.get("daps:sampler=exact"), Saturating())


@pytest.mark.parametrize(("spread", "exact"), [(1.0, True), (1.02, False)])
def test_daps_is_exact_for_white_gaussian_data(spread: float, exact: bool) -> None:
    """There p(x_0 | x_t) is N(D, r_t^2 I) with r_t of data_std, so that every draw is from p(x_0 | x_t, y)."""
    problem, _, _ = gaussian([[1.0, 0.5]])
    mean = np.array([0.3, 0.6])
    prior = GaussianPrior(torch.from_numpy(mean), 0.04)
    truth = reference.GaussianProblem(np.array([[1.0, 0.5]]), problem.y[0].numpy(), SIGMA_Y, mean, 0.04 * np.eye(2))
    found = moments(problem, prior, solvers.get("daps", steps=30, spread=spread, data_std=0.2, sigma_max=5))
    assert (distance(found, truth.posterior()) < 1e-3) == exact, distance(found, truth.posterior())


def stationary(matrix: np.ndarray, rho: float, calls: int, factor: float = 1.0) -> Moments:
    """Mean and covariance of x in the stationary chain at a fixed rho, from the responses of our own two steps."""
    problem, prior, _ = gaussian(matrix)
    solver = solvers.get("pnp_dm", calls=calls)

    def affine(
        step: Callable[[Problem, torch.Tensor, Draws], torch.Tensor],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """M, c, Q with step(v) = M v + c + N(0, Q)."""

        def run(units: reference.Units, at: np.ndarray) -> np.ndarray:
            v = torch.from_numpy(np.broadcast_to(at, (units.rows, 2)).copy())
            return step(problem.rows([0] * units.rows), v, Replay(units, (2,))).numpy()

        c, Q = reference.response(lambda units: run(units, np.zeros(2)), 2)
        columns = [reference.response(lambda units, e=e: run(units, e), 2)[0] - c for e in np.eye(2)]
        return np.stack(columns, 1), c, Q

    def likelihood_step(rows: Problem, v: torch.Tensor, noise: Draws) -> torch.Tensor:
        return solver.likelihood_step(rows)(v, factor * rho, noise)

    Mp, cp, Qp = affine(lambda rows, v, noise: solver.prior_step(prior, v, rho, noise))
    Ml, cl, Ql = affine(likelihood_step)
    M, c, Q = Mp @ Ml, Mp @ cl + cp, Mp @ Ql @ Mp.T + Qp  # x -> z -> x
    mean = np.linalg.solve(np.eye(2) - M, c)
    covariance = np.linalg.solve(np.eye(4) - np.kron(M, M), Q.ravel()).reshape(2, 2)
    return mean, covariance


def augmented(matrix: np.ndarray, rho: float) -> Moments:
    """x under p(x, z | y) for the coupling rho: the posterior for measurements A (x + rho n) + sigma_y z."""
    _, _, p = gaussian(matrix)
    S = p.A @ (p.covariance + rho**2 * np.eye(2)) @ p.A.T + p.sigma_y**2 * np.eye(len(p.y))
    gain = p.covariance @ p.A.T @ np.linalg.inv(S)
    return p.mean + gain @ (p.y - p.A @ p.mean), p.covariance - gain @ p.A @ p.covariance


PAIR = np.array([[1.0, 0.5]])


def test_split_gibbs_is_stationary_at_the_augmented_posterior() -> None:
    """Up to the discretisation of the prior step, whose error is of first order in its calls. A likelihood step whose
    coupling is 3 % off (the mutation twin) is seen."""
    rho, calls = 0.2, [32, 64, 128]
    exact = augmented(PAIR, rho)
    found = [stationary(PAIR, rho, k) for k in calls]
    errors = [distance(one, exact) for one in found]
    assert slope(calls, errors) < -0.9, errors
    assert distance(extrapolated(*found[-2:]), exact) < 0.005
    wrong = extrapolated(*(stationary(PAIR, rho, k, factor=1.03) for k in calls[-2:]))
    assert distance(wrong, exact) > 0.005


def test_split_gibbs_approaches_the_posterior_with_the_square_of_its_coupling() -> None:
    couplings = [0.2, 0.1, 0.05, 0.025]
    exact = gaussian(PAIR)[2].posterior()
    errors = [distance(extrapolated(*(stationary(PAIR, rho, k) for k in (64, 128))), exact) for rho in couplings]
    assert 1.7 < slope(couplings, errors) < 2.3 and errors[-1] < 0.02, errors


@pytest.mark.parametrize(
    "matrix", [np.eye(2), np.array([[0.0, -2.0], [2.0, 0.0]])], ids=["identity", "scaled rotation"]
)
def test_measurement_sde_is_exact_where_all_directions_enter_together(matrix: np.ndarray) -> None:
    """The discretisation is the only error: first order in the steps."""
    problem, prior, oracle = gaussian(matrix)
    counts = [25, 50, 100, 200]
    found = [moments(problem, prior, solvers.get("measurement_sde", steps=n)) for n in counts]
    errors = [distance(one, oracle.posterior()) for one in found]
    assert slope(counts, errors) < -0.9, errors
    assert distance(extrapolated(*found[-2:]), oracle.posterior()) < 0.003
    oracle.sigma_y *= 1.01
    assert distance(extrapolated(*found[-2:]), oracle.posterior()) > 0.003  # mutation twin


def test_measurement_sde_starts_at_the_measurement() -> None:
    problem, prior, _ = gaussian(np.eye(2))
    solver = solvers.get("measurement_sde", steps=5)
    levels = solver.levels(problem, prior)
    assert levels[0] == SIGMA_Y and len(levels) == 5
    noise = Replay(reference.Draws(0, 1, 2), (2,))
    torch.testing.assert_close(solver.start(problem, prior, levels[0], noise), problem.y, rtol=0, atol=1e-14)
    partial, _, _ = gaussian([[1.0, 0.0]])
    assert solver.levels(partial, prior)[0] == prior.sigma_max


@pytest.mark.parametrize("factor", [1.0, 2**0.5])
def test_measurement_sde_samples_the_posterior_of_a_mixture(factor: float) -> None:
    """Denoising: weights, means and covariances of a posterior with two modes, within 5 standard errors of n samples. A
    noise level wrong by sqrt(2) (the mutation twin) fails."""
    n, sigma_y = 3000, 0.3
    prior = GaussianMixturePrior([[0.2, 0.3], [0.8, 0.5]], [[0.006], [0.01]], [0.3, 0.7])
    y = np.array([0.48, 0.35])
    exact = prior.posterior(np.eye(2), y, sigma_y)
    problem = Problem(operators.get("identity"), torch.from_numpy(y).expand(n, 2), factor * sigma_y, (2,))
    noise = Replay(reference.Draws(0, n, 2), (2,))
    x = final(problem, prior, solvers.get("measurement_sde", steps=400), noise).numpy()
    assert float(exact.weights.min()) > 0.2  # both modes are there
    # the covariance of a mixture has other standard errors than a Gaussian's: those of the exact posterior's draws
    draws = exact.sample(200_000, torch.Generator().manual_seed(0)).numpy()
    mean, covariance = draws.mean(0), np.cov(draws.T)
    of_mean = np.abs(x.mean(0) - mean) / np.sqrt(np.diag(covariance) / n)
    products = np.einsum("ki,kj->kij", draws - mean, draws - mean)
    of_covariance = np.abs(np.cov(x.T) - covariance) / (products.std(0) / n**0.5)
    left = abs((x[:, 0] < 0.5).mean() - (draws[:, 0] < 0.5).mean()) / (0.25 / n) ** 0.5
    assert (max(of_mean.max(), of_covariance.max(), left) < 5) == (factor == 1.0)


def test_bias_of_the_measurement_sde_for_what_is_not_measured() -> None:
    """One of two pixels of correlation 0.8 is measured: the other is drawn as if the first were known less well."""
    problem, prior, oracle = gaussian([[1.0, 0.0]])
    mean, covariance = moments(problem, prior, solvers.get("measurement_sde", steps=400, sigma_max=20, sigma_min=0.002))
    exact_mean, exact = oracle.posterior()
    ratios, errors = np.diag(covariance) / np.diag(exact), (mean - exact_mean) / np.sqrt(np.diag(exact))
    np.testing.assert_allclose(ratios, [1.0025, 1.0897], atol=2e-3)
    np.testing.assert_allclose(errors, [-0.1483, -0.2621], atol=2e-3)
