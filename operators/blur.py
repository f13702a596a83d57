"""Blurs by a formula: Gaussian (turbulence), along one direction more than across, uniform (a box), defocus (a disk)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from invdiff.specs.parameters import parameter, whole

from .filtering import Filter
from .tools.boundary import BOUNDARIES
from .tools.kernels import Stencil, anisotropic_gaussian, convolution, disk, gaussian, separable


def odd(value: object) -> int:
    """whole odd number"""
    number = whole(value)
    if number % 2 == 0:
        raise ValueError(f"an even kernel has no central pixel; try {number + 1}")
    return number


def deviations(value: Any) -> tuple[float, float]:
    """two numbers such as 3x1"""
    parts = value.lower().split("x") if isinstance(value, str) else list(value)
    if len(parts) != 2 or not all(0 < float(part) < math.inf for part in parts):
        raise ValueError("write ALONGxACROSS, both above 0")
    return float(parts[0]), float(parts[1])


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


@dataclass(frozen=True, eq=False)
class AnisotropicBlur(Filter):
    """y = g * x with g(u, v) proportional to exp(-u^2 / (2 s_u^2) - v^2 / (2 s_v^2)), sum 1, the same for every channel.

    u runs along `angle`, v across; sigma = s_u x s_v px; the kernel is cut at 4 deviations. (C, H, W) -> (C, H, W),
    smaller for boundary=valid. SVD for boundary=circular, and for every boundary if angle is a multiple of 90; otherwise
    inverses use conjugate gradients. Raises UsageError if the kernel is larger than the image.
    """

    name: ClassVar[str] = "anisotropic_blur"
    _smaller: ClassVar[str] = "lower sigma"

    sigma: tuple[float, float] = parameter(
        (3.0, 1.0), kind=deviations, unit="px", help="standard deviations along and across the direction, e.g. 3x1"
    )
    angle: float = parameter(0.0, unit="degrees", help="direction, counter-clockwise from the horizontal")
    boundary: str = boundary_parameter()

    def _stencil(self) -> Stencil:
        return convolution(anisotropic_gaussian(*self.sigma, self.angle))


@dataclass(frozen=True, eq=False)
class DefocusBlur(Filter):
    """y = d * x with a uniform disk d, sum 1, the same for every channel: a lens out of focus, in geometrical optics.

    Weights are the exact areas of the disk inside each pixel, so the blur follows radii below a pixel. (C, H, W) ->
    (C, H, W), smaller for boundary=valid. SVD for boundary=circular and reflect; otherwise inverses use conjugate
    gradients. Some frequencies are nearly lost. Raises UsageError if the kernel is larger than the image.
    """

    name: ClassVar[str] = "defocus_blur"
    _smaller: ClassVar[str] = "lower radius"

    radius: float = parameter(3.0, unit="px", above=0, high=2048, help="radius of the disk")
    boundary: str = boundary_parameter()

    def _stencil(self) -> Stencil:
        return convolution(disk(self.radius))
