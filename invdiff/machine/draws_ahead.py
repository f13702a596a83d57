"""Random numbers for an accelerator, drawn by the processor while the accelerator computes.

Numbers are drawn by the processor on every device, so that a result does not depend on the device. A GPU denoises sixteen
images of 256 x 256 in the time in which one processor core draws the noise of three. So the rows are drawn in parallel, each
by its own generator, and those of the next step already during the running one. Numbers drawn in advance are used if the
next request asks for them; otherwise the generators' states are restored, so that the numbers are always those of drawing
on demand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import torch

from invdiff.machine.threads import cores

LARGEST = 2**26
"""How many numbers are drawn in advance at most: they take pinned memory, which the system does not get back."""

Make = Callable[..., torch.Tensor]
Wanted = tuple[Make, tuple[int, ...]]


class Ahead:
    """Draws make(shape, generator=g) with each generator, and copies the rows to a device. pinned: draw into memory from
    which a GPU copies without waiting."""

    def __init__(
        self, generators: Sequence[torch.Generator], dtype: torch.dtype, device: torch.device, pinned: bool = True
    ) -> None:
        self._generators, self._dtype, self._device, self._pinned = list(generators), dtype, device, pinned
        self._last: Wanted | None = None
        self._next: tuple[Wanted, list[torch.Tensor], torch.Tensor, list[Future[torch.Tensor]]] | None = None

    def __call__(self, make: Make, shape: tuple[int, ...]) -> torch.Tensor:
        """(rows, *shape) on the device."""
        wanted = (make, tuple(shape))
        rows = self._take(wanted)
        if rows is None:
            rows, futures = self._start(wanted)
            _wait(futures)
        result = rows.to(self._device, non_blocking=self._pinned)
        if (
            wanted == self._last and rows.numel() <= LARGEST
        ):  # the same request twice in a row: most likely it comes again
            states = [g.get_state() for g in self._generators]
            self._next = (wanted, states, *self._start(wanted))
        self._last = wanted
        return result

    def undo(self) -> None:
        """Drop the numbers drawn in advance, and give the generators the states they had before."""
        if self._next is not None:
            _, states, _, futures = self._next
            self._next = None
            _wait(futures)
            for generator, state in zip(self._generators, states, strict=True):
                generator.set_state(state)

    def _take(self, wanted: Wanted) -> torch.Tensor | None:
        if self._next is None:
            return None
        if self._next[0] != wanted:
            self.undo()
            return None
        _, _, rows, futures = self._next
        self._next = None
        _wait(futures)
        return rows

    def _start(self, wanted: Wanted) -> tuple[torch.Tensor, list[Future[torch.Tensor]]]:
        make, shape = wanted
        with torch.inference_mode(False):  # the drawing threads are not in the caller's inference mode
            rows = torch.empty((len(self._generators), *shape), dtype=self._dtype, pin_memory=self._pinned)
        pool = _threads()
        return rows, [pool.submit(make, shape, generator=g, out=r) for g, r in zip(self._generators, rows, strict=True)]


def _wait(futures: Sequence[Future[torch.Tensor]]) -> None:
    for future in futures:
        future.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), "noise")
