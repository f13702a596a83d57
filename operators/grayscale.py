"""Colourisation: only the luma of a colour image is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.images import LUMA
from invdiff.operator import SVD, Operator, Shape

from .shapes import channels_and_size, require_batch


@dataclass(frozen=True, eq=False)
class Grayscale(Operator):
    """y = 0.299 R + 0.587 G + 0.114 B: (3, H, W) -> (1, H, W). A A^T = |w|^2 I, so s = |w| = 0.669 everywhere.

    Raises UsageError for images that have not three channels.
    """

    name: ClassVar[str] = "grayscale"
    orthonormal_U: ClassVar[bool] = True
    pixelwise: ClassVar[bool] = True

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if channels != 3:
            raise UsageError(f"grayscale: needs an image of 3 channels (red, green, blue), got {channels}")
        return 1, height, width

    def image_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if channels != 1:
            raise UsageError(f"grayscale: a measurement has 1 channel, got {channels}; is this y already in colour?")
        return 3, height, width

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(require_batch(self.name, x))
        return (_weights(x) * x).sum(1, keepdim=True)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self.image_shape(require_batch(self.name, y))
        return _weights(y) * y

    @property
    def tight(self) -> float:
        return math.hypot(*LUMA)

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        """Coordinates (B, 1, H, W)."""
        size = self.tight
        s = torch.full(self.measurement_shape(shape), size, dtype=torch.float64)
        return SVD(s, lambda c: c, lambda y: y, lambda c: self.A_adjoint(c) / size, lambda x: self.A(x) / size)


def _weights(x: torch.Tensor) -> torch.Tensor:
    return x.new_tensor(LUMA).reshape(3, 1, 1)
