"""Unconditional samples of a prior: the same reverse diffusion, without a measurement."""

from __future__ import annotations

from collections.abc import Callable

import torch

from invdiff.errors import NumericalError, UsageError
from invdiff.operator import Shape
from invdiff.priors.base import Prior
from invdiff.sampling import Noise, generator, noise_levels
from invdiff.solvers.base import Estimate
from invdiff.solvers.transitions import DDIM


def sample(
    prior: Prior,
    shape: Shape,
    count: int = 1,
    *,
    steps: int = 100,
    eta: float = 1.0,
    spacing: str = "timestep",
    seed: int = 0,
    batch_size: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """(count, *shape) samples by DDIM steps (eta = 1: ancestral, Ho et al. 2020; eta = 0: Song, Meng, Ermon 2021).

    shape: (C, H, W). Sample k depends on (seed, k) alone. Not clipped; [0, 1] units. `advance` is called after each step.
    Raises UsageError for impossible counts or shapes, NumericalError on NaN or infinity.
    """
    if count < 1 or batch_size < 1:
        raise UsageError(f"count and batch size must be at least 1, got {count} and {batch_size}")
    if not 0 <= eta <= 1:
        raise UsageError(f"eta must lie in [0, 1], got {eta}")
    prior.check_shape(shape)
    levels = noise_levels(steps, prior.sigma_max, prior.sigma_min, spacing, getattr(prior, "schedule", None))
    transition = DDIM(eta)
    results = []
    with torch.no_grad():
        for first in range(0, count, batch_size):
            keys = range(first, min(first + batch_size, count))
            like = torch.zeros((), device=prior.device)
            noise = Noise([generator(seed, "sample", key) for key in keys], shape, like)
            x = 0.5 + levels[0] * noise()
            for sigma, next_sigma in zip(levels, [*levels[1:], 0.0], strict=True):
                clean = prior.denoise(x, sigma)
                x = transition(x, Estimate(clean, clean), sigma, next_sigma, noise)
                if not torch.isfinite(x).all():
                    raise NumericalError(f"sampling: NaN or infinity at sigma {sigma:.4g}; try --precision fp32")
                advance()
            results.append(x.cpu())
    return torch.cat(results)
