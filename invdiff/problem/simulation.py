"""Simulated measurements: y = A(x) + noise, for images that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.machine.random import generator
from invdiff.noise import noise_model
from invdiff.operator.checks import check_answer, check_images
from invdiff.operators import resolve_operator


def degrade(
    x: torch.Tensor, operator: Any, noise: Any = 0.05, seed: int = 0, ids: Sequence[str | int] | None = None
) -> torch.Tensor:
    """y = A(x) + sigma_y z, or A(x) seen through another noise model, for images x (B, C, H, W) in [0, 1]; not clipped.

    operator: an Operator, a name or spec, or a deepinv Physics. noise: sigma_y in [0, 1] units, 0 allowed, or a noise
    model's spec ("poisson:gain=0.02"). The noise depends on (seed, id) alone; ids default to the position in the batch.
    Raises UsageError if the operator cannot take images of this shape, or the model no measurement like A(x).
    """
    check_images(x, "the image x")
    operator = resolve_operator(operator)
    model = noise_model(noise, zero=True)
    operator.measurement_shape(tuple(x.shape[1:]))
    generators = [generator(seed, f"{key}/measurement", 0) for key in check_ids(ids, x.shape[0])]
    z = check_answer(operator, operator.A(x))
    y = model.sample(z, generators)
    mask = operator.observed(tuple(x.shape[1:]))
    return y if mask is None else torch.where(mask.to(y) > 0, y, z)


def check_ids(ids: Sequence[str | int] | None, count: int) -> list[str | int]:
    """The names of `count` images, by which random numbers are keyed: `ids`, or their positions. Raises UsageError for two
    images of one name."""
    keys: list[str | int] = list(range(count)) if ids is None else list(ids)
    if len(keys) != count or len(set(keys)) != count:
        raise UsageError(f"ids must be {count} different names, one for each image, got {len(keys)}")
    return keys
