"""Noise models: how a measurement y scatters around z = A x. `noise_model("poisson:gain=0.02")`, `names()`.

    gaussian           y = z + sigma n                                     variance sigma^2
    poisson            y = gain k,  k ~ Poisson(z / gain)                  variance gain z
    poisson_gaussian   y = gain k + sigma n                                variance gain z + sigma^2

gain is the brightness, in [0, 1] units, of one count (one photon, one electron): white is 1 / gain counts. The convention is
deepinv's (PoissonNoise, normalised).

All three have the score  d log p(y | z) / dz = (y - z) / variance(z): exact for the first two. The third's density is an
infinite sum; in its place stands that of a Poisson variable with the same mean and variance, moved by sigma^2 / gain:
(y + sigma^2 / gain) / gain ~ Poisson((z + sigma^2 / gain) / gain)  (Snyder, Hammoud, White 1993, https://doi.org/10.1364/JOSAA.10.001014).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.parameters import Method, build, fraction, parameter, parse_spec
from invdiff.registry import Registry

REGISTRY = Registry(
    "noise model",
    {
        "gaussian": "invdiff.noise:Gaussian",
        "poisson": "invdiff.noise:Poisson",
        "poisson_gaussian": "invdiff.noise:PoissonGaussian",
    },
)
# Of one count. Where less than that is expected a Poisson likelihood is continued as a Gaussian of that variance: a network
# may ask for z <= 0, of which no count could come.
DARK = 0.01
# Rounding, and ringing below half a grey level of 8 bits, may make A(x) negative; more is not a brightness.
ROUNDING = 2e-3
GAIN = "brightness of one count, in [0, 1] units; white is 1 / gain counts"


@dataclass(frozen=True)
class NoiseModel(Method):
    """p(y | z), independent for every entry. y, z: (B, *measurement shape), in the units of y."""

    name: ClassVar[str] = "noise model"

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """y for each row of z from its own CPU generator. Raises UsageError for a z that cannot be."""
        raise NotImplementedError

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        """Var[y | z] of every entry, more than 0."""
        raise NotImplementedError

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(y | z) of every entry, differentiable in z; the logarithm of a probability for counts."""
        raise NotImplementedError

    def score(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The derivative of `log_likelihood` with respect to z: (y - z) / variance(z)."""
        return (y - z) / self.variance(z)

    @property
    def quantum(self) -> float:
        """The brightness of one count; 0 for noise that counts nothing."""
        return 0.0

    def tempered(self, copies: int) -> NoiseModel:
        """The model whose log-likelihood is 1 / copies of this one's: that of `copies` repetitions of one measurement."""
        raise NotImplementedError

    def check_measurement(self, y: torch.Tensor) -> None:
        """Raise UsageError if this noise cannot have given y."""


@dataclass(frozen=True)
class Gaussian(NoiseModel):
    """White noise, the same everywhere: an amplifier, or many counts of a nearly even brightness."""

    name: ClassVar[str] = "gaussian"

    sigma: float = parameter(kind=fraction, low=0, help="standard deviation sigma_y", unit="[0,1]")

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return z + self.sigma * _normal(z, generators)

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full_like(z, self.sigma**2)

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        variance = self.variance(z)
        return -0.5 * ((y - z) ** 2 / variance + (2 * torch.pi * variance).log())

    def tempered(self, copies: int) -> Gaussian:
        return Gaussian(copies**0.5 * self.sigma)


@dataclass(frozen=True)
class _Counts(NoiseModel):
    """What counting has in common; `_read_variance` comes on top of it."""

    gain: float = parameter(kind=fraction, above=0, help=GAIN, unit="[0,1]")

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
        return self._counts(z, generators) + self.sigma * _normal(z, generators)

    def tempered(self, copies: int) -> PoissonGaussian:
        return PoissonGaussian(copies * self.gain, copies**0.5 * self.sigma)


def _normal(z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    rows = [torch.randn(z.shape[1:], generator=g, dtype=z.dtype, device=g.device) for g in generators]
    return torch.stack(rows).to(z.device)


def names() -> list[str]:
    """Names of all noise models, sorted."""
    return list(REGISTRY)


def check_noise(noise: Any, *, zero: bool = False) -> float:
    """sigma_y as a float in [0, 1] units, from a number or text such as "12.75/255".

    Raises UsageError unless it is more than 0 (zero=True: or equal to it, for simulating) and finite.
    """
    try:
        value = fraction(noise)
    except (TypeError, ValueError):
        raise UsageError(f"noise {noise!r} is not a number; write 0.05 or 12.75/255 (images are in [0, 1])") from None
    if zero and value == 0:
        return 0.0
    if not 0 < value < float("inf"):
        raise UsageError(
            f"noise must be more than 0, got {noise}; for a measurement that looks free of noise give its rounding "
            "error, e.g. 0.3/255 for an 8-bit file"
        )
    return value


def noise_model(noise: Any, *, zero: bool = False) -> NoiseModel:
    """A NoiseModel from itself, from sigma_y (a number, or text such as "12.75/255"), or from a spec "poisson:gain=0.02".

    Raises UsageError for an unknown model or parameter, a value out of range, and sigma_y = 0 unless zero=True.
    """
    if isinstance(noise, NoiseModel):
        model = noise
    elif isinstance(noise, str) and _is_spec(noise):
        name, values = parse_spec(noise)
        if name not in REGISTRY:
            raise UsageError(
                f"noise {noise!r} is neither a number nor a noise model; write 0.05 or 12.75/255 (images are in [0, 1]), "
                f"or one of {', '.join(names())}, as in poisson:gain=0.02"
            )
        model = build(REGISTRY[name], name, values)
    else:
        model = Gaussian(check_noise(noise, zero=zero))
    if isinstance(model, Gaussian):
        check_noise(model.sigma, zero=zero)
    return model


def _is_spec(text: str) -> bool:
    """Whether it begins with a name; nan and inf are numbers."""
    try:
        fraction(text)
    except ValueError:
        return re.match(r"\s*[A-Za-z_]", text) is not None
    return False
