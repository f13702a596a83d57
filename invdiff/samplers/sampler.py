"""The contract of a sampler: from pure noise at the first level, through the noise levels, to a picture.

All of them work in one coordinate, x = x_0 + sigma n in [0, 1] units, visit decreasing levels, and end with E[x_0 | x] at
the last one. They yield what they reach, so that progress, checks and pictures of the path are business of the caller.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from invdiff.diffusion.levels import SAMPLER_SPACINGS, noise_levels
from invdiff.errors import UsageError
from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.specs.parameters import Method, parameter, whole


class Step(NamedTuple):
    """What a sampler reaches: from level sigma to next_sigma (0 at the end, where x is the sample); x: (B, ...)."""

    sigma: float
    next_sigma: float
    x: torch.Tensor


@dataclass(frozen=True)
class Sampler(Method):
    """Settings of a method. A subclass adds its own and writes `walk`."""

    name: ClassVar[str] = "sampler"
    calls: ClassVar[int] = 1
    """Network calls for one step from level to level; the last one, to zero, always takes one."""

    steps: int = parameter(100, kind=whole, low=1, help="network calls for one sample", unit="calls")
    spacing: str = parameter("timestep", kind=str, choices=SAMPLER_SPACINGS, help="how the noise levels are spread")
    sigma_max: float | None = parameter(
        None, above=0, help="first noise level, in [0, 1] units; default: the largest the prior knows", unit="[0,1]"
    )

    def levels(self, prior: Prior) -> list[float]:
        """The noise levels to visit, decreasing, without the final zero: as many as `steps` calls pay for."""
        first = prior.sigma_max if self.sigma_max is None else self.sigma_max
        if first <= prior.sigma_min:
            raise UsageError(
                f"{self.name}: sigma_max={first:g} is not above the prior's last level, {prior.sigma_min:g}"
            )
        count = (self.steps - 1) // self.calls + 1
        return noise_levels(count, first, prior.sigma_min, self.spacing, getattr(prior, "schedule", None))

    @property
    def nfe(self) -> int:
        """The network calls that one sample takes: at most `steps`."""
        return (self.steps - 1) // self.calls * self.calls + 1

    def walk(self, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Draws) -> Iterator[Step]:
        """From x (B, ...) at levels[0] to a sample, one Step for each level."""
        raise NotImplementedError


def pairs(levels: Sequence[float]) -> Iterator[tuple[float, float]]:
    """(sigma, next sigma) of every step, the last one to 0. Raises UsageError unless the levels decrease and stay > 0."""
    if not levels or not all(a > b for a, b in itertools.pairwise([*levels, 0.0])):
        raise UsageError(f"noise levels must decrease and be more than 0, got {list(levels)}")
    return itertools.pairwise([*levels, 0.0])
