"""Laws of every solver, against a Gaussian prior for which everything is known exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import pytest
import torch
from laws import reference, reference_decoupled, reference_guidance, reference_particles
from pairwise import pairs, thinned
from together import Together

import invdiff
from invdiff import operators, solvers
from invdiff.errors import NumericalError, UsageError
from invdiff.machine.random import Draws, generator
from invdiff.operator.contract import Operator
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.restoration import loop as sampling
from invdiff.restoration.api import states
from invdiff.restoration.loop import run
from invdiff.samplers.generation import sample

FAMILIES = (reference_guidance, reference_decoupled, reference_particles)
SHAPE = (1, 8, 8)
N = 64
STEPS = 6
SIGMA_Y = 0.15
# One line for each solver: its spec. A solver that is registered and not here fails `test_every_solver_is_tested`.
SOLVERS = [
    "ddrm",
    "ddrm:eta=0.6,eta_b=0.8",
    "ddrm:sigma_max=0.4",
    "ddnm",
    "ddnm:eta=1",
    "pigdm",
    "pigdm:eta=0.5,weight=0.7",
    "diffpir",
    "diffpir:zeta=1,lam=2",
    "diffpir:zeta=0",
    "diffpir:sigma_max=1,spacing=quadratic",
    "dps",
    "dps:eta=0,weight=0.01",
]
AFFINE = [spec for spec in SOLVERS if not spec.startswith("dps")]
for family in FAMILIES:
    SOLVERS += family.SPECS
    AFFINE += family.AFFINE
    reference.STEPS.update(family.STEPS)
    reference.START.update(family.START)
    reference.WALKS.update(family.WALKS)
OPERATORS = [
    "identity",
    "gaussian_blur:sigma=0.7,size=3,boundary=circular",
    "gaussian_blur:sigma=0.7,size=3,boundary=reflect",
    "gaussian_blur:sigma=0.7,size=3,boundary=valid",
    "uniform_blur:size=3,boundary=zero",
    "uniform_blur:size=3,boundary=replicate",
    "motion_blur:length=2,angle=30,boundary=circular",
    "motion_blur:length=2,angle=30,boundary=reflect",
    "kernel_blur",
    "downsample:factor=2,kernel=average",
    "downsample:factor=2,kernel=bicubic,boundary=circular",
    "downsample:factor=2,kernel=gaussian",
    "inpaint:keep=0.6,seed=1",
    "random_subsample:keep=0.5,seed=2",
    "grayscale",
    "linear",
    "motion_blur:length=2,angle=30,boundary=circular | downsample:factor=2",
    "fourier_subsample:acceleration=2,seed=1",
    "tomography:angles=5",
    "varying_blur:radius=0.4,corner=1.2,grid=2x2",
    "demosaic",
]
# Operators that to a solver are like another: built of the same parts, with its decomposition and its kind of mask.
ALIKE = {
    "anisotropic_blur": "motion_blur",
    "defocus_blur": "gaussian_blur",
    "spectral_mixing": "grayscale",
    "pansharpen": "grayscale",
    "compressed_sensing": "random_subsample",
    "mri_multicoil": "tomography",
}


def make_operator(spec: str) -> tuple[Operator, tuple[int, ...]]:
    rng = np.random.default_rng(5)
    if spec == "linear":
        return operators.get("linear", matrix=torch.from_numpy(rng.normal(size=(5, N))), shape=SHAPE), SHAPE
    if spec == "kernel_blur":
        return operators.get(
            "kernel_blur", kernel=torch.from_numpy(rng.random((3, 3))), normalise=True, boundary="circular"
        ), SHAPE
    return operators.get(spec), (3, 2, 3) if spec in ("grayscale", "demosaic") else SHAPE


def dense(operator: Operator, shape: tuple[int, ...]) -> np.ndarray:
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    return operator.A(basis).flatten(1).numpy().T


def make_problem(spec: str) -> tuple[Problem, Prior, reference.GaussianProblem]:
    operator, shape = make_operator(spec)
    n = int(np.prod(shape))
    rng = np.random.default_rng(7)
    root = rng.normal(size=(n, n)) / np.sqrt(n)
    covariance = 0.1 * (root @ root.T + 0.2 * np.eye(n))
    mean = rng.uniform(0.2, 0.8, n)
    A = dense(operator, shape)
    truth = mean + np.linalg.cholesky(covariance) @ rng.normal(size=n)
    mask = operator.observed(shape)
    noise = rng.normal(size=len(A))
    if mask is not None:
        noise = noise * mask.expand(1, *operator.measurement_shape(shape)).flatten().numpy()
    y = A @ truth + SIGMA_Y * noise
    tensor = torch.from_numpy(y).reshape(1, *operator.measurement_shape(shape))
    prior = GaussianPrior(torch.from_numpy(mean).reshape(shape), torch.from_numpy(covariance))
    return Problem(operator, tensor, SIGMA_Y, shape), prior, reference.GaussianProblem(A, y, SIGMA_Y, mean, covariance)


class Replay(Draws):
    """Gives prepared draws instead of random ones: a `reference.Draws`, or arrays (draws, rows, n)."""

    def __init__(self, draws: reference.Draws | np.ndarray, shape: tuple[int, ...]) -> None:
        self.draws, self.shape = iter(draws) if isinstance(draws, np.ndarray) else draws, shape

    def __call__(self) -> torch.Tensor:
        return torch.from_numpy(next(self.draws)).reshape(-1, *self.shape)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.draws.normal(*shape))

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.draws.uniform(*shape))


def final(problem: Problem, prior: Prior, solver: solvers.Solver, noise: Draws) -> torch.Tensor:
    *_, last = run(problem, prior, solver, noise)
    return last.x


def structure(operator: Operator, shape: tuple[int, ...]) -> tuple[bool, bool, bool]:
    """What a solver sees of an operator: whether it decomposes, leaves places unmeasured, measures less than the image."""
    fewer = math.prod(operator.measurement_shape(shape)) < math.prod(shape)
    return operator.has_svd, operator.observed(shape) is not None, fewer


def cases() -> list:
    """Thinned: each method meets each operator and each boundary, each solver's spec each structure of an operator."""
    params, rows = [], []
    for spec in OPERATORS:
        operator, shape = make_operator(spec)
        boundary = re.search(r"boundary=(\w+)", spec)
        for solver_spec in SOLVERS:
            solver = solvers.get(solver_spec)
            if not solver.unmet(operator):
                params.append(pytest.param(solver_spec, spec, id=f"{solver_spec}-{spec}"))
                name = spec if "|" in spec else operator.name
                by_name = pairs(method=solver.name, operator=name, boundary=boundary[1] if boundary else "")
                rows.append({spec} | by_name | pairs(solver=solver_spec, structure=structure(operator, shape)))
    return thinned(params, rows)


