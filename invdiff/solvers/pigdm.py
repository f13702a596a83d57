"""PiGDM: Pseudoinverse-Guided Diffusion Models.

Song, Vahdat, Mardani, Kautz. ICLR 2023, https://openreview.net/forum?id=9_gsMA8MRKQ. Implements algorithm 1 with the noisy
linear likelihood of eq. 7.

p(x_0 | x) is taken as N(D(x), r^2 I) with r^2 = sigma^2 nu / (sigma^2 + nu), exact for data of variance nu. Then
p(y | x) = N(A D(x), r^2 A A^T + sigma_y^2 I), whose score is g = J^T A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A D(x)), with
J = dD/dx, and a step is

    x_s = DDIM step(x_t, D(x_t)) + w r^2 g / sqrt(abar_s).

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- in the coordinate x = x_0 + sigma n on [0, 1], where abar = 1 / (1 + 4 sigma^2);
- nu is a parameter (the paper's r^2 = sigma^2 / (sigma^2 + 1) on [-1, 1] is nu = 1/4 on [0, 1]);
- with another `transition`, the score g enters by Tweedie's formula, E[x_0 | x, y] = D(x) + sigma_t^2 w g;
- any linear operator: conjugate gradients where there is no decomposition.
The weight r^2 is the paper's heuristic: sigma_t^2 in its place (Tweedie's formula) would make each step exact for a Gaussian
prior, but multiplies the errors of a network's Jacobian at high noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.solvers.solver import Correction, Solver, Transition, denoise_with_vjp, root_abar
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class PiGDM(Solver):
    """Gaussian likelihood guidance; one network call and one backward pass to its input a step."""

    name: ClassVar[str] = "pigdm"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    interchangeable: ClassVar[bool] = True

    eta: float = parameter(1.0, low=0, high=1, help="0: deterministic steps, 1: ancestral steps")
    data_std: float = parameter(0.5, above=0, help="standard deviation sqrt(nu) of the data in r^2", unit="[0,1]")
    weight: float = parameter(1.0, low=0, help="factor on the guidance; 1 is the formula")

    def _backward_passes_a_call(self) -> int:
        return 1

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        A, y = problem.operator, problem.y
        nu = self.data_std**2

        def guided(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            r2 = sigma**2 * nu / (sigma**2 + nu)
            clean, pull_back = denoise_with_vjp(prior, x, sigma)
            # A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A x) is how far the proximal point lies from x, over r^2.
            g = pull_back((A.prox_l2(clean, y, r2 / problem.sigma_y**2) - clean) / r2)
            return Estimate(clean, clean, shift=self.weight * r2 / root_abar(next_sigma) * g, score=self.weight * g)

        return guided

    def step(self, problem: Problem) -> Transition:
        return DDIM(self.eta)
