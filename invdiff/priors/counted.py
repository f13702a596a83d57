"""A wrapper that counts the network calls of a prior."""

from __future__ import annotations

import torch

from invdiff.priors.prior import Prior, Sigma, WrappedPrior


class CountedPrior(WrappedPrior):
    """Counts the calls of a prior: the number of function evaluations (NFE) for each of `rows` samples."""

    images: int

    def __init__(self, prior: Prior, rows: int = 1) -> None:
        super().__init__(prior)
        self.rows = rows
        self.images: int = 0

    @property
    def calls(self) -> int:
        """Network calls for each sample, on average and rounded up, the particles of a population included."""
        return -(-self.images // self.rows)

    @property
    def can_sample(self) -> bool:  # type: ignore[override]
        return self.prior.can_sample

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.prior.sample(count, generator)

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        self.images += len(x)
        return self.prior.denoise(x, sigma)
