"""Checks of images that come in and of what an operator answers."""

from __future__ import annotations

from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.operator.contract import Operator


def check_images(x: Any, what: str) -> torch.Tensor:
    """x itself if it is a finite floating-point tensor with a batch dimension. Raises UsageError otherwise."""
    if not isinstance(x, torch.Tensor):
        raise UsageError(f"{what} must be a torch tensor (B, C, H, W) in [0, 1], got {type(x).__name__}")
    if not x.is_floating_point():
        raise UsageError(f"{what} has dtype {x.dtype}; convert it to float in [0, 1], e.g. x.float() / 255")
    if x.ndim < 2 or x.numel() == 0:
        raise UsageError(f"{what} needs a batch dimension, e.g. (B, C, H, W); got shape {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise UsageError(
            f"{what} contains NaN or infinity; set those values to 0 and mask them with inpaint, or measure again"
        )
    return x


def check_answer(operator: Operator, y: Any) -> torch.Tensor:
    """y = A(x) itself if it is real and floating-point. Raises UsageError that tells the author of A what to return."""
    if not isinstance(y, torch.Tensor):
        raise UsageError(f"{operator}: A answers with a {type(y).__name__}; it must return one tensor (B, ...)")
    if y.is_complex():
        raise UsageError(
            f"{operator}: A answers with {y.dtype}, and solvers need real numbers; return the real and the imaginary part "
            f"as two channels (invdiff operators check {operator} says how)"
        )
    if not y.is_floating_point():
        raise UsageError(f"{operator}: A answers with {y.dtype}, which has no gradient; end it with .to(x.dtype)")
    return y
