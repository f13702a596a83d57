"""Stencils: the weights of a filter and where they sit, as float64 numpy arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Stencil:
    """y[i] = sum_t plane[t] x[stride i + start + t]   (i, t, start are (row, column) pairs).

    plane: (kh, kw). axes: (rows (kh,), columns (kw,)) with plane = outer(rows, columns), or None if not separable.
    """

    plane: np.ndarray
    start: tuple[int, int]
    axes: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.plane.shape
        return height, width


def convolution(kernel: np.ndarray) -> Stencil:
    """The stencil of y[i] = sum_j kernel[j] x[i + c - j]: true convolution, centre c = (kh // 2, kw // 2).

    A point in x becomes the kernel, the same way up, in y. For an even size the centre is the later of the two middle
    entries, as in scipy.ndimage.convolve.
    """
    height, width = kernel.shape
    plane = kernel[::-1, ::-1].copy()
    return Stencil(plane, (height // 2 - height + 1, width // 2 - width + 1), rank_one(plane))


def rank_one(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(rows, columns) with plane = outer(rows, columns) to rounding, or None."""
    row, column = np.unravel_index(np.abs(plane).argmax(), plane.shape)
    peak = plane[row, column]
    if peak == 0:
        return None
    rows, columns = plane[:, column] / peak, plane[row].copy()
    return (rows, columns) if np.abs(plane - np.outer(rows, columns)).max() <= 1e-15 * abs(peak) else None


def separable(weights: np.ndarray, start: int) -> Stencil:
    """The same 1-D weights on both axes."""
    return Stencil(np.outer(weights, weights), (start, start), (weights, weights))


def gaussian(sigma: float, offset: float = 0.0, size: int | None = None) -> tuple[np.ndarray, int]:
    """exp(-(t - offset)^2 / (2 sigma^2)) on whole t, sum 1, and the first t.

    Without a size the weights reach 4 sigma (rounded to whole pixels, scipy.ndimage.gaussian_filter's default).
    """
    reach = max(int(4 * sigma + 0.5), abs(offset - round(offset))) if size is None else size // 2
    positions = np.arange(int(np.ceil(offset - reach)), int(np.floor(offset + reach)) + 1)
    squares = (positions - offset) ** 2
    # Relative to the nearest sample, and without sigma^2, so that a tiny sigma does not underflow everywhere.
    with np.errstate(over="ignore"):
        weights = np.exp((squares.min() - squares) / 2 / sigma / sigma)
    return weights / weights.sum(), int(positions[0])


def anisotropic_gaussian(major: float, minor: float, angle: float) -> np.ndarray:
    """exp(-u^2 / (2 major^2) - v^2 / (2 minor^2)) on whole pixels, sum 1, odd size, cut at 4 deviations each way.

    u runs along `angle` (degrees, counter-clockwise from the horizontal), v across.
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # The deviations along the columns and the rows.
    reach = [int(4 * math.hypot(major * a, minor * b) + 0.5) for a, b in ((cos, sin), (sin, cos))]
    x, up = np.arange(-reach[0], reach[0] + 1)[None, :], np.arange(reach[1], -reach[1] - 1, -1)[:, None]
    u, v = x * cos + up * sin, -x * sin + up * cos
    with np.errstate(over="ignore"):
        kernel = np.exp(-((u / major) ** 2 + (v / minor) ** 2) / 2)
    return kernel / kernel.sum()


def disk(radius: float) -> np.ndarray:
    """The share of a disk's area inside each pixel: sum 1, odd size, centred on the middle pixel's centre."""
    reach = max(0, math.ceil(radius - 0.5))
    if reach == 0:
        return np.ones((1, 1))
    edges = np.minimum(np.abs(np.arange(-reach - 1, reach + 1) + 0.5), radius)
    # Q(a, b) = area of the disk inside [0, a] x [0, b], the integral of min(b, sqrt(R^2 - x^2)) over 0 < x < a.
    below = np.sqrt(radius**2 - edges**2)

    def segment(x: np.ndarray) -> np.ndarray:
        """Integral of sqrt(R^2 - t^2) over 0 < t < x."""
        return (x * np.sqrt(radius**2 - x**2) + radius**2 * np.arcsin(x / radius)) / 2

    a, b = edges[:, None], edges[None, :]
    flat = np.minimum(a, below[None, :])
    quadrant = b * flat + segment(np.broadcast_to(a, flat.shape)) - segment(flat)
    sign = np.sign(np.arange(-reach - 1, reach + 1) + 0.5)
    kernel = np.diff(np.diff(sign[:, None] * sign * quadrant, axis=0), axis=1)
    return np.maximum(kernel, 0) / (math.pi * radius**2)


def bicubic(factor: int) -> tuple[np.ndarray, int]:
    """Keys' cubic (a = -1/2) stretched by the factor, as MATLAB's imresize shrinks: sum 1, and the first t.

    Half-pixel alignment: y[i] is centred on factor i + (factor - 1) / 2. Support 4 factor.
    """
    centre = (factor - 1) / 2
    positions = np.arange(int(np.ceil(centre - 2 * factor)), int(np.floor(centre + 2 * factor)) + 1)
    d = np.abs(positions - centre) / factor
    weights = np.where(d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1, np.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0.0))
    inside = np.flatnonzero(weights)
    first, last = inside[0], inside[-1] + 1
    return weights[first:last] / weights.sum(), int(positions[first])


def lanczos(factor: int, lobes: int = 3) -> tuple[np.ndarray, int]:
    """sinc(d) sinc(d / lobes) stretched by the factor, d in pixels of y (Duchon 1979): sum 1, and the first t.

    Half-pixel alignment as `bicubic`. Support 2 lobes factor.
    """
    centre = (factor - 1) / 2
    positions = np.arange(int(np.floor(centre - lobes * factor)) + 1, int(np.ceil(centre + lobes * factor)))
    d = (positions - centre) / factor
    weights = np.sinc(d) * np.sinc(d / lobes)
    return weights / weights.sum(), int(positions[0])
