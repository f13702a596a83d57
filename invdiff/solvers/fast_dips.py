"""FAST-DIPS: Adjoint-Free Analytic Steps and Hard-Constrained Likelihood Correction for Diffusion-Prior Inverse Problems.

Kim, Shin, Lim. ICLR 2026, https://arxiv.org/abs/2603.01591. Implements the pixel-space method.

At each level, the point nearest to D = D(x_t) whose residual is no larger than the noise,

    min_x  ||x - D||^2 / (2 sigma_t^2)    subject to    ||y - A(x)|| <= epsilon = budget sigma_y sqrt(m),

is approached by `iterations` rounds of scaled ADMM on v = A(x):

    v = projection of A(x) + u on the ball,    x: steepest descent on F,    u <- u + A(x) - v
    F(x) = ||x - D||^2 / (2 sigma_t^2) + rho ||A(x) - v + u||^2 / 2

with gradient g and the step alpha = ||g||^2 / (||g||^2 / sigma_t^2 + rho ||H g||^2), H = dA/dx, which minimises F along g
where A is linear: one vector-Jacobian and one Jacobian-vector product. Then noise of the next level is added afresh.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- epsilon and rho scale with the noise, so that one default serves all: the `rho` here is in units of 1 / sigma_y^2 (the
  authors' rho = 200 at noise 0.05 on [-1, 1] is 0.5), and `budget` counts the deviation sigma_y sqrt(m) of the noise;
- budget = 0 by default. The few rounds stop short of the limit, where sigma_t^2 is below sigma_y^2 / rho by far, so that the
  noise is not fitted; budget = 1, the paper's confidence region, stops them at every level again and restores 1 to 3 dB worse
  at 20 steps. The authors' epsilon = 0.05 for a whole picture is no more than 1/100 of sigma_y sqrt(m);
- the step is tried shorter only where A is not linear, halved until F has fallen by 1e-4 alpha ||g||^2 (at most 20 times);
- the Jacobian-vector product is exact; there is no finite difference, and no latent variant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator.linalg import dot, over
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import Estimate, Renoise
from invdiff.solvers.solver import Correction, Solver, Transition
from invdiff.specs.parameters import parameter, whole

SUFFICIENT = 1e-4
HALVINGS = 20


@dataclass(frozen=True)
class FastDIPS(Solver):
    """Hard limit on the residual by a few analytic steps; one network call a step, no gradients of the network."""

    name: ClassVar[str] = "fast_dips"
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    remedy: ClassVar[str] = "a larger budget"

    budget: float = parameter(
        0.0, low=0, help="largest residual ||y - A x||, in deviations sigma_y sqrt(m) of the noise"
    )
    rho: float = parameter(0.5, above=0, help="penalty of the splitting, in units of 1 / sigma_y^2")
    iterations: int = parameter(3, kind=whole, low=1, help="rounds of splitting at each level")
    descents: int = parameter(1, kind=whole, low=1, help="steepest descent steps in each round")

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        A, y = problem.operator, problem.y
        epsilon = self.budget * problem.sigma_y * A.measured_count(problem.image_shape) ** 0.5
        rho = self.rho / problem.sigma_y**2

        def project(w: torch.Tensor) -> torch.Tensor:
            excess = dot(w - y, w - y).sqrt() / epsilon if epsilon > 0 else torch.inf
            return y + (w - y) / torch.as_tensor(excess).clamp(min=1)

        def constrained(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            clean = prior.denoise(x, sigma)
            x0, u = clean, torch.zeros_like(y)
            image = A.A(x0)
            for _ in range(self.iterations):
                v = project(image + u)
                for _ in range(self.descents):
                    x0, image = _descend(problem, x0, image, clean, v - u, 1 / sigma**2, rho)
                u = u + image - v
            return Estimate(clean, x0)

        return constrained

    def step(self, problem: Problem) -> Transition:
        return Renoise(1.0)


def _descend(
    problem: Problem,
    x: torch.Tensor,
    image: torch.Tensor,
    anchor: torch.Tensor,
    target: torch.Tensor,
    trust: float,
    rho: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One steepest descent step on F(x) = trust / 2 ||x - anchor||^2 + rho / 2 ||A(x) - target||^2 from x, where image =
    A(x): the new x and its image."""
    A = problem.operator
    g = trust * (x - anchor) + rho * A.A_vjp(x, image - target)
    Hg, slope = A.A_jvp(x, g), dot(g, g)
    curvature = trust * slope + rho * dot(Hg, Hg).reshape(slope.shape)
    alpha = slope / torch.where(curvature > 0, curvature, torch.ones_like(curvature))
    if A.linear:
        return x - alpha * g, image - over(alpha, image) * Hg

    def objective(x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        fit = dot(image - target, image - target).reshape(slope.shape)
        return trust / 2 * dot(x - anchor, x - anchor) + rho / 2 * fit

    return _backtrack(A.A, objective, x, image, g, alpha, slope)


def _backtrack(
    apply: Callable[[torch.Tensor], torch.Tensor],
    objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    image: torch.Tensor,
    g: torch.Tensor,
    alpha: torch.Tensor,
    slope: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x - alpha g and its image, alpha halved for each row alone until the objective falls enough; a row for which none
    of the halvings does stays where it is."""
    before = objective(x, image)
    for _ in range(HALVINGS + 1):
        moved = x - alpha * g
        reached = apply(moved)
        enough = objective(moved, reached) <= before - SUFFICIENT * alpha * slope
        if enough.all():
            return moved, reached
        alpha = torch.where(enough, alpha, alpha / 2)
    moved = torch.where(enough, x - alpha * g, x)
    return moved, apply(moved)
