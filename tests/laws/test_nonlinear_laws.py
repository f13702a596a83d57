"""Laws of operators that are not linear, in float64, each with a mutation twin that must break it."""

from __future__ import annotations

import math
import pickle  # noqa: TID251 - a round trip of our own objects
from collections.abc import Callable

import pytest
import torch

from invdiff import operators
from invdiff.errors import UsageError
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.gauss_newton import gauss_newton
from invdiff.operator.weighted import Whitened
from invdiff.problem.problem import Problem

from .builders import NONLINEAR, Case

ROUNDING = 1000 * torch.finfo(torch.float64).eps
GAMMA = 3.0
every_operator = pytest.mark.parametrize("case", NONLINEAR, ids=lambda case: case.label)


def image(shape: Shape, seed: int = 0) -> torch.Tensor:
    """Two smooth pictures inside (0.1, 0.9), away from kinks but for where saturate clips."""
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.5 + 0.4 * torch.tanh(noise)


def direction(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).norm()) / max(1.0, float(b.norm()))


# Each law gives the error that should be zero.


def transposes(op: Operator, shape: Shape) -> float:
    """<J u, v> = <u, J^T v>: forward and reverse derivatives are of one map."""
    x, u, v = image(shape), direction(2, *shape), direction(2, *op.measurement_shape(shape), seed=4)
    left, right = float((op.A_jvp(x, u) * v).sum()), float((u * op.A_vjp(x, v)).sum())
    return abs(left - right) / float(u.norm() * v.norm())


def slope(op: Operator, shape: Shape) -> float:
    """J u against central differences, whose error is of order step^2 (1e-10) and rounding / step (1e-10). For the codec
    the rounding of the coefficients counts as the identity: differences of the steps without it."""
    x, u, step = image(shape), direction(2, *shape), 1e-5
    f = op.A
    if op.name == "quantize":
        f = operators.get("saturate:gain=1").A
    if (
        op.name == "jpeg"
    ):  # colours and subsampling alone: a table of tiny steps rounds nothing away; nothing is clipped
        x, smooth = 0.5 + (x - 0.5) / 4, operators.get(op.spec)
        object.__setattr__(smooth, "_table", lambda table, like: torch.full((8, 8), 1e-12, dtype=like.dtype))
        f = smooth.model
    return gap(op.A_jvp(x, u), (f(x + step * u) - f(x - step * u)) / (2 * step))


def separate(op: Operator, shape: Shape) -> float:
    """[x1, x2] together equals each alone."""
    x, v = image(shape), direction(2, *op.measurement_shape(shape), seed=4)
    y = op.A(x)
    maps: list[Callable[[slice], torch.Tensor]] = [
        lambda rows: op.A(x[rows]),
        lambda rows: op.A_vjp(x[rows], v[rows]),
        lambda rows: op.first_guess(y[rows]),
        lambda rows: op.prox_l2(x[rows].flip(-1), y[rows], GAMMA),
    ]
    return max(gap(torch.cat([f(slice(0, 1)), f(slice(1, 2))]), f(slice(0, 2))) for f in maps)


def deterministic(op: Operator, shape: Shape) -> float:
    x = image(shape)
    return max(gap(op.A(x), op.A(x)), gap(op.first_guess(op.A(x)), op.first_guess(op.A(x))))


