"""EDM: Elucidating the Design Space of Diffusion-Based Generative Models.

Karras, Aittala, Aila, Laine. NeurIPS 2022, https://arxiv.org/abs/2206.00364. Implements algorithm 1 (Heun's method, second
order) for sigma(t) = t, s(t) = 1, with the noise levels of eq. 5.

    d  = (x - D(x, sigma)) / sigma,    x' = x + (sigma_s - sigma) d
    d' = (x' - D(x', sigma_s)) / sigma_s,    x <- x + (sigma_s - sigma) (d + d') / 2

Two calls a step and one for the last, to sigma = 0: `steps=N` calls pay for (N - 1) // 2 + 1 levels, and an even N
leaves one call unused.

Differs from the paper:
- from the prior's sigma_max to its sigma_min, instead of 80 to 0.002 on [-1, 1];
- deterministic: without the noise of algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.diffusion.levels import SAMPLER_SPACINGS
from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.samplers.sampler import Sampler, Step, pairs
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class Heun(Sampler):
    """Second-order steps of the probability flow; deterministic, two calls a step."""

    name: ClassVar[str] = "heun"
    calls: ClassVar[int] = 2

    steps: int = parameter(59, kind=whole, low=1, help="network calls for one sample", unit="calls")
    spacing: str = parameter("karras", kind=str, choices=SAMPLER_SPACINGS, help="how the noise levels are spread")

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Draws) -> Iterator[Step]:
        for sigma, next_sigma in pairs(levels):
            slope = prior.epsilon(x, sigma)
            moved = x + (next_sigma - sigma) * slope
            if next_sigma > 0:
                moved = x + (next_sigma - sigma) * (slope + prior.epsilon(moved, next_sigma)) / 2
            x = moved
            yield Step(sigma, next_sigma, x)
