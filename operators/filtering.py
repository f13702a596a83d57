"""What all filters share: the shape maps, the checks, and the choice of the fastest exact form for kernel and boundary.

circular boundary                           Fourier domain (fourier.py)         SVD
mirror-symmetric kernel, reflect            cosine transform (cosine.py)        SVD
separable kernel, other boundary or factor  two small matrices (separable.py)   SVD
any other kernel, boundary                  padding and FFT (padded.py)         conjugate gradients
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import SVD, Operator, Shape

from .cosine import CosineFilter, cosine_response, symmetric
from .fourier import CircularFilter, transfer_function
from .kernels import Stencil
from .padded import PaddedFilter, fast_length
from .separable import Axis, SeparableFilter, axis_matrix
from .shapes import channels_and_size, require_batch

LARGE = 2**22
"""Images of more numbers are filtered channel by channel: spectra and padded copies of all would fill the memory."""
Engine = CircularFilter | CosineFilter | PaddedFilter | SeparableFilter
Map = Callable[[torch.Tensor], torch.Tensor]


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

    # Which forms the filter has, in chains too (merged.py).

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
        from .merged import merge_filters

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
