"""Means with bootstrap intervals, and paired comparisons, over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval, NaN for one image and where a value is infinite."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """first minus second on the same images; better is "first", "second", or None where the two are not told apart."""

    difference: Interval
    p_value: float
    better: str | None


def mean_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of at least one number, and its percentile bootstrap interval."""
    array = np.asarray(values, float)
    if len(array) == 1 or not np.isfinite(array).all():
        return Interval(float(array.mean()), math.nan, math.nan, len(array))
    picks = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[picks].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def paired(
    a: Sequence[float], b: Sequence[float], level: float = 0.95, seed: int = 0, *, larger_is_better: bool = True
) -> Paired:
    """Wilcoxon's signed-rank test of at least one pair."""
    from scipy import stats

    gaps = np.asarray(a, float) - np.asarray(b, float)
    difference = mean_interval(gaps.tolist(), level, seed)
    p_value = float(stats.wilcoxon(gaps[gaps != 0]).pvalue) if gaps.any() else 1.0
    better = "first" if (difference.mean > 0) == larger_is_better else "second"
    return Paired(difference, p_value, better if p_value < 1 - level else None)
