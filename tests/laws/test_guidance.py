"""What the guidance methods promise beyond the laws of every solver."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from laws import reference, reference_guidance
from laws.test_solver_laws import Replay, bias, final, make_problem, moment_errors, path_error
from together import Together

from invdiff import operators, solvers
from invdiff.machine.random import Draws, generator
from invdiff.operator.contract import Operator, Shape
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.ilvr import refine
from invdiff.solvers.tweedie import Moments

# A hyperparameter that acts, the solver it acts in, and a value close to its own.
ACTING = [
    ("ilvr", "weight", 1.05),
    ("mcg:weight=0.002,trust=3", "weight", 0.0021),
    ("mcg:weight=0.002,trust=3", "trust", 3.1),
    ("repaint:jump=2,resamplings=3", "jump", 3),
    ("repaint:jump=2,resamplings=3", "resamplings", 2),
    ("score_ald", "iterations", 2),
    ("score_ald", "step_size", 1.95),
    ("score_ald", "gamma", 1.05),
    ("score_sde", "lam", 0.88),
    ("mmps", "iterations", 4),
    ("mmps:iterations=1,eta=0.5", "eta", 0.52),
    ("tmpd", "eta", 0.95),
    ("fast_dips:budget=0.5,rho=2,iterations=2,descents=3", "budget", 0.52),
    ("fast_dips:budget=0.5,rho=2,iterations=2,descents=3", "rho", 2.1),
    ("fast_dips:budget=0.5,rho=2,iterations=2,descents=3", "iterations", 3),
    ("fast_dips:budget=0.5,rho=2,iterations=2,descents=3", "descents", 2),
]
LINEAR = ["gaussian_blur:sigma=0.7,size=3,boundary=reflect", "inpaint:keep=0.6,seed=1", "linear"]
WHITE = 0.04


@pytest.mark.parametrize(("solver_spec", "name", "value"), ACTING)
def test_path_law_catches_a_wrong_hyperparameter(solver_spec: str, name: str, value: float) -> None:
    """Mutation twin of the path law: one hyperparameter a little off in the recursion is seen. The operator's measurements
    are correlated, so that three iterations of `mmps` are not the last that matter."""
    operator = "gaussian_blur:sigma=0.7,size=3,boundary=circular"
    assert path_error(solver_spec, operator, settings={name: value}) > 1e-5


def test_path_law_tells_the_two_covariances_apart() -> None:
    operator = "gaussian_blur:sigma=0.7,size=3,boundary=circular"
    assert path_error("tmpd", operator, settings={"covariance": "scalar"}) > 1e-5


@pytest.mark.parametrize("spec", sorted({spec.split(":")[0] for spec in reference_guidance.SPECS}))
@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_units_of_the_measurement_do_not_matter(spec: str, factor: float) -> None:
    """y, A and sigma_y in other units are the same measurement: defaults serve every noise level and operator norm."""
    problem, prior, _ = make_problem("linear")
    scaled = Problem(
        operators.get("linear", matrix=factor * problem.operator.matrix, shape=problem.image_shape),
        factor * problem.y,
        factor * problem.sigma_y,
        problem.image_shape,
    )
    solver = solvers.get(spec, steps=5)
    ours, theirs = (
        final(p.rows([0, 0]), prior, solver, Replay(reference.Draws(3, 2, 64), (1, 8, 8))) for p in (problem, scaled)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def conditional(spec: str, operator: str, sigma: float, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The solver's E[x_0 | x, y] at one point, and the exact one: both measurements of x_0, y and x, in one Gaussian."""
    problem, prior, p = make_problem(operator)
    x = p.mean + np.random.default_rng(2).normal(size=p.n)
    tensor = torch.from_numpy(x).reshape(1, *problem.image_shape)
    ours = solvers.get(spec).correction(problem, prior)(tensor, sigma, 0.0).mean(sigma).flatten().numpy()
    both = np.concatenate([p.A / (p.sigma_y * factor), np.eye(p.n) / sigma])
    values = np.concatenate([p.y / (p.sigma_y * factor), x / sigma])
    return ours, reference.GaussianProblem(both, values, 1.0, p.mean, p.covariance).posterior()[0]


@pytest.mark.parametrize("operator", LINEAR)
@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_mmps_knows_the_conditional_mean_of_a_gaussian(operator: str, sigma: float) -> None:
    ours, exact = conditional("mmps:iterations=100", operator, sigma)
    np.testing.assert_allclose(ours, exact, atol=1e-9)


