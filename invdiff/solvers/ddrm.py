"""DDRM: Denoising Diffusion Restoration Models.

Kawar, Elad, Ermon, Song. NeurIPS 2022, https://arxiv.org/abs/2201.11793. Implements eq. 7 (start) and eq. 8 (step).

In the singular coordinates of A = U diag(s) V^T, each direction i sees its own measurement y_i / s_i with noise
sigma_y / s_i. The network's estimate is moved towards it wherever that noise is below the level being left for; above, the
measurement takes the part of the old noise. The correction is the plain denoiser: DDRM is a transition.

Differs from the paper:
- written in the coordinate x = x_0 + sigma n throughout (as the paper's analysis), images in [0, 1];
- directions that are not measured start around mid-grey instead of around 0 on [-1, 1], which is the same point;
- the levels are those of all solvers here (invdiff/solvers/solver.py), not 1000 / steps apart;
- any linear operator: the step is a sum of functions of the singular values, applied to x - D(x), z and y - A D(x), and
  invdiff/operator/spectral.py applies them without a decomposition too.
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
from invdiff.solvers.solver import Solver, Transition
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class DDRM(Solver):
    """Spectral transition; one network call a step, no gradients."""

    name: ClassVar[str] = "ddrm"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})

    eta: float = parameter(0.85, low=0, high=1, help="share of fresh noise where the measurement is noisier than x")
    eta_b: float = parameter(1.0, low=0, high=1, help="weight of the measurement where it is cleaner than x")
    iterations: int = parameter(
        ITERATIONS, kind=whole, low=1, search=False, help="of Lanczos, for operators without a decomposition"
    )

    def start(self, problem: Problem, prior: Prior, sigma: float, noise: Draws) -> torch.Tensor:
        if self.initial != "measurement":
            return super().start(problem, prior, sigma, noise)
        A, z, sigma_y = spectral(problem.operator, problem.image_shape, self.iterations), noise(), problem.sigma_y
        middle = torch.full_like(z, 0.5)

        # x_bar ~ N(y_bar, sigma^2 - tau^2) where the measurement is cleaner than sigma, else x ~ N(1/2, sigma^2)
        def of_z(s: torch.Tensor) -> torch.Tensor:
            tau = sigma_y / s
            return torch.where(tau < sigma, (sigma**2 - tau**2).clamp(min=0).sqrt(), sigma)

        def of_y(s: torch.Tensor) -> torch.Tensor:
            return torch.where(sigma_y / s < sigma, 1 / s, 0.0)

        return middle + A.apply([(of_z, z)], [(of_y, problem.y - problem.operator.A(middle))])

    def step(self, problem: Problem) -> Transition:
        A, sigma_y = spectral(problem.operator, problem.image_shape, self.iterations), problem.sigma_y
        eta, eta_b, keep = self.eta, self.eta_b, (1 - self.eta**2) ** 0.5

        def step(x: torch.Tensor, estimate: Estimate, sigma: float, next_sigma: float, noise: Draws) -> torch.Tensor:
            x0, z = estimate.estimate, noise()

            # In coordinates, with tau = sigma_y / s infinite where s = 0, and r = y - A x0, so r_bar = s (y_bar - x0_bar):
            #     s = 0               x0_bar + keep sigma_s (x_bar - x0_bar) / sigma_t + eta sigma_s z_bar
            #     tau > sigma_s       x0_bar + keep sigma_s (y_bar - x0_bar) / tau + eta sigma_s z_bar
            #     tau <= sigma_s      x0_bar + eta_b (y_bar - x0_bar) + sqrt(sigma_s^2 - eta_b^2 tau^2) z_bar
            def of_x(s: torch.Tensor) -> torch.Tensor:
                return (s == 0).to(s) * (keep * next_sigma / sigma)

            def of_z(s: torch.Tensor) -> torch.Tensor:
                tau = sigma_y / s
                spread = (next_sigma**2 - (eta_b * tau) ** 2).clamp(min=0).sqrt()
                return torch.where(tau > next_sigma, eta * next_sigma, spread)

            def of_r(s: torch.Tensor) -> torch.Tensor:
                cleaner = torch.where(sigma_y / s > next_sigma, keep * next_sigma / sigma_y, eta_b / s)
                return torch.where(s == 0, 0.0, cleaner)

            if next_sigma == 0:
                return x0
            return x0 + A.apply([(of_x, x - x0), (of_z, z)], [(of_r, problem.y - problem.operator.A(x0))])

        return step
