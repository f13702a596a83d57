"""Functions of the singular values of A, applied to vectors: with a decomposition exactly, without one by Lanczos.

With A = U diag(s) V^T, spectral methods need two kinds of maps, never the decomposition itself:

    of images         V f(s) V^T v + f(0) (v - V V^T v)      = F(A^T A) v      with f(s) = F(s^2)
    of measurements   V h(s) U^T r,  with h(0) = 0           = G(A^T A) A^T r  with h(s) = s G(s^2), as the pseudo-inverse is

`spectral(operator, shape)` chooses: the operator's own decomposition; a dense one, from A applied to every unit image, for
images of at most DENSE numbers; else `Lanczos`, the bidiagonalisation of Golub and Kahan (1965,
https://doi.org/10.1137/0702016) with full reorthogonalisation: Lanczos' method for A^T A that never squares s. After k
iterations the result is exact for polynomials of degree k - 1 in s^2, and exact altogether when k reaches the number of
different singular values that v has a share of. Smooth functions converge geometrically; a jump of f in a dense spectrum
converges slowly, but the singular directions that are put on its wrong side are those next to it (docs/noise.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from invdiff.operator.contract import Map, Operator, Shape
from invdiff.operator.svd import SVD
from invdiff.operator.weighted import Weighted

Function = Callable[[torch.Tensor], torch.Tensor]
Terms = Sequence[tuple[Function, torch.Tensor]]

DENSE = 1024
"""Images of at most so many numbers get a dense decomposition: half a second and 16 MB at most, kept with the operator."""
ITERATIONS = 20
ZERO = 1e-6
"""A singular value below this share of the largest counts as zero, as everywhere (SVD.inverse_singular_values)."""


class Spectral:
    """Functions of the singular values of one operator, for images of one shape."""

    def apply(self, images: Terms, measurements: Terms = ()) -> torch.Tensor:
        """The sum of all terms (function, vector), (B, *image shape).

        A function takes singular values, a float64 tensor of any shape, exactly 0 where nothing is measured, and answers in
        that shape; those of measurements have to answer 0 there."""
        raise NotImplementedError


def spectral(operator: Operator, shape: Shape, iterations: int = ITERATIONS) -> Spectral:
    """The most exact that there is for a linear operator. iterations: of Lanczos, where it comes to that."""
    if operator.has_svd:
        return Decomposed(operator.svd(shape))
    different = isinstance(operator, Weighted) and len(operator.weights) > 1  # a matrix for each row
    if math.prod(shape) <= DENSE and not different:
        return Decomposed(operator.cached(("dense svd", shape), lambda: dense_svd(operator, shape)))
    return Lanczos(operator, iterations)


@dataclass(frozen=True, eq=False)
class Decomposed(Spectral):
    """Through U, s and V."""

    svd: SVD

    def apply(self, images: Terms, measurements: Terms = ()) -> torch.Tensor:
        svd, s = self.svd, self.svd.singular_values
        s = without_tiny(s, s.max())
        outside: torch.Tensor | float = 0.0
        inside: torch.Tensor | float = 0.0
        for f, v in images:
            nothing = float(f(torch.zeros((), dtype=torch.float64)))  # also beyond the span of V
            outside = outside + nothing * v
            inside = inside + (f(s) - nothing).to(v) * svd.V_adjoint(v)
        for h, r in measurements:
            inside = inside + h(s).to(r) * svd.U_adjoint(r)
        return outside + svd.V(torch.as_tensor(inside))


@dataclass(frozen=True, eq=False)
class Lanczos(Spectral):
    """Through products with A and A^T alone: 2 `iterations` of them, and as many stored vectors, for each term."""

    operator: Operator
    iterations: int = ITERATIONS

    def apply(self, images: Terms, measurements: Terms = ()) -> torch.Tensor:
        total: torch.Tensor | float = 0.0
        for f, v in images:
            total = total + self.image(f, v)[0]
        for h, r in measurements:
            total = total + self.measurement(h, r)[0]
        return torch.as_tensor(total)

    def image(self, f: Function, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """f of the singular values applied to images v, and the relative error of each row, estimated, (B,)."""
        p, _, size, diagonal, below = bidiagonalise(self.operator.A_adjoint, self.operator.A, v, self.iterations)
        square = matrix(diagonal, below)[:, :-1]  # L with A^T A P = P L L^T, up to the last row

        def coordinates(k: int) -> torch.Tensor:
            left, s, _ = torch.linalg.svd(square[:, :k, :k])  # f(L L^T) e_1 = X f(s) X^T e_1
            return (left * (f(without_tiny(s, s[:, :1])) * left[:, 0])[:, None]).sum(2)

        return combine(coordinates, p[:, :-1], size, v.shape[1:])

    def measurement(self, h: Function, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """V h(s) U^T r for measurements r, and the relative error of each row, estimated, (B,)."""
        _, q, size, diagonal, below = bidiagonalise(self.operator.A, self.operator.A_adjoint, r, self.iterations)
        tall = matrix(diagonal, below)  # B with A Q = P B

        def coordinates(k: int) -> torch.Tensor:
            left, s, right = torch.linalg.svd(tall[:, : k + 1, :k], full_matrices=False)
            return ((h(without_tiny(s, s[:, :1])) * left[:, 0])[:, :, None] * right).sum(1)  # Y h(s) X^T e_1

        shape = self.operator.image_shape(tuple(r.shape[1:]))
        return combine(coordinates, q, size, shape)


def without_tiny(s: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Singular values, those that are zero to rounding set to 0."""
    return torch.where(s > ZERO * largest, s, torch.zeros_like(s))


