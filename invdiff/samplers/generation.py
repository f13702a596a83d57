"""Unconditional samples of a prior: reverse diffusion without a measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from invdiff import samplers
from invdiff.errors import NumericalError, UsageError
from invdiff.machine.random import Draws, generator
from invdiff.operator.contract import Shape
from invdiff.priors.prior import CountedPrior, Prior, Sigma
from invdiff.samplers.sampler import Sampler


class Clipped(CountedPrior):
    """A prior of pictures in [0, 1], whose E[x_0 | x] lies there too: what a network says is put back into the range.

    That never adds error, and at high noise, where an epsilon network's own is multiplied by sigma, it takes most of it
    away (Ho et al. 2020 do so in their code).
    """

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        return super().denoise(x, sigma).clamp(0, 1)


def sample(
    prior: Prior,
    shape: Shape,
    count: int = 1,
    sampler: str | Sampler | None = None,
    *,
    seed: int = 0,
    batch_size: int = 1,
    clip: bool | None = None,
    advance: Callable[[], None] = lambda: None,
    **settings: Any,
) -> torch.Tensor:
    """(count, *shape) samples of the prior, in [0, 1] units.

    shape: (C, H, W). sampler: a name or spec of `invdiff.samplers`, such as "dpmpp" or "ddim:eta=0.5", or a Sampler;
    default: "ddim" where eta is set, else `samplers.DEFAULT`. settings: the sampler's, such as steps (the network calls
    for one sample, at most: heun takes two a step), spacing, eta. Sample k depends on (seed, k) alone. clip: whether
    E[x_0 | x] is kept in [0, 1]; default: for trained networks (priors with a noise schedule). `advance` is called once
    for each network call.
    Raises UsageError for impossible counts, shapes or settings, NumericalError on NaN or infinity.
    """
    if count < 1 or batch_size < 1:
        raise UsageError(f"count and batch size must be at least 1, got {count} and {batch_size}")
    method = samplers.get(sampler, **settings)
    prior.check_shape(shape)
    clip = getattr(prior, "schedule", None) is not None if clip is None else clip
    counted = Clipped(prior) if clip else CountedPrior(prior)
    levels = method.levels(counted)
    results = []
    with torch.no_grad():
        for first in range(0, count, batch_size):
            keys = range(first, min(first + batch_size, count))
            counted.rows = len(keys)
            like = torch.zeros((), device=prior.device)
            noise = Draws([generator(seed, "sample", key) for key in keys], shape, like)
            x = 0.5 + levels[0] * noise()
            for step in method.walk(counted, x, levels, noise):
                x = step.x
                if not torch.isfinite(x).all():
                    raise NumericalError(
                        f"{method.name}: NaN or infinity at sigma {step.sigma:.4g}; try --precision fp32 or more steps"
                    )
                for _ in range(counted.calls):
                    advance()
                counted.images = 0
            results.append(x.cpu())
    return torch.cat(results)
