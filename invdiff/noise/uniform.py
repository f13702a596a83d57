"""Bounded noise: anything within half a width of z, with equal probability; and the error of rounding.

    uniform         y = z + w u,   u ~ U(-1/2, 1/2)                        variance w^2 / 12
    quantization    y = q round(z / q)                                     q^2 / 12, where z varies by much more than q

The exact log-likelihood is -log w within w/2 of y and minus infinity outside: it says where x may be, and its gradient is 0
or undefined, so nothing to follow. In its place `score` is that of the Gaussian of the same variance, (y - z) / (w^2 / 12),
which pulls to the middle of the allowed interval; all solvers see that Gaussian. For rounding, p(y | z) is 1 inside.
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

EDGE = 1e-6
"""Rounding of float32: so much further away than half a width still counts as inside, in [0, 1] units."""


@dataclass(frozen=True)
class _Bounded(NoiseModel):
    """Noise with a bound, which both models share."""

    @property
    def _span(self) -> float:
        raise NotImplementedError

    @property
    def _log_inside(self) -> float:
        return -math.log(self._span)

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full_like(z, self._span**2 / 12)

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        inside = (y - z).abs() <= self._span / 2 + EDGE
        return torch.where(inside, self._log_inside, -torch.inf).to(z)

    def tempered(self, copies: int) -> Gaussian:
        return Gaussian((copies / 12) ** 0.5 * self._span)


@dataclass(frozen=True)
class Uniform(_Bounded):
    """Dither, or an error of which only the bound is known."""

    name: ClassVar[str] = "uniform"

    width: float = parameter(kind=fraction, above=0, help="whole width w: errors up to w / 2 each way", unit="[0,1]")

    @property
    def _span(self) -> float:
        return self.width

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return z + self.width * (uniform(z, generators) - 0.5)


@dataclass(frozen=True)
class Quantization(_Bounded):
    """Rounding to steps of q; draws no random numbers."""

    name: ClassVar[str] = "quantization"

    step: float = parameter(kind=fraction, above=0, help="step q, e.g. 1/255 for 8 bits or 1/15 for 4", unit="[0,1]")

    @property
    def _span(self) -> float:
        return self.step

    @property
    def _log_inside(self) -> float:
        return 0.0

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return self.step * (z / self.step).round()
