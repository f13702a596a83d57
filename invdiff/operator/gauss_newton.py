"""The proximal step of an operator that is not linear, by the Gauss-Newton method.

    argmin_x  F(x) = gamma/2 ||A(x) - y||^2 + 1/2 ||x - z||^2

With J the Jacobian of A at x, a step d solves the linearised problem, (gamma J^T J + I) d = gamma J^T (y - A(x)) + z - x, by
a few conjugate gradients: products with J and J^T only. It is halved, for each image alone, until F falls; F, not its
linearisation, so that the derivatives may be those of a surrogate (rounding taken as the identity, say).
"""

from __future__ import annotations

from typing import Any

import torch

from invdiff.operator.linalg import Map, dot, over, solve

STEPS, INNER, HALVINGS = 4, 12, 6
TOLERANCE = 1e-2
"""Relative residual at which the inner iterations stop: the next step starts from a better point anyway."""


def gauss_newton(A: Any, z: torch.Tensor, y: torch.Tensor, gamma: float, steps: int = STEPS) -> torch.Tensor:
    """A local minimum of F near z (B, *image shape), for an Operator A and measurements y (B, *measurement shape).

    Never worse than z: a row that no step improves stays where it is."""
    x, image = z, A.A(z)
    value = _objective(x, image, z, y, gamma)
    for _ in range(steps):
        slope = gamma * A.A_vjp(x, y - image) + z - x
        d = solve(_normal(A, x, gamma), slope, tolerance=TOLERANCE, iterations=INNER).x
        length = torch.ones_like(value)
        for _ in range(HALVINGS):
            moved = x + over(length, x) * d
            reached = A.A(moved)
            fallen = _objective(moved, reached, z, y, gamma)
            better = fallen < value
            if better.all():
                break
            length = torch.where(better, length, length / 2)
        if not better.any():
            break
        x = torch.where(over(better, x), moved, x)
        image = torch.where(over(better, image), reached, image)
        value = torch.where(better, fallen, value)
    return x


def _normal(A: Any, x: torch.Tensor, gamma: float) -> Map:
    """v -> (gamma J^T J + I) v with J at x."""
    return lambda v: gamma * A.A_vjp(x, A.A_jvp(x, v)) + v


def _objective(x: torch.Tensor, image: torch.Tensor, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
    """F of each row, (B,)."""
    return (gamma * dot(image - y, image - y).flatten() + dot(x - z, x - z).flatten()) / 2
