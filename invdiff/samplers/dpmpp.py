"""DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models.

Lu, Zhou, Bao, Chen, Li, Zhu. 2022, https://arxiv.org/abs/2211.01095. Implements algorithm 2, "DPM-Solver++(2M)": data
prediction, second order, multistep.

    x_s = (sigma_s / sigma_t) x_t + (1 - sigma_s / sigma_t) D',    D' = D_t + (D_t - D_r) h_t / (2 h_r)

with D = E[x_0 | x], r the level before t, h_t = log(sigma_t / sigma_s) and h_r = log(sigma_r / sigma_t): the
probability flow's linear part is solved exactly, D is extrapolated to the middle of the step. One call a step.

Differs from the paper:
- in the coordinate x = x_0 + sigma n, where alpha = 1 and lambda = -log sigma;
- the last step goes to sigma = 0, of infinite length in lambda, and returns D.
"""

from __future__ import annotations

import math
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
class DPMSolverPP(Sampler):
    """Second-order multistep steps of the probability flow; deterministic, one call a step."""

    name: ClassVar[str] = "dpmpp"

    steps: int = parameter(30, kind=whole, low=1, help="network calls for one sample", unit="calls")
    spacing: str = parameter("karras", kind=str, choices=SAMPLER_SPACINGS, help="how the noise levels are spread")

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Draws) -> Iterator[Step]:
        before: tuple[torch.Tensor, float] | None = None  # D_r and h_r
        for sigma, next_sigma in pairs(levels):
            clean = target = prior.denoise(x, sigma)
            if next_sigma > 0:
                h = math.log(sigma / next_sigma)
                if before is not None:
                    target = clean + (clean - before[0]) * h / (2 * before[1])
                before = clean, h
            x = torch.lerp(target, x, next_sigma / sigma)
            yield Step(sigma, next_sigma, x)
