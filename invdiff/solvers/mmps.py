"""MMPS: Moment Matching Posterior Sampling.

Rozet, Andry, Lanusse, Louppe. Learning Diffusion Priors from Observations by Expectation Maximization. NeurIPS 2024,
https://arxiv.org/abs/2405.13712. Implements the posterior sampling scheme of that paper.

p(x_0 | x) is taken as the Gaussian of the same mean and covariance, N(D(x), C) with C = sigma^2 dD/dx, so that

    E[x_0 | x, y] = D + C A^T (A C A^T + sigma_y^2 I)^-1 (y - A D),

which is exact for a Gaussian prior. The system is solved by a few iterations of a Krylov method, whose products with C are
vector-Jacobian products of the network.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- in the coordinate x = x_0 + sigma n, images in [0, 1]; there is no hyperparameter to convert;
- eta = 1, the ancestral step, by default; any other `transition` takes the same conditional mean;
- conjugate residuals in the place of conjugate gradients (invdiff/solvers/tweedie.py): the Jacobian of a network is neither
  symmetric nor free of negative eigenvalues, and at sigma_y = 0.01 conjugate gradients then diverge;
- a nonlinear A is linearised at D(x).
Without a weight to tune, nothing needs to be scaled: sigma_y and A enter as the formula says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.solvers.solver import Correction, Solver, Transition
from invdiff.solvers.tweedie import Moments
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class MMPS(Solver):
    """Gaussian conditioning with the network's own covariance; one network call and a few backward passes a step."""

    name: ClassVar[str] = "mmps"
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    interchangeable: ClassVar[bool] = True
    remedy: ClassVar[str] = "fewer iterations"

    iterations: int = parameter(3, kind=whole, low=1, help="conjugate residual iterations, one backward pass each")
    eta: float = parameter(1.0, low=0, high=1, help="0: deterministic steps, 1: ancestral steps")

    def _backward_passes_a_call(self) -> int:
        return self.iterations

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        def conditioned(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            moments = Moments.at(problem, prior, x, sigma)
            return Estimate(moments.clean, moments.conditioned(problem.sigma_y**2, self.iterations))

        return conditioned

    def step(self, problem: Problem) -> Transition:
        return DDIM(self.eta)