@pytest.mark.parametrize("operator", LINEAR)
def test_conditional_mean_law_catches_a_wrong_noise(operator: str) -> None:
    """Mutation twin: sigma_y a twentieth off."""
    ours, exact = conditional("mmps:iterations=100", operator, 0.5, factor=1.05)
    assert np.abs(ours - exact).max() > 1e-4


def test_mmps_gets_better_with_every_iteration() -> None:
    """Few iterations: the error falls with their number."""
    errors = []
    for count in (1, 2, 4, 8, 16):
        ours, exact = conditional(f"mmps:iterations={count}", "gaussian_blur:sigma=0.7,size=3,boundary=reflect", 0.5)
        errors.append(np.linalg.norm(ours - exact))
    assert all(b < 0.7 * a for a, b in itertools.pairwise(errors)), errors


def exact_problem() -> tuple[Problem, GaussianPrior, np.ndarray, np.ndarray]:
    """Six correlated values of which three combinations are measured; the exact posterior's mean and covariance."""
    rng = np.random.default_rng(3)
    A, root, mean = rng.normal(size=(3, 6)), rng.normal(size=(6, 6)) / 6**0.5, rng.uniform(0.3, 0.7, 6)
    covariance = 0.05 * (root @ root.T + 0.3 * np.eye(6))
    y = A @ mean + rng.normal(size=3) * 0.3
    problem = Problem(operators.get("linear", matrix=A), torch.from_numpy(y)[None], 0.1, (6,))
    prior = GaussianPrior(torch.from_numpy(mean), torch.from_numpy(covariance))
    return problem, prior, *reference.GaussianProblem(A, y, 0.1, mean, covariance).posterior()


def law_of_samples(spec: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and covariance of an affine solver's samples of `exact_problem`."""
    problem, prior, _, _ = exact_problem()
    solver = solvers.get(spec, steps=steps, sigma_max=20, sigma_min=1e-3)
    return reference.response(
        lambda units: final(problem.rows([0] * units.rows), prior, solver, Replay(units, (6,))).numpy(), 6
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_more_iterations_than_measurements_do_no_harm(dtype: torch.dtype) -> None:
    """Three values are measured: after three iterations there is nothing left but rounding, which fifty more leave alone."""
    problem, prior, _, _ = exact_problem()
    x = torch.from_numpy(0.5 + np.random.default_rng(0).normal(size=(200, 6))).to(dtype)
    cast = Problem(operators.get("linear", matrix=problem.operator.matrix), problem.y.to(dtype), 0.1, (6,)).rows(
        [0] * 200
    )
    for sigma in (0.01, 0.3, 20.0):
        moments = Moments.at(cast, prior, x, sigma)
        few, many = moments.conditioned(0.01, 3), moments.conditioned(0.01, 53)
        torch.testing.assert_close(many, few, rtol=0, atol=1e5 * torch.finfo(dtype).eps)


def slope_of_errors(spec: str) -> tuple[float, float]:
    """The error of the covariance at 400 steps, relative, and the slope of its logarithm over that of the steps."""
    _, _, _, exact = exact_problem()
    steps = [50, 100, 200, 400]
    errors = [np.linalg.norm(law_of_samples(spec, n)[1] - exact) / np.linalg.norm(exact) for n in steps]
    return errors[-1], float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize("spec", ["mmps:iterations=50", "mmps:iterations=50,transition=ancestral"])
def test_mmps_converges_to_the_posterior_of_a_gaussian(spec: str) -> None:
    """With the exact conditional mean only the discretisation is left, and it is of first order in 1 / steps."""
    error, slope = slope_of_errors(spec)
    assert -1.25 < slope < -0.85 and error < 0.05, (error, slope)


def test_convergence_law_catches_an_inexact_mean() -> None:
    """Mutation twin: a mean that is not quite right leaves an error that no number of steps takes away."""
    _, slope = slope_of_errors("pigdm")
    assert slope > -0.5, slope


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_mmps_samples_the_posterior_of_a_gaussian(factor: float) -> None:
    """Mean and covariance of samples: within 5 standard errors of the exact posterior plus the
    discretisation, which the samples' own law gives. Samples a tenth too wide (the mutation twin) are not."""
    problem, prior, mean, covariance = exact_problem()
    n, spec = 3000, "mmps:iterations=50,transition=ancestral"
    solver = solvers.get(spec, steps=200, sigma_max=20, sigma_min=1e-3)
    x = final(problem.rows([0] * n), prior, solver, Together(n, (6,))).numpy()
    x = x.mean(0) + factor * (x - x.mean(0))
    expected_mean, expected = law_of_samples(spec, 200)
    assert np.abs(expected - covariance).max() < 0.1 * np.abs(covariance).max()
    assert np.abs(expected_mean - mean).max() < 0.1 * np.sqrt(np.diag(covariance)).min()
    assert (moment_errors(x, expected_mean, expected) < 5) == (factor == 1.0)


@pytest.mark.parametrize("spec", ["tmpd", "tmpd:covariance=scalar", "mmps:iterations=1"])
@pytest.mark.parametrize("operator", ["identity", "inpaint:keep=0.6,seed=1", "downsample:factor=2,kernel=average"])
def test_simplified_covariances_are_exact_where_they_may_be(spec: str, operator: str) -> None:
    """For a white prior and rows of A of one norm, A C A^T is a number times I: all simplifications agree with the exact
    conditional mean. For a correlated prior (the mutation twin) they do not."""
    problem, _, p = make_problem(operator)
    prior = GaussianPrior(torch.from_numpy(p.mean).reshape(problem.image_shape), WHITE)
    x = torch.from_numpy(p.mean + np.random.default_rng(2).normal(size=p.n)).reshape(1, *problem.image_shape)
    ours = solvers.get(spec).correction(problem, prior)(x, 0.5, 0.0).estimate.flatten().numpy()
    both = np.concatenate([p.A / p.sigma_y, np.eye(p.n) / 0.5])
    values = np.concatenate([p.y / p.sigma_y, x.flatten().numpy() / 0.5])
    exact = reference.GaussianProblem(both, values, 1.0, p.mean, WHITE * np.eye(p.n)).posterior()[0]
    np.testing.assert_allclose(ours, exact, atol=1e-10)
    ours, exact = conditional(spec, operator, 0.5)
    assert np.abs(ours - exact).max() > 1e-4


@dataclass(frozen=True, eq=False)
class Saturating(Operator):
    """y = tanh(2 x) of each pixel."""

    name: ClassVar[str] = "saturating"
    linear: ClassVar[bool] = False

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(2 * x)


@dataclass(frozen=True, eq=False)
class Squared(Operator):
    """y = (B x)^2, a phaseless measurement."""

    name: ClassVar[str] = "squared"
    linear: ClassVar[bool] = False

    def measurement_shape(self, shape: Shape) -> Shape:
        return (9,)

    def image_shape(self, shape: Shape) -> Shape:
        return (6,)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        B = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 6))).to(x)
        return (x @ B.mT) ** 2


