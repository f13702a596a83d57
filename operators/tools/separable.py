"""Filters whose kernel is an outer product: Y = R X C^T, with R (h, H) and C (w, W) made from 1-D weights.

The decomposition is the Kronecker product of two 1-D ones: s = s_R s_C, V^T x = V_R^T x V_C. It is made when first asked
for: A alone never pays for it. Cost for a side of n pixels: n^3 operations once, and up to 3 n^2 float64 numbers with one
cast of each (3000 px: 0.3 GB in all, and some seconds). Symmetric kernels with the reflect boundary need none of this
(cosine.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from invdiff.operator.svd import SVD

from .boundary import source_index
from .tables import Constant


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


@dataclass(frozen=True, eq=False)
class Factors:
    """U (h, r), s (r,) and V (H, r) of one dimension; float64."""

    U: Constant
    s: torch.Tensor
    V: Constant


class Axis:
    """One dimension: its matrix (h, H) = U diag(s) V^T."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix: Constant = Constant(torch.from_numpy(matrix))

    @cached_property
    def factors(self) -> Factors:
        with torch.inference_mode(False):
            U, s, Vh = torch.linalg.svd(self.matrix.table, full_matrices=False)
            return Factors(Constant(U), s, Constant(Vh.T.contiguous()))


class SeparableFilter:
    """The filter for images of one size."""

    columns: Axis
    rows: Axis

    def __init__(self, rows: Axis, columns: Axis) -> None:
        self.rows, self.columns = rows, columns

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows.matrix.like(x) @ x @ self.columns.matrix.like(x).T

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.rows.matrix.like(y).T @ y @ self.columns.matrix.like(y)

    def svd(self) -> SVD:
        """Coordinates (B, C, r, q): one for each pair of 1-D singular vectors."""
        rows, columns = self.rows.factors, self.columns.factors
        return SVD(
            rows.s[:, None] * columns.s[None, :],
            U=lambda c: rows.U.like(c) @ c @ columns.U.like(c).T,
            U_adjoint=lambda y: rows.U.like(y).T @ y @ columns.U.like(y),
            V=lambda c: rows.V.like(c) @ c @ columns.V.like(c).T,
            V_adjoint=lambda x: rows.V.like(x).T @ x @ columns.V.like(x),
        )
