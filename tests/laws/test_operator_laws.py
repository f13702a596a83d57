"""Laws that every operator obeys, in float64, each with a mutation twin that must break it.

Every error is relative, and bounded by rounding: eps times the few hundred operations behind a number. Inverses lose
the condition number they amplify; conjugate gradients lose their own tolerance, 1e-12.
"""

from __future__ import annotations

import math
import pickle  # noqa: TID251 - a round trip of our own objects
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pairwise import pairs, thinned

from invdiff import operators
from invdiff.errors import UsageError
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.linalg import solve
from invdiff.operator.svd import SVD
from invdiff.specs.registry import Registry

from .builders import CASES, NONLINEAR, Case

EPS = torch.finfo(torch.float64).eps
ROUNDING = 1000 * EPS
GAMMA = 3.0


def factors(case: Case) -> dict[str, str | int]:
    """What a case is made of: its operator (a chain is an operator of its own), its boundary, its number of channels."""
    spec, _, _ = case.label.partition("@")
    boundary = None if "|" in spec else re.search(r"boundary=(\w+)", spec)
    return {
        "operator": spec if "|" in spec else re.split("[:,]", spec)[0],
        "boundary": boundary[1] if boundary else "",
        "channels": case.shape[0] if len(case.shape) == 3 else 0,
    }


def every_operator(argument: str = "", values: Iterable[Any] = (), each_case: bool = False) -> pytest.MarkDecorator:
    """Parametrize over the operators, and over the values of one more argument. Thinned: every operator, boundary and number
    of channels meets each value and each other; with `each_case`, every case comes at least once."""
    if not argument:
        params = [pytest.param(case, id=case.label) for case in CASES]
        return pytest.mark.parametrize("case", thinned(params, [pairs(**factors(case)) for case in CASES]))
    product = [(case, value) for case in CASES for value in values]
    params = [pytest.param(*both, id=f"{both[1]}-{both[0].label}") for both in product]
    rows = [pairs(value=value, **factors(case)) | ({case.label} if each_case else set()) for case, value in product]
    return pytest.mark.parametrize(("case", argument), thinned(params, rows))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def image(shape: Shape, seed: int = 0) -> torch.Tensor:
    return normal(2, *shape, seed=seed)


def measurement(op: Operator, shape: Shape, seed: int = 7) -> torch.Tensor:
    return normal(2, *op.measurement_shape(shape), seed=seed)


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).flatten(1).sum(1)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / max(1, ||b||)."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).norm()) / max(1.0, float(b.norm()))


def dense(op: Operator, shape: Shape) -> torch.Tensor:
    """The (m, n) matrix, column by column."""
    n = math.prod(shape)
    return op.A(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, -1).T


# Each law gives the error that should be zero.


def linearity(op: Operator, shape: Shape) -> float:
    x, z = image(shape), image(shape, 1)
    return gap(op.A(2.5 * x - 3 * z), 2.5 * op.A(x) - 3 * op.A(z))


def adjoint(op: Operator, shape: Shape) -> float:
    x, y = image(shape), measurement(op, shape)
    scale = (x.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).max()
    return float((inner(op.A(x), y) - inner(x, op.A_adjoint(y).reshape(x.shape))).abs().max() / scale)


def normal_maps(op: Operator, shape: Shape) -> float:
    x, y = image(shape), measurement(op, shape)
    M = dense(op, shape)
    return max(
        gap(op.A_adjoint_A(x).flatten(1), x.flatten(1) @ M.T @ M),
        gap(op.A_A_adjoint(y).flatten(1), y.flatten(1) @ M @ M.T),
        gap(op.A_vjp(x, y).flatten(1), y.flatten(1) @ M),
    )


def pseudo_inverse(op: Operator, shape: Shape) -> float:
    """A A+ A = A and A+ A A+ = A+ (the latter relative to ||A+||)."""
    x, y = image(shape), measurement(op, shape)
    y = op.A(x) + 0.1 * y
    once = op.A_dagger(y)
    return max(gap(op.A(op.A_dagger(op.A(x))), op.A(x)), gap(op.A_dagger(op.A(once)), once))


