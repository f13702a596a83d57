"""PSNR and SSIM of restored images, one number per image.

Protocol: both images are clipped to [0, 1] and compared as floats over all pixels and channels, without cropping and
without rounding to 8 bits. `eight_bit=True` rounds both to multiples of 1/255 first, which is what papers that evaluate
saved PNG files measure. Everything is computed in float64: a local variance is a difference of nearly equal numbers.

SSIM: Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility to
structural similarity", 2004, https://doi.org/10.1109/TIP.2003.819861, eq. 13 and section III-C: an 11 x 11 Gaussian
window of standard deviation 1.5 pixels, K1 = 0.01, K2 = 0.03, each channel averaged over the windows that lie inside
it. That equals skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
data_range=1, channel_axis=0).
"""

from __future__ import annotations

import math

import torch

from invdiff.errors import NumericalError, UsageError

WINDOW_RADIUS = 5
WINDOW_SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def psnr(x: torch.Tensor, reference: torch.Tensor, *, eight_bit: bool = False) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, -10 log10(mean (x - reference)^2): (B,) float64, infinite for equal images.

    `x` and `reference` are real floats (B, C, H, W), nominally in [0, 1]. Raises UsageError for other or different
    shapes, NumericalError for NaN or infinity.
    """
    x, reference = _comparable(x, reference, eight_bit)
    return -10 * (x - reference).square().mean(dim=(1, 2, 3)).log10()


def ssim(x: torch.Tensor, reference: torch.Tensor, *, eight_bit: bool = False) -> torch.Tensor:
    """Mean structural similarity index, (B,) float64 in [-1, 1]; 1 for equal images.

    `x` and `reference` are real floats (B, C, H, W), nominally in [0, 1], at least 11 x 11 pixels: below that no window
    lies inside the image, and a smaller window would be another measure. Raises UsageError for that and for other or
    different shapes, NumericalError for NaN or infinity.
    """
    x, reference = _comparable(x, reference, eight_bit)
    window = 2 * WINDOW_RADIUS + 1
    if min(x.shape[2:]) < window:
        size = f"{x.shape[2]} x {x.shape[3]}"
        raise UsageError(f"SSIM needs images of at least {window} x {window} pixels, got {size}. Use psnr for smaller.")
    mean_x, mean_y = _local_mean(x), _local_mean(reference)
    variance_x = _local_mean(x.square()) - mean_x.square()
    variance_y = _local_mean(reference.square()) - mean_y.square()
    covariance = _local_mean(x * reference) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    contrast_structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return (luminance * contrast_structure).mean(dim=(1, 2, 3))


def crps(samples: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Continuous ranked probability score, averaged over pixels: (B,) float64 in [0, 1] units, smaller is better.

        (1 / n) sum_i |x_i - x| - 1 / (2 n (n - 1)) sum_ij |x_i - x_j|

    `samples` (n, B, C, H, W), `reference` (B, C, H, W). A proper score: among all distributions of a pixel the true
    posterior has the least expected one, and the estimator is unbiased for any n > 1 (Gneiting & Raftery 2007,
    https://doi.org/10.1198/016214506000001437, eq. 21; Ferro 2014, https://doi.org/10.1002/qj.2270). One sample, or
    several equal ones, score their mean absolute error. Raises as `psnr` does.
    """
    pairs = [_comparable(sample, reference, False) for sample in samples]
    n, truth = len(pairs), pairs[0][1]
    ordered = torch.stack([sample for sample, _ in pairs]).sort(dim=0).values
    error = (ordered - truth).abs().mean(0)
    # sum_ij |x_i - x_j| = 2 sum_i (2 i - n + 1) x_(i), i = 0 .. n - 1, for the ordered x_(i)
    weights = 2 * torch.arange(n, dtype=ordered.dtype, device=ordered.device) - n + 1
    spread = torch.tensordot(weights, ordered, 1) / max(1, n * (n - 1))
    return (error - spread).mean(dim=(1, 2, 3))


def _comparable(x: torch.Tensor, reference: torch.Tensor, eight_bit: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Both images checked, clipped to [0, 1] and in float64."""
    if x.shape != reference.shape or x.ndim != 4 or x.numel() == 0:
        shapes = f"{tuple(x.shape)} and {tuple(reference.shape)}"
        raise UsageError(f"metrics compare two batches (B, C, H, W) of one shape, got {shapes}. Try x.expand_as(...).")
    clipped = []
    for name, image in (("x", x), ("reference", reference)):
        if not image.is_floating_point():
            raise UsageError(
                f"metrics compare floats in [0, 1], but {name} is {image.dtype}. Try {name}.float() / 255."
            )
        if not image.isfinite().all():
            raise NumericalError(f"{name} holds NaN or infinity, so it has no PSNR or SSIM.")
        # Apple GPUs have no float64
        image = (image.cpu() if image.device.type == "mps" else image).double().clamp(0, 1)
        clipped.append((image * 255).round() / 255 if eight_bit else image)
    return clipped[0], clipped[1]


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
