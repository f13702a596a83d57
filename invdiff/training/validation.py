"""Validation: how well one call of `denoise` removes noise from images that training never saw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from invdiff.priors.base import Prior

SIGMAS = (5 / 255, 15 / 255, 25 / 255, 50 / 255, 100 / 255)


def denoising_psnr(
    prior: Prior, images: Iterable[torch.Tensor], sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> dict[float, float]:
    """Mean over images of 10 log10(1 / MSE) of denoise(x + sigma n, sigma), output clipped to [0, 1].

    images: (C, H, W) in [0, 1], of any sizes; the noise depends on (seed, position) alone.
    """
    totals = dict.fromkeys(sigmas, 0.0)
    count = 0
    with torch.inference_mode():
        for index, image in enumerate(images):
            noise = np.random.default_rng([seed, index]).standard_normal(tuple(image.shape), dtype=np.float32)
            x, n = image[None].to(prior.device), torch.from_numpy(noise)[None].to(prior.device)
            for sigma in sigmas:
                error = prior.denoise(x + sigma * n, sigma).clamp(0, 1) - x
                totals[sigma] += -10 * float(torch.log10(error.square().mean()))
            count += 1
    return {sigma: total / max(count, 1) for sigma, total in totals.items()}
