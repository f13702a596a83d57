"""Calibration of samplers that are known: exact ones, and twins that are too narrow, too wide or biased."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from invdiff.errors import NumericalError, UsageError
from invdiff.scores import calibration
from invdiff.scores.metrics import crps

IMAGES, SHAPE = 30, (1, 12, 12)
DEVIATION = 0.05


def sampled(n: int, factor: float = 1.0, bias: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Independent pixels of known mean: the truth and n samples of it, whose deviation is wrong by a factor."""
    draws = torch.Generator().manual_seed(seed)
    mean = 0.3 + 0.4 * torch.rand(IMAGES, *SHAPE, generator=draws, dtype=torch.float64)
    truth = mean + DEVIATION * torch.randn(mean.shape, generator=draws, dtype=torch.float64)
    noise = torch.randn(n, *mean.shape, generator=draws, dtype=torch.float64)
    return mean + bias + factor * DEVIATION * noise, truth


def deviations(n: int, factor: float = 1.0, bias: float = 0.0) -> dict[str, float]:
    """By how many standard errors the pooled numbers miss those of exact samples. All pixels are independent here."""
    found = calibration.pooled(calibration.of(*sampled(n, factor, bias)))
    pixels = IMAGES * math.prod(SHAPE)
    off = {
        f"coverage {level}": (found["coverage"][f"{level:g}"] - level) / math.sqrt(level * (1 - level) / pixels)
        for level in calibration.LEVELS
    }
    # log of the ratio: errors of two variances, of `pixels` and of (n - 1) pixels squares, halved by the roots
    error = 0.5 * math.sqrt(2 / pixels + 2 / ((n - 1) * pixels))
    off["spread_over_error"] = math.log(found["spread_over_error"]) / error
    off["spread"] = (found["spread"] / DEVIATION - 1) / math.sqrt(0.5 / ((n - 1) * pixels))
    off["error"] = (found["error"] / DEVIATION / math.sqrt(1 + 1 / n) - 1) / math.sqrt(0.5 / pixels)
    shares = np.array(found["ranks"])
    chi_square = pixels * (n + 1) * ((shares - 1 / (n + 1)) ** 2).sum()
    off["ranks"] = (chi_square - n) / math.sqrt(2 * n)
    return off


@pytest.mark.parametrize("n", [2, 5, 16])
def test_exact_samples_are_calibrated(n: int) -> None:
    for name, off in deviations(n).items():
        assert abs(off) < 4.5, (name, off)


def told(n: int) -> list[float]:
    """Two samples tell little of the outer levels."""
    return [0.5] if n == 2 else [0.5, 0.8, 0.9]


@pytest.mark.parametrize("n", [2, 5, 16])
def test_narrow_samples_are_seen(n: int) -> None:
    off = deviations(n, factor=1 / math.sqrt(2))
    assert all(off[f"coverage {level}"] < -4.5 for level in told(n))
    assert off["spread_over_error"] < -4.5 and off["ranks"] > 4.5


@pytest.mark.parametrize("n", [2, 5, 16])
def test_wide_samples_are_seen(n: int) -> None:
    off = deviations(n, factor=math.sqrt(2))
    assert all(off[f"coverage {level}"] > 4.5 for level in told(n))
    assert off["spread_over_error"] > 4.5 and off["ranks"] > 4.5


def test_biased_samples_are_seen() -> None:
    off = deviations(16, bias=0.5 * DEVIATION)
    assert off["coverage 0.5"] < -4.5 and off["spread_over_error"] < -4.5 and off["ranks"] > 4.5
    ranks = calibration.pooled(calibration.of(*sampled(16, bias=0.5 * DEVIATION)))["ranks"]
    assert ranks[0] > 2 * ranks[-1]


