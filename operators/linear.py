"""Any matrix at all, on flattened images: small problems with exact answers, learned or measured operators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.operator import SVD, Operator, Shape
from invdiff.operator.arrays import file_or_array, fingerprint, load
from invdiff.specs.parameters import format_spec, parameter
from invdiff.specs.parameters import shape as shape_of

from .tools.tables import Constant, decomposed


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """y = M x for a matrix M (m, n): images of n values, in any shape and flattened row by row, -> (B, m).

    shape: the image's shape, (n,) if not given; A_adjoint and A_dagger answer in it. A and prox_l2 take any
    trailing shape of n values. Exact SVD in float64; singular values that are zero to rounding are exactly 0.
    Raises UsageError for anything but a finite two-dimensional matrix, and for images that have not n values.
    """

    name: ClassVar[str] = "linear"
    orthonormal_U: ClassVar[bool] = True

    matrix: str | np.ndarray = parameter(kind=file_or_array, help="matrix (m, n): tensor, array, .npy or .npz file")
    shape: Shape | None = parameter(None, kind=shape_of, help="shape of the image, e.g. 3x8x8 ((n,) if not given)")

    def __post_init__(self) -> None:
        super().__post_init__()
        m, n = self.matrix_shape
        if self.shape is not None and math.prod(self.shape) != n:
            given = "x".join(map(str, self.shape))
            raise UsageError(
                f"linear: shape={given} has {math.prod(self.shape)} values but the matrix is {m}x{n}: it takes {n}"
            )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        m, n = self._matrix.table.shape
        return m, n

    @property
    def _matrix(self) -> Constant:
        return self.cached("matrix", self._load)

    def _load(self) -> Constant:
        array = load(self.matrix, self.name, "matrix")
        if array.ndim != 2:
            raise UsageError(f"linear: matrix has shape {array.shape}; it must be (m, n), e.g. matrix.reshape(m, n)")
        return Constant(torch.from_numpy(array.copy()))

    def measurement_shape(self, shape: Shape) -> Shape:
        m, n = self.matrix_shape
        if math.prod(shape) != n:
            raise UsageError(f"linear: the matrix is {m}x{n}, so an image has {n} values; shape {tuple(shape)} has not")
        return (m,)

    def image_shape(self, shape: Shape) -> Shape:
        m, n = self.matrix_shape
        if tuple(shape) != (m,):
            raise UsageError(f"linear: the matrix is {m}x{n}, so a measurement has shape ({m},), not {tuple(shape)}")
        return self.shape or (n,)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(tuple(x.shape[1:]))
        return x.flatten(1) @ self._matrix.like(x).T

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        shape = self.image_shape(tuple(y.shape[1:]))
        return (y @ self._matrix.like(y)).unflatten(1, shape)

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.A_adjoint(v).reshape(x.shape)

    def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
        return self.A_adjoint(self.A(x)).reshape(x.shape)

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        """Coordinates (B, min(m, n))."""
        self.measurement_shape(shape)
        s, U, V = self.cached("svd", lambda: decomposed(self._matrix.table))
        return SVD(
            s,
            U=lambda c: c @ U.like(c).T,
            U_adjoint=lambda y: y @ U.like(y),
            V=lambda c: (c @ V.like(c).T).unflatten(1, shape),
            V_adjoint=lambda x: x.flatten(1) @ V.like(x),
        )

    @property
    def spec(self) -> str:
        """Text that builds it again; for a matrix handed over in Python a text that identifies its content."""
        if isinstance(self.matrix, str):
            return format_spec(self.name, self)
        shape = "" if self.shape is None else f",shape={'x'.join(map(str, self.shape))}"
        return f"{self.name}:matrix={fingerprint(self.matrix)}{shape}"

    __hash__ = Operator.__hash__