def test_every_solver_is_tested() -> None:
    assert {solvers.get(spec).name for spec in SOLVERS} == set(solvers.names())


def test_every_operator_is_tested() -> None:
    tested = {spec.split(":")[0] for spec in OPERATORS}
    linear = {name for name, cls in operators.REGISTRY.items() if cls.linear}  # the others: test_nonlinear_laws.py
    assert tested | set(ALIKE) == linear and set(ALIKE.values()) <= tested


@pytest.mark.parametrize(("solver_spec", "operator_spec"), cases())
def test_path_equals_the_dense_recursion(solver_spec: str, operator_spec: str) -> None:
    """Fed the same noises, the solver and the dense recursion end in the same sample: all moments agree at once."""
    # Conjugate gradients stop at 1e-12 of the data step, which a path amplifies: 1e-8 was seen.
    assert path_error(solver_spec, operator_spec) < 5e-8


@pytest.mark.parametrize("solver_spec", SOLVERS)
@pytest.mark.parametrize("mutation", ["sigma_y", "covariance", "A"])
def test_path_law_catches_a_wrong_factor(solver_spec: str, mutation: str) -> None:
    """Mutation twin: a factor sqrt(2) in the noise level, the prior or the operator is seen."""
    if solver_spec.startswith("dps") and mutation == "sigma_y":
        pytest.skip("DPS does not use sigma_y")
    assert path_error(solver_spec, "gaussian_blur:sigma=0.7,size=3,boundary=circular", mutation) > 1e-4


# A hyperparameter that acts, the solver it acts in, and a value close to its own.
ACTING = [
    ("ddrm", "eta", 0.8),
    ("ddrm", "eta_b", 0.95),
    ("ddnm", "eta", 0.8),
    ("pigdm", "eta", 0.95),
    ("pigdm", "data_std", 0.52),
    ("pigdm", "weight", 0.95),
    ("diffpir", "zeta", 0.95),
    ("diffpir", "lam", 0.75),
    ("dps", "limit", 0.95),
    ("dps", "eta", 0.95),
    ("dps:eta=0,weight=0.01", "weight", 0.0105),
]


