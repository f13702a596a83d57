"""TMPD: Tweedie Moment Projected Diffusions.

Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz. Tweedie Moment Projected Diffusions for Inverse Problems. TMLR 2024,
https://arxiv.org/abs/2310.06721. Implements the diagonal approximation, DTMPD.

As MMPS, p(x_0 | x) is taken as N(D(x), C) with C = sigma^2 dD/dx. The covariance of y is simplified instead of solved for:

    E[x_0 | x, y] = D + C A^T R^-1 (y - A D),    R = diag(A C A^T 1) + sigma_y^2 I        (covariance=diagonal)

so that R acts as A C A^T + sigma_y^2 I does on a constant: its row sums, one vector-Jacobian product. covariance=scalar
takes the mean of the row sums over the measured values in the place of each, for operators whose rows have no common sign.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- in the coordinate x = x_0 + sigma n, images in [0, 1]; there is no hyperparameter to convert;
- covariance=scalar is ours; the full covariance is `mmps`;
- a row sum below 0, which no variance can be, counts as 0;
- a nonlinear A is linearised at D(x).
Without a weight to tune, nothing needs to be scaled: sigma_y and A enter as the formula says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator.linalg import dot
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.solvers.solver import Correction, Solver, Transition
from invdiff.solvers.tweedie import Moments
from invdiff.specs.parameters import parameter

COVARIANCES = ("diagonal", "scalar")


@dataclass(frozen=True)
class TMPD(Solver):
    """Gaussian conditioning with a diagonal covariance of y; one network call and two backward passes a step."""

    name: ClassVar[str] = "tmpd"
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    interchangeable: ClassVar[bool] = True
    remedy: ClassVar[str] = "covariance=scalar"

    covariance: str = parameter("diagonal", kind=str, choices=COVARIANCES, help="how the covariance of y is simplified")
    eta: float = parameter(1.0, low=0, high=1, help="0: deterministic steps, 1: ancestral steps")

    def _backward_passes_a_call(self) -> int:
        return 2

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        variance = problem.sigma_y**2
        mask = problem.operator.observed(problem.image_shape)
        ones = torch.ones_like(problem.y) * (1.0 if mask is None else mask.to(problem.y))

        def conditioned(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            p = Moments.at(problem, prior, x, sigma)
            rows = p.predicted_covariance(ones)
            if self.covariance == "scalar":
                rows = dot(rows, ones) / dot(ones, ones)
            q = p.residual / (rows.clamp(min=0) + variance)
            return Estimate(p.clean, p.clean + p.covariance_adjoint(q))

        return conditioned

    def step(self, problem: Problem) -> Transition:
        return DDIM(self.eta)