def nonlinear_problem(operator: Operator, rows: int = 2) -> tuple[Problem, GaussianPrior]:
    rng = np.random.default_rng(4)
    prior = GaussianPrior(torch.full((6,), 0.4, dtype=torch.float64), torch.from_numpy(0.03 * np.eye(6) + 0.02))
    truth = torch.from_numpy(rng.normal(size=(rows, 6))) * 0.2 + 0.4
    y = operator.A(truth)
    return Problem(operator, y + 0.05 * torch.from_numpy(rng.normal(size=tuple(y.shape))), 0.05, (6,), truth), prior


@pytest.mark.parametrize("operator", [Saturating(), Squared()])
def test_products_with_the_jacobian_of_a_nonlinear_operator(operator: Operator) -> None:
    """H u by central differences, error of order step^2; and <H u, v> = <u, H^T v>."""
    x, u = (torch.from_numpy(a) for a in np.random.default_rng(1).normal(size=(2, 2, 6)))
    Hu, step = operator.A_jvp(x, u), 1e-5
    torch.testing.assert_close(
        Hu, (operator.A(x + step * u) - operator.A(x - step * u)) / (2 * step), rtol=0, atol=1e-7
    )
    v = torch.ones_like(Hu)
    torch.testing.assert_close((Hu * v).sum(1), (u * operator.A_vjp(x, v)).sum(1))


@pytest.mark.parametrize("spec", ["mmps:iterations=50", "tmpd"])
def test_a_nonlinear_operator_is_linearised(spec: str) -> None:
    """The correction for tanh equals the one for its own tangent at D(x), a linear operator with a measurement moved."""
    problem, prior = nonlinear_problem(Saturating(), rows=1)
    x, sigma = torch.full((1, 6), 0.7, dtype=torch.float64), 0.3
    clean = prior.denoise(x, sigma)
    slope = 2 / torch.cosh(2 * clean[0]) ** 2
    tangent = operators.get("linear", matrix=torch.diag(slope))
    moved = Problem(tangent, problem.y - torch.tanh(2 * clean) + slope * clean, 0.05, (6,))
    ours, linear = (solvers.get(spec).correction(p, prior)(x, sigma, 0.0).estimate for p in (problem, moved))
    torch.testing.assert_close(ours, linear, rtol=0, atol=1e-10)
    assert (ours - clean).abs().max() > 0.01


