"""Demosaicing: a colour sensor measures one colour at each pixel, through a mosaic of filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator import SVD, Operator, Shape
from invdiff.specs.parameters import parameter

from .tools.shapes import channels_and_size, require_batch
from .tools.tables import Constant

PATTERNS = ("rggb", "bggr", "grbg", "gbrg")


@dataclass(frozen=True, eq=False)
class Demosaic(Operator):
    """y[i, j] = x[c(i, j), i, j] with the Bayer mosaic c: (3, H, W) -> (1, H, W), raw linear values, any H and W.

    pattern: the colours of the first 2 x 2 pixels, row by row. A A^T = I: coordinates are the mosaic's pixels, s = 1.
    Raises UsageError for images that have not three channels.
    """

    name: ClassVar[str] = "demosaic"
    family: ClassVar[str] = "inpainting"
    orthonormal_U: ClassVar[bool] = True

    pattern: str = parameter("rggb", kind=str, choices=PATTERNS, help="colours of the first 2 x 2 pixels, row by row")

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if channels != 3:
            raise UsageError(f"demosaic: needs an image of 3 channels (red, green, blue), got {channels}")
        return 1, height, width

    def image_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if channels != 1:
            raise UsageError(f"demosaic: a mosaic has 1 channel, got {channels}; is this y already in colour?")
        return 3, height, width

    def _chosen(self, size: Shape) -> Constant:
        """1 where a colour is measured, (3, H, W)."""

        def make() -> Constant:
            colour = torch.tensor(["rgb".index(letter) for letter in self.pattern]).reshape(2, 2)
            height, width = size
            tiled = colour.repeat(-(-height // 2), -(-width // 2))[:height, :width]
            return Constant(torch.stack([(tiled == c).double() for c in range(3)]))

        return self.cached(("chosen", size), make)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(require_batch(self.name, x))
        red, green, blue = x.unbind(1)
        y = green.clone()  # at half of the pixels; copying the others takes a third less time than products with masks
        for letter, plane in (("r", red), ("b", blue)):
            row, column = divmod(self.pattern.index(letter), 2)
            y[:, row::2, column::2] = plane[:, row::2, column::2]
        return y[:, None]

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self.image_shape(require_batch(self.name, y))
        return self._chosen(tuple(y.shape[2:])).like(y) * y

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        """Coordinates (B, 1, H, W)."""
        s = torch.ones(self.measurement_shape(shape), dtype=torch.float64)
        return SVD(s, lambda c: c, lambda y: y, self.A_adjoint, self.A)
