"""sigma_y from y alone, for white Gaussian noise: `--noise auto`.

What works depends on what the operator leaves of the image (measured for each: docs/noise.md):

    null space           directions of y that A does not reach hold noise only: exact, where A has a decomposition with
                         singular values near 0 (strong blur, more measurements than unknowns)
    patch covariance     pictures of several channels: the small eigenvalues of the covariance of 5 x 5 patches, which colours
                         alike leave to the noise (Chen, Zhu, Heng 2015, https://doi.org/10.1109/ICCV.2015.62)
    calm blocks          pictures of one channel: the high frequencies of the 8 x 8 blocks whose low frequencies hold least;
                         both are independent for white noise, so that choosing does not bias (after Ponomarenko et al. 2007)
    colour differences   pictures of scattered pixels, several channels: differences of two measured neighbours, of one
                         channel less another, among the tenth where their sum over both channels changes least
    second differences   scattered pixels, one channel: y_1 - 2 y_2 + y_3 of neighbours in a line, where y_1 - y_3 is least

Only measured values are used, and none that were clipped to 0 or 1: a hole is not an edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import unfold

from invdiff.errors import UsageError
from invdiff.operator.contract import Operator, Shape

MAD = 0.6744897501960817  # the median of |n| for n ~ N(0, 1)
NULL = 1e-3
"""A singular value below this share of the largest lets nothing of an image through that a noise level would notice."""
FEWEST_DIRECTIONS = 100
MOST_PATCHES = 50_000
FEWEST_DIFFERENCES = 500
CALM = 0.1
"""The share of blocks or differences that are used."""
LEAST = 1e-6
DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
GIVE = "give it with --noise SIGMA"


@dataclass(frozen=True)
class NoiseEstimate:
    """sigma in [0, 1] units; method: which of the estimators above; notes: what may be wrong with it."""

    sigma: float
    method: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"noise {self.sigma:.3g} (estimated by {self.method}, from y)"


def estimate(y: torch.Tensor, operator: Any) -> NoiseEstimate:
    """The standard deviation of white Gaussian noise in one measurement y (1, *measurement shape) of an operator.

    operator: an Operator, a name or spec, or a deepinv Physics. Raises UsageError, naming what to do, where y does not tell:
    too small, constant, several at once, or neither a picture nor with directions that A does not reach.
    """
    from invdiff.operator.checks import check_images
    from invdiff.operators import resolve_operator

    operator = resolve_operator(operator)
    y = check_images(y, "the measurement y").double().cpu()
    if len(y) != 1:
        raise UsageError(
            f"noise is estimated from one measurement at a time, got {len(y)}: call it for each, or {GIVE}"
        )
    shape = operator.image_shape(tuple(y.shape[1:]))
    mask = operator.observed(shape)
    seen = torch.ones_like(y) if mask is None else mask.to(y).expand_as(y)
    values = y[seen > 0]
    if values.numel() < 2 or float(values.max() - values.min()) < LEAST:
        raise UsageError(f"the noise of a constant measurement cannot be estimated; {GIVE}")
    found = null_space(y, operator, shape) if mask is None else None
    method, notes = "null space", []
    if found is None:
        if y.ndim != 4 or not pictorial(operator, shape):
            raise UsageError(
                f"the noise of this measurement {tuple(y.shape[1:])} of {operator} cannot be estimated: it is no picture, "
                f"and A reaches all of its directions; {GIVE}"
            )
        unclipped, share = without_clipped(y, seen)
        if share > 0.001:
            notes.append(
                f"{100 * share:.2g} % of the values are 0 or 1: clipping has hidden noise there, and the estimate may be off"
            )
        found, method = of_picture(y, unclipped)
    if found < LEAST:
        raise UsageError(
            f"no noise is found in the measurement ({found:.1e}, by {method}); for one that looks free of noise give its "
            "rounding error, e.g. --noise 0.3/255 for an 8-bit file"
        )
    return NoiseEstimate(found, method, tuple(notes))


def null_space(y: torch.Tensor, operator: Operator, shape: Shape) -> float | None:
    """The root mean square of y outside the span of the singular directions with s above NULL; None: there is too little."""
    if not (operator.linear and operator.has_svd):
        return None
    svd = operator.svd(shape)
    coordinates = svd.U_adjoint(y)
    reached = (svd.singular_values > NULL * svd.singular_values.max()).expand_as(coordinates)
    count = y.numel() - int(reached.sum())
    if count < FEWEST_DIRECTIONS:
        return None
    return float((y - svd.U(coordinates * reached)).square().sum() / count) ** 0.5


def of_picture(y: torch.Tensor, seen: torch.Tensor) -> tuple[float, str]:
    """sigma of a picture (1, C, H, W) and the name of the estimator, by how many values were seen and lie together."""
    several = y.shape[1] > 1
    attempts = [
        (patch_covariance, "patch covariance") if several else (calm_blocks, "calm blocks"),
        (colour_differences, "colour differences") if several else (second_differences, "second differences"),
    ]
    for attempt, name in attempts:
        found = attempt(y, seen)
        if found is not None:
            return found, name
    raise UsageError(
        f"the measurement {tuple(y.shape[1:])} is too small to estimate its noise, or too few of its values are measured "
        f"side by side; {GIVE}"
    )


def without_clipped(y: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What was seen and not clipped, and the share of values that were: those at 0 and 1, if none lies beyond."""
    values = y[seen > 0]
    if float(values.min()) < 0 or float(values.max()) > 1:
        return seen, 0.0
    inside = seen * ((y > 0) & (y < 1))
    return inside, 1 - float(inside.sum() / seen.sum())


