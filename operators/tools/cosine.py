"""Filters that are symmetric both ways, with the reflect boundary: diagonal in the basis of the DCT-II.

A half-sample symmetric signal is a sum of cosines, and symmetric weights give each of them back times a real number:
A = D^T diag(r) D with the orthonormal DCT-II D and r(k, l) = sum_t plane[t] cos(pi k t_row / H) cos(pi l t_col / W).
By FFT it costs H W log(H W) and no matrix (Makhoul, A fast cosine transform in one and two dimensions, 1980).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from invdiff.operator.svd import SVD

from .kernels import Stencil
from .tables import Constant, working

STRIP = 2**21
"""Numbers that a processor transforms at a time: what lies in between takes several times their memory."""


def symmetric(stencil: Stencil) -> bool:
    """True if the weights are mirror images of themselves, up to down and left to right, around the central pixel."""
    centred = all(size == 1 - 2 * start for size, start in zip(stencil.size, stencil.start, strict=True))
    plane = stencil.plane
    # Computed kernels are symmetric to rounding only.
    gap = max(np.abs(plane - plane[::-1]).max(), np.abs(plane - plane[:, ::-1]).max())
    return bool(centred and gap <= 1e-15 * np.abs(plane).sum())


def in_strips(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A function along the last dimension of x (..., rows, N), on a processor of some rows at a time where there are many."""
    rows = max(1, STRIP // max(1, x.numel() // x.shape[-2]))
    if x.device.type != "cpu" or rows >= x.shape[-2]:
        return function(x)
    return torch.cat([function(part) for part in x.split(rows, -2)], -2)


class Cosines:
    """The orthonormal DCT-II of one length N along the last dimension, and its inverse, which is its transpose."""

    def __init__(self, size: int) -> None:
        self.size = size
        k = torch.arange(size // 2 + 1, dtype=torch.float64)
        scale = torch.full((size // 2 + 1,), math.sqrt(2 / size), dtype=torch.float64)
        scale[0] = math.sqrt(1 / size)
        # X_k = Re P_k and X_(N-k) = -Im P_k with P_k = scale e^(-i pi k / 2N) FFT(even entries, odd ones backwards)_k.
        self.twiddle: Constant = Constant(torch.polar(scale, -math.pi * k / (2 * size)))
        back = torch.polar(1 / scale, math.pi * k / (2 * size))
        self.untwiddle: Constant = Constant(back)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return in_strips(self._forward, x)

    def inverse(self, c: torch.Tensor) -> torch.Tensor:
        return in_strips(self._inverse, c)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
        P = torch.fft.rfft(v) * self.twiddle.like(x)
        return torch.cat([P.real, -P.imag[..., 1 : (self.size + 1) // 2].flip(-1)], -1)

    def _inverse(self, c: torch.Tensor) -> torch.Tensor:
        half = self.size // 2 + 1
        # X_N = 0, and for even N the middle is its own mirror: X_(N/2) = Re P = -Im P there.
        mirrored = torch.cat([torch.zeros_like(c[..., :1]), c.flip(-1)[..., : half - 1]], -1)
        v = torch.fft.irfft(torch.complex(c[..., :half], -mirrored) * self.untwiddle.like(c), n=self.size)
        odd = self.size // 2
        x = torch.empty_like(v)
        x[..., ::2], x[..., 1::2] = v[..., : self.size - odd], v[..., self.size - odd :].flip(-1)
        return x


def cosine_response(stencil: Stencil, height: int, width: int) -> torch.Tensor:
    """r (height, width), float64."""
    tables = [
        np.cos(np.pi * np.arange(size)[:, None] * (np.arange(taps) + start)[None, :] / size)
        for size, taps, start in zip((height, width), stencil.size, stencil.start, strict=True)
    ]
    return torch.from_numpy(tables[0] @ stencil.plane @ tables[1].T)


class CosineFilter:
    """The filter for images of one size. r: its response (height, width)."""

    columns: Cosines
    rows: Cosines

    def __init__(self, r: torch.Tensor) -> None:
        height, width = r.shape
        self.response: Constant = Constant(r)
        self.signs: Constant = Constant(torch.where(self.response.table < 0, -1.0, 1.0).to(torch.int8))
        self.rows, self.columns = Cosines(height), Cosines(width)

    @property
    def singular_values(self) -> torch.Tensor:
        """|r|: made each time, as keeping it takes 8 bytes a pixel."""
        return self.response.table.abs()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.columns.forward(working(x))
        return self.rows.forward(u.mT).mT.to(x.dtype)

    def _inverse(self, c: torch.Tensor) -> torch.Tensor:
        u = self.rows.inverse(working(c).mT).mT
        return self.columns.inverse(u).to(c.dtype)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        u = working(x)
        return self._inverse(self.response.like(u) * self._forward(u)).to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """A is symmetric."""
        return self.A(y)

    def inverse(self, gamma: float, r: torch.Tensor) -> torch.Tensor:
        """(I + gamma A^T A)^-1 r."""
        u = working(r)
        return self._inverse(self._forward(u) / (1 + gamma * self.response.like(u) ** 2)).to(r.dtype)

    def svd(self) -> SVD:
        """Coordinates (B, C, H, W): pairs of frequencies. s = |r|; the sign of r goes to U."""
        return SVD(
            self.singular_values,
            U=lambda c: self._inverse(self.signs.like(c) * c),
            U_adjoint=lambda y: self.signs.like(y) * self._forward(y),
            V=self._inverse,
            V_adjoint=self._forward,
        )
