"""Values from one map, derivatives from another: for maps that are constant almost everywhere, such as rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def straight_through(
    exact: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, smooth: torch.Tensor
) -> torch.Tensor:
    """exact(x), whose derivatives (reverse and forward mode) are those of `smooth`, a function of x of the same shape.

    (Bengio, Leonard, Courville 2013, https://arxiv.org/abs/1308.3432.) exact sees a plain tensor, so it may leave torch.
    """
    result: torch.Tensor = _StraightThrough.apply(smooth, x, exact)
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(smooth: torch.Tensor, x: torch.Tensor, exact: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return exact(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0], None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        tangent: torch.Tensor = tangents[0]
        return tangent.clone()
