"""A preconditioner that ends conjugate gradients after one iteration, for images so small that A is a small matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.operator.contract import Operator, Shape
from invdiff.operator.linalg import Map
from invdiff.operator.spectral import dense_matrix
from invdiff.operator.wrapped import Wrapped


@dataclass(frozen=True, eq=False)
class Preconditioned(Wrapped):
    """An operator without a decomposition, on small images: the same maps and answers, after fewer iterations.

    The eigenvectors of A A^T serve only as the preconditioner. Everything else that a solver uses is the operator's own, and
    answers are the same up to the tolerance of the iterations.
    """

    name: ClassVar[str] = "preconditioned"

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.of.A(x)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.of.A_adjoint(y)

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map:
        """(a A A^T + b I)^-1 = Q diag(1 / (a lambda + b)) Q^T."""
        eigenvalues, Q = self.cached(("eigenvectors", shape), lambda: _eigenvectors(self.of, shape))
        weights = 1 / (a * eigenvalues.clamp(min=0) + b)
        return lambda v: (((v.flatten(1) @ Q.to(v)) * weights.to(v)) @ Q.mT.to(v)).reshape(v.shape)

    @property
    def spec(self) -> str:
        return self.of.spec

    def settings(self) -> dict[str, Any]:
        return self.of.settings()


def _eigenvectors(operator: Operator, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (m,) and eigenvectors (m, m) of A A^T on flattened measurements of images of this shape."""
    matrix = dense_matrix(operator, shape)
    values, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    return values, vectors