def svd_product(op: Operator, shape: Shape) -> float:
    x, y, svd = image(shape), measurement(op, shape), op.svd(shape)
    s = svd.singular_values
    back = svd.V(s * svd.U_adjoint(y))
    return max(gap(svd.U(s * svd.V_adjoint(x)), op.A(x)), gap(back, op.A_adjoint(y).reshape(back.shape)))


def svd_orthonormal(op: Operator, shape: Shape) -> float:
    """V^T V = I; U^T U = I where s > 0; V V^T A^T = A^T; both pairs are transposes of each other."""
    x, y, svd = image(shape), measurement(op, shape), op.svd(shape)
    c = normal(*svd.V_adjoint(x).shape, seed=3)
    measured = c * (svd.singular_values > 0)
    rows = op.A_adjoint(y).reshape(x.shape)
    scale = float(c.norm()) * float(x.norm() + y.norm())
    return max(
        gap(svd.V_adjoint(svd.V(c)), c),
        gap(svd.U_adjoint(svd.U(measured)) * (svd.singular_values > 0), measured),
        gap(svd.V(svd.V_adjoint(rows)), rows),
        float((inner(svd.V(c), x) - inner(c, svd.V_adjoint(x))).abs().max()) / scale,
        float((inner(svd.U(c), y) - inner(c, svd.U_adjoint(y))).abs().max()) / scale,
    )


def singular_values(op: Operator, shape: Shape) -> float:
    svd = op.svd(shape)
    s = svd.singular_values.expand(svd.V_adjoint(image(shape)).shape[1:]).flatten()
    ours = np.sort(s.numpy())[::-1]
    exact = np.linalg.svd(dense(op, shape).numpy(), compute_uv=False)
    count = max(len(ours), len(exact))
    ours, exact = (np.pad(v, (0, count - len(v))) for v in (ours, exact))
    return float(np.abs(ours - exact).max() / exact.max() + (0 if (ours >= 0).all() else math.inf))


def prox(op: Operator, shape: Shape) -> float:
    z, y, M = image(shape), measurement(op, shape), dense(op, shape)
    left = GAMMA * M.T @ M + torch.eye(M.shape[1], dtype=torch.float64)
    exact = torch.linalg.solve(left, (GAMMA * y.flatten(1) @ M + z.flatten(1)).T).T
    return gap(op.prox_l2(z, y, GAMMA).flatten(1), exact)


def data_solve(op: Operator, shape: Shape) -> float:
    v, M = measurement(op, shape), dense(op, shape)
    left = 2.0 * M @ M.T + 0.5 * torch.eye(M.shape[0], dtype=torch.float64)
    return gap(op.solve_data(v, 2.0, 0.5).flatten(1), torch.linalg.solve(left, v.flatten(1).T).T)


def norm(op: Operator, shape: Shape) -> float:
    return abs(op.norm(shape) / float(torch.linalg.matrix_norm(dense(op, shape), 2)) - 1)


def separate(op: Operator, shape: Shape) -> float:
    """[x1, x2] together equals each alone. Batched kernels may round differently, nothing more."""
    x, y = image(shape), measurement(op, shape)
    maps: list[Callable[[int], torch.Tensor]] = [
        lambda i: op.A(x[i : i + 1]),
        lambda i: op.A_adjoint(y[i : i + 1]),
        lambda i: op.prox_l2(x[i : i + 1], y[i : i + 1], GAMMA),
        lambda i: op.solve_data(y[i : i + 1], 2.0, 0.5),
    ]
    together = [op.A(x), op.A_adjoint(y), op.prox_l2(x, y, GAMMA), op.solve_data(y, 2.0, 0.5)]
    return max(gap(torch.cat([f(0), f(1)]), both) for f, both in zip(maps, together, strict=True))


def iterative(op: Operator) -> Operator:
    """The same operator with its decomposition and shortcuts hidden, so that the base class has to iterate."""
    hidden = {"has_svd": property(lambda self: False), "prox_l2": Operator.prox_l2}
    cls = type(f"Iterative{type(op).__name__}", (type(op),), hidden)
    other = object.__new__(cls)
    other.__setstate__(op.__getstate__())
    return other


