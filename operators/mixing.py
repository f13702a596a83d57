"""Spectral mixing: each measured band is a weighted sum of the image's channels, the same at every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import SVD, Operator, Shape
from invdiff.operator.arrays import file_or_array, fingerprint, load
from invdiff.specs.parameters import format_spec, parameter

from .tools.shapes import channels_and_size, require_batch
from .tools.tables import Constant, decomposed


@dataclass(frozen=True, eq=False)
class Mixing(Operator):
    """y[m] = sum_c M[m, c] x[c] at every pixel. A subclass gives `_weights()`, the matrix M (m, C) in float64."""

    orthonormal_U: ClassVar[bool] = True
    pixelwise: ClassVar[bool] = True

    @property
    def tight(self) -> float | None:
        s, (bands, channels) = self._decomposed[0], self._M.table.shape
        return float(s.max()) if bands <= channels and float(s.min()) > (1 - 1e-12) * float(s.max()) else None

    def _weights(self) -> np.ndarray:
        raise NotImplementedError

    @property
    def _M(self) -> Constant:
        return self.cached("M", lambda: Constant(torch.from_numpy(self._weights())))

    @property
    def _decomposed(self) -> tuple[torch.Tensor, Constant, Constant]:
        return self.cached("svd", lambda: decomposed(self._M.table))

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        bands, needed = self._M.table.shape
        if channels != needed:
            raise UsageError(f"{self.name}: needs an image of {needed} channels, got {channels}")
        return bands, height, width

    def image_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        bands, needed = self._M.table.shape
        if channels != bands:
            plural = "" if bands == 1 else "s"
            raise UsageError(f"{self.name}: a measurement has {bands} channel{plural}, got {channels}; is this y an x?")
        return needed, height, width

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(require_batch(self.name, x))
        return mix(self._M.like(x), x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self.image_shape(require_batch(self.name, y))
        return mix(self._M.like(y).T, y)

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        """That of M at each pixel. Coordinates (B, min(m, C), H, W)."""
        self.measurement_shape(shape)
        s, U, V = self._decomposed
        return SVD(
            s[:, None, None],
            U=lambda c: mix(U.like(c), c),
            U_adjoint=lambda y: mix(U.like(y).T, y),
            V=lambda c: mix(V.like(c), c),
            V_adjoint=lambda x: mix(V.like(x).T, x),
        )


def mix(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(m, C) and (B, C, H, W) -> (B, m, H, W)."""
    return (matrix @ x.flatten(2)).unflatten(2, x.shape[2:])


@dataclass(frozen=True, eq=False)
class SpectralMixing(Mixing):
    """y[m] = sum_c M[m, c] x[c] at every pixel: (C, H, W) -> (m, H, W), with a matrix M (m, C).

    SVD: that of M, at each pixel. `grayscale` is the case of one band.
    Raises UsageError for anything but a finite two-dimensional matrix, and for images that have not C channels.
    """

    name: ClassVar[str] = "spectral_mixing"
    family: ClassVar[str] = "mixing"

    matrix: str | np.ndarray = parameter(
        kind=file_or_array, help="bands x channels (m, C): tensor, array, .npy or .npz file"
    )
    key: str | None = parameter(None, kind=str, help="which array of an .npz file that holds several")

    def __post_init__(self) -> None:
        super().__post_init__()
        # A wrong file is an error now rather than at the first measurement.
        _ = self._M

    def _weights(self) -> np.ndarray:
        array = load(self.matrix, self.name, "matrix", self.key)
        if array.ndim != 2:
            raise UsageError(f"spectral_mixing: matrix has shape {array.shape}; it must be (bands, channels)")
        if not array.any():
            raise UsageError("spectral_mixing: matrix is zero everywhere, so nothing is measured")
        return array.copy()

    @property
    def spec(self) -> str:
        """Text that builds it again; for a matrix handed over in Python a text that identifies its content."""
        if isinstance(self.matrix, str):
            return format_spec(self.name, self)
        return f"{self.name}:matrix={fingerprint(self.matrix)}"

    __hash__ = Operator.__hash__
