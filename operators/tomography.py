"""X-ray tomography: line integrals of the image along parallel rays, from some directions."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import Map, Operator, Shape
from invdiff.specs.parameters import parameter, whole

from .tools.circulant import Circulant
from .tools.shapes import channels_and_size, require_batch
from .tools.tables import working

LARGEST = 2**32
"""Bytes of the two sparse matrices in float32, 8 for each of their entries."""


@dataclass(frozen=True, eq=False)
class Tomography(Operator):
    """Parallel-beam Radon transform: y[s, j] = scale * integral of x along the ray at s px from the centre, at angle j.

    (C, N, N) -> (C, N, angles): detector positions by angles, scikit-image's radon(circle=True) layout, centre (N // 2,
    N // 2) and sense of rotation; but the corners outside the circle count where a ray crosses them. Angles are spread evenly
    over start <= theta < stop: few for sparse view, a shorter range for limited angle. Joseph's interpolation (1982, An
    improved algorithm for reprojecting rays through pixel images): the trapezoid along the ray's steeper axis, linear
    across. A sparse matrix and its transpose, about 2 N^2 angles entries each, are built once for each N.
    y is in units of scale px; by default scale = 1 / sqrt(N angles), for which ||A|| is about 1.
    Inverses are conjugate gradients. Raises UsageError for images that are not square, and matrices above 4 GiB.
    """

    name: ClassVar[str] = "tomography"

    angles: int = parameter(60, kind=whole, low=1, help="number of directions")
    start: float = parameter(0.0, unit="degrees", help="first direction")
    stop: float = parameter(180.0, unit="degrees", help="end of the range of directions, not itself measured")
    scale: float | None = parameter(
        None, unit="1/px", above=0, help="y per unit of a line integral in px (1 / sqrt(N angles): norm about 1)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.stop - self.start <= 360:
            raise UsageError(
                f"tomography: start={self.start:g} and stop={self.stop:g} must span more than 0 and at most 360 degrees; "
                "e.g. start=0,stop=180, or stop=120 for a limited angle"
            )

    @property
    def theta(self) -> np.ndarray:
        """The directions in degrees, (angles,)."""
        return np.linspace(self.start, self.stop, self.angles, endpoint=False)

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if height != width:
            raise UsageError(
                f"tomography: needs a square image, got {height}x{width}: crop it to {min(height, width)}x"
                f"{min(height, width)}, or pad it"
            )
        if (size := 32 * width**2 * self.angles) > LARGEST:
            raise UsageError(
                f"tomography: {self.angles} angles of {width}x{width} pixels need matrices of {size / 2**30:.1f} GiB (at "
                f"most {LARGEST / 2**30:g}): lower angles or take a smaller image"
            )
        return channels, width, self.angles

    def image_shape(self, shape: Shape) -> Shape:
        channels, positions, directions = channels_and_size(self.name, shape)
        if directions != self.angles:
            raise UsageError(
                f"tomography: y has {directions} columns, one for each direction, but angles={self.angles}; "
                f"set angles={directions}, or transpose y to (channels, detector positions, directions)"
            )
        return channels, positions, positions

    def usable_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        return channels, min(height, width), min(height, width)

    def _scale(self, size: int) -> float:
        return self.scale or 1 / math.sqrt(size * self.angles)

    def _matrices(self, size: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A (angles N, N^2) and A^T, sparse, in like's precision and on its device."""

        def make() -> tuple[torch.Tensor, torch.Tensor]:
            A = joseph(size, np.deg2rad(self.theta))
            A.data *= self._scale(size)
            return csr(A, like), csr(A.T.tocsr(), like)

        return self.cached(("matrices", size, like.dtype, like.device), make)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        channels, size, _ = self.measurement_shape(require_batch(self.name, x))
        u = working(x)
        rays = Product.apply(u.reshape(-1, size * size).mT, *self._matrices(size, u))
        return rays.mT.reshape(-1, channels, self.angles, size).mT.to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        channels, size, _ = self.image_shape(require_batch(self.name, y))
        v = working(y)
        A, A_transposed = self._matrices(size, v)
        pixels = Product.apply(v.mT.reshape(-1, self.angles * size).mT, A_transposed, A)
        return pixels.mT.reshape(-1, channels, size, size).to(y.dtype)

    def image_preconditioner(self, shape: Shape, a: float, b: float) -> Map:
        """By what A^T A makes of the pixel in the middle, for many angles nearly scale^2 angles / (pi r). Dividing by the
        spectrum of that is the ramp filter of a filtered back-projection; missing angles count in it too."""

        def make() -> Circulant:
            size = shape[-1]
            dot = torch.zeros(1, 1, size, size, dtype=torch.float64)
            dot[..., size // 2, size // 2] = 1
            spread = torch.fft.ifftshift(self.A_adjoint_A(dot)[0, 0])
            return Circulant(torch.fft.fft2(spread).real)

        nearly: Circulant = self.cached(("circulant", shape[1:]), make)
        return lambda r: nearly.inverse(a, b, r)


class Product(torch.autograd.Function):
    """M v for columns v, whose gradient is the product with M^T: torch has none for sparse M of 32-bit indices."""

    @staticmethod
    def forward(ctx: Any, v: torch.Tensor, M: torch.Tensor, M_transposed: torch.Tensor) -> torch.Tensor:
        ctx.matrices = M, M_transposed
        return M @ v.contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        M, M_transposed = ctx.matrices
        return Product.apply(gradient, M_transposed, M), None, None


def csr(matrix: Any, like: torch.Tensor) -> torch.Tensor:
    """A scipy CSR matrix as torch's."""
    starts, columns = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    values = torch.from_numpy(matrix.data).to(like.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(
            starts, columns, values, size=matrix.shape, device=like.device, check_invariants=True
        )


def joseph(size: int, angles: np.ndarray) -> Any:
    """Line integrals in px as a scipy CSR matrix (angles N, N^2), float64: row (j, s) is the ray of angle j (radians)

    (column, row) = (c, c) + (s - c) (cos, -sin) + t (sin, cos),  c = N // 2.
    """
    from scipy.sparse import csr_matrix

    c = size // 2
    step = np.arange(size) - c  # along the axis that the ray crosses faster, from pixel row to pixel row
    s = step[:, None]
    weights, indices, counts = [], [], []
    for cos, sin in zip(np.cos(angles), np.sin(angles), strict=True):
        steep = abs(cos) >= abs(sin)
        across = (s + step * sin) / cos if steep else (step * cos - s) / sin
        low = np.floor(across + c).astype(int)
        high_share = across + c - low
        length = 1 / max(abs(cos), abs(sin))
        place = np.stack([low, low + 1], -1)
        share = np.stack([1 - high_share, high_share], -1) * length
        along = (step + c)[None, :, None]
        index = along * size + place if steep else place * size + along
        kept = (place >= 0) & (place < size) & (share > 0)
        weights.append(share[kept])
        indices.append(index[kept])
        counts.append(kept.sum((1, 2)))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    shape = (len(angles) * size, size * size)
    A = csr_matrix((np.concatenate(weights), np.concatenate(indices).astype(np.int32), starts), shape=shape)
    A.sort_indices()
    return A
