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

import torch

from invdiff.errors import UsageError
from invdiff.noise.model import NoiseModel
from invdiff.operator.contract import Operator
from invdiff.operator.linalg import over
from invdiff.operator.weighted import Prewhitened, Whitened

WINDOW = 5


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
