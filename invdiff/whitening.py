"""A measurement whose entries have noise of different size, rescaled until it is the same everywhere.

    y = A x + n,  n_i ~ N(0, sigma_i^2)    becomes    W y = W A x + sigma_y n',  n' ~ N(0, I),  W = diag(sigma_y / sigma_i)

The likelihood of x is the same: W A is an operator like any other, linear if A is, and a solver for white noise is exact for
it. A's singular vectors are lost in it, so that inverses take conjugate gradients, preconditioned by A's own. A weight of 0
leaves an entry out: a value that an impulse replaced. Noise that is correlated between pixels, n ~ N(0, C), becomes white the
same way, with W = sigma_y C^(-1/2), a filter.

Where sigma_i depends on the brightness, it has to be read from y itself, and there lies a trap: an entry that came out dark
by chance would get a large weight, and the image would become darker, by about one count of a Poisson measurement. So the
brightness is a mean over the neighbours, WINDOW x WINDOW of them (measured on photographs: docs/noise.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.linalg import over
from invdiff.noise.base import NoiseModel
from invdiff.noise.correlated import filtered
from invdiff.operator import Map, Operator, Shape
from invdiff.wrapping import Wrapped

WINDOW = 5


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


def whiten(
    operator: Operator, noise: NoiseModel, y: torch.Tensor, sigma_y: float, mask: torch.Tensor | None
) -> Operator:
    """The operator W A for which y's noise, made W times it, is white of size sigma_y; A itself, if it is that already."""
    spectrum = noise.spectrum(tuple(y.shape[1:]))
    if spectrum is not None:
        if mask is not None:
            raise UsageError(
                f"{noise.name} noise has to be whitened by a filter over the whole measurement, and {operator} measures "
                "only a part of it; use gaussian noise of the same sigma"
            )
        return Prewhitened(operator, (sigma_y * spectrum.rsqrt())[None])
    weights = sigma_y / local_deviation(noise, y, mask)
    trusted = noise.trusted(y)
    weights = weights if trusted is None else weights * trusted
    if (weights == weights[:1]).all():
        weights = weights[:1]  # then it fits any number of samples of the one image
    even = float((weights - 1).abs().max()) < 1e-6
    return operator if even else Whitened(operator, weights)


def local_deviation(noise: NoiseModel, y: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """sigma_i, as far as y (B, *measurement shape) tells: from the mean of the measured neighbours in pictures (C, H, W),
    from the mean of all of y otherwise. mask: 1 where y is measured. Where nothing is, any positive number."""
    if not noise.quantum:
        return noise.variance(y).sqrt()
    if y.ndim != 4:
        return over(average_deviation(noise, y, mask), y).expand_as(y)
    ones = torch.ones_like(y) if mask is None else mask.to(y).expand_as(y)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(values, WINDOW, 1, WINDOW // 2)

    level = mean(y * ones) / mean(ones).clamp(min=1e-6)
    # No count at all allows a brightness of about one count in the window: it does not make the variance zero.
    return noise.variance(level.clamp(min=noise.quantum / WINDOW**2)).sqrt()


def average_deviation(noise: NoiseModel, y: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The root mean square of sigma_i over the measured entries of each row, (B,), float64: for counts that of the mean
    brightness, as the variance is affine in it."""
    ones = torch.ones_like(y) if mask is None else mask.to(y).expand_as(y)
    count = ones.flatten(1).sum(1, dtype=torch.float64).clamp(min=1)
    if not noise.quantum:
        return ((noise.variance(y.double()) * ones).flatten(1).sum(1) / count).sqrt()
    level = (y * ones).flatten(1).sum(1, dtype=torch.float64) / count
    return noise.variance(torch.maximum(level, noise.quantum / count)).sqrt()
