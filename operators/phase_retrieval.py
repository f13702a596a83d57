"""Phase retrieval: only the magnitude of an image's Fourier transform is measured (coherent diffraction, holography)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator import Operator, Shape
from invdiff.specs.parameters import parameter

from .tools.shapes import channels_and_size, require_batch
from .tools.tables import working

ERROR_REDUCTIONS = 100


@dataclass(frozen=True, eq=False)
class PhaseRetrieval(Operator):
    """y = |F x|, with the image in the corner of a field of zeros `oversample` times as wide; F orthonormal.

    (C, H, W) -> (C, ceil(oversample H), ceil(oversample W)), each channel alone. x turned by 180 degrees, and -x, give the
    same y, for each channel; so does x moved inside the field, where its edges are dark. Below oversample = 2 the
    autocorrelation wraps around and less is known.
    """

    name: ClassVar[str] = "phase_retrieval"
    linear: ClassVar[bool] = False
    family: ClassVar[str] = "phase"

    oversample: float = parameter(2.0, low=1, high=16, help="width of the field over that of the image")

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        return channels, self._field(height), self._field(width)

    def image_shape(self, shape: Shape) -> Shape:
        channels, *field = channels_and_size(self.name, shape)
        height, width = (math.floor(side / self.oversample + 1e-9) for side in field)
        if min(height, width) < 1 or self.measurement_shape((channels, height, width)) != tuple(shape):
            raise UsageError(
                f"{self}: no image gives a spectrum of {field[0]} x {field[1]}; its sides are ceil(oversample times the "
                "image's), so set oversample, or crop the spectrum's field"
            )
        return channels, height, width

    def _field(self, side: int) -> int:
        return math.ceil(self.oversample * side - 1e-9)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        field = self.measurement_shape(require_batch(self.name, x))[1:]
        return torch.fft.fft2(working(x), s=field, norm="ortho").abs().to(x.dtype)

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """Error reduction (Fienup 1982, https://doi.org/10.1364/AO.21.002758): by turns y's magnitude, and what an image
        is: zero outside its part of the field and within [0, 1]. From one fixed random image, the same for every y."""
        shape = self.image_shape(require_batch(self.name, y))
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(shape, generator=generator, dtype=torch.float64).to(working(y)).expand(len(y), *shape)
        for _ in range(ERROR_REDUCTIONS):
            spectrum = torch.fft.fft2(x, s=y.shape[-2:], norm="ortho")
            spectrum = torch.polar(working(y).clamp(min=0), spectrum.angle())
            x = torch.fft.ifft2(spectrum, norm="ortho").real[..., : shape[1], : shape[2]].clamp(0, 1)
        return x.to(y.dtype)
