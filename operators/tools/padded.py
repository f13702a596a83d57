"""Filters with any kernel and a boundary that is not circular: pad, then convolve through the FFT.

No closed-form decomposition: inverses are conjugate gradients, preconditioned by the circular filter of that
kernel, with zeros around what it inverts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .boundary import source_index
from .kernels import Stencil
from .tables import Constant, working


def fast_length(size: int) -> int:
    """The smallest length >= size with no prime factor above 7: such transforms are quick."""
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


class PaddedFilter:
    """The filter for images of one size (height, width)."""

    boundary: str
    size: tuple[int, int]
    columns: torch.Tensor
    rows: torch.Tensor

    def __init__(self, stencil: Stencil, height: int, width: int, boundary: str) -> None:
        kernel_height, kernel_width = stencil.size
        self.size, self.boundary = (height, width), boundary
        if boundary == "valid":
            self.padded: tuple[int, int] = (height, width)
            self.origin: tuple[int, int] = (0, 0)
        else:
            self.padded = (height + kernel_height - 1, width + kernel_width - 1)
            self.origin = (-stencil.start[0], -stencil.start[1])
        self.out: tuple[int, int] = (self.padded[0] - kernel_height + 1, self.padded[1] - kernel_width + 1)
        self.grid: tuple[int, int] = (fast_length(self.padded[0]), fast_length(self.padded[1]))
        # On a grid at least as large as the padded image the first `out` entries do not wrap around.
        self.K = Constant(torch.fft.rfft2(torch.from_numpy(stencil.plane), s=self.grid))
        self.rows, self.columns = (
            torch.from_numpy(source_index(np.arange(padded) - origin, size, boundary))
            for padded, origin, size in zip(self.padded, self.origin, self.size, strict=True)
        )

    def _pad(self, x: torch.Tensor) -> torch.Tensor:
        if self.boundary == "valid":
            return x
        if self.boundary == "zero":
            padded = x.new_zeros(*x.shape[:-2], *self.padded)
            padded[self._inside()] = x
            return padded
        return x.index_select(-2, self.rows.to(x.device)).index_select(-1, self.columns.to(x.device))

    def _pad_adjoint(self, p: torch.Tensor) -> torch.Tensor:
        if self.boundary == "valid":
            return p
        if self.boundary == "zero":
            return p[self._inside()]
        # Every padded pixel is a copy of one pixel, which collects them all.
        tall = p.new_zeros(*p.shape[:-2], self.size[0], p.shape[-1]).index_add(-2, self.rows.to(p.device), p)
        return p.new_zeros(*p.shape[:-2], *self.size).index_add(-1, self.columns.to(p.device), tall)

    def _inside(self) -> tuple[Any, ...]:
        (top, left), (height, width) = self.origin, self.size
        return ..., slice(top, top + height), slice(left, left + width)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        u = self._pad(working(x))
        y = torch.fft.irfft2(torch.fft.rfft2(u, s=self.grid) * self.K.like(u).conj(), s=self.grid)
        return y[..., : self.out[0], : self.out[1]].to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        u = working(y)
        p = torch.fft.irfft2(torch.fft.rfft2(u, s=self.grid) * self.K.like(u), s=self.grid)
        return self._pad_adjoint(p[..., : self.padded[0], : self.padded[1]]).to(y.dtype)
