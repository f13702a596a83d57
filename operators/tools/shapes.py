"""Checks that every operator on images makes of what it is given."""

from __future__ import annotations

from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.operator import Shape


def channels_and_size(name: str, shape: Shape) -> tuple[int, int, int]:
    """(C, H, W), or UsageError."""
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError(f"{name}: shape {tuple(shape)} is not (channels, height, width), e.g. (3, 64, 64)")
    channels, height, width = shape
    return channels, height, width


def require_batch(name: str, x: Any) -> Shape:
    """The shape without the batch dimension of a (B, C, H, W) float tensor, or UsageError."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4:
        got = f"shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise UsageError(
            f"{name}: needs a tensor (batch, channels, height, width), got {got}; add a batch with x[None]"
        )
    if not x.is_floating_point():
        raise UsageError(f"{name}: needs floats in [0, 1], got {x.dtype}; convert with x.float() / 255")
    return tuple(x.shape[1:])