def pictorial(operator: Operator, shape: Shape) -> bool:
    """Whether the measurement of a smooth image is a smooth picture: the estimators then call it free of noise."""

    def ask() -> bool:
        # Half a wave over the image, or over 64 px in a smaller one.
        rows, columns = (math.pi / max(size, 64) * torch.arange(size, dtype=torch.float64) for size in shape[-2:])
        phases = torch.arange(math.prod(shape[:-2]), dtype=torch.float64).reshape(-1, 1, 1)
        x = 0.5 + 0.4 * torch.cos(rows[:, None] + 0.7 * columns + 0.8 * phases)
        z = operator.A(x.reshape(1, *shape))
        mask = operator.observed(shape)
        seen = torch.ones_like(z) if mask is None else mask.to(z).expand_as(z)
        return of_picture(z, seen)[0] < 0.1 * float(z[seen > 0].std())

    return len(shape) >= 2 and operator.cached(("pictorial", shape), ask)


def whole(y: torch.Tensor, seen: torch.Tensor, size: int) -> torch.Tensor:
    """Patches (n, C size^2) of y in which everything was seen, about MOST_PATCHES at most, evenly spread."""
    height, width = y.shape[-2:]
    if min(height, width) < size:
        return y.new_zeros(0, y.shape[1] * size**2)
    stride = max(1, math.ceil((height * width / MOST_PATCHES) ** 0.5))
    complete = (unfold(seen, size, stride=stride)[0] > 0).all(0)
    return unfold(y, size, stride=stride)[0][:, complete].T


def patch_covariance(y: torch.Tensor, seen: torch.Tensor, size: int = 5) -> float | None:
    """Of the eigenvalues of the covariance of patches, those of the noise alone are spread evenly around sigma^2: the largest
    are taken away until the mean of the others is no more than their median."""
    patches = whole(y, seen, size)
    if len(patches) < 8 * patches.shape[1]:
        return None
    eigenvalues = torch.linalg.eigvalsh(torch.cov(patches.T)).clamp(min=0)
    for count in range(len(eigenvalues), 0, -1):
        rest = eigenvalues[:count]
        middle = (rest[(count - 1) // 2] + rest[count // 2]) / 2
        if rest.mean() <= middle:
            break
    return float(rest.mean()) ** 0.5


def calm_blocks(y: torch.Tensor, seen: torch.Tensor, size: int = 8) -> float | None:
    """The median of |high DCT coefficients| / MAD over the blocks that hold least at low frequencies."""
    blocks = whole(y, seen, size)
    if len(blocks) < 100:
        return None
    k = torch.arange(size, dtype=y.dtype)
    D = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * (2 / size) ** 0.5
    D[0] /= 2**0.5
    frequency = k[:, None] + k
    coefficients = D @ blocks.reshape(-1, size, size) @ D.T
    low = (frequency > 0) & (frequency <= 0.3 * (2 * size - 2))
    high = frequency >= 0.6 * (2 * size - 2)
    return calmest(coefficients[:, high], coefficients[:, low].square().sum(1))


def colour_differences(y: torch.Tensor, seen: torch.Tensor) -> float | None:
    """(d_a - d_b) / 2 for the differences d of a pair of neighbours in two channels, where |d_a + d_b| is small."""
    apart, together = [], []
    for (first, second), (seen_first, seen_second) in zip(lines(y, 2), lines(seen, 2), strict=True):
        d, both = (first - second) / 2**0.5, seen_first * seen_second
        for a in range(y.shape[1]):
            for b in range(a):
                four = both[:, a] * both[:, b] > 0
                apart.append(((d[:, a] - d[:, b]) / 2**0.5)[four])
                together.append((d[:, a] + d[:, b])[four].abs())
    return calmest(torch.cat(apart)[:, None], torch.cat(together))


def second_differences(y: torch.Tensor, seen: torch.Tensor) -> float | None:
    """(y_1 - 2 y_2 + y_3) / sqrt(6) of three neighbours in a line, where |y_1 - y_3| is small."""
    apart, together = [], []
    for values, were_seen in zip(lines(y, 3), lines(seen, 3), strict=True):
        all_three = math.prod(were_seen) > 0
        first, middle, last = (value[all_three] for value in values)
        apart.append((first - 2 * middle + last) / 6**0.5)
        together.append((first - last).abs())
    return calmest(torch.cat(apart)[:, None], torch.cat(together))


def lines(y: torch.Tensor, count: int) -> Iterator[list[torch.Tensor]]:
    """For each of four directions, y at the 1st, 2nd, .. of `count` neighbours in a line, all of one shape."""
    height, width = y.shape[-2:]
    for down, right in DIRECTIONS:
        rows, columns = height - (count - 1) * down, width - (count - 1) * abs(right)
        if rows < 1 or columns < 1:
            continue
        left = 0 if right >= 0 else count - 1
        corners = [(step * down, left + step * right) for step in range(count)]
        yield [y[..., top : top + rows, start : start + columns] for top, start in corners]


def calmest(values: torch.Tensor, activity: torch.Tensor) -> float | None:
    """The median of |values| / MAD over the rows (n, k) of least activity (n,); None: there are too few."""
    count = max(FEWEST_DIFFERENCES // values.shape[1], math.ceil(CALM * len(values)))
    if len(values) < 2 * count:
        return None
    return float(values[activity.argsort()[:count]].abs().median()) / MAD
