"""Denoising: y = x + noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator import SVD, Operator, Shape


@dataclass(frozen=True, eq=False)
class Identity(Operator):
    """y = x, of any shape. The measurement is the image itself; only the noise is to be removed. SVD: s = 1."""

    family: ClassVar[str] = "denoising"
    name: ClassVar[str] = "identity"
    orthonormal_U: ClassVar[bool] = True
    neutral: ClassVar[bool] = True

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        def same(x: torch.Tensor) -> torch.Tensor:
            return x

        return SVD(torch.ones(shape, dtype=torch.float64), same, same, same, same)

    @property
    def tight(self) -> float:
        return 1.0

    @property
    def right_basis(self) -> str:
        return "pixels"
