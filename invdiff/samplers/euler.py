"""Steps of Euler's method along the VP-SDE's time, which `ode` and `sde` share; what one step does is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.samplers.continuous import VPSDE
from invdiff.samplers.sampler import Sampler, Step, pairs


@dataclass(frozen=True)
class Euler(Sampler):
    """One step for each level, at the times of the levels; the last one is E[x_0 | x]. A subclass writes `move`."""

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
