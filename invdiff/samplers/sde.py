"""The reverse-time SDE of Score-Based Generative Modeling, by the Euler-Maruyama method.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole. ICLR 2021, https://arxiv.org/abs/2011.13456. Implements eq. 6 for the
variance-preserving SDE (eq. 11), with a general-purpose SDE method as in sec. 4.1.

    x <- x - [f(x, s) - g(s)^2 grad log q_s(x)] h + g(s) sqrt(h) z,    s from 1 to 0

Differs from the paper:
- its reverse-diffusion predictor and Langevin correctors are left out: `ancestral` is the first, up to higher order;
- the times are those of the chosen noise levels, and the last step is E[x_0 | x] at the last level (Jolicoeur-Martineau et
  al. 2021, https://arxiv.org/abs/2009.05475).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.continuous import VPSDE
from invdiff.priors.base import Prior
from invdiff.samplers.base import Sampler, Step, pairs
from invdiff.sampling import Noise


@dataclass(frozen=True)
class ReverseSDE(Sampler):
    """Euler-Maruyama steps of the reverse-time VP-SDE."""

    name: ClassVar[str] = "sde"

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> Iterator[Step]:
        equation = VPSDE.of(prior)
        for sigma, next_sigma in pairs(levels):
            if next_sigma == 0:
                x = prior.denoise(x, sigma)
            else:
                s, next_s = equation.time(sigma), equation.time(next_sigma)
                x_s, h, g = equation.state(x, s), s - next_s, equation.diffusion(s)
                x_s = x_s - equation.reverse_drift(x_s, s) * h + g * math.sqrt(h) * noise()
                x = equation.image(x_s, next_s)
            yield Step(sigma, next_sigma, x)
