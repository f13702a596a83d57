"""Confidence intervals of means over images, and whether two methods differ on the same measurements.

The unit is the image, because pixels and samples of one image depend on each other. The order of images does not matter.

The bootstrap interval of the mean is the expanded percentile interval of T. Hesterberg, "What Teachers Should Know About
the Bootstrap", 2015, https://doi.org/10.1080/00031305.2015.1089789: the quantiles a and 1 - a of the means of
resampled images, with

    a = Phi(-sqrt(n / (n - 1)) t_{n-1}),      t_{n-1}: the quantile (1 + level) / 2 of Student's t

in place of (1 - level) / 2. Benchmark sets are small (Set5 has five images), and for these plain percentile and BCa
intervals are too short: they account neither for the factor sqrt((n - 1) / n) of the resampled deviation nor for its
being an estimate. No resampled mean lies outside the range of the values, which holds the median with probability 1 -
2^(1 - n): below six images a level of 95 % cannot be reached, and the interval is nearly that range.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from invdiff.errors import UsageError

RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 1_000_000  # numbers drawn at a time: 8 MB


@dataclass(frozen=True)
class Interval:
    """A mean over n images, and the interval for the mean over all images of the kind; low and high are NaN for a single
    image and where a value is infinite."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Two methods on the same images. difference: first minus second; p_value: of the Wilcoxon signed-rank test.

    better: "first" or "second" where the interval leaves out 0 and p_value is below 1 - level; else None: these images do not
    tell the two apart. Below six images the test cannot fall under 5 %.
    """

    difference: Interval
    p_value: float
    better: str | None


def mean_interval(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of one number per image, and its bootstrap interval. Raises UsageError for no values, NaN, a wrong level."""
    array = _checked(values, "values")
    if not 0 < level < 1:
        raise UsageError(f"level must be more than 0 and less than 1, got {level}; for 95 % write 0.95")
    n = len(array)
    if n == 1 or not np.isfinite(array).all():
        with np.errstate(invalid="ignore"):  # inf - inf
            return Interval(float(array.mean()), math.nan, math.nan, n)
    from scipy import special

    tail = special.ndtr(-math.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 + level) / 2))
    low, high = np.quantile(_resampled_means(np.sort(array), seed), [tail, 1 - tail])
    mean = math.fsum(array) / n
    # Where all values are equal, rounding must not put the mean outside.
    return Interval(mean, min(float(low), mean), max(float(high), mean), n)


def paired(
    a: Sequence[float], b: Sequence[float], level: float = LEVEL, seed: int = 0, *, larger_is_better: bool = True
) -> Paired:
    """Whether two methods differ; a[i] and b[i] are their scores on the same measurement of image i.

    larger_is_better: True for PSNR and SSIM, False for LPIPS, errors and times. Raises UsageError as `mean_interval`, and for
    different numbers of values.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if len(first) != len(second):
        raise UsageError(
            f"a and b must hold one score each for the same images, got {len(first)} and {len(second)}; leave out "
            "images that only one of the methods has restored"
        )
    equal = first == second
    with np.errstate(invalid="ignore"):  # inf - inf, where both are equal
        difference = np.where(equal, 0.0, first - second)
    interval = mean_interval(difference.tolist(), level, seed)
    p_value = _signed_rank(difference)
    better = None
    if p_value < 1 - level and (interval.low > 0 or interval.high < 0):
        better = "first" if (interval.low > 0) == larger_is_better else "second"
    return Paired(interval, p_value, better)


def _signed_rank(difference: np.ndarray) -> float:
    """The two-sided p-value; images without a difference are left out, as by Wilcoxon."""
    if not difference.any():
        return 1.0
    from scipy.stats import wilcoxon

    return float(wilcoxon(difference[difference != 0]).pvalue)


def _checked(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or np.isnan(array).any():
        what = "NaN" if np.isnan(array).any() else f"shape {array.shape}"
        raise UsageError(f"{name} must be one number for each image, at least one and none of them NaN, got {what}")
    return array


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """(RESAMPLES,) means of as many images, drawn with replacement."""
    rng = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(values))
    parts = []
    for first in range(0, RESAMPLES, rows):
        index = rng.integers(len(values), size=(min(rows, RESAMPLES - first), len(values)))
        parts.append(values[index].mean(1))
    return np.concatenate(parts)
