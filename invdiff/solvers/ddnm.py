"""DDNM+: zero-shot restoration with the Denoising Diffusion Null-space Model, for noisy measurements.

Wang, Yu, Zhang. ICLR 2023, https://arxiv.org/abs/2212.00490. Implements DDNM+ (section 3.3, without time travel).

x0 = D(x) is replaced by x0 - Sigma A^+(A x0 - y): the range of A comes from the measurement, the null space from the network.
In the singular coordinates of A, a direction whose measurement has noise tau = sigma_y / s gets

    tau <= sigma_s:  lambda = 1, and the step adds noise of variance sigma_s^2 - tau^2 only;
    tau >  sigma_s:  lambda = sqrt(1 - eta^2) sigma_s / tau: the measurement's noise takes the place of the predicted noise;
    s = 0:           lambda = 0, the plain DDIM step.

The noise of a step is eta z + sqrt(1 - eta^2) e, with z fresh and e = (x - x0) / sigma_t the predicted one, so that
every direction holds variance sigma_s^2 in all.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- in the coordinate x = x_0 + sigma n, images in [0, 1];
- the step is DDIM's with the share eta of fresh noise. The paper's eq. 18 and 19 bound lambda with the DDPM posterior, whose
  mean keeps a part of x_t: there the one noise of y enters again at every step and adds up, and strong blur with noise
  diverges;
- any linear operator: lambda and the noise are functions of the singular values, which operator/spectral.py applies without
  a decomposition too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.operator.spectral import ITERATIONS, spectral
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import Estimate
from invdiff.solvers.solver import Correction, Solver, Transition
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class DDNM(Solver):
    """Range-null-space correction with noise bookkeeping; one network call a step, no gradients."""

    name: ClassVar[str] = "ddnm"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})

    eta: float = parameter(0.85, low=0, high=1, help="share of fresh noise in each step; 0: deterministic")
    iterations: int = parameter(
        ITERATIONS, kind=whole, low=1, search=False, help="of Lanczos, for operators without a decomposition"
    )

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        A, sigma_y = spectral(problem.operator, problem.image_shape, self.iterations), problem.sigma_y
        keep = (1 - self.eta**2) ** 0.5

        def null_space(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            def of_r(s: torch.Tensor) -> torch.Tensor:  # lambda / s
                lam = torch.where(sigma_y / s > next_sigma, keep * next_sigma * s / sigma_y, 1.0)
                return torch.where(s == 0, 0.0, lam / s)

            clean = prior.denoise(x, sigma)
            if next_sigma == 0:
                return Estimate(clean, clean)
            return Estimate(clean, clean + A.apply([], [(of_r, problem.y - problem.operator.A(clean))]))

        return null_space

    def step(self, problem: Problem) -> Transition:
        A, sigma_y = spectral(problem.operator, problem.image_shape, self.iterations), problem.sigma_y
        keep = (1 - self.eta**2) ** 0.5

        def step(x: torch.Tensor, estimate: Estimate, sigma: float, next_sigma: float, noise: Draws) -> torch.Tensor:
            if next_sigma == 0:
                return estimate.estimate

            def left(s: torch.Tensor) -> torch.Tensor:  # sqrt(sigma_s^2 - tau^2), where that is
                return (next_sigma**2 - (sigma_y / s) ** 2).clamp(min=0).sqrt()

            def of_z(s: torch.Tensor) -> torch.Tensor:
                return self.eta * torch.where(sigma_y / s > next_sigma, next_sigma, left(s))

            def of_e(s: torch.Tensor) -> torch.Tensor:
                return keep * torch.where(s == 0, next_sigma, left(s))

            return estimate.estimate + A.apply([(of_z, noise()), (of_e, (x - estimate.clean) / sigma)])

        return step
