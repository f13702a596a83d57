"""Score-Based Generative Modeling through Stochastic Differential Equations, by the plainest methods, for reference.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole. ICLR 2021, https://arxiv.org/abs/2011.13456. Implements the reverse-time
SDE (eq. 6) and the probability flow (eq. 13) of the variance-preserving SDE (eq. 11), with general-purpose methods as in
sec. 4.1, s from 1 to 0:

    sde   x <- x - [f(x, s) - g(s)^2 grad log q_s(x)] h + g(s) sqrt(h) z       Euler-Maruyama
    ode   x <- x - [f(x, s) - 1/2 g(s)^2 grad log q_s(x)] h                    Euler; deterministic

`ddim` with eta = 0 solves the flow with its linear part exact, `heun` and `dpmpp` at second order; `ancestral` is the first
equation's reverse-diffusion predictor, up to higher order.

Differs from the paper:
- Euler's method in place of an adaptive Runge-Kutta method, so that the number of calls is known; no Langevin correctors;
- the times are those of the chosen noise levels, and the last step is E[x_0 | x] at the last level (Jolicoeur-Martineau et
  al. 2021, https://arxiv.org/abs/2009.05475).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.samplers.continuous import VPSDE
from invdiff.samplers.sampler import Sampler, Step, pairs


@dataclass(frozen=True)
class Euler(Sampler):
    """One step along the VP-SDE's time for each level; the last one is E[x_0 | x]. A subclass writes `move`."""

    def move(self, equation: VPSDE, x_s: torch.Tensor, s: float, h: float, noise: Draws) -> torch.Tensor:
        """From the state x_s at time s to that at s - h."""
        raise NotImplementedError

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Draws) -> Iterator[Step]:
        equation = VPSDE.of(prior)
        for sigma, next_sigma in pairs(levels):
            if next_sigma == 0:
                x = prior.denoise(x, sigma)
            else:
                s, next_s = equation.time(sigma), equation.time(next_sigma)
                x = equation.image(self.move(equation, equation.state(x, s), s, s - next_s, noise), next_s)
            yield Step(sigma, next_sigma, x)


@dataclass(frozen=True)
class ProbabilityFlow(Euler):
    """Euler steps of the VP-SDE's probability flow; deterministic."""

    name: ClassVar[str] = "ode"

    def move(self, equation: VPSDE, x_s: torch.Tensor, s: float, h: float, noise: Draws) -> torch.Tensor:
        return x_s - equation.flow(x_s, s) * h


@dataclass(frozen=True)
class ReverseSDE(Euler):
    """Euler-Maruyama steps of the reverse-time VP-SDE."""

    name: ClassVar[str] = "sde"

    def move(self, equation: VPSDE, x_s: torch.Tensor, s: float, h: float, noise: Draws) -> torch.Tensor:
        drift, g = equation.reverse_drift(x_s, s), equation.diffusion(s)
        return x_s - drift * h + g * math.sqrt(h) * noise()
