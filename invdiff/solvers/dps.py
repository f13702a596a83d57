"""DPS: Diffusion Posterior Sampling for general noisy inverse problems.

Chung, Kim, Mccann, Klasky, Ye. ICLR 2023, https://arxiv.org/abs/2209.14687. Implements algorithm 1 (Gaussian noise)
and its weighted norm for Poisson noise.

    x_{t-1} = ancestral step(x_t, D(x_t))  -  w grad_{x_t} ||y - A D(x_t)||

In the coordinate x = x_0 + sigma n on [0, 1], with abar = 1 / (1 + 4 sigma^2), the same displacement is
-w / (2 sqrt(abar_t abar_s)) times the gradient with respect to x (s: the next level).

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- the gradient of the norm, as in the authors' experiments: the paper's step zeta' grad ||r||^2 / ||r|| is w = 2 zeta';
- with fewer than 1000 steps the weight is multiplied by 1000 / steps, so that the guidance adds up to as much; and a step
  never overshoots what would bring a residual of the current size to zero along the gradient (`limit`, in such steps);
- Poisson noise as in the paper, by the norm weighted with the inverse variances that y tells, which are those of the
  neighbours here (invdiff/problem/whitening.py). The root of the exact deviance in its place restored worse (docs/noise.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator.linalg import dot, over
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.solvers.solver import Correction, Solver, Transition, denoise_with_vjp, root_abar
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class DPS(Solver):
    """Gradient guidance for any differentiable operator; one network call and one backward pass a step."""

    name: ClassVar[str] = "dps"
    consistent: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})

    weight: float = parameter(1.0, low=0, help="step size w of the guidance, for 1000 steps")
    eta: float = parameter(1.0, low=0, high=1, help="0: deterministic steps, 1: ancestral steps")
    limit: float = parameter(1.0, above=0, help="largest step, in units of the one that would zero the residual")

    def _backward_passes_a_call(self) -> int:
        return 1

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        A, y = problem.operator, problem.y
        w = self.weight * max(1.0, 1000 / self.steps)

        def guided(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            clean, pull_back = denoise_with_vjp(prior, x, sigma)
            r = y - A.A(clean)
            norm = dot(r, r).sqrt()
            gradient = -pull_back(A.A_vjp(clean, r / over(norm, r).clamp(min=1e-12)))  # grad ||r||
            scale = w / (2 * root_abar(sigma) * root_abar(next_sigma))
            # Newton's step on ||r|| along its gradient has length ||r|| / ||grad||^2 in units of the gradient.
            newton = over(norm, gradient) / dot(gradient, gradient).clamp(min=1e-24)
            return Estimate(clean, clean, shift=-torch.clamp(self.limit * newton, max=scale) * gradient)

        return guided

    def step(self, problem: Problem) -> Transition:
        return DDIM(self.eta)