def condition(op: Operator, shape: Shape) -> float:
    """Largest over smallest kept singular value."""
    s = torch.linalg.svdvals(dense(op, shape))
    kept = s[s > 1e-6 * s.max()]
    return float(kept.max() / kept.min())


def tolerance(op: Operator, shape: Shape, law: str) -> float:
    """Rounding, times the condition 1 + 4 ||A||^2 of the systems where one is solved; conjugate gradients stop at a relative
    residual of 1e-12."""
    if law not in ("prox", "data_solve", "separate"):
        return ROUNDING
    condition = 1 + 4 * float(torch.linalg.matrix_norm(dense(op, shape), 2)) ** 2
    return max(ROUNDING, 4 * EPS * condition) if op.has_svd else 4e-12 * condition


EXACT = {f.__name__: f for f in (linearity, adjoint, normal_maps, prox, data_solve, separate)}
OF_THE_SVD = {f.__name__: f for f in (svd_product, svd_orthonormal, singular_values, norm)}


@every_operator("law", EXACT, each_case=True)
def test_exact_laws(case: Case, law: str) -> None:
    op = case.build()
    error, allowed = EXACT[law](op, case.shape), tolerance(op, case.shape, law)
    assert error <= allowed, f"{case.label}: {law} is off by {error:.2e} > {allowed:.2e}"


@every_operator("law", [*EXACT, *OF_THE_SVD])
def test_laws_of_the_adjoint(case: Case, law: str) -> None:
    op = case.build()
    adjoint_of, shape = op.H, op.measurement_shape(case.shape)
    assert adjoint_of.H is op and adjoint_of.linear and adjoint_of.has_svd == op.has_svd
    x, y = image(case.shape), measurement(op, case.shape)
    assert torch.equal(adjoint_of.A(y), op.A_adjoint(y)) and torch.equal(adjoint_of.A_adjoint(x), op.A(x))
    assert adjoint_of.measurement_shape(shape) == case.shape and adjoint_of.image_shape(case.shape) == shape
    assert pickle.loads(pickle.dumps(adjoint_of)) == adjoint_of != op
    if law in OF_THE_SVD and not op.has_svd:
        return
    error, allowed = {**EXACT, **OF_THE_SVD}[law](adjoint_of, shape), tolerance(op, case.shape, law)
    assert error <= allowed, f"{case.label}: {law} of the adjoint is off by {error:.2e} > {allowed:.2e}"


@every_operator()
def test_the_defaults_serve_the_adjoint(case: Case) -> None:
    """With the closed forms hidden: A_dagger of A^T is the transpose of A's, and prox_l2, solve_data still hold."""
    op = iterative(case.build()).H
    shape = op.image_shape(case.shape)
    k = condition(op, shape)
    assert not op.has_svd and pseudo_inverse(op, shape) <= 4e-12 * k**2
    allowed = 4e-12 * (1 + GAMMA * float(torch.linalg.matrix_norm(dense(op, shape), 2)) ** 2)
    assert prox(op, shape) <= allowed and data_solve(op, shape) <= allowed


def test_a_nonlinear_operator_has_no_adjoint() -> None:
    class Square(Operator):
        linear = False

    with pytest.raises(UsageError, match="not linear, so it has no adjoint"):
        _ = Square().H


def test_the_adjoint_iterates_where_u_is_not_known_to_be_orthonormal() -> None:
    class Half(type(operators.get("inpaint"))):
        """U vanishes where s = 0, which the contract allows."""

        orthonormal_U = False

        def svd(self, shape: Shape) -> SVD:
            svd = super().svd(shape)
            return replace(svd, U=lambda c: self.observed(shape) * c, U_adjoint=lambda y: self.observed(shape) * y)

    op, shape = Half(keep=0.4), (1, 4, 5)
    assert svd_orthonormal(op, shape) <= ROUNDING and not op.H.has_svd
    assert prox(op.H, shape) <= ROUNDING and data_solve(op.H, shape) <= ROUNDING
    # The twin: swapped all the same, V^T V = I is broken.
    Half.orthonormal_U = True
    assert svd_orthonormal(op.H, shape) > 1e-3


