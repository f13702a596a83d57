"""Compressed sensing: fewer numbers than pixels, each a random mixture of many pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import SVD, Operator, Shape
from invdiff.specs.parameters import parameter, truth, whole

from .masking import random_mask
from .tools import hadamard
from .tools.shapes import channels_and_size, require_batch
from .tools.tables import Constant, working

LARGEST = 2**30
"""Bytes of a random matrix in float64; its decomposition takes a few times as much."""


class Scrambled:
    """y = m W P D x for one image size, on each channel: random signs D, a random permutation P, the Walsh-Hadamard
    transform W of all pixels of the channel, and a mask m of round(keep n) of the n = H W coefficients."""

    size: tuple[int, int]

    def __init__(self, size: tuple[int, int], keep: float, seed: int) -> None:
        self.size, n = size, math.prod(size)
        draw = np.random.default_rng([seed, *size])
        self.signs: Constant = Constant(torch.from_numpy(draw.choice([-1.0, 1.0], n)))
        self.order: torch.Tensor = torch.from_numpy(draw.permutation(n))
        self.back: torch.Tensor = torch.argsort(self.order)
        self.mask: Constant = Constant(random_mask(seed, keep, (1, *size)))

    def _V_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        u = working(x).flatten(-2)
        mixed = hadamard.forward((u * self.signs.like(u))[..., self.order.to(u.device)])
        return mixed.unflatten(-1, self.size).to(x.dtype)

    def _V(self, c: torch.Tensor) -> torch.Tensor:
        u = hadamard.inverse(working(c).flatten(-2))[..., self.back.to(c.device)]
        return (u * self.signs.like(u)).unflatten(-1, self.size).to(c.dtype)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.mask.like(x) * self._V_adjoint(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._V(self.mask.like(y) * y)

    def svd(self) -> SVD:
        """Coordinates (B, C, H, W): the coefficients; s = m."""
        return SVD(self.mask.table, lambda c: c, lambda y: y, self._V, self._V_adjoint)


class Blocks:
    """y_b = M x_b for every block x_b of every channel of an image of one size, with one random M (m, n), m = round(keep n).

    Rows of M: independent N(0, I / n), orthonormalised (QR) if asked. y_b stands in the first m places of its block.
    """

    block: tuple[int, int]
    grid: tuple[int, int]
    s: torch.Tensor
    left: Constant | None
    right: Constant

    def __init__(
        self, size: tuple[int, int], block: tuple[int, int], keep: float, seed: int, orthonormal: bool
    ) -> None:
        self.block, self.grid = block, (size[0] // block[0], size[1] // block[1])
        n = math.prod(block)
        m = max(1, round(keep * n))
        rows = torch.from_numpy(np.random.default_rng([seed, *block]).normal(size=(m, n)) / math.sqrt(n))
        left, self.s = None, torch.ones(m, dtype=torch.float64)
        if orthonormal:
            right = torch.linalg.qr(rows.T).Q
        else:
            U, self.s, Vh = torch.linalg.svd(rows, full_matrices=False)
            left, right = Constant(U), Vh.T.contiguous()
        self.left, self.right = left, Constant(right)
        places = torch.zeros(n, dtype=torch.float64)
        places[:m] = 1
        self.mask: Constant = Constant(places.reshape(block).repeat(self.grid)[None])

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, blocks down, blocks across, n)"""
        (p, q), (h, w) = self.grid, self.block
        return x.unflatten(-1, (q, w)).unflatten(-3, (p, h)).transpose(-3, -2).flatten(-2)

    def _join(self, b: torch.Tensor) -> torch.Tensor:
        return b.unflatten(-1, self.block).transpose(-3, -2).flatten(-2).flatten(-3, -2)

    def _V_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        return self._split(x) @ self.right.like(x)

    def _V(self, c: torch.Tensor) -> torch.Tensor:
        return self._join(c @ self.right.like(c).T)

    def _U(self, c: torch.Tensor) -> torch.Tensor:
        c = c if self.left is None else c @ self.left.like(c).T
        return self._join(torch.nn.functional.pad(c, (0, math.prod(self.block) - len(self.s))))

    def _U_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        c = self._split(y)[..., : len(self.s)]
        return c if self.left is None else c @ self.left.like(y)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        u = working(x)
        return self._U(self.s.to(u) * self._V_adjoint(u)).to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        u = working(y)
        return self._V(self.s.to(u) * self._U_adjoint(u)).to(y.dtype)

    def svd(self) -> SVD:
        """Coordinates (B, C, blocks down, blocks across, m)."""
        return SVD(self.s, self._U, self._U_adjoint, self._V, self._V_adjoint)


