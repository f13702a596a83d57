"""Intervals of a mean and paired comparisons: coverage in simulation, small sets, and other ways to the same numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from invdiff.errors import UsageError
from invdiff.scores import statistics
from invdiff.scores.statistics import mean_interval, paired

DRAWS = 400


def coverage(n: int, level: float, monkeypatch: pytest.MonkeyPatch, exponential: bool = False) -> float:
    """How often the interval of n values holds the true mean, 1."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(n)
    draw = rng.standard_exponential if exponential else lambda size: 1 + 0.2 * rng.standard_normal(size)
    found = [mean_interval(draw(n).tolist(), level) for _ in range(DRAWS)]
    return float(np.mean([interval.low <= 1 <= interval.high for interval in found]))


@pytest.mark.parametrize(("n", "level"), [(8, 0.9), (24, 0.95), (68, 0.95), (24, 0.5)])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(n: int, level: float, monkeypatch) -> None:
    error = math.sqrt(level * (1 - level) / DRAWS)
    assert abs(coverage(n, level, monkeypatch) - level) < 4 * error


def test_coverage_notices_an_interval_of_plain_percentiles(monkeypatch) -> None:
    monkeypatch.setattr(np, "quantile", lambda means, q, plain=np.quantile: plain(means, [0.05, 0.95]))
    assert coverage(8, 0.9, monkeypatch) < 0.9 - 4 * math.sqrt(0.09 / DRAWS)


def test_skewed_values_are_covered_a_little_less(monkeypatch) -> None:
    """The deviation that n values of a skewed distribution show goes with their mean: no interval made of them escapes."""
    assert 0.87 < coverage(24, 0.95, monkeypatch, exponential=True) < 0.96


def test_large_sets_agree_with_students_t() -> None:
    values = np.random.default_rng(3).normal(30, 2, 1000)
    interval = mean_interval(values.tolist())
    half = stats.t.ppf(0.975, 999) * values.std(ddof=1) / math.sqrt(1000)
    assert interval.mean == pytest.approx(values.mean(), rel=1e-12)
    # an extreme of 10,000 resampled means is known to 2 % of the half width
    assert interval.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_few_resamples_are_all_of_them() -> None:
    """Three values: the resampled means are those of all 27 equally likely draws."""
    values = [20.0, 26.0, 35.0]
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=3)])
    drawn = statistics._resampled_means(np.array(values), 0)
    for mean in np.unique(every.round(9)):
        share = float(np.isclose(every, mean).mean())
        assert abs(np.isclose(drawn, mean).mean() - share) < 5 * math.sqrt(share / len(drawn))


def test_the_same_values_give_the_same_interval_in_any_order(monkeypatch) -> None:
    values = np.random.default_rng(0).normal(30, 2, 20)
    one = mean_interval(values.tolist())
    assert mean_interval(values[::-1].tolist()) == one == mean_interval(tuple(np.sort(values)))
    assert mean_interval(values.tolist(), seed=1) != one
    monkeypatch.setattr(statistics, "_AT_ONCE", 50)
    assert mean_interval(values.tolist()) == one


def test_one_image_tells_nothing_of_others() -> None:
    interval = mean_interval([31.5])
    assert (interval.mean, interval.n) == (31.5, 1) and math.isnan(interval.low) and math.isnan(interval.high)


def test_two_images_give_their_range() -> None:
    assert mean_interval([30.0, 31.0]) == statistics.Interval(30.5, 30.0, 31.0, 2)


@pytest.mark.parametrize("value", [0.1, 27.3, -1e-9])
def test_equal_values_have_an_interval_of_no_length(value: float) -> None:
    interval = mean_interval([value] * 7)
    assert interval.low <= interval.mean <= interval.high
    assert interval.high - interval.low <= 4e-16 * abs(value)


def test_an_infinite_psnr_leaves_no_interval() -> None:
    interval = mean_interval([30.0, math.inf, 31.0])
    assert interval.mean == math.inf and math.isnan(interval.low)
    assert math.isnan(mean_interval([-math.inf, math.inf]).mean)


@pytest.mark.parametrize(
    ("values", "words"), [([], "shape"), ([1.0, math.nan], "got NaN"), ([[1.0, 2.0]], r"shape \(1, 2\)")]
)
def test_what_is_no_list_of_scores_is_refused(values, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        mean_interval(values)


@pytest.mark.parametrize("level", [0, 1, 95, -0.5])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(UsageError, match=f"got {level}; for 95 % write 0.95"):
        mean_interval([1.0, 2.0], level)


def scores(n: int, gain: float, seed: int = 0) -> tuple[list[float], list[float]]:
    """Images differ by far more than the methods do, as they always do."""
    rng = np.random.default_rng(seed)
    image = rng.normal(28, 4, n)
    return (image + gain + 0.1 * rng.standard_normal(n)).tolist(), (image + 0.1 * rng.standard_normal(n)).tolist()


def test_a_small_gain_on_every_image_is_a_difference() -> None:
    a, b = scores(12, 0.3)
    assert paired(a, b).better == "first" and paired(b, a).better == "second"
    assert paired(a, b, larger_is_better=False).better == "second"
    alone = [mean_interval(values) for values in (a, b)]
    assert alone[1].low < alone[0].mean < alone[1].high  # which the two means alone do not show


def test_p_value_is_the_share_of_sign_patterns() -> None:
    """All 2^7 ways to give the differences their signs, ranked by hand."""
    a, b = scores(7, 0.05, seed=4)
    difference = np.subtract(a, b)
    ranks = stats.rankdata(np.abs(difference))
    seen = abs(float((np.sign(difference) * ranks).sum()))
    patterns = [abs(float(np.dot(signs, ranks))) for signs in itertools.product((-1, 1), repeat=7)]
    assert paired(a, b).p_value == pytest.approx(np.mean(np.array(patterns) >= seen - 1e-9), abs=1e-12)


def test_methods_without_a_difference_are_rarely_told_apart(monkeypatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    found = [paired(*scores(10, 0.0, seed)).better for seed in range(300)]
    assert np.mean([better is not None for better in found]) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 300)
    assert {"first", "second"} <= {*found}


def test_five_images_never_tell_methods_apart() -> None:
    a, b = scores(5, 5.0)
    result = paired(a, b)
    assert result.difference.low > 0 and result.p_value == 2 / 2**5 and result.better is None


def test_ties_and_equal_scores() -> None:
    same = paired([30.0, 31.0, 32.0], [30.0, 31.0, 32.0])
    assert same == statistics.Paired(statistics.Interval(0.0, 0.0, 0.0, 3), 1.0, None)
    assert paired([30.0], [29.0]).better is None and paired([30.0], [30.0]).p_value == 1
    mostly = paired([30.0] * 20 + [31.0], [30.0] * 21)  # one image differs, nothing follows
    assert mostly.p_value == 1 and mostly.better is None
    steady = paired([30.5] * 10, [30.0] * 10)
    assert steady.better == "first" and steady.difference == statistics.Interval(0.5, 0.5, 0.5, 10)


def test_images_that_both_restore_exactly_do_not_differ() -> None:
    a, b = [math.inf, 30.0, 31.0], [math.inf, 29.0, 30.0]
    assert paired(a, b).difference.mean == pytest.approx(2 / 3)
    assert paired([math.inf, 30.0], [29.0, 29.0]).better is None


def test_pairs_need_a_score_each() -> None:
    with pytest.raises(UsageError, match="got 2 and 3; leave out images that only one of the methods has restored"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])
