"""DDIM: Denoising Diffusion Implicit Models.

Song, Meng, Ermon. ICLR 2021, https://arxiv.org/abs/2010.02502. Implements eq. 12 and 16.

    x_s = D + sqrt(sigma_s^2 - v^2) (x_t - D) / sigma_t + v z,    v = eta sigma_s sqrt(1 - sigma_s^2 / sigma_t^2)

with D = E[x_0 | x_t]. eta = 0 is the exact solution of the probability-flow equation with D held over the step (an
exponential integrator, first order), and Euler's method in sigma; eta = 1 is the ancestral step.

Differs from the paper:
- in the coordinate x = x_0 + sigma n, where its two terms are the plain formula above;
- the last step, to sigma = 0, returns D itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.samplers.sampler import Sampler, Step, pairs
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class DDIMSampler(Sampler):
    """Between deterministic (eta = 0) and ancestral (eta = 1) steps."""

    name: ClassVar[str] = "ddim"

    eta: float = parameter(0.0, low=0, high=1, help="share of fresh noise: 0 is deterministic, 1 ancestral")

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Draws) -> Iterator[Step]:
        transition = DDIM(self.eta)
        for sigma, next_sigma in pairs(levels):
            clean = prior.denoise(x, sigma)
            x = transition(x, Estimate(clean, clean), sigma, next_sigma, noise)
            yield Step(sigma, next_sigma, x)
