"""Comparing a degraded and a restored image with the truth: for `restore --reference` and `demo`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from invdiff.errors import UsageError

if TYPE_CHECKING:
    import torch

    from invdiff.operator import Operator


@dataclass(frozen=True)
class Score:
    """PSNR in dB, and SSIM (None for images below 11 x 11 pixels)."""

    psnr: float
    ssim: float | None


@dataclass(frozen=True)
class Comparison:
    """before: the degraded image seen as an image (None where it is none); after: the restoration."""

    before: Score | None
    after: Score

    def __str__(self) -> str:
        columns = [("PSNR", "psnr", "{:.2f}", " dB"), ("SSIM", "ssim", "{:.3f}", "")]
        parts = []
        for title, name, form, unit in columns:
            values = [getattr(score, name) for score in (self.before, self.after) if score is not None]
            if None not in values:
                parts.append(f"{title} {' -> '.join(form.format(value) for value in values)}{unit}")
        return ", ".join(parts)

    def record(self) -> dict[str, Any]:
        """Plain data for the provenance."""
        scores = {"degraded": self.before, "restored": self.after}
        return {
            name: None if score is None else {"psnr": _rounded(score.psnr), "ssim": _rounded(score.ssim)}
            for name, score in scores.items()
        }


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else value


def score(x: torch.Tensor, truth: torch.Tensor) -> Score:
    """PSNR and SSIM of one image (C, H, W) against the truth of the same shape."""
    from invdiff.evaluation.metrics import psnr, ssim

    large_enough = min(x.shape[-2:]) >= 11
    similarity = float(ssim(x[None], truth[None])) if large_enough else None
    return Score(float(psnr(x[None], truth[None])), similarity)


def as_image(y: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """A measurement y seen as an image (C, H, W) of this shape: as it is, or enlarged by bicubic interpolation, or grey
    for colour. None if y is no picture of the scene (a spectrum, a sinogram)."""
    from torch.nn import functional

    if y.ndim != 3 or y.shape[0] not in (1, shape[0]) or not y.is_floating_point():
        return None
    if y.shape[0] == 1:
        y = y.expand(shape[0], -1, -1)
    if tuple(y.shape) == tuple(shape):
        return y
    vertical, horizontal = shape[1] / y.shape[1], shape[2] / y.shape[2]
    if vertical < 1 or not math.isclose(vertical, horizontal, rel_tol=0.02):
        return None
    return functional.interpolate(y[None], size=tuple(shape[1:]), mode="bicubic", align_corners=False)[0]


def compare(y: torch.Tensor, restored: torch.Tensor, truth: torch.Tensor) -> Comparison:
    """y (C', H', W') and restored (C, H, W) against the truth (C, H, W)."""
    degraded = as_image(y, tuple(restored.shape))
    return Comparison(None if degraded is None else score(degraded, truth), score(restored, truth))


def fit_reference(
    reference: torch.Tensor, shape: tuple[int, ...], operator: Operator
) -> tuple[torch.Tensor, list[str]]:
    """The reference (C, H, W) in the restored image's shape, with notes on what was done to it.

    Grey and colour are matched; a larger reference is cropped at the bottom and right exactly as `degrade` crops.
    Raises UsageError for any other size.
    """
    from invdiff.images import fit_channels

    notes = []
    if reference.shape[0] != shape[0]:
        notes.append(f"the reference was converted from {reference.shape[0]} to {shape[0]} channel(s)")
        reference = fit_channels(reference, shape[0])
    if tuple(reference.shape) != tuple(shape):
        usable = tuple(operator.usable_shape(tuple(reference.shape)))
        if usable != tuple(shape):
            raise UsageError(
                f"the reference has {_pixels(reference.shape)} pixels, the restored image {_pixels(shape)}; "
                "give the original that this measurement was made from"
            )
        notes.append(f"the reference was cropped from {_pixels(reference.shape)} to {_pixels(shape)} pixels")
        reference = reference[:, : shape[1], : shape[2]]
    return reference, notes


def _pixels(shape: Any) -> str:
    return f"{shape[-2]} x {shape[-1]}"