@pytest.mark.parametrize(("solver_spec", "name", "value"), ACTING)
def test_path_law_catches_a_wrong_hyperparameter(solver_spec: str, name: str, value: float) -> None:
    """Mutation twin: the same law, with one hyperparameter a little off in the recursion, fails."""
    assert path_error(solver_spec, "downsample:factor=2", settings={name: value}) > 1e-5


def path_error(
    solver_spec: str, operator_spec: str, mutation: str = "", settings: Mapping[str, float] = MappingProxyType({})
) -> float:
    problem, prior, oracle = make_problem(operator_spec)
    solver = solvers.get(solver_spec, steps=STEPS)
    levels = solver.levels(problem, prior)
    rows = 3
    ours_draws, their_draws = reference.Draws(11, rows, oracle.n), reference.Draws(11, rows, oracle.n)
    if mutation:
        setattr(oracle, mutation, getattr(oracle, mutation) * np.sqrt(2))
    ours = final(problem.rows([0] * rows), prior, solver, Replay(ours_draws, problem.image_shape)).flatten(1).numpy()
    theirs = reference.path(oracle, solver.name, solver.settings() | dict(settings), levels, their_draws)
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def moment_cases() -> list:
    """Thinned: every solver's spec, and each method with each operator."""
    named = ["gaussian_blur:sigma=0.7,size=3,boundary=reflect", "downsample:factor=2"]
    product = [(solver, operator) for operator in named for solver in AFFINE]
    rows = [{s} | pairs(method=solvers.get(s).name, operator=operator) for s, operator in product]
    return thinned([pytest.param(*both, id=f"{both[0]}-{both[1]}") for both in product], rows)


@pytest.mark.parametrize(("solver_spec", "operator_spec"), moment_cases())
def test_sample_moments(solver_spec: str, operator_spec: str) -> None:
    """Mean and covariance of n samples drawn with our own generators lie within 5 standard errors of the recursion's."""
    samples, mean, covariance = drawn(solver_spec, operator_spec)
    assert moment_errors(samples, mean, covariance) < 5


def test_sample_moments_law_catches_a_wrong_variance() -> None:
    """Mutation twin: samples whose deviation is 15 % too large fail the same law."""
    samples, mean, covariance = drawn("pigdm", "downsample:factor=2")
    wrong = mean + 1.15 * (samples - mean)
    assert moment_errors(wrong, mean, covariance) > 5