def bidiagonalise(
    forward: Map, backward: Map, start: torch.Tensor, iterations: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """M Q = P B for M = `forward` and M^T = `backward`, with p_1 = start / ||start||, row by row.

    P: (B, k + 1, n) and Q: (B, k, m) orthonormal vectors, flattened, 0 from where a row's Krylov space ends; the size
    ||start||, (B,); the diagonal of B and what lies below it, (B, k) each, float64 on the CPU.
    """
    rows = len(start)
    ended = 1e-13 if start.dtype == torch.float64 else 1e-6
    p = start.flatten(1)
    size = p.norm(dim=1)
    p = _normalised(p, size, size * 0)
    P, Q = p.new_zeros(rows, iterations + 1, p.shape[1]), None
    P[:, 0] = p
    diagonal, below = p.new_zeros(rows, iterations), p.new_zeros(rows, iterations)
    scale = p.new_zeros(rows)
    for j in range(iterations):
        q = backward(P[:, j].reshape(start.shape))
        shape, q = q.shape, q.flatten(1)
        Q = p.new_zeros(rows, iterations, q.shape[1]) if Q is None else Q
        q = _orthogonal(q, Q[:, :j])
        diagonal[:, j] = q.norm(dim=1)
        scale = torch.maximum(scale, diagonal[:, j])
        diagonal[:, j] *= diagonal[:, j] > ended * scale
        Q[:, j] = _normalised(q, diagonal[:, j], ended * scale)
        p = _orthogonal(forward(Q[:, j].reshape(shape)).flatten(1), P[:, : j + 1])
        below[:, j] = p.norm(dim=1)
        scale = torch.maximum(scale, below[:, j])
        below[:, j] *= below[:, j] > ended * scale
        P[:, j + 1] = _normalised(p, below[:, j], ended * scale)
    assert Q is not None  # at least one iteration
    return P, Q, size, diagonal.double().cpu(), below.double().cpu()


def _orthogonal(vector: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """vector (B, n) less its share of a basis (B, j, n): twice is enough for what rounding leaves."""
    for _ in range(2):
        vector = vector - torch.einsum("bj,bjn->bn", torch.einsum("bjn,bn->bj", basis, vector), basis)
    return vector


def _normalised(vector: torch.Tensor, size: torch.Tensor, smallest: torch.Tensor) -> torch.Tensor:
    """vector / size (B, n), 0 where the size is at most `smallest`."""
    kept = size > smallest
    return torch.where(kept[:, None], vector / torch.where(kept, size, torch.ones_like(size))[:, None], 0.0)


def matrix(diagonal: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """The lower bidiagonal B, (rows, k + 1, k)."""
    k = diagonal.shape[1]
    B = diagonal.new_zeros(len(diagonal), k + 1, k)
    B[:, range(k), range(k)] = diagonal
    B[:, range(1, k + 1), range(k)] = below
    return B


def combine(
    coordinates: Callable[[int], torch.Tensor], basis: torch.Tensor, size: torch.Tensor, shape: Shape
) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors with these coordinates in a basis (B, k, n), as images; how far those of a fifth fewer iterations are,
    relatively: an estimate of the error, as the basis is orthonormal."""
    k = basis.shape[1]
    found, fewer = coordinates(k), coordinates(max(1, k - -(-k // 5)))
    error = (found - torch.nn.functional.pad(fewer, (0, k - fewer.shape[1]))).norm(dim=1)
    error = error / found.norm(dim=1).clamp(min=1e-300)
    values = torch.einsum("bk,bkn->bn", found.to(basis) * size[:, None], basis)
    return values.reshape(-1, *shape), error


def dense_matrix(operator: Operator, shape: Shape) -> torch.Tensor:
    """A as a matrix (m, n) on flattened images of this shape, float64."""
    units = torch.eye(math.prod(shape), dtype=torch.float64)
    with torch.no_grad():
        columns = [operator.A(part.reshape(-1, *shape)).flatten(1) for part in units.split(128)]
    return torch.cat(columns).mT.contiguous()


def dense_svd(operator: Operator, shape: Shape) -> SVD:
    """The decomposition of A as a matrix, from A applied to every unit image of this shape, in float64."""
    out = operator.measurement_shape(shape)
    left, s, right = torch.linalg.svd(dense_matrix(operator, shape), full_matrices=False)
    return SVD(
        s,
        U=lambda c: (c @ left.mT.to(c)).reshape(-1, *out),
        U_adjoint=lambda y: y.flatten(1) @ left.to(y),
        V=lambda c: (c @ right.to(c)).reshape(-1, *shape),
        V_adjoint=lambda x: x.flatten(1) @ right.mT.to(x),
    )
