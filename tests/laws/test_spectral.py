"""Functions of the singular values: the same with a decomposition, with a dense one, and by Lanczos without any."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import invdiff
from invdiff import operators, solvers
from invdiff.operator.contract import Operator
from invdiff.operator.spectral import DENSE, Decomposed, Lanczos, bidiagonalise, dense_svd, matrix, spectral
from invdiff.operator.svd import SVD
from invdiff.priors.gaussian import GaussianPrior

SHAPE = (1, 8, 8)
OPERATORS = [
    "identity",
    "gaussian_blur:sigma=0.7,size=3,boundary=circular",
    "gaussian_blur:sigma=0.7,size=3,boundary=reflect",
    "gaussian_blur:sigma=0.7,size=3,boundary=valid",
    "uniform_blur:size=3,boundary=zero",
    "motion_blur:length=2,angle=30,boundary=circular",
    "downsample:factor=2,kernel=bicubic,boundary=circular",
    "inpaint:keep=0.6,seed=1",
    "random_subsample:keep=0.5,seed=2",
]


@dataclass(frozen=True, eq=False)
class Hidden(Operator):
    """An operator whose decomposition is not known."""

    name: ClassVar[str] = "hidden"

    of: Operator

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.of.A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.of.A_adjoint(y)

    def measurement_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.of.measurement_shape(shape)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.of.image_shape(shape)

    def observed(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        return self.of.observed(shape)


def smooth(s: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + 4 * s**2)


def jump(s: torch.Tensor) -> torch.Tensor:
    """What DDRM needs of its noise: a kink, and another value where nothing is measured."""
    return torch.where(s == 0, 2.0, (0.5 - 0.01 / s**2).clamp(min=0).sqrt())


def inverse(s: torch.Tensor) -> torch.Tensor:
    return torch.where(s == 0, 0.0, 1 / s)


def bounded(s: torch.Tensor) -> torch.Tensor:
    return s / (s**2 + 0.1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(operator: Operator, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and measurements, the second row in the null space and the range's complement alike: zero."""
    x, y = normal(rows, *SHAPE), normal(rows, *operator.measurement_shape(SHAPE), seed=1)
    x[1], y[1] = 0, 0
    mask = operator.observed(SHAPE)
    return x, y if mask is None else y * mask.to(y)


@pytest.mark.parametrize("image", [smooth, jump])
@pytest.mark.parametrize("data", [inverse, bounded])
@pytest.mark.parametrize("spec", OPERATORS)
def test_without_the_decomposition_as_with_it(spec: str, image, data) -> None:
    """Lanczos with as many iterations as numbers, and the dense decomposition, give what U, s and V give."""
    operator = operators.get(spec)
    x, y = vectors(operator)
    expected = Decomposed(operator.svd(SHAPE)).apply([(image, x)], [(data, y)])
    dense = Decomposed(dense_svd(Hidden(operator), SHAPE)).apply([(image, x)], [(data, y)])
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-8)
    krylov = Lanczos(Hidden(operator), 64).apply([(image, x)], [(data, y)])
    torch.testing.assert_close(krylov, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2**0.5, -1.0])
def test_the_law_sees_a_wrong_function(factor: float) -> None:
    """Mutation twin: the same comparison, with one term a factor off."""
    operator = operators.get(OPERATORS[2])
    x, y = vectors(operator)
    expected = Decomposed(operator.svd(SHAPE)).apply([(smooth, x)], [(bounded, y)])
    for terms in (
        ([(lambda s: factor * smooth(s), x)], [(bounded, y)]),
        ([(smooth, x)], [(lambda s: factor * bounded(s), y)]),
    ):
        found = Lanczos(Hidden(operator), 64).apply(*terms)
        assert float((found - expected).abs().max()) > 0.1


def test_exact_with_as_many_iterations_as_different_singular_values() -> None:
    """A mask has two: 1 and 0. One iteration is too few, two are enough for every function."""
    operator = operators.get("inpaint:keep=0.6,seed=1")
    x, y = vectors(operator)
    expected = Decomposed(operator.svd(SHAPE)).apply([(jump, x)])
    torch.testing.assert_close(Lanczos(Hidden(operator), 2).apply([(jump, x)]), expected, rtol=0, atol=1e-12)
    assert float((Lanczos(Hidden(operator), 1).apply([(jump, x)]) - expected).abs().max()) > 0.1
    only = Lanczos(Hidden(operator), 1).apply([], [(inverse, y)])
    torch.testing.assert_close(only, operator.A_dagger(y), rtol=0, atol=1e-12)


