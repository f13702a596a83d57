"""What was computed last, kept for who asks again: a loop whose every step needs the same transform of the same y."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

LARGEST = 2**22
"""Numbers in a tensor up to which it is worth its memory."""


class Latest:
    """f(y) of the latest y, while that tensor lives and nothing writes to it. It holds no y, and copies of it are empty."""

    def __init__(self) -> None:
        self._y: Callable[[], torch.Tensor | None] = lambda: None
        self._version, self._value = -1, torch.empty(0)

    def of(self, y: torch.Tensor, f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """f(y). Tensors of inference mode, which do not tell when they are written to, and those with a gradient are
        computed each time."""
        if y.is_inference() or y.requires_grad or y.numel() > LARGEST:
            return f(y)
        if self._y() is not y or self._version != y._version:
            with torch.inference_mode(False), torch.no_grad():
                self._value = f(y)
            self._y, self._version = weakref.ref(y), y._version
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return Latest, ()
