"""Gaussian noise that is correlated between pixels: upsampled or demosaicked noise, readout stripes, film grain.

    y = z + n,   n ~ N(0, C),   C circulant: the same at every pixel, wrapping around, independent between channels

A circulant C is diagonal in the Fourier domain, C = F^* diag(S) F with the power spectrum S, so that log-likelihood, score
and the whitening W = sigma_y C^(-1/2) are exact and cost two transforms. From a kernel k, S = |F k|^2: filtered white noise.

Frequencies without noise would be measured exactly, and the whitening would divide by nothing: S has a floor of FLOOR of its
mean, as if a hundredth of the noise's amplitude were white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator.arrays import file_or_array, fingerprint, load
from invdiff.operator.contract import Shape
from invdiff.operator.weighted import filtered
from invdiff.specs.parameters import fraction, parameter

from .model import NoiseModel, normal

FLOOR = 1e-4


@dataclass(frozen=True, eq=False)
class CorrelatedGaussian(NoiseModel):
    """Stationary noise of a given spectrum; measurements (C, H, W). Raises UsageError for a spectrum of another size."""

    name: ClassVar[str] = "gaussian_correlated"

    sigma: float = parameter(kind=fraction, above=0, help="standard deviation of every value", unit="[0,1]")
    kernel: str | np.ndarray | None = parameter(
        None, kind=file_or_array, help="kernel that white noise was filtered with, of any scale: .npy or .npz, array"
    )
    power: str | np.ndarray | None = parameter(
        None, kind=file_or_array, help="power spectrum (H, W) in the layout of fft2, of any scale: .npy or .npz, array"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.kernel is None) == (self.power is None):
            raise UsageError("gaussian_correlated needs one of kernel= and power=: a file or an array says how")
        argument = "kernel" if self.power is None else "power"
        table = load(getattr(self, argument), self.name, argument)
        table = table.reshape(table.shape[-2:]) if math.prod(table.shape[:-2]) == 1 and table.ndim > 2 else table
        if table.ndim != 2:
            raise UsageError(f"gaussian_correlated: {argument} has shape {table.shape}; it must be (height, width)")
        if not np.abs(table).max() > 0 or (self.power is not None and table.min() < 0):
            raise UsageError(f"gaussian_correlated: {argument} must not be all zeros, and power nowhere negative")
        object.__setattr__(self, "_table", torch.from_numpy(np.array(table)))

    def spectrum(self, shape: Shape) -> torch.Tensor:
        table: torch.Tensor = self.__dict__["_table"]
        what = "kernel" if self.power is None else "power"
        if len(shape) != 3:
            raise UsageError(f"gaussian_correlated needs measurements (channels, height, width), got {tuple(shape)}")
        fits = [a <= b if self.power is None else a == b for a, b in zip(table.shape, shape[1:], strict=True)]
        if not all(fits):
            raise UsageError(
                f"gaussian_correlated: {what} is {' x '.join(map(str, table.shape))}, and the measurement "
                f"{shape[1]} x {shape[2]}; a kernel must fit into it, a power spectrum have its size"
            )
        S = torch.fft.fft2(table, s=shape[1:]).abs() ** 2 if self.power is None else table
        S = (S + S.flip((0, 1)).roll((1, 1), (0, 1))) / 2  # noise is real
        S = S.clamp(min=FLOOR * float(S.mean()))
        return (self.sigma**2 / S.mean() * S)[:, : shape[2] // 2 + 1]

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        return z + filtered(normal(z, generators), self.spectrum(tuple(z.shape[1:])).sqrt())

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        return torch.full_like(z, self.sigma**2)

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        S = self.spectrum(tuple(y.shape[1:]))
        width = y.shape[-1]
        twice = torch.full((S.shape[1],), 2.0, dtype=S.dtype)
        twice[0] = 1
        if width % 2 == 0:
            twice[-1] = 1
        logarithm = float((S.log() * twice).sum() / (S.shape[0] * width))  # the mean over all frequencies
        white = filtered(y - z, S.rsqrt())
        return -0.5 * (white**2 + math.log(2 * math.pi) + logarithm)

    def score(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """C^-1 (y - z)."""
        return filtered(y - z, 1 / self.spectrum(tuple(y.shape[1:])))

    def tempered(self, copies: int) -> CorrelatedGaussian:
        return CorrelatedGaussian(copies**0.5 * self.sigma, self.kernel, self.power)

    def check_measurement(self, y: torch.Tensor) -> None:
        self.spectrum(tuple(y.shape[1:]))

    @property
    def spec(self) -> str:
        """Text that builds it again; for an array handed over in Python a text that identifies its content."""
        argument = "kernel" if self.power is None else "power"
        source = getattr(self, argument)
        return f"{self.name}:sigma={self.sigma},{argument}={source if isinstance(source, str) else fingerprint(source)}"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.spec == getattr(other, "spec", None)

    def __hash__(self) -> int:
        return hash(self.spec)