def test_the_bases_are_orthonormal_and_carry_the_operator() -> None:
    """A Q = P B to rounding, for every row, also where rounding alone would lose orthogonality."""
    operator = operators.get("motion_blur:length=5,angle=30")
    y = normal(2, 1, 16, 16)
    p, q, size, diagonal, below = bidiagonalise(operator.A, operator.A_adjoint, y, 60)
    eye = torch.eye(60, dtype=torch.float64)
    torch.testing.assert_close(q @ q.mT, eye.expand(2, -1, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(p[:, :60] @ p[:, :60].mT, eye.expand(2, -1, -1), rtol=0, atol=1e-12)
    image = operator.A(q.reshape(-1, 1, 16, 16)).reshape(2, 60, -1)
    torch.testing.assert_close(image, matrix(diagonal, below).mT @ p, rtol=0, atol=1e-12)
    torch.testing.assert_close(size, y.flatten(1).norm(dim=1))


def test_converges_and_says_how_far_it_is() -> None:
    """Motion blur with reflecting edges has no decomposition: a smooth function converges geometrically (a factor of 3 for
    each 3 iterations at least). The estimate is the error of a fifth fewer iterations: above the error, but not far above."""
    operator = operators.get("motion_blur:length=5,angle=30")
    x, y = normal(2, 1, 16, 16), normal(2, 1, 16, 16, seed=1)
    exact = Decomposed(dense_svd(operator, (1, 16, 16)))
    for expected, approximate in (
        (exact.apply([(smooth, x)]), lambda k: Lanczos(operator, k).image(smooth, x)),
        (exact.apply([], [(bounded, y)]), lambda k: Lanczos(operator, k).measurement(bounded, y)),
    ):
        errors = []
        for k in (3, 6, 9, 12, 15, 18):
            found, estimate = approximate(k)
            error = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
            assert (error < 1.5 * estimate).all() and (estimate < 100 * error).all(), (k, error, estimate)
            errors.append(float(error.max()))
        assert all(b < a / 3 for a, b in itertools.pairwise(errors)), errors


def test_rows_do_not_know_each_other() -> None:
    """Also where one row's Krylov space ends before the others'."""
    operator = Hidden(operators.get("gaussian_blur:sigma=0.7,size=3"))
    x, y = vectors(operator)
    x[2] = operator.of.svd(SHAPE).V(torch.nn.functional.one_hot(torch.tensor([9]), 64).double().reshape(1, 1, 8, 8))[0]
    together = Lanczos(operator, 12).apply([(smooth, x)], [(bounded, y)])
    alone = torch.cat(
        [Lanczos(operator, 12).apply([(smooth, x[b : b + 1])], [(bounded, y[b : b + 1])]) for b in range(3)]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)
    assert torch.equal(together[1], torch.zeros_like(together[1]))


def test_the_most_exact_way_is_chosen() -> None:
    small, large = (1, 8, 8), (1, 40, 40)
    assert np.prod(large) > DENSE >= np.prod(small)
    assert isinstance(spectral(operators.get("gaussian_blur"), (1, 64, 64)), Decomposed)
    blur = operators.get("motion_blur:length=5,angle=30")
    assert isinstance(spectral(blur, small), Decomposed)
    assert spectral(blur, small).svd is spectral(blur, small).svd  # made once
    chosen = spectral(blur, large, 7)
    assert isinstance(chosen, Lanczos) and chosen.iterations == 7


@pytest.mark.parametrize("solver", ["ddrm", "ddrm:eta=0.6,eta_b=0.8", "ddnm", "ddnm:eta=1"])
@pytest.mark.parametrize("spec", ["gaussian_blur:sigma=0.7,size=3", "inpaint:keep=0.6,seed=1"])
def test_solvers_need_no_decomposition(solver: str, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples from the same seeds, with U, s and V hidden: dense, and by Lanczos."""
    operator = operators.get(spec)
    prior = GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), 0.05)
    y = invdiff.degrade(prior.sample(2, torch.Generator().manual_seed(1)), operator, noise=0.1)

    def samples(of: Operator) -> torch.Tensor:
        chosen = solvers.get(solver, steps=5, iterations=64)
        return invdiff.restore(y, of, 0.1, prior=prior, solver=chosen, batch_size=2).samples

    expected = samples(operator)
    torch.testing.assert_close(samples(Hidden(operator)), expected, rtol=0, atol=1e-8)
    monkeypatch.setattr("invdiff.operator.spectral.DENSE", 0)
    torch.testing.assert_close(samples(Hidden(operator)), expected, rtol=0, atol=1e-6)


def test_decomposition_of_a_wide_and_a_tall_matrix() -> None:
    for rows in (5, 64, 90):
        A = normal(rows, 64)
        svd = dense_svd(operators.get("linear", matrix=A, shape=SHAPE), SHAPE)
        assert isinstance(svd, SVD)
        x = normal(2, *SHAPE, seed=3)
        y = svd.U(svd.singular_values * svd.V_adjoint(x))
        torch.testing.assert_close(y, x.flatten(1) @ A.mT)
        torch.testing.assert_close(svd.V(svd.singular_values * svd.U_adjoint(y)).flatten(1), y @ A)
