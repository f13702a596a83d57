"""What an operator keeps of its computations: tables for each shape, and the transform of the y of a run."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch

KEPT_SHAPES = 4
"""Shapes of each kind whose tables an operator keeps: the solvers ask for two or three at a time."""
LARGEST = 2**22
"""Numbers in a tensor up to which its transform is worth the memory."""


class Kept(dict[Any, Any]):
    """Values by key, the latest used last. Threads may share it: a value may be made twice, but all get the first one."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def of(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, by make() where there is none yet. Of keys (kind, shape), KEPT_SHAPES of a kind stay."""
        with self._lock:
            if key in self:
                self[key] = self.pop(key)
                return self[key]
        # Not under the lock, as make() asks for other keys. Tensors made in inference mode could not take part in autograd.
        with torch.inference_mode(False):
            value = make()
        with self._lock:
            value = self.setdefault(key, value)
            if isinstance(key, tuple):
                kin = [other for other in self if isinstance(other, tuple) and other[0] == key[0]]
                for old in kin[:-KEPT_SHAPES]:
                    del self[old]
        return value


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
