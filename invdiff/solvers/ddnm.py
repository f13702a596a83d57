"""DDNM+: zero-shot restoration with the Denoising Diffusion Null-space Model, for noisy measurements.

Wang, Yu, Zhang. ICLR 2023, https://arxiv.org/abs/2212.00490. Implements eq. 17 to 19 (DDNM+, without time travel).

x0 = D(x) is replaced by x0 - Sigma A^+(A x0 - y): the range of A is taken from the measurement, the null space from the
network. A direction with singular value s then carries measurement noise of deviation a lambda sigma_y / s, where a is the
weight of x0 in the next sample; lambda <= 1 keeps it below the noise v that the step adds anyway, and the step adds only
the difference.

Differs from the paper:
- in the coordinate x = x_0 + sigma n, where a = 1 - sqrt(sigma_s^2 - v^2) / sigma_t;
- v is DDIM's for any eta (the paper: DDPM's, eta = 1; its code: eta = 0.85);
- images in [0, 1], and any spread of levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.parameters import parameter
from invdiff.priors.base import Prior
from invdiff.problem import Problem
from invdiff.solvers.base import Correction, Estimate, Solver, Transition
from invdiff.solvers.transitions import DDIM


@dataclass(frozen=True)
class DDNM(Solver):
    """Range-null-space correction with noise bookkeeping; one network call a step, no gradients."""

    name: ClassVar[str] = "ddnm"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "svd"})

    eta: float = parameter(0.85, low=0, high=1, help="0: deterministic steps, 1: ancestral steps")

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        svd = problem.operator.svd(problem.image_shape)
        inverse = svd.inverse_singular_values.to(problem.y)
        measured = inverse > 0
        tau = torch.where(measured, problem.sigma_y * inverse, torch.ones_like(inverse))  # sigma_y / s
        y_bar = svd.U_adjoint(problem.y) * inverse
        step = DDIM(self.eta)

        def null_space(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            v = step.fresh(sigma, next_sigma)
            a = 1 - step.kept(sigma, next_sigma)
            lam = (v / (a * tau)).clamp(max=1) if a > 0 else torch.zeros_like(tau)
            lam = torch.where(measured, lam, 0.0)
            clean = prior.denoise(x, sigma)
            estimate = clean + svd.V(lam * (y_bar - svd.V_adjoint(clean)))
            # phi = v^2 - (a lambda sigma_y / s)^2: what is left of the variance to add in each direction
            left = torch.sqrt((v**2 - (a * lam * tau) ** 2).clamp(min=0))

            def shape_noise(z: torch.Tensor, v: float) -> torch.Tensor:
                return v * z + svd.V((left - v) * svd.V_adjoint(z))

            return Estimate(clean, estimate, shape_noise=shape_noise)

        return null_space

    def transition(self, problem: Problem) -> Transition:
        return DDIM(self.eta)