@pytest.mark.parametrize(
    ("spec", "operator"),
    [
        ("mmps", Saturating()),
        ("mmps", Squared()),
        ("tmpd", Saturating()),  # row sums need rows of one sign
        ("fast_dips", Saturating()),
        ("fast_dips:descents=3,iterations=5", Squared()),
    ],
)
def test_nonlinear_operators_are_restored(spec: str, operator: Operator) -> None:
    """The residual comes down to that of the noise, within a factor of two, and rows do not feel each other. The dense
    recursions know linear operators only, so that these methods are compared with their own linearisation above."""
    problem, prior = nonlinear_problem(operator, rows=4)
    solver = solvers.get(spec, steps=40, sigma_max=2, sigma_min=1e-3)
    noise = [generator(0, k, 0) for k in range(4)]
    together = final(problem, prior, solver, Draws(noise, (6,), problem.y))
    assert float(problem.residual(together).median()) < 2 * float(problem.residual(problem.truth).median())
    for k in range(4):
        alone = final(problem.rows([k]), prior, solver, Draws([generator(0, k, 0)], (6,), problem.y))
        torch.testing.assert_close(alone, together[k : k + 1], rtol=0, atol=1e-9)


class Still(Prior):
    """D(x) = 0.4 at every level."""

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 0.4)


@pytest.mark.parametrize("operator", [operators.get("linear", matrix=np.eye(9, 6)), Saturating(), Squared()])
def test_fast_dips_keeps_its_limit_on_the_residual(operator: Operator) -> None:
    """After many rounds the residual is the budget, no less: the nearest point of the feasible set lies on its boundary. A
    point inside it is left alone."""
    problem, _ = nonlinear_problem(operator, rows=3)
    x = torch.zeros_like(problem.truth)
    limit = 0.7 * float(problem.residual(Still().denoise(x, 1.0)).min())
    spec = f"fast_dips:iterations=100,descents=20,rho=0.05,budget={limit}"
    estimate = solvers.get(spec).correction(problem, Still())(x, 1.0, 0.0).estimate
    np.testing.assert_allclose(problem.residual(estimate), limit, rtol=0.02)
    wide = 1.001 * float(problem.residual(Still().denoise(x, 1.0)).max())
    untouched = solvers.get(f"fast_dips:budget={wide}").correction(problem, Still())(x, 1.0, 0.0).estimate
    torch.testing.assert_close(untouched, Still().denoise(x, 1.0))


def test_ilvr_replaces_the_range_where_there_is_no_noise() -> None:
    """sigma_y -> 0 gives the paper's x + A^+ (y + sigma A z - A x)."""
    problem, _, p = make_problem("gaussian_blur:sigma=0.7,size=3,boundary=circular")
    clear = Problem(problem.operator, problem.y, 1e-9, problem.image_shape)
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(2, 1, p.n))
    replay = Replay(z[None], problem.image_shape)
    ours = refine(clear, torch.from_numpy(x).reshape(1, *problem.image_shape), 0.5, 1.0, replay).flatten(1).numpy()
    np.testing.assert_allclose(ours, x + (p.y + 0.5 * z @ p.A.T - x @ p.A.T) @ np.linalg.pinv(p.A).T, atol=1e-6)


def test_repaint_goes_its_route() -> None:
    """Five levels, jumps of two, down twice: back up from the last level and from the second before it."""
    route = solvers.get("repaint:jump=2,resamplings=2").route(5)
    assert route == [(0, 1), (1, 2), (2, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 2), (2, 3), (3, 4), (4, 5)]
    for steps, jump, resamplings in itertools.product((1, 2, 7, 20), (1, 3, 10), (1, 2, 5)):
        solver = solvers.get("repaint", steps=steps, jump=jump, resamplings=resamplings)
        down = [b for a, b in solver.route(steps) if b > a]
        assert len(down) == solver.nfe == solver.moves([1.0] * steps)
        assert solver.route(steps)[-1] == (steps - 1, steps)