def objective(op: Operator, x: torch.Tensor, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (GAMMA * (op.A(x) - y).square().flatten(1).sum(1) + (x - z).square().flatten(1).sum(1)) / 2


def descent(op: Operator, shape: Shape) -> float:
    """The proximal point is no worse than z, and than neighbours a little around it; 0 if so, else by how much."""
    z = image(shape)
    y = op.A(image(shape, 1)) + 0.05 * direction(2, *op.measurement_shape(shape), seed=5)
    x = op.prox_l2(z, y, GAMMA)
    best = objective(op, x, z, y)
    return max(0.0, float((best / objective(op, z, z, y)).max()) - 0.9)


LAWS = {f.__name__: f for f in (transposes, separate, deterministic, descent)}


@every_operator
@pytest.mark.parametrize("law", LAWS)
def test_laws(case: Case, law: str) -> None:
    error = LAWS[law](case.build(), case.shape)
    assert error <= ROUNDING, f"{case.label}: {law} is off by {error:.2e}"


@every_operator
def test_derivatives_against_differences(case: Case) -> None:
    assert slope(case.build(), case.shape) <= 1e-7


@every_operator
def test_declarations_shapes_and_dtypes(case: Case) -> None:
    op, x = case.build(), image(case.shape)
    assert not op.linear and op.differentiable and not op.has_svd
    out = op.measurement_shape(case.shape)
    assert tuple(op.A(x).shape[1:]) == out and op.image_shape(out) == case.shape == op.usable_shape(case.shape)
    assert tuple(op.first_guess(op.A(x)).shape) == tuple(x.shape)
    assert 0 <= float(op.first_guess(op.A(x)).min()) <= float(op.first_guess(op.A(x)).max()) <= 1
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        y = op.A(x.to(dtype))
        assert y.dtype == op.first_guess(y).dtype == op.A_vjp(x.to(dtype), y).dtype == dtype
    with pytest.raises(UsageError, match="not linear, so it has no A_adjoint"):
        op.A_adjoint(op.A(x))
    with pytest.raises(UsageError, match="is not \\(channels, height, width\\)"):
        op.measurement_shape((5, 5))


@every_operator
def test_pickle_and_spec_round_trip(case: Case) -> None:
    op, x = case.build(), image(case.shape)
    for again in (pickle.loads(pickle.dumps(op)), operators.get(op.spec)):
        assert again == op and again.spec == op.spec and torch.equal(again.A(x), op.A(x))


@every_operator
def test_gradients_flow_through_a_likelihood(case: Case) -> None:
    """Problem.log_likelihood by autograd is J^T (y - A x) / sigma_y^2."""
    op, x = case.build(), image(case.shape)
    problem = Problem(op, op.A(image(case.shape, 1)), 0.1, case.shape)
    with torch.inference_mode():
        op.A(x)  # a first use in inference mode leaves autograd usable
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(problem.log_likelihood(leaf).sum(), leaf)
    assert gap(gradient, problem.likelihood_score(x)) <= ROUNDING


@every_operator
def test_whitened_measurements_keep_the_laws(case: Case) -> None:
    op = case.build()
    weights = 1 + image((1, *op.measurement_shape(case.shape)), 6)[:1, 0]
    white, x = Whitened(op, weights), image(case.shape)
    assert transposes(white, case.shape) <= ROUNDING
    assert gap(white.first_guess(white.A(x)), op.first_guess(op.A(x))) <= 1e-6  # rounding moves few values of 1/255


def test_gauss_newton_is_the_closed_form_where_a_is_linear() -> None:
    """Its inner iterations stop at a relative residual of 1e-2, four times over; a wrong weight (the twin) is seen."""
    op, shape = operators.get("gaussian_blur:sigma=0.8"), (1, 8, 7)
    z, y = image(shape), image(shape, 1)
    exact = op.prox_l2(z, y, GAMMA)
    assert gap(gauss_newton(op, z, y, GAMMA), exact) < 1e-6
    assert gap(gauss_newton(op, z, y, math.sqrt(2) * GAMMA), exact) > 1e-3


def test_gauss_newton_finds_stationary_points() -> None:
    """gamma J^T (A(x) - y) + x - z = 0 where A is smooth, approached at the linear rate that a misfit
    leaves to the Gauss-Newton method: 1/800 of the start after 20 steps."""
    op, shape = operators.get("phase_retrieval"), (1, 6, 5)
    z, y = image(shape), operators.get("phase_retrieval").A(image(shape, 1))

    def gradient(x: torch.Tensor) -> float:
        return float((GAMMA * op.A_vjp(x, op.A(x) - y) + x - z).norm())

    assert gradient(gauss_newton(op, z, y, GAMMA, steps=20)) < 5e-3 * gradient(z)
    assert gradient(gauss_newton(op, z, y, 2 * GAMMA, steps=20)) > 1e-2 * gradient(z)


# The laws themselves: what they must not let through.


class Doubled(type(operators.get("gamma"))):
    """The derivative is twice what it should be."""

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return 2 * super().A_vjp(x, v)


class Steeper(type(operators.get("gamma"))):
    """Both derivatives are 10 % too large."""

    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return 1.1 * super().A_jvp(x, u)

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return 1.1 * super().A_vjp(x, v)


class Together(type(operators.get("saturate"))):
    """The exposure follows the whole batch."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return super().A(x / x.max())


class Random(type(operators.get("quantize"))):
    """Dithers."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return super().A(x + 0.1 * torch.rand_like(x))


class Idle(type(operators.get("jpeg"))):
    """A proximal step that stays."""

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        return z


@pytest.mark.parametrize(
    ("law", "mutant"),
    [(transposes, Doubled()), (slope, Steeper()), (separate, Together()), (deterministic, Random()), (descent, Idle())],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_laws_catch_mutants(law: Callable[[Operator, Shape], float], mutant: Operator) -> None:
    assert law(mutant, (3, 8, 9)) > 1e-3
