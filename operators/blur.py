"""Blurs by a separable kernel: Gaussian (defocus, turbulence) and uniform (a square pixel, a box)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from invdiff.parameters import parameter, whole

from .boundary import BOUNDARIES
from .filtering import Filter
from .kernels import Stencil, gaussian, separable


def odd(value: object) -> int:
    """whole odd number"""
    number = whole(value)
    if number % 2 == 0:
        raise ValueError(f"an even kernel has no central pixel; try {number + 1}")
    return number


def boundary_parameter() -> str:
    """The declaration that all blurs share."""
    return parameter("reflect", kind=str, choices=BOUNDARIES, help="what lies outside the image; valid: y is smaller")


@dataclass(frozen=True, eq=False)
class GaussianBlur(Filter):
    """y = g * x with g(t) proportional to exp(-|t|^2 / (2 sigma^2)), sum 1, the same for every channel.

    (C, H, W) -> (C, H, W), or (C, H - k + 1, W - k + 1) for boundary=valid with a kernel k wide. circular wraps around,
    which no camera does. Has an SVD for every boundary. Raises UsageError if the kernel is larger than the image.
    """

    name: ClassVar[str] = "gaussian_blur"
    _smaller: ClassVar[str] = "lower sigma, or set size"

    sigma: float = parameter(2.0, unit="px", above=0, help="standard deviation of the kernel")
    size: int | None = parameter(
        None, kind=odd, unit="px", low=1, help="kernel width, odd; without it, 4 sigma each way"
    )
    boundary: str = boundary_parameter()

    def _stencil(self) -> Stencil:
        return separable(*gaussian(self.sigma, size=self.size))


@dataclass(frozen=True, eq=False)
class UniformBlur(Filter):
    """y = mean of x over the size x size square around each pixel, the same for every channel.

    (C, H, W) -> (C, H, W), or (C, H - size + 1, W - size + 1) for boundary=valid. Has an SVD for every boundary; some
    frequencies are lost (s = 0). Raises UsageError if the kernel is larger than the image.
    """

    name: ClassVar[str] = "uniform_blur"
    _smaller: ClassVar[str] = "lower size"

    size: int = parameter(9, kind=odd, unit="px", low=1, help="width of the square, odd")
    boundary: str = boundary_parameter()

    def _stencil(self) -> Stencil:
        return separable(np.full(self.size, 1 / self.size), -(self.size // 2))
