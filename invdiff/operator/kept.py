"""What was computed last, kept for who asks again: a loop whose every step needs the same transform of the same y."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

LARGEST = 2**22
"""Numbers in a tensor up to which it is worth its memory."""


def lasting(y: torch.Tensor) -> torch.Tensor:
    """y itself, after the promise that its numbers stay while it lives. Only then `Latest` keeps what is made of it: numpy
    can write to a tensor's memory without telling."""
    y.lasting = True  # type: ignore[attr-defined]
    return y


class Latest:
    """f(y) of the latest `lasting` y, while that tensor lives. It holds no y, and copies of it are empty. Threads may share
    it."""

    def __init__(self) -> None:
        self._latest: tuple[Callable[[], torch.Tensor | None], int, torch.Tensor] | None = None

    def of(self, y: torch.Tensor, f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """f(y). Tensors of inference mode, which do not tell when they are written to, and those with a gradient are
        computed each time."""
        if y.is_inference() or y.requires_grad or y.numel() > LARGEST or not getattr(y, "lasting", False):
            return f(y)
        latest = self._latest
        if latest is not None and latest[0]() is y and latest[1] == y._version:
            return latest[2]
        with torch.inference_mode(False), torch.no_grad():
            value = f(y)
        self._latest = weakref.ref(y), y._version, value
        return value

    def __reduce__(self) -> tuple[Any, ...]:
        return Latest, ()
