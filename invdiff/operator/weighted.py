"""Operators W A whose measurement is rescaled so that its noise has one size everywhere: by numbers, or by a filter.

`invdiff/problem/whitening.py` says which W does that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator.contract import Map, Operator, Shape
from invdiff.operator.wrapped import Wrapped


@dataclass(frozen=True, eq=False)
class Weighted(Wrapped):
    """W A with a symmetric linear W, which a subclass says in `W`. weights: what W is made of, a row for each image of a
    batch, or one row for all; the particles of an image, if there are several, lie side by side."""

    weights: torch.Tensor

    def W(self, y: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        """W^power y, for measurements y (B, *measurement shape); where W is 0, for a negative power y itself."""
        raise NotImplementedError

    def rows(self, index: torch.Tensor | Sequence[int]) -> Weighted:
        """The operator for these rows of the batch (repeats allowed)."""
        return self if len(self.weights) == 1 else replace(self, weights=self.weights[index])

    def _weights(self, y: torch.Tensor) -> torch.Tensor:
        """The rows of the weights that belong to the rows of y."""
        rows, wanted = len(self.weights), len(y)
        if rows in (1, wanted):
            return self.weights.to(y)
        if wanted % rows:
            raise UsageError(f"{self}: weights for {rows} images do not fit a batch of {wanted}")
        return self.weights.to(y).repeat_interleave(wanted // rows, 0)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.W(self.of.A(x))

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        self._require_linear("A_adjoint")
        return self.of.A_adjoint(self.W(y))

    def A_vjp(self, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.of.A_vjp(x, self.W(v))

    def A_jvp(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.W(self.of.A_jvp(x, u))

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """What A's own says of the measurement before it was rescaled, which serves as well as the least squares one."""
        return self.of.first_guess(self.W(y, -1))

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
class Whitened(Weighted):
    """W A with a diagonal W. weights: its entries, without a unit, (rows, *measurement shape); 0 leaves an entry out."""

    name: ClassVar[str] = "whitened"

    def W(self, y: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        weights = self._weights(y)
        return (weights if power == 1 else torch.where(weights > 0, weights, 1.0) ** power) * y

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """As A's own; an entry that is left out counts as the mean of the others."""
        kept = (self._weights(y) > 0).to(y).expand_as(y)
        measured = self.W(y, -1)
        count = kept.flatten(1).sum(1).clamp(min=1)
        mean = ((measured * kept).flatten(1).sum(1) / count).reshape(-1, *[1] * (y.ndim - 1))
        return self.of.first_guess(torch.where(kept > 0, measured, mean))

    def observed(self, shape: Shape) -> torch.Tensor | None:
        mask = super().observed(shape)
        if (self.weights > 0).all():
            return mask
        kept = (self.weights > 0).double()
        return kept if mask is None else kept * mask.to(kept)

    def measured_count(self, shape: Shape) -> int:
        """Measured values of one image; their average number, if rows leave out different entries."""
        mask = self.observed(shape)
        if mask is None:
            return super().measured_count(shape)
        return round(float(mask.sum()) * math.prod(self.measurement_shape(shape)) / math.prod(mask.shape))


@dataclass(frozen=True, eq=False)
class Prewhitened(Weighted):
    """W A with a filter W. weights: its response, more than 0, (1, H, W // 2 + 1), as rfft2 orders it."""

    name: ClassVar[str] = "prewhitened"

    def W(self, y: torch.Tensor, power: float = 1.0) -> torch.Tensor:
        return filtered(y, self.weights[0] ** power)


def for_rows(operator: Operator, index: torch.Tensor | Sequence[int]) -> Operator:
    """The operator for these rows of a batch: another one only where it weighs each image by its own noise."""
    return operator.rows(index) if isinstance(operator, Weighted) else operator


def filtered(v: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """v (..., H, W) with its rfft2 multiplied by a real response (H, W // 2 + 1): a symmetric matrix."""
    return torch.fft.irfft2(torch.fft.rfft2(v) * response.to(v), s=v.shape[-2:])