@dataclass(frozen=True, eq=False)
class CompressedSensing(Operator):
    """y holds round(keep n) random mixtures of n pixels, in each channel alike: (C, H, W) -> (C, H, W), zeros elsewhere.

    transform=walsh_hadamard: n = H W; signs, permutation, Walsh-Hadamard transform, and random coefficients of it. Any
    size: where n is no power of two, two overlapping transforms keep it orthonormal (operators/tools/hadamard.py), unpadded.
    transform=blockwise: each block x block square by the same random rows; H and W are multiples of block.
    transform=random_projection: random rows over the whole channel, a dense matrix of keep n^2 numbers.
    Random rows are orthonormal, or with orthonormal=false independent N(0, I / n). y has the image's shape, so that it alone
    tells the size; rows of a block or image stand in its first places. SVD always; s = 1 but for orthonormal=false.
    Raises UsageError for an image that is not a whole number of blocks, and for a matrix above 1 GiB.
    """

    name: ClassVar[str] = "compressed_sensing"
    orthonormal_U: ClassVar[bool] = True

    keep: float = parameter(0.25, above=0, high=1, help="share of the n numbers that is measured")
    transform: str = parameter(
        "walsh_hadamard",
        kind=str,
        choices=("walsh_hadamard", "blockwise", "random_projection"),
        help="how pixels are mixed",
    )
    block: int | None = parameter(None, kind=whole, unit="px", low=2, help="side of a block, for blockwise (32)")
    orthonormal: bool | None = parameter(
        None, kind=truth, help="orthonormal random rows, for blockwise and random_projection (true)"
    )
    seed: int = parameter(0, kind=whole, low=0, help="which mixtures")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, allowed in (("block", ("blockwise",)), ("orthonormal", ("blockwise", "random_projection"))):
            if getattr(self, key) is not None and self.transform not in allowed:
                raise UsageError(
                    f"{self.name}: {key}={getattr(self, key)} has no effect on transform={self.transform}; "
                    f"drop it, or choose transform={'|'.join(allowed)}"
                )

    @property
    def _side(self) -> int:
        return 1 if self.transform != "blockwise" else self.block or 32

    def measurement_shape(self, shape: Shape) -> Shape:
        usable = self.usable_shape(shape)
        if usable != tuple(shape):
            raise UsageError(
                f"{self.name}: the image {shape[1]}x{shape[2]} is not a whole number of {self._side}x{self._side} blocks: "
                f"crop it to {usable[1]}x{usable[2]}, or choose a block that divides both"
            )
        self._check_memory(shape[1:] if self.transform == "random_projection" else (self._side, self._side))
        return shape

    def image_shape(self, shape: Shape) -> Shape:
        return self.measurement_shape(shape)

    def usable_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        side = self._side
        if height < side or width < side:
            raise UsageError(f"{self.name}: block={side} is larger than the image {height}x{width}: lower block")
        return channels, height // side * side, width // side * side

    def _check_memory(self, block: Shape) -> None:
        n = math.prod(block)
        if (size := 8 * max(1, round(self.keep * n)) * n) > LARGEST:
            raise UsageError(
                f"{self.name}: transform={self.transform} on {block[0]}x{block[1]} pixels with keep={self.keep:g} needs a "
                f"matrix of {size / 2**30:.1f} GiB (at most {LARGEST / 2**30:g}): lower keep, take a smaller image, or "
                "choose transform=blockwise or walsh_hadamard"
            )

    def _engine(self, shape: Shape) -> Scrambled | Blocks:
        def make() -> Scrambled | Blocks:
            size = (shape[1], shape[2])
            if self.transform == "walsh_hadamard":
                return Scrambled(size, self.keep, self.seed)
            block = size if self.transform == "random_projection" else (self._side, self._side)
            return Blocks(size, block, self.keep, self.seed, self.orthonormal is not False)

        self.measurement_shape(shape)
        return self.cached(("engine", tuple(shape[1:])), make)

    def observed(self, shape: Shape) -> torch.Tensor:
        """1 in the places of y that hold a number."""
        return self._engine(shape).mask.table

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self._engine(require_batch(self.name, x)).A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self._engine(require_batch(self.name, y)).A_adjoint(y)

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        return self._engine(shape).svd()
