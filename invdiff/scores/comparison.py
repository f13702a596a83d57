"""A degraded and a restored image compared with the truth, for `restore --reference`, `demo` and the benchmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from invdiff.errors import UsageError

if TYPE_CHECKING:
    import torch

    from invdiff.operator.contract import Operator


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
    from invdiff.scores.metrics import psnr, ssim

    large_enough = min(x.shape[-2:]) >= 11
    similarity = float(ssim(x[None], truth[None])) if large_enough else None
    return Score(float(psnr(x[None], truth[None])), similarity)


def as_image(y: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor | None:
    """A measurement y seen as an image (C, h, w) beside one of this shape (C, H, W); grey becomes colour where C asks.

    Sampled coarser (h, w the same whole fraction of H, W): enlarged to H x W by bicubic interpolation. Slightly smaller
    (boundary=valid): as it is, the centre window that `window` cuts out of the truth. None if y is no picture of the
    scene (a vector, a spectrum, a sinogram).
    """
    from torch.nn import functional

    if y.ndim != 3 or y.shape[0] not in (1, shape[0]) or not y.is_floating_point():
        return None
    if y.shape[0] == 1:
        y = y.expand(shape[0], -1, -1)
    (height, width), (full_height, full_width) = y.shape[1:], shape[1:]
    if full_height % height == 0 and full_width % width == 0 and full_height // height == full_width // width:
        size = (full_height, full_width)
        return y if size == (height, width) else functional.interpolate(y[None], size=size, mode="bicubic")[0]
    # a kernel wider than half the image leaves too little to call it the same picture
    slightly = full_height / 2 < height <= full_height and full_width / 2 < width <= full_width
    return y if slightly else None


def window(truth: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The part of the truth (C, H, W) that a picture (C, h, w) shows: its centre, from row (H - h) // 2 on."""
    top, left = ((full - part) // 2 for full, part in zip(truth.shape[1:], shape[1:], strict=True))
    return truth[:, top : top + shape[1], left : left + shape[2]]


def compare(y: torch.Tensor, restored: torch.Tensor, truth: torch.Tensor) -> Comparison:
    """y (measurement shape) and restored (C, H, W) against the truth (C, H, W)."""
    degraded = as_image(y, tuple(restored.shape))
    before = None if degraded is None else score(degraded, window(truth, tuple(degraded.shape)))
    return Comparison(before, score(restored, truth))


def fit_reference(
    reference: torch.Tensor, shape: tuple[int, ...], operator: Operator
) -> tuple[torch.Tensor, list[str]]:
    """The reference (C, H, W) in the restored image's shape, with notes on what was done to it.

    Grey and colour are matched; a larger reference is cropped at the bottom and right exactly as `degrade` crops.
    Raises UsageError for any other size.
    """
    from invdiff.files.images import fit_channels

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
