"""An image against the truth where a measurement cannot tell it from its like: Fourier magnitudes.

|F x| is the same for x turned by 180 degrees, for -x, and for x moved inside a dark field.
"""

from __future__ import annotations

import torch

from invdiff.scores.metrics import psnr


def best_of_ambiguities(x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W), each image turned, moved (cyclically, to whole pixels) and with the sign that bring it nearest to
    the truth, of the same shape. All channels together."""
    best = x
    for turned in (x, x.flip((-2, -1))):
        for sign in (1, -1):
            moved = _registered(sign * turned, truth)
            better = psnr(moved, truth) > psnr(best, truth)
            best = torch.where(better.to(x.device)[:, None, None, None], moved, best)
    return best


def _registered(x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """x moved to where its correlation with the truth, and with that its nearness, is largest."""
    spectrum = torch.fft.fft2(truth.double()) * torch.fft.fft2(x.double()).conj()
    places = torch.fft.ifft2(spectrum).real.sum(1).flatten(1).argmax(1)
    width = x.shape[-1]
    return torch.stack(
        [
            image.roll((int(place) // width, int(place) % width), (-2, -1))
            for image, place in zip(x, places, strict=True)
        ]
    )
