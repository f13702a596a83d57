"""From a solution to lines of results.jsonl: the scores of each restored image, the same in every run."""

from __future__ import annotations

import math
from typing import Any

import torch

from invdiff.evaluation.protocol import Protocol
from invdiff.evaluation.suite import Cell
from invdiff.restoration.solution import Solution
from invdiff.scores import calibration
from invdiff.scores.comparison import as_image, window

DIGITS = 6
"""Decimals of the numbers written: 1e-6 dB."""


def result_lines(
    cell: Cell, solution: Solution, truth: torch.Tensor, y: torch.Tensor, protocol: Protocol
) -> list[dict[str, Any]]:
    """For each image of a batch its line, without the keys cell and image. truth (B, C, H, W), y (B, *measurement shape).

    The mean of the samples is scored, and under `single` the samples one by one, whose scores are averaged.
    """
    means = protocol.scores(solution.mean, truth)
    singles = means if len(solution.samples) == 1 else _average([protocol.scores(x, truth) for x in solution.samples])
    calibrations = calibration.of(solution.samples, truth) if cell.calibration else [{} for _ in means]
    lines = []
    for row, (mean, single, spread) in enumerate(zip(means, singles, calibrations, strict=True)):
        line: dict[str, Any] = {"shape": list(truth.shape[1:]), "before": _before(y[row], truth[row], protocol)}
        line |= mean | {"single": single}
        line |= {"residual": float(solution.residual[:, row].mean()), "nfe": solution.nfe, "solver": solution.solver}
        line |= {"noise": solution.sigma_y} | ({"calibration": spread} if spread else {})
        lines.append(plain(line))
    return lines


def _before(y: torch.Tensor, truth: torch.Tensor, protocol: Protocol) -> dict[str, float] | None:
    """The scores of the measurement itself, seen as an image; None where it is not one."""
    degraded = as_image(y, tuple(truth.shape))
    if degraded is None:
        return None
    return protocol.scores(degraded[None], window(truth, tuple(degraded.shape))[None])[0]


def _average(scores: list[list[dict[str, float]]]) -> list[dict[str, float]]:
    """Scores [sample][image] averaged over the samples: [image]."""
    return [
        {name: math.fsum(sample[image][name] for sample in scores) / len(scores) for name in scores[0][image]}
        for image in range(len(scores[0]))
    ]


def plain(value: Any) -> Any:
    """The value for JSON: floats rounded to DIGITS; an infinite PSNR, of equal images, becomes the text "inf"."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else str(value)
    return value
