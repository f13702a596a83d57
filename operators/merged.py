"""Filters one after another, as one filter, where all have a form in which maps multiply.

every boundary circular (or not needed)     transfer functions multiply, over decimations too     fourier.py
all diagonal in the cosine transform        responses multiply                                    cosine.py
all separable, any boundaries and factors   matrices of rows and of columns multiply              separable.py

The frequency k of an image is k modulo h on its decimation of h rows. So a filter on the smaller grid is one on the larger
grid before it, whose transfer function is the smaller one's, repeated: H = H_1 tile(H_2), and the factors multiply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.operator import Map, Shape

from .cosine import CosineFilter, cosine_response
from .filtering import Engine, Filter
from .fourier import CircularFilter, transfer_function
from .separable import Axis, SeparableFilter


def merge_filters(first: Filter, second: Filter) -> Filter | None:
    """The chain as one filter with a decomposition; None where the chain is as good, or there is no such form."""
    if first.tight is not None:
        return None  # its smaller image is cheaper to filter, and it hands on the decomposition
    chain = (*_filters(first), *_filters(second))
    if any(all(getattr(one, form) for one in chain) for form in ("wraps", "separable", "even")):
        return MergedFilter(chain)
    return None


def _filters(one: Filter) -> tuple[Filter, ...]:
    return one.filters if isinstance(one, MergedFilter) else (one,)


@dataclass(frozen=True, eq=False)
class MergedFilter(Filter):
    """Filters one after another. Shapes are those of the chain, whose links have been checked against them."""

    name: ClassVar[str] = "merged"

    filters: tuple[Filter, ...]

    @property
    def has_svd(self) -> bool:
        return True

    @property
    def _boundary(self) -> str:
        return "circular" if self.wraps else self.filters[-1]._boundary

    @property
    def _factor(self) -> int:
        return math.prod(one._factor for one in self.filters)

    @property
    def separable(self) -> bool:
        return all(one.separable for one in self.filters)

    @property
    def even(self) -> bool:
        return all(one.even for one in self.filters)

    @property
    def wraps(self) -> bool:
        return all(one.wraps for one in self.filters)

    def _sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """What each filter gets."""
        sizes = [size]
        for one in self.filters[:-1]:
            _, height, width = one.measurement_shape((1, *sizes[-1]))
            sizes.append((height, width))
        return sizes

    def _make_engine(self, size: tuple[int, int]) -> Engine:
        steps = list(zip(self.filters, self._sizes(size), strict=True))
        if self.wraps:
            H, factor = torch.ones(size, dtype=torch.complex128), 1
            for one, grid in steps:
                H = H * transfer_function(one.stencil, *grid).repeat(factor, factor)
                factor *= one._factor
            return CircularFilter(H, factor)
        if self.even:
            return CosineFilter(torch.stack([cosine_response(one.stencil, *grid) for one, grid in steps]).prod(0))
        rows, columns = self.matrices(size)
        return SeparableFilter(Axis(rows), Axis(columns))

    def _forward(self, shape: Shape) -> Engine:
        return self._engine(shape)

    def matrices(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = np.eye(size[0]), np.eye(size[1])
        for one, grid in zip(self.filters, self._sizes(size), strict=True):
            R, C = one.matrices(grid)
            rows, columns = R @ rows, C @ columns
        return rows, columns

    def measurement_shape(self, shape: Shape) -> Shape:
        for one in self.filters:
            shape = one.measurement_shape(shape)
        return shape

    def image_shape(self, shape: Shape) -> Shape:
        for one in reversed(self.filters):
            shape = one.image_shape(shape)
        return shape

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map | None:
        return None
