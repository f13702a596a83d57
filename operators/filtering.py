"""What all filters share: the shape maps, the checks, and the choice of the fastest exact form for kernel and boundary.

circular boundary                           Fourier domain (fourier.py)         SVD
mirror-symmetric kernel, reflect            cosine transform (cosine.py)        SVD
separable kernel, other boundary or factor  two small matrices (separable.py)   SVD
any other kernel, boundary                  padding and FFT (padded.py)         conjugate gradients

Filters one after another are one filter, where all have a form in which maps multiply:

every boundary circular (or not needed)     transfer functions multiply, over decimations too     fourier.py
all diagonal in the cosine transform        responses multiply                                    cosine.py
all separable, any boundaries and factors   matrices of rows and of columns multiply              separable.py

The frequency k of an image is k modulo h on its decimation of h rows. So a filter on the smaller grid is one on the larger
grid before it, whose transfer function is the smaller one's, repeated: H = H_1 tile(H_2), and the factors multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import SVD, Map, Operator, Shape

from .tools.cosine import CosineFilter, cosine_response, symmetric
from .tools.fourier import CircularFilter, transfer_function
from .tools.kernels import Stencil
from .tools.padded import PaddedFilter, fast_length
from .tools.separable import Axis, SeparableFilter, axis_matrix
from .tools.shapes import channels_and_size, require_batch

LARGE = 2**22
"""Images of more numbers are filtered channel by channel: spectra and padded copies of all would fill the memory."""
Engine = CircularFilter | CosineFilter | PaddedFilter | SeparableFilter


@dataclass(frozen=True, eq=False)
class Filter(Operator):
    """A stencil applied to every channel. A subclass gives `_stencil`, and `_boundary`, `_factor` if they vary."""

    family: ClassVar[str] = "blur"
    _smaller: ClassVar[str] = "use a smaller kernel"
    orthonormal_U: ClassVar[bool] = True
    channelwise: ClassVar[bool] = True
    # False where the stencil bounds the kernels, but is not all that A does: then none of the forms below is A's.
    _uniform: ClassVar[bool] = True

    def _stencil(self) -> Stencil:
        raise NotImplementedError

    @property
    def _boundary(self) -> str:
        return str(getattr(self, "boundary", "reflect"))

    @property
    def _factor(self) -> int:
        return 1

    @property
    def stencil(self) -> Stencil:
        return self.cached("stencil", self._stencil)

    @property
    def has_svd(self) -> bool:
        return self._boundary == "circular" or self.separable or self.even

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        factor = self._factor
        if height % factor or width % factor:
            usable = "x".join(map(str, self.usable_shape(shape)[1:]))
            raise UsageError(
                f"{self.name}: the image {height}x{width} is not a whole number of {factor}x{factor} blocks: "
                f"crop it to {usable}, or choose a factor that divides both"
            )
        rows, columns = self.stencil.size
        if rows > height or columns > width:
            raise UsageError(
                f"{self.name}: kernel {rows}x{columns} is larger than the image {height}x{width}: "
                f"{self._smaller}, or take a larger image"
            )
        if self._boundary == "valid":
            return channels, height - rows + 1, width - columns + 1
        return channels, height // factor, width // factor

    def image_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if self._boundary == "valid":
            rows, columns = self.stencil.size
            return channels, height + rows - 1, width + columns - 1
        full = (channels, height * self._factor, width * self._factor)
        self.measurement_shape(full)
        return full

    def usable_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        factor = self._factor
        if height < factor or width < factor:
            raise UsageError(f"{self.name}: factor={factor} is larger than the image {height}x{width}: lower factor")
        return channels, height // factor * factor, width // factor * factor

    def _engine(self, shape: Shape) -> Engine:
        def make() -> Engine:
            self.measurement_shape(shape)
            return self._make_engine((shape[1], shape[2]))

        return self.cached(("engine", shape[1:]), make)

    def _forward(self, shape: Shape) -> Engine:
        """What computes A and A^T: for even filters padding, which takes half the time of the cosine transforms."""
        if not self.even:
            return self._engine(shape)

        def make() -> Engine:
            self.measurement_shape(shape)
            return PaddedFilter(self.stencil, shape[1], shape[2], self._boundary)

        return self.cached(("padded", shape[1:]), make)

    def _make_engine(self, size: tuple[int, int]) -> Engine:
        if self._boundary == "circular":
            return CircularFilter(transfer_function(self.stencil, *size), self._factor)
        if self.even:
            return CosineFilter(cosine_response(self.stencil, *size))
        if not self.separable:
            return PaddedFilter(self.stencil, *size, self._boundary)
        return SeparableFilter(*map(Axis, self.matrices(size)))

    def matrices(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """R (h, H) and C (w, W) of a separable filter Y = R X C^T for images of one size (H, W)."""
        assert self.stencil.axes is not None
        rows, columns = (
            axis_matrix(weights, start, self._factor, length, self._boundary)
            for weights, start, length in zip(self.stencil.axes, self.stencil.start, size, strict=True)
        )
        return rows, columns

    # Which forms the filter has, in chains too.

    @property
    def separable(self) -> bool:
        """Two small matrices do it."""
        return self._uniform and self.stencil.axes is not None

    @property
    def even(self) -> bool:
        """Diagonal in the cosine transform."""
        plain = self._uniform and self._boundary == "reflect" and self._factor == 1
        return plain and self.cached("symmetric", lambda: symmetric(self.stencil))

    @property
    def wraps(self) -> bool:
        """The boundary is circular, or might as well be, because every output stays inside its block of pixels."""
        inside = all(
            start >= 0 and start + taps <= self._factor
            for start, taps in zip(self.stencil.start, self.stencil.size, strict=True)
        )
        return self._uniform and (self._boundary == "circular" or inside)

    def merged(self, following: Operator) -> Operator | None:
        return merge_filters(self, following) if isinstance(following, Filter) else None

    @property
    def right_basis(self) -> str | None:
        """Hartley frequencies of a circular filter, cosines of an even one."""
        if self._factor > 1 or not self.has_svd:
            return None
        return "hartley" if self._boundary == "circular" else "cosine" if self.even else None

    def A(self, x: torch.Tensor) -> torch.Tensor:
        engine = self._forward(require_batch(self.name, x))
        return by_channels(engine.A, x) if large(x) else engine.A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        engine = self._forward(self.image_shape(require_batch(self.name, y)))
        return by_channels(engine.A_adjoint, y) if large(y) else engine.A_adjoint(y)

    def svd(self, shape: Shape) -> SVD:
        engine = self._engine(shape)
        return super().svd(shape) if isinstance(engine, PaddedFilter) else engine.svd()

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        engine = self._engine(require_batch(self.name, z))
        if self.has_svd and large(z):
            return by_channels(lambda channel, measured: self.prox_l2(channel, measured, gamma), z, y)
        if isinstance(engine, CircularFilter):
            return engine.prox_l2(z, y, gamma)
        return super().prox_l2(z, y, gamma)

    @property
    def remedy(self) -> str:
        return "Use boundary=circular, which needs no iterations, or a larger sigma_y, which makes them easier."

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map | None:
        """b (a K K^T + b I)^-1, where K has the filter's kernel and an easier boundary, on the measurement's grid; or the
        part of it there, of a larger grid."""
        if self._factor > 1:
            return None
        size, gamma = self.measurement_shape(shape)[1:], a / b
        if self.even:
            cosines = self.cached(("cosines", size), lambda: CosineFilter(cosine_response(self.stencil, *size)))
            return lambda r: cosines.inverse(gamma, r)
        # Zeros around r, two kernels wide, keep what wraps around away from it: half the iterations for oblique strokes.
        grid = tuple(fast_length(whole + 2 * kernel) for whole, kernel in zip(size, self.stencil.size, strict=True))
        wrapped = self.cached(("wrapped", grid), lambda: CircularFilter(transfer_function(self.stencil, *grid)))
        # At the edges A passes even what the circular filter stops: a floor of that order. Without edges it is closer.
        share = 0.003 if self._boundary == "valid" else 0.03
        edges = share * sum(min(1.0, kernel / whole) for kernel, whole in zip(self.stencil.size, size, strict=True))
        floor = edges * float(wrapped.singular_values.max()) ** 2
        return lambda r: wrapped.inverse(gamma, r, floor)


def large(x: torch.Tensor) -> bool:
    """Whether to take the channels of images (B, C, H, W) one by one."""
    return x.shape[1] > 1 and x[0].numel() > LARGE


def by_channels(function: Callable[..., torch.Tensor], *images: torch.Tensor) -> torch.Tensor:
    """A function that acts on each channel alone, on one channel of all images at a time."""
    return torch.cat([function(*channels) for channels in zip(*(x.split(1, 1) for x in images), strict=True)], 1)


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
