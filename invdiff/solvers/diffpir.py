"""DiffPIR: Denoising Diffusion Models for Plug-and-Play Image Restoration.

Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool. CVPR Workshops (NTIRE) 2023, https://arxiv.org/abs/2305.08995.
Implements algorithm 1 (half-quadratic splitting inside DDIM sampling).

    x0_hat = argmin_x  ||y - A x||^2 / (2 sigma_y^2) + lambda ||x - D(x_t)||^2 / (2 sigma_t^2)        (data step)
    x_s    = x0_hat + sigma_s ( sqrt(1 - zeta) (x_t - x0_hat) / sigma_t + sqrt(zeta) z )              (transition)

Differs from the paper:
- in the coordinate x = x_0 + sigma n, with both sigmas on [0, 1]. Experiments that divide a sigma_y on [0, 1] by a sigma_t on
  [-1, 1] have a lambda four times ours: their 7 to 8 is about 2 here. The default 1.5 restores better at noise 0.01 to 0.2;
- zeta = 1 by default: at 20 calls it restores best (docs/tables/solvers.md); the paper varies it from 0.1 to 1;
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- the data step is exact for every linear operator: in closed form with a decomposition, else by conjugate gradients
  (the paper: closed form in the Fourier domain, or a gradient step);
- operators that are not linear: a few Gauss-Newton steps (invdiff/operator/gauss_newton.py), or the operator's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import Estimate, Renoise
from invdiff.solvers.solver import Correction, Solver, Transition
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class DiffPIR(Solver):
    """Proximal data step; one network call a step, no gradients."""

    name: ClassVar[str] = "diffpir"
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    interchangeable: ClassVar[bool] = True
    remedy: ClassVar[str] = "a larger lam"

    zeta: float = parameter(1.0, low=0, high=1, help="share of fresh noise in each step")
    lam: float = parameter(1.5, above=0, help="weight lambda of the network's estimate against the measurement")

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        def proximal(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            clean = prior.denoise(x, sigma)
            gamma = sigma**2 / (self.lam * problem.sigma_y**2)  # 1 / rho_t
            return Estimate(clean, problem.operator.prox_l2(clean, problem.y, gamma))

        return proximal

    def step(self, problem: Problem) -> Transition:
        return Renoise(self.zeta)
