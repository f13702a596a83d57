"""Filters with the circular boundary, with or without decimation: diagonal in the Fourier domain.

y = (h * x)[::f, ::f]. The DFT of y at k is the mean of H X over the f^2 frequencies that alias to k, so A A^T is
circulant on the measurement grid, with eigenvalues lambda(k) = mean over aliases of |H|^2.

U is the Hartley transform T y = Re F y - Im F y of the measurement grid: real, symmetric, orthonormal, and it
diagonalises every real circulant of even spectrum. V^T = T . decimate . (G *), G = H / sqrt(lambda).
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch

from invdiff.operator.svd import SVD

from .kernels import Stencil
from .tables import Constant, working

# Responses this far below the largest are rounding of the transform: they count as exactly zero.
ROUNDING = 1e-13


def negated(spectrum: torch.Tensor) -> torch.Tensor:
    """spectrum(-k): index 0 stays, the others turn round."""
    return spectrum.flip((-2, -1)).roll((1, 1), (-2, -1))


def checkerboard(height: int, width: int) -> torch.Tensor:
    """(-1)^(i + j), (H, W) float64."""
    return 1.0 - 2.0 * ((torch.arange(height)[:, None] + torch.arange(width)) % 2).double()


def transfer_function(stencil: Stencil, height: int, width: int) -> torch.Tensor:
    """H (height, width), complex128, of the stencil wrapped around the grid; exactly Hermitian."""
    ring = np.zeros((height, width))
    rows = -(stencil.start[0] + np.arange(stencil.size[0])) % height
    columns = -(stencil.start[1] + np.arange(stencil.size[1])) % width
    np.add.at(ring, np.ix_(rows, columns), stencil.plane)
    H = torch.fft.fft2(torch.from_numpy(ring))
    return (H + negated(H).conj()) / 2


class CircularFilter:
    """The filter for images of one size. H: its transfer function (height, width), both multiples of the factor."""

    factor: int
    size: tuple[int, int]

    def __init__(self, H: torch.Tensor, factor: int = 1) -> None:
        height, width = H.shape
        self.size, self.factor = (height, width), factor
        self.low: tuple[int, int] = (height // factor, width // factor)
        half = width // 2 + 1
        power = self._fold(H.abs() ** 2)
        s = power.sqrt()
        s = torch.where(s > ROUNDING * s.max(), s, torch.zeros_like(s))
        self.singular_values = s
        self.H = Constant(H[:, :half].contiguous())
        self.power: Constant = Constant(power[:, : self.low[1] // 2 + 1].contiguous())
        self._response = H

    @cached_property
    def G(self) -> Constant:
        """Only for V: three times as large as what the data step takes."""
        with torch.inference_mode(False):
            H, tiled = self._response, self.singular_values.repeat(self.factor, self.factor)
            # No response: any unit vector does; 1 keeps V^T real and orthonormal.
            return Constant(
                torch.where(tiled > 0, H / torch.where(tiled > 0, tiled, torch.ones_like(tiled)), torch.ones_like(H))
            )

    @cached_property
    def G_half(self) -> Constant:
        with torch.inference_mode(False):
            return Constant(self.G.table[:, : self.size[1] // 2 + 1].contiguous())

    def _fold(self, spectrum: torch.Tensor) -> torch.Tensor:
        """(..., H, W) -> (..., h, w): the mean over the frequencies that alias."""
        f, (h, w) = self.factor, self.low
        return spectrum if f == 1 else spectrum.unflatten(-1, (f, w)).unflatten(-3, (f, h)).mean((-4, -2))

    def A(self, x: torch.Tensor) -> torch.Tensor:
        u = working(x)
        y = torch.fft.irfft2(torch.fft.rfft2(u) * self.H.like(u), s=self.size)
        return y[..., :: self.factor, :: self.factor].to(x.dtype)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        u = working(y)
        if self.factor > 1:
            raised = u.new_zeros(*u.shape[:-2], *self.size)
            raised[..., :: self.factor, :: self.factor] = u
            u = raised
        return torch.fft.irfft2(torch.fft.rfft2(u) * self.H.like(u).conj(), s=self.size).to(y.dtype)

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        """z + gamma A^T (I + gamma A A^T)^-1 (y - A z), the middle factor being circulant on the measurement grid."""
        u, v = working(z), working(y)
        weights = gamma / (1 + gamma * self.power.like(u))
        if self.factor == 1:
            H = self.H.like(u)
            step = H.conj() * weights * (torch.fft.rfft2(v) - H * torch.fft.rfft2(u))
            return (u + torch.fft.irfft2(step, s=self.size)).to(z.dtype)
        q = torch.fft.irfft2(torch.fft.rfft2(v - self.A(u)) * weights, s=self.low)
        return (u + self.A_adjoint(q)).to(z.dtype)

    def inverse(self, gamma: float, r: torch.Tensor, floor: float = 0.0) -> torch.Tensor:
        """(I + gamma (A^T A + floor I))^-1 r for factor 1. An r smaller than the grid has zeros around it: the same part."""
        u = working(r)
        spectrum = torch.fft.rfft2(u, s=self.size) / (1 + gamma * (self.power.like(u) + floor))
        return torch.fft.irfft2(spectrum, s=self.size)[..., : r.shape[-2], : r.shape[-1]].to(r.dtype)

    def svd(self) -> SVD:
        """Coordinates (B, C, h, w): Hartley frequencies of the measurement grid."""
        return SVD(self.singular_values, hartley, hartley, self._V, self._V_adjoint)

    def _V_adjoint(self, x: torch.Tensor) -> torch.Tensor:
        u = working(x)
        spectrum = self._fold(torch.fft.fft2(u) * self.G.like(u)) / math.sqrt(math.prod(self.low))
        return (spectrum.real - spectrum.imag).to(x.dtype)

    def _V(self, c: torch.Tensor) -> torch.Tensor:
        u = working(c)
        mirrored = negated(u)
        # The DFT of T c, read off c: Re = (c(k) + c(-k)) / 2, Im = (c(-k) - c(k)) / 2.
        spectrum = torch.complex(u + mirrored, mirrored - u) * (math.sqrt(math.prod(self.low)) / 2)
        if self.factor > 1:
            spectrum = spectrum.repeat(*[1] * (u.ndim - 2), self.factor, self.factor)
        half = spectrum[..., : self.size[1] // 2 + 1]
        return torch.fft.irfft2(half * self.G_half.like(u).conj(), s=self.size).to(c.dtype)


def hartley(y: torch.Tensor) -> torch.Tensor:
    """T y over the last two dimensions."""
    spectrum = torch.fft.fft2(working(y), norm="ortho")
    return (spectrum.real - spectrum.imag).to(y.dtype)
