"""PSNR and SSIM of restored images, one number per image.

Protocol: both images are clipped to [0, 1] and compared as floats over all pixels and channels, without cropping and
without rounding to 8 bits. `eight_bit=True` rounds both to multiples of 1/255 first, which is what papers that evaluate
saved PNG files measure. Everything is computed in float64: a local variance is a difference of nearly equal numbers.

The super-resolution literature compares luma alone, and leaves out a border: `y_channel=True`, `border=n` pixels on every
side. Luma is the Y of ITU-R BT.601 in studio swing, the convention of MATLAB's rgb2ycbcr,

    Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255        R, G, B in [0, 1], Y in [16/255, 235/255], data range still 1

taken from the clipped (and, with eight_bit, rounded) colours, and not rounded again. Grey images are their own luma.

SSIM: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to
structural similarity", 2004, https://doi.org/10.1109/TIP.2003.819861, eq. 13 and section III-C: an 11 x 11 Gaussian
window of standard deviation 1.5 pixels, K1 = 0.01, K2 = 0.03, each channel averaged over the windows that lie inside
it. That equals skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
data_range=1, channel_axis=0).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from invdiff.errors import NumericalError, UsageError

WINDOW_RADIUS = 5
WINDOW_SIGMA = 1.5
WINDOW = 2 * WINDOW_RADIUS + 1
C1, C2 = 0.01**2, 0.03**2
LUMA = (65.481, 128.553, 24.966)
LUMA_OFFSET = 16.0


def psnr(
    x: torch.Tensor, reference: torch.Tensor, *, eight_bit: bool = False, y_channel: bool = False, border: int = 0
) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10(mean (x - reference)^2): (B,) float64, infinite for equal images.

    `x` and `reference` are real floats (B, C, H, W), nominally in [0, 1]. Raises UsageError for other or different
    shapes, and as `luma` and `cropped`; NumericalError for NaN or infinity.
    """
    return by_image(psnr_of, x, reference, eight_bit, y_channel, border)


def ssim(
    x: torch.Tensor, reference: torch.Tensor, *, eight_bit: bool = False, y_channel: bool = False, border: int = 0
) -> torch.Tensor:
    """Mean structural similarity index, (B,) float64 in [-1, 1]; 1 for equal images.

    `x` and `reference` are real floats (B, C, H, W), nominally in [0, 1], at least 11 x 11 pixels inside the border:
    below that no window lies inside the image, and a smaller window would be another measure. Raises UsageError for that
    and as `psnr`.
    """
    return by_image(ssim_of, x, reference, eight_bit, y_channel, border)


def by_image(
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    reference: torch.Tensor,
    eight_bit: bool,
    y_channel: bool,
    border: int,
) -> torch.Tensor:
    """measure(x, reference) of the images as the protocol compares them, the results of all images in one tensor.

    On a CPU one image after the other, which stays in the cache (a batch takes four times as long); elsewhere together.
    """
    check(x, reference)
    size = 1 if x.device.type == "cpu" else len(x)
    parts = []
    for image, truth in zip(x.split(size), reference.split(size), strict=True):
        pair = [cropped(clipped(part, eight_bit), border) for part in (image, truth)]
        parts.append(measure(*map(luma, pair)) if y_channel else measure(*pair))
    return torch.cat(parts)


