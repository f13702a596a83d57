"""The probability flow of Score-Based Generative Modeling, by Euler's method.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole. ICLR 2021, https://arxiv.org/abs/2011.13456. Implements eq. 13 for the
variance-preserving SDE (eq. 11).

    x <- x - [f(x, s) - 1/2 g(s)^2 grad log q_s(x)] h,    s from 1 to 0

`ddim` with eta = 0 solves the same equation with its linear part exact, `heun` and `dpmpp` at second order: this one is the
equation as it stands, for reference.

Differs from the paper:
- Euler's method in place of an adaptive Runge-Kutta method, so that the number of calls is known;
- the times are those of the chosen noise levels, and the last step is E[x_0 | x] at the last level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.continuous import VPSDE
from invdiff.priors.base import Prior
from invdiff.samplers.base import Sampler, Step, pairs
from invdiff.sampling import Noise


@dataclass(frozen=True)
class ProbabilityFlow(Sampler):
    """Euler steps of the VP-SDE's probability flow; deterministic."""

    name: ClassVar[str] = "ode"

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Noise) -> Iterator[Step]:
        equation = VPSDE.of(prior)
        for sigma, next_sigma in pairs(levels):
            if next_sigma == 0:
                x = prior.denoise(x, sigma)
            else:
                s, next_s = equation.time(sigma), equation.time(next_sigma)
                x_s = equation.state(x, s)
                x = equation.image(x_s - equation.flow(x_s, s) * (s - next_s), next_s)
            yield Step(sigma, next_sigma, x)
