"""Impulse noise: some values are replaced by black or white, the others carry a little Gaussian noise.

    salt_and_pepper    y = 0 or 1, each with probability p / 2;   else  z + sigma n        variance sigma^2 of the others

Log-likelihood of the mixture, exact but for the width of the impulses, which are spread over one step of 8 bits so that they
have a density: log((1 - p) N(y; z, sigma^2) + [y within 1/510 of 0 or 1] 255 p / 2). Its score is (y - z) / sigma^2 times the
probability, given y and z, that the value survived. Solvers for Gaussian noise get the surviving values with N(0, sigma^2);
all that are 0 or 1 (by an impulse, or clipped there) count as not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.specs.parameters import fraction, parameter

from .model import NoiseModel, gaussian_log_density, normal, uniform

STEP = 1 / 255


@dataclass(frozen=True)
class SaltAndPepper(NoiseModel):
    """Dead and saturated pixels, bits lost on the way."""

    name: ClassVar[str] = "salt_and_pepper"
    signal_dependent: ClassVar[bool] = True

    p: float = parameter(kind=fraction, above=0, high=1, help="share of values replaced, half by 0 and half by 1")
    sigma: float = parameter(
        1 / 255, kind=fraction, above=0, help="standard deviation of the noise of the other values", unit="[0,1]"
    )

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        u = uniform(z, generators)
        y = z + self.sigma * normal(z, generators)
        return torch.where(u < self.p / 2, 0.0, torch.where(u < self.p, 1.0, y))

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full_like(z, self.sigma**2)

    def trusted(self, y: torch.Tensor) -> torch.Tensor:
        return (~_extreme(y)).to(y)

    def _log_parts(self, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log of the density of a value that survived, and of an impulse."""
        survived = gaussian_log_density(y - z, self.variance(z)) + torch.log1p(z.new_tensor(-self.p))
        impulse = torch.where(_extreme(y), z.new_tensor(self.p / 2 / STEP).log(), -torch.inf)
        return survived, impulse

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(*self._log_parts(y, z))

    def score(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        survived, impulse = self._log_parts(y, z)
        return (survived - torch.logaddexp(survived, impulse)).exp() * (y - z) / self.sigma**2

    def tempered(self, copies: int) -> SaltAndPepper:
        return SaltAndPepper(self.p, copies**0.5 * self.sigma)


def _extreme(y: torch.Tensor) -> torch.Tensor:
    return (y.abs() <= STEP / 2) | ((y - 1).abs() <= STEP / 2)
