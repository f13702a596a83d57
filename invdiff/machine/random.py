"""The random numbers of a run: one generator for each sample, and the normal and uniform numbers drawn from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from invdiff.errors import UsageError
from invdiff.machine.draws_ahead import Ahead


def generator(seed: int, image: str | int, sample: int) -> torch.Generator:
    """The random generator of one sample of one image, on the CPU whatever the device. Its numbers depend on these three
    arguments alone, not on the batch or the order.

    Raises UsageError for a negative seed.
    """
    if int(seed) != seed or seed < 0:
        raise UsageError(f"seed must be a whole number, 0 or more, got {seed}")
    digest = hashlib.sha256(f"{int(seed)}/{image}/{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Draws:
    """The random numbers of a run for a batch, drawn with one generator for each row (B of them)."""

    def __init__(self, generators: Sequence[torch.Generator], shape: tuple[int, ...], like: torch.Tensor) -> None:
        self._generators, self._shape, self._like = list(generators), tuple(shape), like
        self._ahead = Ahead(self._generators, like.dtype, like.device) if like.is_cuda else None

    def __call__(self) -> torch.Tensor:
        """(B, *shape) independent N(0, 1) numbers, `shape` being the image's shape given at construction."""
        return self.normal(*self._shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """(B, *shape) independent N(0, 1) numbers of any shape, such as the noise of a measurement or of many particles."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """(B, *shape) independent uniform numbers in [0, 1)."""
        return self._draw(torch.rand, shape)

    def sample(self, draw: Callable[[int, torch.Generator], torch.Tensor], count: int = 1) -> torch.Tensor:
        """(B * count, ...): `count` samples for each row from draw(count, generator), such as a prior's `sample`."""
        if self._ahead:
            self._ahead.undo()
        return torch.cat([draw(count, g) for g in self._generators])

    def _draw(self, make: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        if self._ahead:
            return self._ahead(make, tuple(shape))
        rows = [make(shape, generator=g, dtype=self._like.dtype, device=g.device) for g in self._generators]
        return (rows[0][None] if len(rows) == 1 else torch.stack(rows)).to(self._like.device)