def drawn(solver_spec: str, operator_spec: str, count: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    problem, prior, oracle = make_problem(operator_spec)
    solver = solvers.get(solver_spec, steps=STEPS)
    noise = Draws([generator(0, 0, k) for k in range(count)], problem.image_shape, problem.y)
    samples = final(problem.rows([0] * count), prior, solver, noise).flatten(1).numpy()
    return samples, *reference.moments(oracle, solver.name, solver.settings(), solver.levels(problem, prior))


def moment_errors(samples: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The largest deviation of the sample mean and covariance, in standard errors: sqrt(C_ii / n) for the mean and
    sqrt((C_ii C_jj + C_ij^2) / n) for the covariance of a Gaussian. A small floor admits noise-free directions."""
    n, variance = len(samples), np.diag(covariance)
    floor = 1e-12
    of_mean = np.abs(samples.mean(0) - mean) / np.sqrt(variance / n + floor)
    error = np.abs(np.cov(samples.T) - covariance)
    of_covariance = error / np.sqrt((np.outer(variance, variance) + covariance**2) / n + floor)
    return float(max(of_mean.max(), of_covariance.max()))


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("factor", [1.0, 2**0.5])
def test_unconditional_samples_follow_the_prior(eta: float, factor: float) -> None:
    """Without a measurement the loop's transition samples the prior: mean and variance within 5 standard errors plus the
    discretisation's share. A denoiser for a deviation wrong by sqrt(2) (the mutation twin) fails."""
    prior = GaussianPrior(torch.tensor([0.3, 0.6]), 0.04 * factor**2)
    n = 3000
    x = sample(prior, (2,), n, steps=200, eta=eta, spacing="log", batch_size=n, seed=4)
    discretisation = 0.03  # relative, of the variance: first order in 1 / steps, 0.06 at 100 steps
    of_mean = float((x.mean(0) - torch.tensor([0.3, 0.6])).abs().max()) / (0.2 / n**0.5)
    of_variance = (float((x.var(0) / 0.04 - 1).abs().max()) - discretisation) / (2 / n) ** 0.5
    assert (of_mean < 5 and of_variance < 5) == (factor == 1.0), (of_mean, of_variance)


# The bias of each method for one Gaussian problem at 100 levels, as pinned numbers: the sample variance over the exact
# posterior variance (measured directions, then unmeasured ones), and the largest error of the mean in posterior deviations.
# docs/solvers.md shows them. DPS is not affine in its noise, so its numbers come from samples.
PINNED = {
    "ddrm": (0.0824, 0.7293, 0.3288),
    "ddnm": (0.0824, 0.7293, 0.3288),
    "pigdm": (0.1121, 0.9124, 0.5122),
    "diffpir:zeta=0.3,lam=7": (2.1662, 0.8770, 0.6321),
    "diffpir": (0.6196, 0.4777, 0.1398),
    "dps": (0.0, 0.9200, 0.5208),
}
for family in FAMILIES:
    PINNED.update(getattr(family, "PINNED", {}))
BIAS_NOISE = 0.15


def bias(spec: str, draws: Draws | None = None, rows: int = 0) -> tuple[float, float, float]:
    """From the response of our own solver to unit noises, or from `rows` samples with the noises given."""
    rng = np.random.default_rng(3)
    A = np.linalg.qr(rng.normal(size=(6, 6)))[0][:3]
    mean = rng.uniform(0.3, 0.7, 6)
    y = A @ (mean + 0.25 * rng.normal(size=6)) + BIAS_NOISE * rng.normal(size=3)
    exact_mean, exact = reference.GaussianProblem(A, y, BIAS_NOISE, mean, 0.0625 * np.eye(6)).posterior()
    prior = GaussianPrior(torch.from_numpy(mean), 0.0625)
    problem = Problem(operators.get("linear", matrix=A), torch.from_numpy(y)[None], BIAS_NOISE, (6,))
    solver = solvers.get(spec, steps=100, sigma_max=20, sigma_min=0.002)
    if draws is None:
        m, c = reference.response(
            lambda units: final(problem.rows([0] * units.rows), prior, solver, Replay(units, (6,))).numpy(), 6
        )
    else:
        x = final(problem.rows([0] * rows), prior, solver, draws).numpy()
        m, c = x.mean(0), np.cov(x.T)
    inside = A.T @ A
    ratios = [float(np.trace(P @ c) / np.trace(P @ exact)) for P in (inside, np.eye(6) - inside)]
    return ratios[0], ratios[1], float(np.abs((m - exact_mean) / np.sqrt(np.diag(exact))).max())


@pytest.mark.parametrize("spec", [spec for spec in PINNED if spec != "dps"])
def test_bias_is_the_documented_number(spec: str) -> None:
    np.testing.assert_allclose(bias(spec), PINNED[spec], atol=2e-3)


def test_bias_of_dps_is_the_documented_number() -> None:
    """Within 5 standard errors of n samples: sqrt(2 / 3n) of a variance ratio over 3 directions, 1 / sqrt(n) of a mean."""
    n = 3000
    errors = np.abs(np.array(bias("dps", Together(n, (6,)), n)) - PINNED["dps"])
    assert (errors < 5 * np.array([(2 / (3 * n)) ** 0.5, (2 / (3 * n)) ** 0.5, n**-0.5])).all(), errors


@pytest.mark.parametrize("solver_spec", SOLVERS)
def test_batch_invariance(solver_spec: str) -> None:
    """Two measurements solved together equal each alone, and the order does not matter."""
    operator = operators.get("gaussian_blur", sigma=0.8, size=3)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = invdiff.degrade(x, operator, noise=0.1)
    prior = GaussianPrior(torch.full((1, 8, 8), 0.5, dtype=torch.float64), 0.05)
    settings = dict(operator=operator, noise=0.1, prior=prior, solver=solvers.get(solver_spec, steps=4), samples=2)
    together = invdiff.restore(y, batch_size=4, ids=["a", "b"], **settings).samples
    one_by_one = invdiff.restore(y, batch_size=1, ids=["a", "b"], **settings).samples
    reverse = invdiff.restore(y.flip(0), batch_size=3, ids=["b", "a"], **settings).samples.flip(1)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-10)
    torch.testing.assert_close(together, reverse, rtol=0, atol=1e-10)
    apart = float((together[0] - together[1]).abs().max())  # two samples differ at least by where they start
    assert (apart == 0) if solvers.get(solver_spec).deterministic else (apart > 1e-6)


@pytest.mark.parametrize("solver_spec", SOLVERS)
def test_seed_decides_the_sample(solver_spec: str) -> None:
    """Equal seeds give equal samples, 0 is a seed like any other, and the global random state is neither used nor moved."""
    problem, prior, _ = make_problem("downsample:factor=2")
    settings = dict(operator=problem.operator, noise=SIGMA_Y, prior=prior, solver=solvers.get(solver_spec, steps=3))
    before = torch.random.get_rng_state()
    zero = invdiff.restore(problem.y, seed=0, **settings).samples
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(zero, invdiff.restore(problem.y, seed=0, **settings).samples)
    other = invdiff.restore(problem.y, seed=1, **settings).samples
    assert torch.equal(zero, other) == settings["solver"].deterministic


class Broken(Prior):
    """Returns NaN after a number of calls."""

    def __init__(self, after: float) -> None:
        self.calls, self.after = 0, after

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * (float("nan") if self.calls > self.after else 1.0)


@pytest.mark.parametrize("solver_spec", SOLVERS)
def test_nan_is_an_error_that_says_where(solver_spec: str) -> None:
    """At the move that makes the third call."""
    problem, _, _ = make_problem("identity")
    solver, healthy = solvers.get(solver_spec, steps=5), Broken(after=np.inf)
    calls = [healthy.calls for _ in states(problem, healthy, solver)]
    step = 1 + next(k for k, count in enumerate(calls) if count >= 3)
    with pytest.raises(NumericalError, match=rf"{solver.name}: NaN or infinity at step {step} of {len(calls)}, sigma"):
        invdiff.restore(problem.y, problem.operator, SIGMA_Y, prior=Broken(after=2), solver=solver)


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("late", [0, 1])
def test_nan_that_is_looked_for_later_names_the_same_step(
    after: int, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the state of the move is out by then, but never that of the next one, nor the end."""
    monkeypatch.setattr(sampling, "lag", lambda x: late)
    problem, _, _ = make_problem("identity")
    seen = 0
    with pytest.raises(NumericalError, match=rf"ddrm: NaN or infinity at step {after + 1} of 5, sigma"):
        for _ in states(problem, Broken(after=after), solvers.get("ddrm", steps=5)):
            seen += 1
    assert seen == min(after + late, 4)


@dataclass(frozen=True, eq=False)
class Saturation(Operator):
    name: ClassVar[str] = "saturation"
    linear: ClassVar[bool] = False

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)


def test_solver_refuses_and_names_those_that_work() -> None:
    problem, prior, _ = make_problem("identity")
    with pytest.raises(UsageError, match=r"ddrm needs a linear operator, which saturation does not.*work:.*dps"):
        invdiff.restore(problem.y, Saturation(), SIGMA_Y, prior=prior, solver="ddrm")


@pytest.mark.parametrize("solver_spec", SOLVERS)
def test_unmeasured_places_may_hold_anything(solver_spec: str) -> None:
    """White holes in a file restore exactly as black ones, and the residual counts measured values only."""
    problem, prior, _ = make_problem("inpaint:keep=0.6,seed=1")
    holes = 1 - problem.operator.observed(problem.image_shape)
    settings = dict(operator=problem.operator, noise=SIGMA_Y, prior=prior, solver=solvers.get(solver_spec, steps=3))
    black = invdiff.restore(problem.y, **settings)
    white = invdiff.restore(problem.y + holes, **settings)
    assert torch.equal(black.samples, white.samples) and torch.equal(black.residual, white.residual)


def test_documented_biases_are_the_pinned_ones() -> None:
    """The table of docs/solvers.md shows PINNED, rounded."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "solvers.md").read_text()
    for spec, numbers in PINNED.items():
        assert f"| `{spec}` | {' | '.join(f'{number:.2f}' for number in numbers)} |" in page, spec


def test_function_evaluations_are_counted() -> None:
    problem, prior, _ = make_problem("identity")
    for spec in SOLVERS:
        solver = solvers.get(spec, steps=7)
        found = invdiff.restore(problem.y, problem.operator, SIGMA_Y, prior=prior, solver=solver).nfe
        assert found == solver.nfe, spec
