"""Gaussian noise that is independent between entries: the same everywhere, of a channel, or of a pixel.

gaussian             y = z + sigma n,        n ~ N(0, I)
gaussian_channels    y_c = z_c + sigma_c n_c                 one sigma for each channel c
gaussian_map         y_i = z_i + sigma_i n_i                 one sigma for each pixel or entry i
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator.arrays import file_or_array, fingerprint, load
from invdiff.specs.parameters import format_spec, fraction, parameter

from .model import NoiseModel, gaussian_log_density, normal


@dataclass(frozen=True)
class Gaussian(NoiseModel):
    """White noise, the same everywhere: an amplifier, or many counts of a nearly even brightness."""

    name: ClassVar[str] = "gaussian"

    sigma: float = parameter(kind=fraction, low=0, help="standard deviation sigma_y", unit="[0,1]")

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return z + self.sigma * normal(z, generators)

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full_like(z, self.sigma**2)

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return gaussian_log_density(y - z, self.variance(z))

    def tempered(self, copies: int) -> Gaussian:
        return Gaussian(copies**0.5 * self.sigma)


def deviations(value: Any) -> tuple[float, ...]:
    """numbers such as 0.02x0.05x0.1, one for each channel"""
    found = tuple(fraction(part) for part in (value.split("x") if isinstance(value, str) else value))
    if not found or not all(0 < sigma < float("inf") for sigma in found):
        raise ValueError("each must be more than 0")
    return found


@dataclass(frozen=True)
class _Uneven(NoiseModel):
    """A standard deviation that varies; `_deviation` gives it, broadcastable to (B, *measurement shape)."""

    def _deviation(self, z: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return z + self._deviation(z) * normal(z, generators)

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return (self._deviation(z) ** 2).expand_as(z)

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return gaussian_log_density(y - z, self.variance(z))

    def check_measurement(self, y: torch.Tensor) -> None:
        self._deviation(y)


@dataclass(frozen=True)
class GaussianChannels(_Uneven):
    """White noise of another size in each channel: a camera's colours after the white balance."""

    name: ClassVar[str] = "gaussian_channels"

    sigma: tuple[float, ...] = parameter(kind=deviations, help="standard deviations, in channel order", unit="[0,1]")

    def _deviation(self, z: torch.Tensor) -> torch.Tensor:
        if z.ndim < 2 or z.shape[1] not in (len(self.sigma), *([] if len(self.sigma) > 1 else [z.shape[1]])):
            raise UsageError(
                f"gaussian_channels: sigma={'x'.join(map(str, self.sigma))} has {len(self.sigma)} values, and the "
                f"measurement {tuple(z.shape[1:])} has {z.shape[1]} channels; give one for each"
            )
        return z.new_tensor(self.sigma).reshape(-1, *[1] * (z.ndim - 2))

    def tempered(self, copies: int) -> GaussianChannels:
        return GaussianChannels(tuple(copies**0.5 * sigma for sigma in self.sigma))


@dataclass(frozen=True, eq=False)
class GaussianMap(_Uneven):
    """White noise of another size in each pixel: a corrected vignette, an average over exposures that differ."""

    name: ClassVar[str] = "gaussian_map"

    sigma: str | np.ndarray = parameter(
        kind=file_or_array, help="standard deviations: .npy or .npz file, tensor or array", unit="[0,1]"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        table = load(self.sigma, self.name, "sigma")
        if table.min() <= 0:
            raise UsageError(
                f"gaussian_map: the smallest value of sigma is {table.min():.3g}; every one must be more than 0, e.g. the "
                "rounding error 0.3/255 where nothing else disturbs (mask lost pixels with inpaint)"
            )
        object.__setattr__(self, "_table", torch.from_numpy(np.array(table)))

    def _deviation(self, z: torch.Tensor) -> torch.Tensor:
        table: torch.Tensor = self.__dict__["_table"]
        shape = tuple(z.shape[1:])
        if tuple(table.shape) not in (shape, shape[1:], (1, *shape[1:])):
            raise UsageError(
                f"gaussian_map: sigma has shape {tuple(table.shape)}, the measurement {shape}; give one of that shape, or "
                f"of {shape[1:]} for all channels alike"
            )
        return table.to(z)

    def tempered(self, copies: int) -> GaussianMap:
        return GaussianMap(copies**0.5 * self.__dict__["_table"])

    @property
    def spec(self) -> str:
        """Text that builds it again; for a map handed over in Python a text that identifies its content."""
        if isinstance(self.sigma, str):
            return format_spec(self.name, self)
        return f"{self.name}:sigma={fingerprint(self.sigma)}"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.spec == getattr(other, "spec", None)

    def __hash__(self) -> int:
        return hash(self.spec)
