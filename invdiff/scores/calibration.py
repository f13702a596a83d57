"""Whether posterior samples are spread as they err, where the truth is known: ranks, coverage, spread over error, CRPS.

n samples of the true posterior and the true pixel value are n + 1 draws of the same distribution, so that

    the rank of the truth among the samples is uniform on 0 .. n        (T. M. Hamill, "Interpretation of Rank Histograms for
                                                                         Verifying Ensemble Forecasts", 2001)
    E[(mean - truth)^2] = (1 + 1/n) E[variance of the samples]          (V. Fortin, M. Abaza, F. Anctil, R. Turcotte, "Why
                                                                         Should Ensemble Spread Match the RMSE of the
                                                                         Ensemble Mean?", 2014)

Many ranks at both ends, too little coverage and spread_over_error below 1 show that the samples are too narrow, or
biased; the opposites that they are too wide. Pixels of an image depend on each other, so that the errors of these
scores come from the spread over many images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.machine.random import generator
from invdiff.scores import metrics
from invdiff.scores.statistics import mean_interval

LEVELS = (0.5, 0.8, 0.9)


def of(samples: torch.Tensor, truth: torch.Tensor) -> list[dict[str, Any]]:
    """The calibration of each image's samples, as plain numbers:

    coverage: share of the pixel values inside the central intervals, by level ("0.5", "0.8", "0.9"), see `coverage`;
    spread: root mean square over the pixels of the samples' standard deviation; error: that of mean - truth;
    spread_over_error: sqrt(1 + 1/n) spread / error, about 1 if calibrated, None where the error is 0; crps: `metrics.crps`;
    ranks: n + 1 counts, how many pixel values have 0, 1, ... n samples below the truth.

    samples: (n, B, C, H, W), n >= 2; truth: (B, C, H, W); floats in [0, 1] units, clipped like all that is scored.
    Equal values (saturated pixels) get a random rank among themselves, always the same one. Raises UsageError for other
    shapes and fewer samples, NumericalError for NaN.
    """
    n = _checked(samples, truth)
    found = []
    for image in range(len(truth)):
        x, true = metrics.clipped(samples[:, image]), metrics.clipped(truth[image])
        counts = np.bincount(ranks(x, true).flatten().numpy(), minlength=n + 1)
        spread = float(x.var(0).mean().sqrt())
        error = float((x.mean(0) - true).square().mean().sqrt())
        found.append(
            {
                "coverage": coverage(counts),
                "spread": spread,
                "error": error,
                "spread_over_error": _ratio(spread, error, n),
                "crps": float(metrics.crps(samples[:, image : image + 1], truth[image : image + 1])),
                "ranks": counts.tolist(),
            }
        )
    return found


def pooled(records: Sequence[Mapping[str, Any]], level: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """The records of `of` of several images pooled, with equal weights: the same keys, with

    coverage, crps: mean over the images; spread, error: root mean square; ranks: shares of the n + 1 ranks, summing to 1;
    images: how many; intervals: {"crps", "coverage 0.5", ...: [low, high]}, by bootstrap over the images.
    Raises UsageError for no records, or for records of different numbers of samples.
    """
    lengths = sorted({len(record["ranks"]) for record in records})
    if len(lengths) != 1:
        raise UsageError(
            f"calibration is pooled over images with equally many samples, got {[n - 1 for n in lengths] or 'no image'}"
        )
    n = lengths[0] - 1
    shares = [np.asarray(record["ranks"]) / sum(record["ranks"]) for record in records]
    spread, error = (math.sqrt(np.mean([record[key] ** 2 for record in records])) for key in ("spread", "error"))
    columns = {f"coverage {key}": [record["coverage"][key] for record in records] for key in records[0]["coverage"]}
    columns["crps"] = [record["crps"] for record in records]
    found = {name: mean_interval(values, level, seed) for name, values in columns.items()}
    return {
        "images": len(records),
        "coverage": {key: found[f"coverage {key}"].mean for key in records[0]["coverage"]},
        "spread": spread,
        "error": error,
        "spread_over_error": _ratio(spread, error, n),
        "crps": found["crps"].mean,
        "ranks": np.mean(shares, 0).tolist(),
        "intervals": {name: [interval.low, interval.high] for name, interval in found.items()},
    }


def ranks(samples: torch.Tensor, truth: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """How many of the n samples (n, ...) lie below the truth (...), 0 .. n; among equal values a random place."""
    below, equal = (samples < truth).sum(0), (samples == truth).sum(0)
    u = torch.rand(truth.shape, generator=generator(seed, "ranks", 0), dtype=torch.float64).to(truth.device)
    return (below + (u * (equal + 1)).floor().long()).cpu()


def coverage(counts: Sequence[int] | np.ndarray, levels: Sequence[float] = LEVELS) -> dict[str, float]:
    """The share of truths inside the central interval of each level, from the counts of their n + 1 ranks.

    n samples cut the probability into n + 1 equal parts, and the interval holds some of them whole and two in part: a truth
    there counts in part. Samples of the true posterior are thus covered exactly as often as the level says, on average, for
    every n, which an interval between quantiles of n samples is not. A level above (n - 1) / (n + 1) ends inside the two
    outermost parts, and shows a wrong spread less sharply: 0.9 asks for 19 samples.
    """
    shares = np.asarray(counts, dtype=np.float64) / np.sum(counts)
    edges = np.linspace(0, 1, len(shares) + 1)
    found = {}
    for level in levels:
        low, high = (1 - level) / 2, (1 + level) / 2
        inside = (np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)).clip(0) * len(shares)
        found[f"{level:g}"] = float(shares @ inside)
    return found


def _ratio(spread: float, error: float, n: int) -> float | None:
    return math.sqrt(1 + 1 / n) * spread / error if error > 0 else None


def _checked(samples: torch.Tensor, truth: torch.Tensor) -> int:
    if samples.ndim != truth.ndim + 1 or len(samples) < 2:
        raise UsageError(
            "calibration needs at least 2 samples (n, B, C, H, W) of images (B, C, H, W), got "
            f"{tuple(samples.shape)} and {tuple(truth.shape)}; ask restore for samples=16"
        )
    for sample in samples:
        metrics.check(sample, truth)
    return len(samples)
