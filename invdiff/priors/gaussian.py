"""A Gaussian prior: the mixture of one component."""

from __future__ import annotations

from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.priors.spectrum import Spectrum, finite_tensor


class GaussianPrior(GaussianMixturePrior):
    """p(x_0) = N(mu, C): E[x_0 | x] = mu + C (C + sigma^2 I)^-1 (x - mu), and an exact posterior for any matrix.

    mean: (n,) or (C, H, W); covariance, on the flattened image: (n, n) matrix, (n,) diagonal or a variance.
    dtype: the dtype of the arithmetic inside. Methods, noise levels and errors are those of GaussianMixturePrior.
    """

    def __init__(self, mean: Any, covariance: Any, *, dtype: torch.dtype = torch.float64) -> None:
        mean = finite_tensor("mean", mean, dtype)
        if mean.ndim not in (1, 3) or mean.numel() == 0:
            raise UsageError(f"mean must be an (n,) vector or a (C, H, W) image, got shape {tuple(mean.shape)}")
        spectrum = Spectrum.of(covariance, 1, mean.numel(), dtype, name="covariance")
        self._set(tuple(mean.shape), mean.reshape(1, -1), spectrum, torch.zeros(1, dtype=dtype))
