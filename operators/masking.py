"""What operators that keep some values and lose the others share: y = m x, with m of zeros and ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.operator import SVD, Operator, Shape

from .tools.shapes import channels_and_size, require_batch
from .tools.tables import Constant


@dataclass(frozen=True, eq=False)
class Masking(Operator):
    """y = m x, of x's shape, with zeros where nothing was measured. A subclass gives `_mask(shape)`."""

    family: ClassVar[str] = "inpainting"
    orthonormal_U: ClassVar[bool] = True

    def _mask(self, shape: Shape) -> torch.Tensor:
        """m in float64, (C, H, W) or (1, H, W)."""
        raise NotImplementedError

    def _constant(self, shape: Shape) -> Constant:
        return self.cached(("mask", shape), lambda: Constant(self._mask(shape)))

    def measurement_shape(self, shape: Shape) -> Shape:
        channels_and_size(self.name, shape)
        self._constant(tuple(shape))
        return shape

    def image_shape(self, shape: Shape) -> Shape:
        return self.measurement_shape(shape)

    def observed(self, shape: Shape) -> torch.Tensor:
        """The mask m: 1 where a value is measured, 0 where y holds a place-holder."""
        return self._constant(tuple(shape)).table

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._constant(require_batch(self.name, x)).like(x) * x

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.A(y)

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        """Coordinates are the pixels themselves; s = m."""

        def same(x: torch.Tensor) -> torch.Tensor:
            return x

        return SVD(self.observed(shape), same, same, same, same)

    @property
    def right_basis(self) -> str:
        return "pixels"

    def merged(self, following: Operator) -> Operator | None:
        return Masks((self, following)) if isinstance(following, Masking) else None


@dataclass(frozen=True, eq=False)
class Masks(Masking):
    """Masks one after another: what all of them keep."""

    name: ClassVar[str] = "masks"

    masks: tuple[Masking, ...]

    def _mask(self, shape: Shape) -> torch.Tensor:
        return torch.stack(torch.broadcast_tensors(*(one.observed(shape) for one in self.masks))).prod(0)


def random_mask(seed: int, keep: float, shape: Shape, *which: int) -> torch.Tensor:
    """round(keep n) ones, at least one, at places that depend on seed, shape and `which` alone; float64."""
    places = np.random.Generator(np.random.PCG64([seed, *shape, *which])).random(int(np.prod(shape)))
    kept = np.argsort(places, kind="stable")[: max(1, round(keep * places.size))]
    mask = np.zeros(places.size)
    mask[kept] = 1
    return torch.from_numpy(mask).reshape(shape)
