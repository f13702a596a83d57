"""Laplace noise: now and then a large error, as after a matching step or from a compressed measurement.

    y = z + b l,   p(l) = exp(-|l|) / 2                                    variance 2 b^2

Log-likelihood -|y - z| / b - log(2 b), score sign(y - z) / b: both exact. Solvers see N(0, 2 b^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.specs.parameters import fraction, parameter

from .gaussian import Gaussian
from .model import NoiseModel, uniform


@dataclass(frozen=True)
class Laplace(NoiseModel):
    """Two-sided exponential noise of scale b."""

    name: ClassVar[str] = "laplace"

    scale: float = parameter(kind=fraction, above=0, help="scale b: the mean of |noise|", unit="[0,1]")

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        u = uniform(z, generators) - 0.5  # the inverse of the distribution function; never log of 0
        return z - self.scale * u.sign() * torch.log1p(-(2 * u.abs()).clamp(max=1 - 1e-7))

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full_like(z, 2 * self.scale**2)

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return -(y - z).abs() / self.scale - math.log(2 * self.scale)

    def score(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return (y - z).sign() / self.scale

    def tempered(self, copies: int) -> Gaussian:
        return Gaussian((2 * copies) ** 0.5 * self.scale)
