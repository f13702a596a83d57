"""Counting photons or electrons.

    poisson            y = gain k,  k ~ Poisson(z / gain)                  variance gain z
    poisson_gaussian   y = gain k + sigma n                                variance gain z + sigma^2

gain is the brightness, in [0, 1] units, of one count (one photon, one electron): white is 1 / gain counts, and a spec may say
photons=1000 for gain=1/1000. The convention is deepinv's (PoissonNoise, normalised).

Both have the score  d log p(y | z) / dz = (y - z) / variance(z): exact for the first. The second's density is an
infinite sum; in its place stands that of a Poisson variable with the same mean and variance, moved by sigma^2 / gain:
(y + sigma^2 / gain) / gain ~ Poisson((z + sigma^2 / gain) / gain)  (Snyder, Hammoud, White 1993, https://doi.org/10.1364/JOSAA.10.001014).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.specs.parameters import fraction, parameter

from .model import NoiseModel, normal

# Counts below which the Poisson likelihood is continued as a Gaussian of the variance there: a network may ask for z <= 0,
# which can give no count.
DARK = 0.01
# Rounding, and ringing below half a grey level of 8 bits, may make A(x) negative; more is not a brightness.
ROUNDING = 2e-3
GAIN = "brightness of one count, in [0, 1] units; white is 1 / gain counts (or photons=COUNTS of white)"


@dataclass(frozen=True)
class _Counts(NoiseModel):
    """What both models of counting share; a subclass says the variance of the amplifier in `_read_variance`."""

    signal_dependent: ClassVar[bool] = True

    gain: float = parameter(kind=fraction, above=0, help=GAIN, unit="[0,1]")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """photons=N, the counts of white, is gain=1/N. Raises UsageError for both, and for N that is not above 0."""
        if "photons" not in values:
            return values
        if "gain" in values:
            raise UsageError(
                f"{cls.name}: photons={values['photons']} and gain={values['gain']} say the same twice; white is photons = "
                "1 / gain counts: give one"
            )
        try:
            photons = fraction(values["photons"])
        except ValueError:
            photons = 0.0
        if not 0 < photons < math.inf:
            raise UsageError(f"{cls.name}: photons={values['photons']!r} must be a number > 0, the counts of white")
        return {key: value for key, value in values.items() if key != "photons"} | {"gain": 1 / photons}

    @property
    def quantum(self) -> float:
        return self.gain

    @property
    def _read_variance(self) -> float:
        return 0.0

    @property
    def _floor(self) -> float:
        """z below it is treated as Gaussian noise of the variance there."""
        return 0.0

    def _counts(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        lowest = float(z.min())
        if lowest < -ROUNDING:
            raise UsageError(
                f"{self.name} noise counts a brightness, and A(x) is {lowest:.3g} somewhere; use images of 0 and more and "
                "an operator with no negative weights (downsample:kernel=average, say), or gaussian noise"
            )
        rates = (z.clamp(min=0) / self.gain).cpu()
        rates = rates if rates.dtype == torch.float64 else rates.float()
        rows = [torch.poisson(row, generator=g) for row, g in zip(rates, generators, strict=True)]
        return self.gain * torch.stack(rows).to(z)

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return self.gain * z.clamp(min=self._floor) + self._read_variance

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        moved = self._read_variance / self.gain
        counts, lit = (y + moved) / self.gain, z.clamp(min=self._floor)
        rate = (lit + moved) / self.gain
        poisson = torch.xlogy(counts, rate) - rate - torch.lgamma(counts.clamp(min=0) + 1)
        # The derivative (y - z) / variance, from the floor down to z; nothing above the floor.
        return poisson + ((y - lit) ** 2 - (y - z) ** 2) / (2 * self.variance(z)) * (z < self._floor)


@dataclass(frozen=True)
class Poisson(_Counts):
    """Counting alone: few photons, an ideal detector."""

    name: ClassVar[str] = "poisson"

    @property
    def _floor(self) -> float:
        return DARK * self.gain

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return self._counts(z, generators)

    def tempered(self, copies: int) -> Poisson:
        return Poisson(copies * self.gain)

    def check_measurement(self, y: torch.Tensor) -> None:
        lowest = float(y.min())
        if lowest < -1e-6:
            raise UsageError(
                f"poisson noise gives no negative values, and the measurement's smallest is {lowest:.3g}: subtract no "
                "more than the dark level, or name the detector's read noise, "
                f"poisson_gaussian:gain={self.gain:g},sigma=..."
            )


@dataclass(frozen=True)
class PoissonGaussian(_Counts):
    """Counting, then an amplifier: a camera."""

    name: ClassVar[str] = "poisson_gaussian"

    sigma: float = parameter(kind=fraction, above=0, help="standard deviation of the read noise", unit="[0,1]")

    @property
    def _read_variance(self) -> float:
        return self.sigma**2

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return self._counts(z, generators) + self.sigma * normal(z, generators)

    def tempered(self, copies: int) -> PoissonGaussian:
        return PoissonGaussian(copies * self.gain, copies**0.5 * self.sigma)
