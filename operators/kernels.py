"""Stencils: the weights of a filter and where they sit, as float64 numpy arrays."""

from __future__ import annotations

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
    return Stencil(kernel[::-1, ::-1].copy(), (height // 2 - height + 1, width // 2 - width + 1))


def separable(weights: np.ndarray, start: int) -> Stencil:
    """The same 1-D weights on both axes."""
    return Stencil(np.outer(weights, weights), (start, start), (weights, weights))


def gaussian(sigma: float, offset: float = 0.0, size: int | None = None) -> tuple[np.ndarray, int]:
    """exp(-(t - offset)^2 / (2 sigma^2)) on whole t, sum 1, and the first t.

    Without a size the weights reach 4 sigma (rounded to whole pixels, scipy.ndimage.gaussian_filter's default).
    """
    reach = int(4 * sigma + 0.5) if size is None else size // 2
    positions = np.arange(int(np.ceil(offset - reach)), int(np.floor(offset + reach)) + 1)
    # Relative to the nearest sample, so that a tiny sigma does not underflow everywhere.
    exponent = (positions - offset) ** 2 / (2 * sigma**2)
    weights = np.exp(exponent.min() - exponent)
    return weights / weights.sum(), int(positions[0])


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