@every_operator("law", OF_THE_SVD)
def test_laws_of_the_decomposition(case: Case, law: str) -> None:
    op = case.build()
    if not op.has_svd:
        with pytest.raises(UsageError, match="no singular value decomposition"):
            op.svd(case.shape)
        return
    error = OF_THE_SVD[law](op, case.shape)
    assert error <= ROUNDING, f"{case.label}: {law} is off by {error:.2e}"


@every_operator()
def test_pseudo_inverse(case: Case) -> None:
    op = case.build()
    k = condition(op, case.shape)
    # Values below 1e-6 of the largest are cut by design; iterations square the condition number.
    allowed = ROUNDING * k + 1e-6 if op.has_svd else 4e-12 * k**2
    error = pseudo_inverse(op, case.shape)
    assert error <= allowed, f"{case.label}: off by {error:.2e} > {allowed:.2e} at condition number {k:.1e}"


@every_operator()
def test_iterations_agree_with_closed_forms(case: Case) -> None:
    op = iterative(case.build())
    assert not op.has_svd
    allowed = 4e-12 * (1 + GAMMA * float(torch.linalg.matrix_norm(dense(op, case.shape), 2)) ** 2)
    assert prox(op, case.shape) <= allowed
    assert data_solve(op, case.shape) <= allowed


@every_operator()
def test_default_adjoint_is_the_vector_jacobian_product(case: Case) -> None:
    op = case.build()
    y = measurement(op, case.shape)
    assert gap(Operator.A_adjoint(op, y).flatten(1), op.A_adjoint(y).flatten(1)) <= ROUNDING
    x = image(case.shape).requires_grad_(True)
    (gradient,) = torch.autograd.grad(op.A(x), x, y)
    assert gap(gradient, op.A_vjp(x, y)) <= ROUNDING


