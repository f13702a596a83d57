"""Operators whose measurement is rescaled, entry by entry or by a filter, so that its noise has one size everywhere.

`invdiff/problem/whitening.py` says which weights do that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator.contract import Map, Shape
from invdiff.operator.wrapped import Wrapped


@dataclass(frozen=True, eq=False)
class Whitened(Wrapped):
    """W A. weights: the diagonal of W, without a unit, 0 where an entry is left out: (1, *measurement shape), or a row for
    each image of a batch, whose particles, if there are several for each, lie side by side."""

    name: ClassVar[str] = "whitened"

    weights: torch.Tensor

    def W(self, y: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        """W^power y; where W is 0, for a negative power y itself."""
        weights = self._weights(y)
        return (weights if power == 1 else torch.where(weights > 0, weights, 1.0) ** power) * y

    def _weights(self, y: torch.Tensor) -> torch.Tensor:
        rows, wanted = len(self.weights), len(y)
        if rows in (1, wanted):
            return self.weights.to(y)
        if wanted % rows:
            raise UsageError(f"{self}: weights for {rows} images do not fit a batch of {wanted}")
        return self.weights.to(y).repeat_interleave(wanted // rows, 0)

    def rows(self, index: torch.Tensor | list[int]) -> Whitened:
        """The operator for these rows of the batch (repeats allowed)."""
        return self if len(self.weights) == 1 else Whitened(self.of, self.weights[index])

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.W(self.of.A(x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self._require_linear("A_adjoint")
        return self.of.A_adjoint(self.W(y))

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.of.A_vjp(x, self.W(v))

    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        Ju = self.of.A_jvp(x, u)
        return self._weights(Ju) * Ju

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """What A's own says of the measurement before it was rescaled, which serves as well as the least squares one."""
        return self.of.first_guess(y / self._weights(y))

    def observed(self, shape: Shape) -> torch.Tensor | None:
        mask = super().observed(shape)
        if (self.weights > 0).all():
            return mask
        kept = (self.weights > 0).double()
        return kept if mask is None else kept * mask.to(kept)

    def measured_count(self, shape: Shape) -> int:
        """Of one image; the average, if rows leave out different entries."""
        mask = self.observed(shape)
        if mask is None:
            return super().measured_count(shape)
        return round(float(mask.sum()) * math.prod(self.measurement_shape(shape)) / math.prod(mask.shape))

    def data_preconditioner(self, shape: Shape, a: float, b: float) -> Map | None:
        """W^-1/2 (a A A^T + b I)^-1 W^-1/2: as far from (a W A A^T W + b I)^-1 where A measures, by W^-1/2 on each side, as
        where it does not, by W^1/2. That takes the root of the iterations of either extreme, W^-1 or 1 on the sides."""

        def exact(r: torch.Tensor) -> torch.Tensor:
            return self.of.solve_data(r, a, b)

        inner = exact if self.of.has_svd else self.of.data_preconditioner(shape, a, b)
        if inner is None:
            return None

        def scaled(r: torch.Tensor) -> torch.Tensor:
            return self.W(inner(self.W(r, -0.5)), -0.5)

        return scaled

    def norm(self, shape: Shape, iterations: int = 50) -> float:
        """The largest singular value of any row."""
        if len(self.weights) == 1:
            return super().norm(shape, iterations)
        return max(self.rows([row]).norm(shape, iterations) for row in range(len(self.weights)))

    @property
    def spec(self) -> str:
        """Says which operator it is; only Python builds it: Problem.whitened()."""
        return f"{self.of.spec}, whitened"


@dataclass(frozen=True, eq=False)
class Prewhitened(Whitened):
    """W A with a filter W. weights: its response, more than 0, (1, H, W // 2 + 1), as rfft2 orders it."""

    name: ClassVar[str] = "prewhitened"

    def W(self, y: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        return filtered(y, self.weights[0] ** power)


def filtered(v: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """v (..., H, W) with its rfft2 multiplied by a real response (H, W // 2 + 1): a symmetric matrix."""
    return torch.fft.irfft2(torch.fft.rfft2(v) * response.to(v), s=v.shape[-2:])
