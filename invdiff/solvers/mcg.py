"""MCG: Manifold Constrained Gradient.

Chung, Sim, Ryu, Ye. Improving Diffusion Models for Inverse Problems using Manifold Constraints. NeurIPS 2022,
https://arxiv.org/abs/2206.00941. Implements the gradient step followed by the projection.

    x'  = ancestral step(x_t, D(x_t))  -  alpha grad_{x_t} ||y - A D(x_t)||^2
    x_s = x' + A^+ (y + sigma_s A z - A x')

The gradient goes through the network, so it keeps to the manifold of images; the projection sets what is measured.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- alpha is the authors' choice, 0.1 / ||y - A D||: 0.2 times the gradient of the norm for 1000 steps, and as much in all
  with fewer. In the coordinate x = x_0 + sigma n on [0, 1] the displacement is divided by 2 sqrt(abar_t abar_s), as in
  `dps`; and by ||A||, which is 1 there;
- a gradient step goes no further than to where, along it, the residual is what the noise explains, sigma_y sqrt(m): in the
  last steps, long ones if they are few, it would fit the noise;
- any linear operator, and y may be noisy: the projection is that of `ilvr`, which leaves a direction with singular value s
  to the network once sigma_s is below sigma_y / s. `trust` is its weight; scaling sigma_y and A together changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator.linalg import dot, over
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import Estimate
from invdiff.solvers.ilvr import refined
from invdiff.solvers.solver import Correction, Solver, Transition, denoise_with_vjp, root_abar
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class MCG(Solver):
    """Gradient of the residual, then projection on the noised measurement; one call and one backward pass a step."""

    name: ClassVar[str] = "mcg"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})

    weight: float = parameter(0.2, low=0, help="step size of the gradient, for 1000 steps")
    trust: float = parameter(1.0, above=0, help="trust in the measurement; 1 weighs it by its noise")

    def _backward_passes_a_call(self) -> int:
        return 1

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        A, y = problem.operator, problem.y
        w = self.weight * max(1.0, 1000 / self.steps) / A.norm(problem.image_shape)
        explained = problem.sigma_y * A.measured_count(problem.image_shape) ** 0.5

        def guided(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            clean, pull_back = denoise_with_vjp(prior, x, sigma)
            r = y - A.A(clean)
            norm = dot(r, r).sqrt()
            gradient = -pull_back(A.A_adjoint(r / norm.clamp(min=1e-12)))  # grad ||r||
            # Along its gradient, ||r|| falls by ||gradient||^2 for each unit.
            enough = over((norm - explained).clamp(min=0), gradient) / dot(gradient, gradient).clamp(min=1e-24)
            scale = w / (2 * root_abar(sigma) * root_abar(next_sigma))
            return Estimate(clean, clean, shift=-enough.clamp(max=scale) * gradient)

        return guided

    def step(self, problem: Problem) -> Transition:
        return refined(problem, self.trust)