def test_repaint_keeps_what_is_known() -> None:
    """Where a mask measures, the state before the last step is y plus noise of the level; elsewhere it is not."""
    problem, prior, _ = make_problem("inpaint:keep=0.6,seed=1")
    clear = Problem(problem.operator, problem.y, 1e-6, problem.image_shape)
    sample = final(
        clear, prior, solvers.get("repaint", sigma_min=1e-4), Draws([generator(0, 0, 0)], (1, 8, 8), clear.y)
    )
    known = problem.operator.observed(problem.image_shape).expand(1, 1, 8, 8) > 0
    assert (sample - problem.y).abs()[known].max() < 1e-3 < (sample - problem.y).abs()[~known].max()


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_score_ald_reaches_its_stationary_law(factor: float) -> None:
    """Many short Langevin steps at one level sample p_sigma(x) N(y; A x, (sigma_y^2 + gamma_t^2) I), whose covariance is
    (C_sigma^-1 + A^T A / (sigma_y^2 + gamma_t^2))^-1, up to the step size; the last call then shrinks it by the denoiser. A
    variance wrong by 2 (the mutation twin: noise wrong by sqrt(2)) is seen."""
    sigma, step_size = 0.3, 0.02
    problem, prior, _, _ = exact_problem()
    A, C = np.asarray(problem.operator.matrix), prior.covariance().numpy()
    solver = solvers.get("score_ald", steps=1, iterations=800, step_size=step_size, sigma_max=sigma, sigma_min=sigma)
    _, covariance = reference.response(
        lambda units: final(problem.rows([0] * units.rows), prior, solver, Replay(units, (6,))).numpy(), 6
    )
    bound = 0.1**2 + np.linalg.norm(A, 2) ** 2 * sigma**2
    noisy = C + sigma**2 * np.eye(6)
    K = C @ np.linalg.inv(noisy)
    exact = K @ np.linalg.inv(np.linalg.inv(noisy) + A.T @ A / bound) @ K.T
    relative = np.linalg.norm(factor * covariance - exact) / np.linalg.norm(exact)
    assert (relative < 3 * step_size) == (factor == 1.0), relative


def test_moments_of_a_gaussian() -> None:
    """Products with the covariance of x_0 given x, and of the y it predicts, against matrices."""
    problem, prior, p = make_problem("gaussian_blur:sigma=0.7,size=3,boundary=reflect")
    x, v = (torch.from_numpy(a).reshape(1, 1, 8, 8) for a in np.random.default_rng(5).normal(size=(2, 64)))
    ours = Moments.at(problem, prior, x, 0.5)
    C = np.linalg.inv(np.linalg.inv(p.covariance) + np.eye(64) / 0.25)
    np.testing.assert_allclose(ours.covariance_adjoint(v).flatten(), C @ p.A.T @ v.flatten().numpy(), atol=1e-10)
    np.testing.assert_allclose(
        ours.predicted_covariance(v).flatten(), p.A @ C @ p.A.T @ v.flatten().numpy(), atol=1e-10
    )


class Asymmetric(Prior):
    """A denoiser whose Jacobian is neither symmetric nor positive, as those of networks: D(x) = M x."""

    def __init__(self) -> None:
        rng = np.random.default_rng(8)
        symmetric = rng.normal(size=(6, 6))
        self.matrix = torch.from_numpy(0.1 * symmetric @ symmetric.T + 0.15 * rng.normal(size=(6, 6)) - 0.1 * np.eye(6))

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        return x @ self.matrix.mT


def test_mmps_bears_a_jacobian_that_is_not_symmetric() -> None:
    """However wrong the Jacobian, no iteration makes the residual of the linear system larger, which is what the predicted
    measurement misses y by, up to sigma_y^2: so the estimate cannot run away from the measurement."""
    problem, _, _, _ = exact_problem()
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 6)))
    moments = Moments.at(problem.rows([0] * 50), Asymmetric(), x, 1.0)
    before = moments.residual.norm(dim=1)
    for count in range(1, 8):
        estimate = moments.conditioned(1e-8, count)
        after = (moments.residual - problem.operator.A(estimate - moments.clean)).norm(dim=1)
        assert (after <= before * (1 + 1e-6) + 1e-6).all(), count
        before = after


def test_bias_of_mcg_is_the_documented_number() -> None:
    """Not affine, so from samples, within 5 standard errors: sqrt(2 / 3n) of a variance ratio over 3 directions (of its own
    size), 1 / sqrt(n) of a mean. Their noise is not that of the samples that the number came from."""
    n, documented = 3000, reference_guidance.SAMPLED["mcg"]
    errors = np.abs(np.array(bias("mcg", Together(n, (6,)), n)) - documented)
    assert (errors < 5 * np.array([(2 / (3 * n)) ** 0.5, (2 / (3 * n)) ** 0.5, n**-0.5])).all(), errors
    row = f"| `mcg` | {' | '.join(f'{number:.2f}' for number in documented)} |"
    assert row in (Path(__file__).resolve().parents[2] / "docs" / "solvers.md").read_text()
