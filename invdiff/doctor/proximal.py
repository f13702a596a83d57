"""The proximal step of an operator that is not linear: a low point of F(x) = gamma/2 |A(x) - y|^2 + 1/2 |x - z|^2 near z."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from invdiff.operator.contract import Operator
from invdiff.operator.gauss_newton import gauss_newton
from invdiff.operator.linalg import largest_eigenvalue, over

from .causes import number
from .findings import Line, failed, not_applicable, passed
from .subject import Subject, fit, inner, quiet

SLACK = 0.05
"""Share of the fall from F(z) that may be missed: Gauss-Newton steps stop early, and measure up to 0.004 here."""
LENGTHS = (2.0, 1.0, 0.5, 0.25, 0.1)
"""Steps down the gradient that look for a lower point, in units of the one that is best for a quadratic F."""
ALIGNED = 0.1
"""Where |p - z| is this nearly a multiple of the data's pull, that multiple says for which gamma p is right."""


def prox_l2(s: Subject) -> Line:
    """F(p) <= F(z), and neither the default's Gauss-Newton steps from z nor a step down the gradient at p go much lower."""
    op = s.operator
    if not op.differentiable:
        return not_applicable("A is not differentiable")
    x = s.pictures(60)
    y = s.A(x) + 0.05 * s.measurements(61).to(x)
    z = x + 0.1 * s.images(62)
    gamma = 1 / (_slope(s, x[:1]) ** 2 or 1.0)  # both terms count

    def F(p: torch.Tensor) -> torch.Tensor:
        return (gamma * inner(s.A(p) - y, s.A(p) - y) + inner(p - z, p - z)) / 2

    p, _ = quiet(lambda: s.as_image(op.prox_l2(z.clone(), y.clone(), gamma), "prox_l2"))
    before, after = F(z), F(p)
    if not bool((after <= before * (1 + s.tolerance)).all()):
        worst = float((after / before).max())
        cause = "a step that overshoots: halve it until F falls, as the default does"
        return failed(f"F(prox_l2(z)) is {worst:.3g} F(z), F = gamma/2 |A x - y|^2 + 1/2 |x - z|^2", cause, ratio=worst)
    constant = torch.equal(s.A(x + s.epsilon**0.5 * s.images(63)), s.A(x))  # its derivative is a substitute
    pull = gamma * s.A_vjp(p, s.A(p) - y)
    own = type(op).prox_l2 is not Operator.prox_l2
    default = F(quiet(lambda: gauss_newton(op, z.clone(), y.clone(), gamma))[0]) if own else after
    lowest = default if constant else torch.minimum(default, _below(s, F, p, pull + p - z, gamma))
    missed = float(((after - lowest).clamp(min=0) / (before - lowest).clamp(min=1e-300)).max())
    factor, rest = fit(z - p, pull)
    scaled = own and not constant and rest <= ALIGNED and abs(factor - 1) > SLACK
    fell = f"F falls to {float((after / before).mean()):.2f} of F(z)"
    if missed <= SLACK and not scaled:
        return passed(f"{fell}; at most {missed:.1e} of the fall missed", missed=missed, factor=factor)
    cause = ""
    if torch.equal(p, z):
        cause = "it answers z itself"
    elif scaled:
        cause = f"it is right for {number(factor)} gamma: F = gamma/2 |A x - y|^2 + 1/2 |x - z|^2"
    elif own and bool((default < after).any()):
        cause = "without its prox_l2 the default would go lower"
    return failed(
        f"{fell}, and {missed:.1%} of the fall is missed, allowed {SLACK:.0%}", cause, missed=missed, factor=factor
    )


def _slope(s: Subject, x: torch.Tensor) -> float:
    """The norm of the Jacobian at x, (1, *image shape)."""
    op = s.operator
    with torch.no_grad():
        return math.sqrt(largest_eigenvalue(lambda v: s.A_vjp(x, op.A_jvp(x, v)), s.images(50, 1), 10))


def _below(
    s: Subject, F: Callable[[torch.Tensor], torch.Tensor], p: torch.Tensor, gradient: torch.Tensor, gamma: float
) -> torch.Tensor:
    """The least of F(p) and of F on the way down the gradient from p, of each image."""
    with torch.no_grad():
        bend = s.operator.A_jvp(p, gradient)
    length = inner(gradient, gradient) / (gamma * inner(bend, bend) + inner(gradient, gradient)).clamp(min=1e-300)
    points = [F(p - over(h * length, p).to(p) * gradient) for h in LENGTHS]
    return torch.stack([F(p), *points]).amin(0)
