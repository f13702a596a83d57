"""The laws of operators, over those that were whitened: by numbers, some of them 0, by a row for each image, by a filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from invdiff import operators
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.weighted import Prewhitened, Weighted, Whitened, filtered

from .test_nonlinear_laws import transposes
from .test_operator_laws import EXACT, ROUNDING, gap, image, inner, measurement, normal, tolerance

SHAPE: Shape = (1, 8, 7)
LINEAR = (
    "identity",
    "gaussian_blur:sigma=0.8,boundary=circular",
    "motion_blur:length=3,angle=30",
    "inpaint:keep=0.6",
    "fourier_subsample:acceleration=2,complex=true",
)
NONLINEAR = ("gamma", "saturate", "phase_retrieval")


def positive(operator: Operator, shape: Shape, rows: int = 1) -> torch.Tensor:
    return 0.5 + normal(rows, *operator.measurement_shape(shape), seed=6).abs()


def diagonal(operator: Operator, shape: Shape) -> Weighted:
    return Whitened(operator, positive(operator, shape))


def with_zeros(operator: Operator, shape: Shape) -> Weighted:
    weights = positive(operator, shape)
    return Whitened(operator, weights * (normal(*weights.shape, seed=8) > -0.5))


def a_row_each(operator: Operator, shape: Shape) -> Weighted:
    return Whitened(operator, positive(operator, shape, 2))


def by_filter(operator: Operator, shape: Shape) -> Weighted:
    *_, height, width = operator.measurement_shape(shape)
    response = 0.5 + normal(1, height, width // 2 + 1, seed=9).abs()
    return Prewhitened(operator, (response + response.flip(-2).roll(1, -2)) / 2)  # of a real, even kernel


KINDS: dict[str, Callable[[Operator, Shape], Weighted]] = {
    "diagonal": diagonal, "with zeros": with_zeros, "a row each": a_row_each, "filter": by_filter,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    kind: str
    spec: str

    @property
    def shape(self) -> Shape:
        return (2, 8, 7) if self.spec.startswith("fourier") else SHAPE

    def build(self) -> Weighted:
        return KINDS[self.kind](operators.get(self.spec), self.shape)


def cases(specs: tuple[str, ...]) -> list[Case]:
    return [Case(kind, spec) for kind in KINDS for spec in specs]


@pytest.mark.parametrize("case", [c for c in cases(LINEAR) if c.kind != "a row each"], ids=str)
@pytest.mark.parametrize("law", EXACT)
def test_exact_laws(case: Case, law: str) -> None:
    white = case.build()
    assert EXACT[law](white, case.shape) <= tolerance(white, case.shape, law)


@pytest.mark.parametrize("case", cases(NONLINEAR), ids=str)
def test_gradients_and_products_are_transposes(case: Case) -> None:
    assert transposes(case.build(), case.shape) <= ROUNDING


@pytest.mark.parametrize("case", cases((*LINEAR, *NONLINEAR)), ids=str)
def test_what_w_does_to_each_part(case: Case) -> None:
    """W A, W J u, J^T W v, and a first guess that is finite and, where nothing is left out, A's own."""
    white = case.build()
    A, x, u = white.of, image(case.shape).abs() + 0.1, image(case.shape, 1)
    v = measurement(A, case.shape)

    def W(y: torch.Tensor) -> torch.Tensor:
        return filtered(y, white.weights[0]) if case.kind == "filter" else white.weights * y

    assert gap(white.A(x), W(A.A(x))) <= ROUNDING
    assert gap(white.A_jvp(x, u), W(A.A_jvp(x, u))) <= ROUNDING
    assert gap(white.A_vjp(x, v), A.A_vjp(x, W(v))) <= ROUNDING
    guess = white.first_guess(white.A(x))
    assert guess.shape == x.shape and torch.isfinite(guess).all()
    if case.kind != "with zeros":
        assert gap(guess, A.first_guess(A.A(x))) <= 1e-6  # rounding moves few values


@pytest.mark.parametrize("spec", LINEAR)
def test_rows_belong_to_images(spec: str) -> None:
    """Two images, three particles of each: every row of the batch as alone; a wrong order (the twin) is seen."""
    case = Case("a row each", spec)
    white = case.build()
    x = normal(6, *case.shape, seed=2)
    alone = torch.cat([white.rows([row // 3]).A(x[row : row + 1]) for row in range(6)])
    assert gap(white.A(x), alone) <= ROUNDING
    assert gap(white.rows([0, 0, 0, 1, 1, 1]).A(x), alone) <= ROUNDING
    assert gap(white.rows([0, 1, 0, 1, 0, 1]).A(x), alone) > 1e-3
    y = measurement(white, case.shape)
    both = white.prox_l2(x[:2], y, 3.0)
    each = torch.cat([white.rows([row]).prox_l2(x[row : row + 1], y[row : row + 1], 3.0) for row in range(2)])
    assert gap(both, each) <= 1e-9


def test_the_laws_catch_a_filter_that_is_taken_for_numbers() -> None:
    """The twin: products with the response, entry by entry, as a diagonal W has them."""

    class Wrong(Prewhitened):
        def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            Ju = self.of.A_jvp(x, u)
            return self.weights[..., : Ju.shape[-1]].mean() * Ju

    op = operators.get("gamma")
    wrong = Wrong(op, by_filter(op, SHAPE).weights)
    assert transposes(wrong, SHAPE) > 1e-3
    x, y = image(SHAPE), measurement(op, SHAPE)
    assert float((inner(wrong.A_jvp(x, x), y) - inner(x, wrong.A_vjp(x, y))).abs().max()) > 1e-3
