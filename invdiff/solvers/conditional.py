"""Draws from p(x_0 | y) where the prior is replaced by a Gaussian around an estimate: the likelihood step of the decoupled
and the split methods (`daps`, `pnp_dm`).

    p(x) ~ N(x; D, r^2 I) N(y; A(x), sigma_y^2 I)                                                                     (*)

Exact, for a linear A (perturb, then optimise; Papandreou and Yuille, NeurIPS 2010, "Gaussian sampling by local
perturbations"): with x' ~ N(D, r^2 I) and y' ~ N(y, sigma_y^2 I),

    x = argmin_x  ||A x - y'||^2 / (2 sigma_y^2) + ||x - x'||^2 / (2 r^2)

is a draw of (*): its mean is that of (*), and with P = A^T A / sigma_y^2 + I / r^2 its covariance is
P^-1 (A^T A / sigma_y^2 + I / r^2) P^-1 = P^-1. It takes one proximal step of A, so no decomposition.

Langevin, for any differentiable A: x <- x + h grad log p(x) + sqrt(2 h) z from x = D. The step is h = c / L, with
L = 1 / r^2 + ||J||^2 / sigma_y^2 the largest curvature of (*) met so far, J being the Jacobian of A, so that one c < 1
fits every level, noise and operator. (Steps that followed the curvature at x both ways would favour the places where they
are small.) In a direction of curvature l the stationary variance is 1 / (l (1 - h l / 2)): too large by at most c / (2 - c)
of itself; and directions with l << L move little in a few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.operator.contract import Operator
from invdiff.operator.linalg import dot, over
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import Solver
from invdiff.specs.parameters import parameter, whole

Draw = Callable[[torch.Tensor, float, Draws], torch.Tensor]
"""(D (B, ...), r, noise) -> x (B, ...), a draw of (*)."""

CURVATURE_ITERATIONS = 4
PROBE = 1e-2  # root mean square of the difference quotients' change of x, in [0, 1] units


@dataclass(frozen=True)
class LikelihoodStep(Solver):
    """A solver that draws from (*) once for each level."""

    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})

    sampler: str = parameter(
        "auto",
        kind=str,
        choices=("auto", "exact", "langevin"),
        help="draws given y: exact (linear operators), langevin (differentiable ones), or exact wherever it can",
    )
    langevin_steps: int = parameter(
        50, kind=whole, low=1, search=False, help="Langevin steps for each draw; no network calls"
    )
    langevin_size: float = parameter(
        0.3, above=0, high=1, help="size of a Langevin step over the inverse of the largest curvature"
    )

    def unmet(self, operator: Operator) -> list[str]:
        if self.sampler == "exact" or (self.sampler == "auto" and operator.linear):
            return [] if operator.linear else ["linear"]
        return super().unmet(operator)

    def likelihood_step(self, problem: Problem) -> Draw:
        """The function (D, r, noise) -> a draw of (*)."""
        if self.sampler == "exact" or (self.sampler == "auto" and problem.operator.linear):
            return lambda centre, spread, noise: draw_exactly(problem, centre, spread, noise)
        steps, size = self.langevin_steps, self.langevin_size
        return lambda centre, spread, noise: draw_by_langevin(problem, centre, spread, noise, steps, size)


def draw_exactly(problem: Problem, centre: torch.Tensor, spread: float, noise: Draws) -> torch.Tensor:
    """One draw of (*) for each row of D = centre (B, *image shape), for r = spread > 0 and a linear operator."""
    x = centre + spread * noise()
    mask = problem.operator.observed(problem.image_shape)
    z = noise.normal(*problem.y.shape[1:])
    y = problem.y + problem.sigma_y * (z if mask is None else z * mask.to(z))
    return problem.operator.prox_l2(x, y, (spread / problem.sigma_y) ** 2)


def draw_by_langevin(
    problem: Problem, centre: torch.Tensor, spread: float, noise: Draws, steps: int, size: float
) -> torch.Tensor:
    """`steps` Langevin steps for (*) from D = centre; r = spread, c = size. Two operator calls and two vjps a step."""
    A, y, precision = problem.operator, problem.y, problem.sigma_y**-2
    x, u = centre, A.A_vjp(centre, y - A.A(centre))
    for _ in range(CURVATURE_ITERATIONS):
        largest, u = squared_norm(A, x, u)
    for _ in range(steps):
        square, u = squared_norm(A, x, u)
        largest = torch.maximum(largest, square)
        h = size / (spread**-2 + largest * precision)
        slope = (centre - x) / spread**2 + A.A_vjp(x, y - A.A(x)) * precision
        x = x + h * slope + (2 * h).sqrt() * noise()
    return x


def squared_norm(A: Operator, x: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(||J u||^2 / ||u||^2, J^T J u / ||u||) of each row, (B, 1, .., 1) and (B, ...): a power iteration for ||J||^2 at x.

    J u comes from a difference quotient, so that the operator needs no forward derivatives; exact where A is linear.
    """
    u = u / dot(u, u).sqrt().clamp(min=1e-30)
    h = PROBE * u[0].numel() ** 0.5
    image = (A.A(x + h * u) - A.A(x)) / h
    square = dot(image, image)
    return over(square, x), A.A_vjp(x, image)


def inner_levels(sigma: float, calls: int) -> list[float]:
    """`calls` levels from sigma towards 0 for a diffusion inside one level: sigma (1 - j / calls).

    Where sigma is below the deviation of the data, x_0 given x has nearly the deviation sigma itself: levels that fall
    faster would shrink it.
    """
    return [sigma * (1 - j / calls) for j in range(calls)]
