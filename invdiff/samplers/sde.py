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
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.samplers.continuous import VPSDE
from invdiff.samplers.euler import Euler


@dataclass(frozen=True)
class ReverseSDE(Euler):
    """Euler-Maruyama steps of the reverse-time VP-SDE."""

    name: ClassVar[str] = "sde"

    def move(self, equation: VPSDE, x_s: torch.Tensor, s: float, h: float, noise: Draws) -> torch.Tensor:
        drift, g = equation.reverse_drift(x_s, s), equation.diffusion(s)
        return x_s - drift * h + g * math.sqrt(h) * noise()
