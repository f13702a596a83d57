"""DDPM: Denoising Diffusion Probabilistic Models.

Ho, Jain, Abbeel. NeurIPS 2020, https://arxiv.org/abs/2006.11239. Implements algorithm 2 with eq. 7.

    x_s = D + (sigma_s / sigma_t)^2 (x_t - D) + v z,    D = E[x_0 | x_t]
    variance=small    v^2 = sigma_s^2 (1 - sigma_s^2 / sigma_t^2)                       beta~_t, exact if x_0 is one point
    variance=large    v^2 = (1 + 4 sigma_s^2) (sigma_t^2 - sigma_s^2) / (1 + 4 sigma_t^2)   beta_t, exact if x_0 ~ N(0, I) on
                                                                                     [-1, 1]  (sec. 3.2)

With D held over the step, variance=small is the exact solution of the reverse SDE: an exponential integrator of first
order (`sde` is the Euler-Maruyama method for the same equation).

Differs from the paper:
- in the coordinate x = x_0 + sigma n on [0, 1], where sigma is half of what it is on [-1, 1];
- any levels: alpha_t is abar_t / abar_s for neighbours t, s. `spacing=timestep` with T steps is the paper's chain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.samplers.sampler import Sampler, Step, pairs
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class Ancestral(Sampler):
    """The reverse Markov chain, with fresh noise in every step."""

    name: ClassVar[str] = "ancestral"

    variance: str = parameter("small", kind=str, choices=("small", "large"), help="variance of the fresh noise")

    def fresh(self, sigma: float, next_sigma: float) -> float:
        """v, the standard deviation of the fresh noise; 0 in the last step."""
        small = next_sigma**2 * (1 - (next_sigma / sigma) ** 2)
        if self.variance == "small" or next_sigma == 0:
            return math.sqrt(small)
        return math.sqrt((1 + 4 * next_sigma**2) * (sigma**2 - next_sigma**2) / (1 + 4 * sigma**2))

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Draws) -> Iterator[Step]:
        for sigma, next_sigma in pairs(levels):
            clean = prior.denoise(x, sigma)
            x = torch.lerp(clean, x, (next_sigma / sigma) ** 2)
            if next_sigma > 0:
                x = x + self.fresh(sigma, next_sigma) * noise()
            yield Step(sigma, next_sigma, x)