@every_operator("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept(case: Case, dtype: torch.dtype) -> None:
    op = case.build()
    x, y = image(case.shape).to(dtype), measurement(op, case.shape).to(dtype)
    # Storing the input alone costs eps; sums of this size a few tens of it.
    allowed = 50 * torch.finfo(dtype).eps
    assert op.A(x).dtype == op.A_adjoint(y).dtype == op.prox_l2(x, y, GAMMA).dtype == dtype
    assert gap(op.A(x).double(), op.A(x.double())) <= allowed
    assert gap(op.A_adjoint(y).double(), op.A_adjoint(y.double())) <= allowed
    if dtype != torch.bfloat16:
        assert gap(op.prox_l2(x, y, GAMMA).double(), op.prox_l2(x.double(), y.double(), GAMMA)) <= allowed * (1 + GAMMA)


@every_operator()
def test_shape_maps_are_consistent(case: Case) -> None:
    op = case.build()
    out = op.measurement_shape(case.shape)
    assert tuple(op.A(image(case.shape)).shape[1:]) == out
    assert op.image_shape(out) == case.shape
    assert tuple(op.A_adjoint(measurement(op, case.shape)).shape[1:]) == case.shape
    assert op.usable_shape(case.shape) == case.shape


@every_operator()
def test_pickle_and_spec_round_trip(case: Case) -> None:
    op = case.build()
    x = image(case.shape)
    before = op.A(x)
    again = pickle.loads(pickle.dumps(op))
    assert again == op and hash(again) == hash(op) and torch.equal(again.A(x), before)
    if isinstance(case.make, str):
        rebuilt = operators.get(op.spec)
        assert rebuilt == op and rebuilt.spec == op.spec and torch.equal(rebuilt.A(x), before)


@every_operator()
def test_observed_and_measured_count(case: Case) -> None:
    op = case.build()
    rows = dense(op, case.shape).abs().sum(1) > 0
    mask = op.observed(case.shape)
    out = op.measurement_shape(case.shape)
    seen = torch.ones(out) if mask is None else mask.expand(1, *out)[0]
    assert op.measured_count(case.shape) == int(seen.sum()) <= math.prod(out)
    if mask is not None:
        assert torch.equal(seen.flatten() > 0, rows)
        noisy = op.degrade(image(case.shape), measurement(op, case.shape), 0.5)
        assert float((noisy * (1 - seen)).abs().max()) == 0


@every_operator()
def test_first_use_in_inference_mode_leaves_autograd_usable(case: Case) -> None:
    op = case.build()
    x, y = image(case.shape), measurement(op, case.shape)
    with torch.inference_mode():
        op.A(x), op.A_adjoint(y), op.prox_l2(x, y, GAMMA)
    x.requires_grad_(True)
    (op.A(x).square().sum() + op.prox_l2(x, y, GAMMA).square().sum()).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


# The laws themselves: what they must not let through.


class Flipped(type(operators.get("motion_blur"))):
    """The adjoint convolves where it should correlate."""

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return super().A_adjoint(y.flip((-2, -1))).flip((-2, -1))


class Rescaled(type(operators.get("gaussian_blur"))):
    """The singular values, and with them the inverses, are sqrt(2) too large."""

    def svd(self, shape: Shape) -> SVD:
        svd = super().svd(shape)
        return replace(svd, singular_values=math.sqrt(2) * svd.singular_values)


class Stretched(type(operators.get("downsample"))):
    """V is not of unit length; the product U s V^T is still right."""

    def svd(self, shape: Shape) -> SVD:
        svd, r = super().svd(shape), math.sqrt(2)
        V, V_adjoint = (lambda c: r * svd.V(c)), (lambda x: r * svd.V_adjoint(x))
        return replace(svd, singular_values=svd.singular_values / r, V=V, V_adjoint=V_adjoint)


class Mixed(type(operators.get("identity"))):
    """Not linear, and samples of a batch see each other."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.abs().mean()


class Lazy(type(operators.get("identity"))):
    """Inverses that return their input."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def A_dagger(self, y: torch.Tensor) -> torch.Tensor:
        return y


@pytest.mark.parametrize(
    ("law", "mutant"),
    [
        (linearity, Mixed()),
        (separate, Mixed()),
        (adjoint, Flipped(length=6, path="random")),
        (normal_maps, Flipped(length=6, path="random")),
        (prox, Flipped(length=6, path="random")),
        (svd_product, Rescaled(sigma=0.6)),
        (singular_values, Rescaled(sigma=0.6)),
        (norm, Rescaled(sigma=0.6)),
        (prox, Rescaled(sigma=0.6)),
        (data_solve, Rescaled(sigma=0.6)),
        (pseudo_inverse, Rescaled(sigma=0.6)),
        (svd_orthonormal, Stretched(factor=2)),
        (singular_values, Stretched(factor=2)),
        (pseudo_inverse, Lazy()),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_laws_catch_mutants(law: Callable[[Operator, Shape], float], mutant: Operator) -> None:
    assert law(mutant, (1, 8, 8)) > 1e-3


def test_conjugate_gradients_stop_for_each_sample_alone() -> None:
    scale = torch.tensor([1.0, 1e4], dtype=torch.float64)[:, None]
    weights = torch.linspace(1, 2, 5, dtype=torch.float64)
    b = torch.ones(2, 5, dtype=torch.float64)
    assert gap(solve(lambda x: scale * weights * x, b).x, b / (scale * weights)) <= 1e-11


def test_every_registered_operator_is_in_the_list() -> None:
    covered = {case.label.partition(":")[0].partition("@")[0] for case in [*CASES, *NONLINEAR]}
    assert covered >= set(operators.names())


def test_installed_plug_ins_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    point = metadata.EntryPoint("my_scope", "invdiff.operators.identity:Identity", "invdiff.operators")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "invdiff.operators" else [])
    registry = Registry("operator", {"blur": "invdiff.operators.blur:GaussianBlur"}, group="invdiff.operators")
    assert list(registry) == ["blur", "my_scope"]
    assert registry["my_scope"]().A(torch.ones(1)) == 1
    with pytest.raises(UsageError, match=r"two operators are called 'blur'"):
        registry.add("blur", "somewhere:Else")