def test_every_number_by_hand() -> None:
    """Two pixels, three samples: ranks 1 and 3 of 0 .. 3."""
    truth = torch.tensor([[[[0.4, 0.9]]]], dtype=torch.float64)
    samples = torch.tensor([[0.3, 0.1], [0.5, 0.2], [0.6, 0.6]], dtype=torch.float64).reshape(3, 1, 1, 1, 2)
    (found,) = calibration.of(samples, truth)
    assert found["ranks"] == [0, 1, 0, 1]
    # the parts are [0, 1/4], ...: the second whole and none of the last; (0.9 - 0.75) / 0.25 of the last; 0.8 of it
    assert found["coverage"] == pytest.approx({"0.5": 0.5, "0.8": (1 + 0.6) / 2, "0.9": (1 + 0.8) / 2})
    variances = [np.var([0.3, 0.5, 0.6], ddof=1), np.var([0.1, 0.2, 0.6], ddof=1)]
    errors = [1.4 / 3 - 0.4, 0.3 - 0.9]
    assert found["spread"] == pytest.approx(math.sqrt(np.mean(variances)))
    assert found["error"] == pytest.approx(math.sqrt(np.mean(np.square(errors))))
    assert found["spread_over_error"] == pytest.approx(
        math.sqrt(4 / 3 * np.mean(variances) / np.mean(np.square(errors)))
    )
    assert found["crps"] == float(crps(samples, truth))
    assert json.loads(json.dumps(found)) == found


def test_an_image_alone_has_the_same_numbers() -> None:
    samples, truth = sampled(4)
    every = calibration.of(samples, truth)
    assert every[3:5] == calibration.of(samples[:, 3:5], truth[3:5])
    assert all(sum(record["ranks"]) == math.prod(SHAPE) for record in every)


def test_saturated_pixels_are_calibrated_too() -> None:
    """Half of the values are clipped at white: they are all equal, and share the ranks above the others."""
    draws = torch.Generator().manual_seed(5)
    values = 1 + DEVIATION * torch.randn(9, 1, 1, 100, 100, generator=draws, dtype=torch.float64)
    (found,) = calibration.of(values[1:], values[0])
    shares = np.array(found["ranks"]) / 10_000
    assert (np.abs(shares - 1 / 9) < 4.5 * math.sqrt(1 / 9 * 8 / 9 / 10_000)).all()
    assert found["ranks"] == calibration.of(values[1:], values[0])[0]["ranks"]


def test_samples_without_an_error_have_no_ratio() -> None:
    truth = torch.full((1, 1, 2, 2), 0.5)
    (found,) = calibration.of(truth.expand(3, -1, -1, -1, -1), truth)
    assert found["spread_over_error"] is None and found["spread"] == found["error"] == 0
    assert calibration.pooled([found])["spread_over_error"] is None


def test_pooled_images_count_alike_whatever_their_size() -> None:
    (small,) = calibration.of(torch.full((2, 1, 1, 1, 1), 0.1), torch.full((1, 1, 1, 1), 0.5))
    (large,) = calibration.of(torch.full((2, 1, 1, 9, 9), 0.9), torch.full((1, 1, 9, 9), 0.5))
    found = calibration.pooled([small, large])
    assert found["ranks"] == [0.5, 0, 0.5] and found["images"] == 2
    assert found["intervals"]["crps"] == pytest.approx([0.4, 0.4]) and set(found["intervals"]) == {
        "crps", "coverage 0.5", "coverage 0.8", "coverage 0.9",
    }  # fmt: skip


def test_unusable_arguments_are_refused() -> None:
    samples, truth = torch.rand(3, 2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    with pytest.raises(UsageError, match=r"at least 2 samples .* got \(1, 2, 1, 4, 4\).* samples=16"):
        calibration.of(samples[:1], truth)
    with pytest.raises(UsageError, match="at least 2 samples"):
        calibration.of(samples[0], truth)
    with pytest.raises(UsageError, match=r"\(1, 1, 4, 4\) and \(2, 1, 4, 4\)"):
        calibration.of(samples[:, :1], truth)
    with pytest.raises(NumericalError, match="x holds NaN"):
        calibration.of(samples * torch.nan, truth)
    with pytest.raises(UsageError, match="equally many samples, got no image"):
        calibration.pooled([])
    two, three = calibration.of(samples[:2], truth), calibration.of(samples, truth)
    with pytest.raises(UsageError, match=r"equally many samples, got \[2, 3\]"):
        calibration.pooled(two + three)
