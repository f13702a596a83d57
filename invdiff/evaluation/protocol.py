"""The protocol of an evaluation: how restored images are scored, declared once for all of its numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from invdiff.errors import unknown
from invdiff.specs.parameters import parameter, truth, validate, whole

if TYPE_CHECKING:
    import torch

PERCEPTUAL = ("lpips", "lpips_vgg", "dists", "fid")


def metric_names(value: Any) -> tuple[str, ...]:
    """names of perceptual metrics, such as lpips,dists"""
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    for name in names:
        if name not in PERCEPTUAL:
            raise unknown("perceptual metric", name, PERCEPTUAL)
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Protocol:
    """How restored images are scored. Raises UsageError for a value that cannot be used, naming it and the range."""

    eight_bit: bool = parameter(True, kind=truth, help="round both images to multiples of 1/255, as saved files are")
    y_channel: bool = parameter(False, kind=truth, help="also score the luma of ITU-R BT.601")
    border: int = parameter(0, kind=whole, low=0, unit="pixels", help="left out on every side for PSNR and SSIM")
    perceptual: tuple[str, ...] = parameter((), kind=metric_names, help="lpips, lpips_vgg, dists, fid")

    def __post_init__(self) -> None:
        validate(self, "protocol")

    def settings(self) -> dict[str, Any]:
        """All choices, as plain data."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"perceptual": list(self.perceptual)}

    def lines(self) -> list[str]:
        """The protocol in words, a sentence each, with the metrics that are not available and why."""
        rounding = "rounded to multiples of 1/255 (8 bits)" if self.eight_bit else "not rounded to 8 bits"
        border = f"without a border of {self.border} pixels on every side" if self.border else "over the whole image"
        lines = [
            "Images are floats in [0, 1]; sigma_y and all noise levels are standard deviations in that unit.",
            f"For every metric the restored image and the truth are clipped to [0, 1] and {rounding}.",
            f"PSNR = -10 log10 of the mean squared error of all pixels and channels, {border}: one number per image, "
            "then averaged over images.",
            "SSIM as by Wang et al. 2004: Gaussian window of 11 x 11 pixels, sigma 1.5, K1 0.01, K2 0.03, data range 1, no "
            f"sample covariance, mean over the channels, {border}; equal to scikit-image. Left out below 11 x 11 pixels.",
        ]
        if self.y_channel:
            lines.append(
                "psnr_y and ssim_y are of the Y of ITU-R BT.601 in studio swing (MATLAB's rgb2ycbcr), Y = (16 + 65.481 R + "
                "128.553 G + 24.966 B) / 255, not rounded, data range 1; grey images as they are."
            )
        lines.append(
            "Both the mean of the samples and the single samples are scored (single: the average of their scores); "
            "never the best of several."
        )
        return [*lines, *self._perceptual_lines()]

    def _perceptual_lines(self) -> list[str]:
        if not self.perceptual:
            return []
        from invdiff.scores import perceptual

        lines = []
        for name in self.perceptual:
            reason = perceptual.missing(name)
            how = "of the set of restored images from the set of truths" if name == "fid" else "of whole images"
            title = perceptual.KINDS[name].title
            lines.append(f"{title}: not available: {reason}" if reason else f"{title} {how}, by torchmetrics.")
        return lines

    def scores(self, x: torch.Tensor, truth: torch.Tensor) -> list[dict[str, float]]:
        """The metrics that the protocol asks for, of each image by name: psnr, ssim, psnr_y, ssim_y, lpips, ...

        x, truth: (B, C, H, W) floats in [0, 1] units. Left out are SSIM below 11 x 11 pixels inside the border, LPIPS and
        DISTS below 32 x 32 pixels or where they are not available, luma of images that are neither RGB nor grey, and FID,
        which belongs to a set of images (`perceptual.frechet_distance`). Raises as `metrics.psnr`.
        """
        import torch

        from invdiff.scores import metrics, perceptual

        settings = {"eight_bit": self.eight_bit, "border": self.border}
        bases = ["psnr", "ssim"] if min(x.shape[-2:]) - 2 * self.border >= metrics.WINDOW else ["psnr"]
        with torch.no_grad():
            found = {name: getattr(metrics, name)(x, truth, **settings) for name in bases}
            if self.y_channel and x.shape[1] in (1, 3):
                found |= {f"{name}_y": getattr(metrics, name)(x, truth, y_channel=True, **settings) for name in bases}
            if min(x.shape[-2:]) >= perceptual.SMALLEST and x.shape[1] in (1, 3):
                for name in self.perceptual:
                    if name in perceptual.PAIRS and not perceptual.missing(name):
                        found[name] = perceptual.distances(name, x, truth, eight_bit=self.eight_bit)
        return [
            dict(zip(found, row, strict=True))
            for row in zip(*(column.tolist() for column in found.values()), strict=True)
        ]
