"""A prior that counts its calls."""

from __future__ import annotations

import torch

from invdiff.priors.prior import Prior, Sigma, WrappedPrior


class CountedPrior(WrappedPrior):
    """A prior that counts its calls: the number of function evaluations (NFE) for each of `rows` samples."""

    images: int

    def __init__(self, prior: Prior, rows: int = 1) -> None:
        super().__init__(prior)
        self.rows = rows
        self.images = 0

    @property
    def calls(self) -> int:
        """Network calls for each sample, on average, rounded up: all particles of a population count."""
        return -(-self.images // self.rows)

    @property
    def can_sample(self) -> bool:  # type: ignore[override]
        return self.prior.can_sample

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.prior.sample(count, generator)

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        self.images += len(x)
        return self.prior.denoise(x, sigma)