def psnr_of(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """PSNR of images that are compared as they are, (B,)."""
    return -10 * (x - reference).square().mean(dim=(1, 2, 3)).log10()


def ssim_of(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """SSIM of float64 images that are compared as they are, (B,)."""
    if min(x.shape[2:]) < WINDOW:
        size = f"{x.shape[2]} x {x.shape[3]}"
        raise UsageError(f"SSIM needs images of at least {WINDOW} x {WINDOW} pixels, got {size}. Use psnr for smaller.")
    mean_x, mean_y, mean_xy = _local_mean(x), _local_mean(reference), _local_mean(x * reference)
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    variances = _local_mean(x.square() + reference.square()) - squares  # of x and of the reference, summed
    luminance = (2 * product + C1) / (squares + C1)
    contrast_structure = (2 * (mean_xy - product) + C2) / (variances + C2)
    return (luminance * contrast_structure).mean(dim=(1, 2, 3))


def luma(image: torch.Tensor) -> torch.Tensor:
    """Y, (B, 1, H, W), of colours (B, 3, H, W) in [0, 1]; grey as it is. Raises UsageError for other channel counts."""
    if image.shape[1] == 1:
        return image
    if image.shape[1] != 3:
        raise UsageError(
            f"the Y channel is that of RGB or grey images, got {image.shape[1]} channels; use y_channel=False"
        )
    weights = image.new_tensor(LUMA)[:, None, None]
    return ((weights * image).sum(1, keepdim=True) + LUMA_OFFSET) / 255


def cropped(image: torch.Tensor, border: int) -> torch.Tensor:
    """The image without `border` pixels on every side. Raises UsageError if nothing would be left."""
    height, width = image.shape[-2:]
    if int(border) != border or not 0 <= 2 * border < min(height, width):
        most = (min(height, width) - 1) // 2
        raise UsageError(f"border must be 0 to {most} whole pixels for images of {height} x {width}, got {border}")
    return image[..., border : height - border, border : width - border]


def crps(samples: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Continuous ranked probability score, averaged over pixels: (B,) float64 in [0, 1] units, smaller is better.

        (1 / n) sum_i |x_i - x| - 1 / (2 n (n - 1)) sum_ij |x_i - x_j|

    `samples` (n, B, C, H, W), `reference` (B, C, H, W). A proper score: among all distributions of a pixel the true
    posterior has the least expected one, and the estimator is unbiased for any n > 1 (Gneiting & Raftery 2007,
    https://doi.org/10.1198/016214506000001437, eq. 21; Ferro 2014, https://doi.org/10.1002/qj.2270). One sample, or
    several equal ones, score their mean absolute error. Raises as `psnr` does.
    """
    for sample in samples:
        check(sample, reference)
    n, truth = len(samples), clipped(reference)
    ordered = clipped(samples).sort(dim=0).values
    error = (ordered - truth).abs().mean(0)
    # sum_ij |x_i - x_j| = 2 sum_i (2 i - n + 1) x_(i), i = 0 .. n - 1, for the ordered x_(i)
    weights = 2 * torch.arange(n, dtype=ordered.dtype, device=ordered.device) - n + 1
    spread = torch.tensordot(weights, ordered, 1) / max(1, n * (n - 1))
    return (error - spread).mean(dim=(1, 2, 3))


def check(x: torch.Tensor, reference: torch.Tensor) -> None:
    """Raises UsageError unless both are float batches (B, C, H, W) of one shape, NumericalError for NaN or infinity."""
    if x.shape != reference.shape or x.ndim != 4 or x.numel() == 0:
        shapes = f"{tuple(x.shape)} and {tuple(reference.shape)}"
        raise UsageError(f"metrics compare two batches (B, C, H, W) of one shape, got {shapes}. Try x.expand_as(...).")
    for name, image in (("x", x), ("reference", reference)):
        if not image.is_floating_point():
            raise UsageError(
                f"metrics compare floats in [0, 1], but {name} is {image.dtype}. Try {name}.float() / 255."
            )
        if not image.isfinite().all():
            raise NumericalError(f"{name} holds NaN or infinity, so it has no PSNR or SSIM.")


def clipped(image: torch.Tensor, eight_bit: bool = False) -> torch.Tensor:
    """In float64, clipped to [0, 1]; with eight_bit, rounded to multiples of 1/255."""
    # Apple GPUs have no float64
    image = (image.cpu() if image.device.type == "mps" else image).double().clamp(0, 1)
    return (image * 255).round() / 255 if eight_bit else image


def _local_mean(image: torch.Tensor) -> torch.Tensor:
    """Gaussian-weighted mean over each window inside the image: (B, C, H, W) -> (B, C, H - 10, W - 10).

    A sum of shifted views, because float64 convolution on the CPU would copy the image once per weight.
    """
    weights = [math.exp(-0.5 * (k / WINDOW_SIGMA) ** 2) for k in range(-WINDOW_RADIUS, WINDOW_RADIUS + 1)]
    total = math.fsum(weights)
    for axis in (2, 3):
        size = image.shape[axis] - 2 * WINDOW_RADIUS
        mean = image.narrow(axis, 0, size) * (weights[0] / total)
        for shift, weight in enumerate(weights[1:], start=1):
            mean = mean.add_(image.narrow(axis, shift, size), alpha=weight / total)
        image = mean
    return image
