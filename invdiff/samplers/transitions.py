"""How the next noise level is reached. All of them are one formula,

    x_s = x0 + sqrt(sigma_s^2 - v^2) (x_t - x0) / sigma_t + v z,

with x0 the estimate of x_0 given y, and differ in v, the standard deviation of the fresh noise:

    DDIM(eta)   v = eta sigma_s sqrt(1 - sigma_s^2 / sigma_t^2)    eta = 1 is the ancestral step of DDPM, eta = 0 the ODE
    Renoise(zeta)   v = sqrt(zeta) sigma_s                         zeta = 1 forgets x_t entirely

(Song, Meng, Ermon 2021, https://arxiv.org/abs/2010.02502, eq. 12 and 16, in the coordinate x = x_0 + sigma n; Zhu et al.
2023, https://arxiv.org/abs/2305.08995, algorithm 1.) In this coordinate q(x_s | x_t, x_0) has mean
x_0 + (sigma_s / sigma_t)^2 (x_t - x_0) and variance sigma_s^2 (1 - sigma_s^2 / sigma_t^2), which is eta = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from invdiff.machine.random import Draws


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a correction answers.

    clean: E[x_0 | x]; estimate: E[x_0 | x, y] as the method's own transition takes it; shift: added after that
    transition, if any; score: the method's grad_x log p(y | x), where its estimate does not hold it already.
    """

    clean: torch.Tensor
    estimate: torch.Tensor
    shift: torch.Tensor | None = None
    score: torch.Tensor | None = None

    def mean(self, sigma: float) -> torch.Tensor:
        """E[x_0 | x, y] = E[x_0 | x] + sigma^2 grad log p(y | x)  (Tweedie's formula for p(x | y))."""
        return self.estimate if self.score is None else self.estimate + sigma**2 * self.score


@dataclass(frozen=True)
class _Step:
    """The formula above; subclasses say v."""

    def fresh(self, sigma: float, next_sigma: float) -> float:
        """v, between 0 and next_sigma."""
        raise NotImplementedError

    def kept(self, sigma: float, next_sigma: float) -> float:
        """sqrt(sigma_s^2 - v^2) / sigma_t: the weight of x_t - x0."""
        return math.sqrt(max(0.0, next_sigma**2 - self.fresh(sigma, next_sigma) ** 2)) / sigma

    def __call__(
        self, x: torch.Tensor, estimate: Estimate, sigma: float, next_sigma: float, noise: Draws
    ) -> torch.Tensor:
        kept, v = self.kept(sigma, next_sigma), self.fresh(sigma, next_sigma)
        moved = torch.lerp(estimate.estimate, x, kept) if kept > 0 else estimate.estimate
        if v > 0:
            moved = torch.add(moved, noise(), alpha=v)
        return moved if estimate.shift is None else moved + estimate.shift


@dataclass(frozen=True)
class DDIM(_Step):
    """eta in [0, 1]: 0 deterministic, 1 ancestral."""

    eta: float = 1.0

    def fresh(self, sigma: float, next_sigma: float) -> float:
        return self.eta * next_sigma * math.sqrt(max(0.0, 1 - (next_sigma / sigma) ** 2))


@dataclass(frozen=True)
class Renoise(_Step):
    """zeta in [0, 1]: the share of the next level's variance that is fresh."""

    zeta: float = 1.0

    def fresh(self, sigma: float, next_sigma: float) -> float:
        return math.sqrt(self.zeta) * next_sigma
