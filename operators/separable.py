"""Filters whose kernel is an outer product: Y = R X C^T, with R (h, H) and C (w, W) made from 1-D weights.

The decomposition is the Kronecker product of two 1-D ones: s = s_R s_C, V^T x = V_R^T x V_C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from invdiff.operator import SVD

from .boundary import source_index
from .constants import Constant


def axis_matrix(weights: np.ndarray, start: int, stride: int, size: int, boundary: str) -> np.ndarray:
    """The (outputs, size) matrix of y[i] = sum_t weights[t] x[stride i + start + t]."""
    outputs = size - len(weights) + 1 if boundary == "valid" else size // stride
    first = 0 if boundary == "valid" else start
    positions = stride * np.arange(outputs)[:, None] + first + np.arange(len(weights))[None, :]
    source = source_index(positions, size, boundary)
    matrix = np.zeros((outputs, size))
    rows = np.broadcast_to(np.arange(outputs)[:, None], source.shape)
    np.add.at(matrix, (rows[source >= 0], source[source >= 0]), np.broadcast_to(weights, source.shape)[source >= 0])
    return matrix


def dct_basis(size: int) -> np.ndarray:
    """The orthonormal DCT-II as columns: basis[n, k] = sqrt(2/N) cos(pi k (n + 1/2) / N), 1/sqrt(N) for k = 0."""
    n, k = np.arange(size)[:, None], np.arange(size)[None, :]
    basis = np.sqrt(2 / size) * np.cos(np.pi * k * (n + 0.5) / size)
    basis[:, 0] = 1 / np.sqrt(size)
    return basis


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension: matrix (h, H) = U diag(s) V^T with U (h, r), s (r,), V (H, r); all float64."""

    matrix: Constant
    U: Constant
    s: torch.Tensor
    V: Constant


def axis(weights: np.ndarray, start: int, stride: int, size: int, boundary: str) -> Axis:
    """The matrix of one dimension and its decomposition."""
    matrix = torch.from_numpy(axis_matrix(weights, start, stride, size, boundary))
    centred = len(weights) == 1 - 2 * start and np.array_equal(weights, weights[::-1])
    if boundary == "reflect" and stride == 1 and centred:
        # Symmetric weights on a half-sample symmetric signal: the cosines are eigenvectors, of either sign.
        basis = torch.from_numpy(dct_basis(size))
        angles = np.pi * np.arange(size)[:, None] * (np.arange(len(weights)) + start)[None, :] / size
        response = torch.from_numpy(np.cos(angles) @ weights)
        signs = torch.where(response < 0, -1.0, 1.0).double()
        return Axis(Constant(matrix), Constant(basis * signs), response.abs(), Constant(basis))
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return Axis(Constant(matrix), Constant(U), s, Constant(Vh.T.contiguous()))


class SeparableFilter:
    """The filter for images of one size."""

    def __init__(self, rows: Axis, columns: Axis) -> None:
        self.rows, self.columns = rows, columns
        self.singular_values = rows.s[:, None] * columns.s[None, :]

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows.matrix.like(x) @ x @ self.columns.matrix.like(x).T

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.rows.matrix.like(y).T @ y @ self.columns.matrix.like(y)

    def svd(self) -> SVD:
        """Coordinates (B, C, r, q): one for each pair of 1-D singular vectors."""
        rows, columns = self.rows, self.columns
        return SVD(
            self.singular_values,
            U=lambda c: rows.U.like(c) @ c @ columns.U.like(c).T,
            U_adjoint=lambda y: rows.U.like(y).T @ y @ columns.U.like(y),
            V=lambda c: rows.V.like(c) @ c @ columns.V.like(c).T,
            V_adjoint=lambda x: rows.V.like(x).T @ x @ columns.V.like(x),
        )
