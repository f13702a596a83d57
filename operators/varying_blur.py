"""A blur that differs across the image: a kernel for each tile, and between their middles a mixture of the nearest four.

J. Nagy, D. O'Leary, Restoring images degraded by spatially variant blur, 1998, https://doi.org/10.1137/S106482759528507X
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import Map, Operator, Shape
from invdiff.operator.arrays import file_or_array, fingerprint, load
from invdiff.specs.parameters import format_spec, parameter
from invdiff.specs.parameters import shape as shape_of

from .blur import boundary_parameter
from .filtering import Filter
from .tools.fourier import transfer_function
from .tools.kernels import Stencil, convolution, disk
from .tools.padded import PaddedFilter, fast_length
from .tools.tables import Constant, working


@dataclass(frozen=True, eq=False)
class VaryingBlur(Filter):
    """y = sum_i w_i (h_i * x) with a kernel h_i for each tile of a grid, the same for every channel.

    w_i is 1 in the middle of tile i and falls linearly to 0 at the middles of its neighbours; the sum of all is 1, so that
    with kernels of sum 1 flat areas stay flat. kernels: an array (rows, columns, kh, kw), applied as `kernel_blur` would.
    Without it, a lens whose field is curved: disks whose radius grows with the square of the distance from the middle,
    from `radius` there to `corner` in the corner tiles of `grid`. (C, H, W) -> (C, H, W), smaller for boundary=valid.
    No SVD: inverses use conjugate gradients.
    Raises UsageError for an unreadable array, and a grid or a kernel larger than the image.
    """

    name: ClassVar[str] = "varying_blur"
    _uniform: ClassVar[bool] = False
    _smaller: ClassVar[str] = "lower radius and corner, or take smaller kernels"

    kernels: str | np.ndarray | None = parameter(
        None, kind=file_or_array, help="kernels (rows, columns, kh, kw): .npy or .npz file, tensor or array"
    )
    radius: float | None = parameter(None, unit="px", above=0, high=2048, help="defocus in the middle (0.5)")
    corner: float | None = parameter(None, unit="px", above=0, high=2048, help="defocus in the corner tiles (4)")
    grid: tuple[int, int] | None = parameter(None, kind=shape_of, help="rows x columns of tiles (5x5)")
    boundary: str = boundary_parameter()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernels is not None:
            for name in ("radius", "corner", "grid"):
                if getattr(self, name) is not None:
                    raise UsageError(f"varying_blur: {name} has no effect on kernels; choose one of the two")
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 2):
            text = "x".join(map(str, self.grid))
            raise UsageError(f"varying_blur: grid={text} must be rows x columns, each >= 2, e.g. 5x5")
        # A wrong file is an error now rather than at the first measurement.
        _ = self.kernel_grid

    @property
    def kernel_grid(self) -> np.ndarray:
        """The kernels, (rows, columns, kh, kw)."""
        return self.cached("kernels", self._kernel_grid)

    def _kernel_grid(self) -> np.ndarray:
        if self.kernels is not None:
            array = load(self.kernels, self.name, "kernels")
            if array.ndim != 4:
                raise UsageError(f"varying_blur: kernels have shape {array.shape}; it must be (rows, columns, kh, kw)")
            return array
        rows, columns = self.grid or (5, 5)
        middle, corner = self.radius or 0.5, self.corner or 4.0
        v, u = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None, :]
        radii = middle + (corner - middle) * (u**2 + v**2) / 2
        largest = disk(max(middle, corner)).shape[0] // 2
        kernels = np.zeros((rows, columns, 2 * largest + 1, 2 * largest + 1))
        for place in np.ndindex(rows, columns):
            kernel = disk(float(radii[place]))
            inside = slice(largest - kernel.shape[0] // 2, largest + kernel.shape[0] // 2 + 1)
            kernels[place][inside, inside] = kernel
        return kernels

    def _stencil(self) -> Stencil:
        """The mean kernel: it has the size of all."""
        return convolution(self.kernel_grid.mean((0, 1)))

    @property
    def has_svd(self) -> bool:
        return False

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = super().measurement_shape(shape)
        rows, columns = self.kernel_grid.shape[:2]
        if rows > height or columns > width:
            raise UsageError(f"varying_blur: {rows}x{columns} tiles are more than {height}x{width} pixels hold")
        return channels, height, width

    def _engine(self, shape: Shape) -> TiledFilter:
        def make() -> TiledFilter:
            self.measurement_shape(shape)
            return TiledFilter(self.kernel_grid, self.stencil, shape[1], shape[2], self.boundary)

        return self.cached(("engine", shape[1:]), make)

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map:
        """b (a K K^T + b I)^-1 tile by tile, each as if its kernel went on in circles."""
        return lambda r: self._engine(shape).inverse(a / b, r)

    @property
    def remedy(self) -> str:
        return "A larger sigma_y makes it easier, and so do kernels that lose fewer frequencies."

    @property
    def spec(self) -> str:
        """Text that builds it again; for kernels handed over in Python a text that identifies their content."""
        if not isinstance(self.kernels, np.ndarray):
            return format_spec(self.name, self)
        return f"{self.name}:kernels={fingerprint(self.kernels)},boundary={self.boundary}"

    __hash__ = Operator.__hash__


def hats(count: int, size: int) -> np.ndarray:
    """(count, size) weights of linear interpolation between the middles of `count` equal parts; columns sum to 1."""
    position = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    return np.maximum(0, 1 - np.abs(position - np.arange(count)[:, None]))


class TiledFilter(PaddedFilter):
    """The filter for images of one size. Each kernel sees only the part of the padded image that its tile of y needs, all
    parts having one size: together they cover four images, whatever the number of tiles."""

    kernel: tuple[int, int]
    tile: list[int]

    def __init__(self, kernels: np.ndarray, mean: Stencil, height: int, width: int, boundary: str) -> None:
        super().__init__(mean, height, width, boundary)
        (rows, columns), self.kernel = kernels.shape[:2], mean.size
        weights = [hats(count, size) for count, size in zip((rows, columns), self.out, strict=True)]
        self.tile, starts = [], []
        for hat, size in zip(weights, self.out, strict=True):
            spans = [np.flatnonzero(row)[[0, -1]] for row in hat]
            tile = int(max(last - first + 1 for first, last in spans))
            starts.append([min(int(first), size - tile) for first, _ in spans])
            self.tile.append(tile)
        self.corners: list[tuple[int, int]] = [(top, left) for top in starts[0] for left in starts[1]]
        cut = [
            np.stack([row[start : start + tile] for row, start in zip(hat, begins, strict=True)])
            for hat, begins, tile in zip(weights, starts, self.tile, strict=True)
        ]
        w = cut[0][:, None, :, None] * cut[1][None, :, None, :]
        self.w: Constant = Constant(torch.from_numpy(w.reshape(-1, *self.tile)))
        self.part: list[int] = [tile + kernel - 1 for tile, kernel in zip(self.tile, self.kernel, strict=True)]
        self.grid: tuple[int, int] = (fast_length(self.part[0]), fast_length(self.part[1]))
        self.root: Constant = Constant(self.w.table.sqrt())
        half = self.tile[1] // 2 + 1
        responses = [transfer_function(convolution(k), *self.tile) for k in kernels.reshape(-1, *self.kernel)]
        self.power: Constant = Constant(torch.stack([H[:, :half].abs() ** 2 for H in responses]))
        planes = torch.from_numpy(kernels[..., ::-1, ::-1].reshape(-1, *self.kernel).copy())
        self.K = Constant(torch.fft.rfft2(planes, s=self.grid))

    def _tiles(self, y: torch.Tensor) -> torch.Tensor:
        (tall, broad) = self.tile
        return torch.stack([y[..., top : top + tall, left : left + broad] for top, left in self.corners], -3)

    def _sum(self, tiles: torch.Tensor) -> torch.Tensor:
        (tall, broad) = self.tile
        y = tiles.new_zeros(*tiles.shape[:-3], *self.out)
        for tile, (top, left) in zip(tiles.unbind(-3), self.corners, strict=True):
            y[..., top : top + tall, left : left + broad] += tile
        return y

    def inverse(self, gamma: float, r: torch.Tensor) -> torch.Tensor:
        """sum_i sqrt(w_i) (I + gamma (K_i K_i^T + floor))^-1 sqrt(w_i) r, positive definite: nearly (I + gamma A A^T)^-1."""
        u = working(r)
        root = self.root.like(u)
        # Where tiles meet A passes even what each of their kernels stops: measured, as in Filter.data_preconditioner.
        spectrum = torch.fft.rfft2(self._tiles(u) * root) / (1 + gamma * (self.power.like(u) + 0.01))
        return self._sum(torch.fft.irfft2(spectrum, s=tuple(self.tile)) * root).to(r.dtype)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        p = self._pad(working(x))
        (high, wide), (tall, broad) = self.part, self.tile
        parts = torch.stack([p[..., top : top + high, left : left + wide] for top, left in self.corners], -3)
        spectrum = torch.fft.rfft2(parts, s=self.grid) * self.K.like(p).conj()
        tiles = torch.fft.irfft2(spectrum, s=self.grid)[..., :tall, :broad] * self.w.like(p)
        return self._sum(tiles).to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        u = working(y)
        high, wide = self.part
        spectrum = torch.fft.rfft2(self._tiles(u) * self.w.like(u), s=self.grid) * self.K.like(u)
        parts = torch.fft.irfft2(spectrum, s=self.grid)[..., :high, :wide]
        p = u.new_zeros(*u.shape[:-2], *self.padded)
        for part, (top, left) in zip(parts.unbind(-3), self.corners, strict=True):
            p[..., top : top + high, left : left + wide] += part
        return self._pad_adjoint(p).to(y.dtype)
