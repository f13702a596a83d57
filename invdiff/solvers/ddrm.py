"""DDRM: Denoising Diffusion Restoration Models.

Kawar, Elad, Ermon, Song. NeurIPS 2022, https://arxiv.org/abs/2201.11793. Implements eq. 7 (start) and eq. 8 (step).

In the singular coordinates of A = U diag(s) V^T, each direction i sees its own measurement y_i / s_i with noise
sigma_y / s_i. The network's estimate is moved towards it wherever that noise is below the level being left for; above, the
measurement takes the part of the old noise. The correction is the plain denoiser: DDRM is a transition.

Differs from the paper:
- written in the coordinate x = x_0 + sigma n throughout (as the paper's analysis), images in [0, 1];
- directions that are not measured start around mid-grey instead of around 0 on [-1, 1], which is the same point;
- the levels are those of all solvers here (invdiff/solvers/base.py), not 1000 / steps apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.parameters import parameter
from invdiff.priors.base import Prior
from invdiff.problem import Problem
from invdiff.sampling import Noise
from invdiff.solvers.base import Correction, Estimate, Solver, Transition, spectral_measurement


@dataclass(frozen=True)
class DDRM(Solver):
    """Spectral transition; one network call a step, no gradients."""

    name: ClassVar[str] = "ddrm"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "svd"})

    eta: float = parameter(0.85, low=0, high=1, help="share of fresh noise where the measurement is noisier than x")
    eta_b: float = parameter(1.0, low=0, high=1, help="weight of the measurement where it is cleaner than x")

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        def denoised(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            clean = prior.denoise(x, sigma)
            return Estimate(clean, clean)

        return denoised

    def start(self, problem: Problem, sigma: float, z: torch.Tensor) -> torch.Tensor:
        svd = problem.operator.svd(problem.image_shape)
        middle = torch.full_like(z, 0.5)
        y_bar, tau, measured = spectral_measurement(problem, z)
        # x_bar ~ N(y_bar, sigma^2 - tau^2) where the measurement is cleaner than sigma, else x ~ N(1/2, sigma^2)
        used = measured & (tau < sigma)
        z_bar, m_bar = svd.V_adjoint(z), svd.V_adjoint(middle)
        spread = torch.sqrt((sigma**2 - tau**2).clamp(min=0))
        target = torch.where(used, y_bar + spread * z_bar, m_bar + sigma * z_bar)
        return middle + sigma * z + svd.V(target - m_bar - sigma * z_bar)

    def transition(self, problem: Problem) -> Transition:
        svd = problem.operator.svd(problem.image_shape)
        y_bar, tau, measured = spectral_measurement(problem, problem.y)
        keep = (1 - self.eta**2) ** 0.5

        def step(x: torch.Tensor, estimate: Estimate, sigma: float, next_sigma: float, noise: Noise) -> torch.Tensor:
            x0, z = estimate.estimate, noise()
            free = x0 + keep * next_sigma / sigma * (x - x0) + self.eta * next_sigma * z  # the directions with s = 0
            x0_bar, z_bar = svd.V_adjoint(x0), svd.V_adjoint(z)
            noisier = x0_bar + keep * next_sigma * (y_bar - x0_bar) / tau + self.eta * next_sigma * z_bar
            spread = torch.sqrt((next_sigma**2 - (self.eta_b * tau) ** 2).clamp(min=0))
            cleaner = (1 - self.eta_b) * x0_bar + self.eta_b * y_bar + spread * z_bar
            target = torch.where(tau > next_sigma, noisier, cleaner)
            return free + svd.V(torch.where(measured, target - svd.V_adjoint(free), 0.0))

        return step
