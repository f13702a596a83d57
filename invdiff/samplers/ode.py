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

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.samplers.continuous import VPSDE
from invdiff.samplers.euler import Euler


@dataclass(frozen=True)
class ProbabilityFlow(Euler):
    """Euler steps of the VP-SDE's probability flow; deterministic."""

    name: ClassVar[str] = "ode"

    def move(self, equation: VPSDE, x_s: torch.Tensor, s: float, h: float, noise: Draws) -> torch.Tensor:
        return x_s - equation.flow(x_s, s) * h
