"""Priors as deepinv denoisers, and deepinv denoisers as priors; images and sigma in [0, 1] units on both sides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.priors.prior import Prior, Sigma, per_sample
from invdiff.priors.stored.environment import explain_import_failure


class DeepinvPrior(Prior):
    """Any deepinv `Denoiser`, or any callable denoiser(x, sigma), as a prior E[x_0 | x_0 + sigma n = x].

    denoiser: takes x (B, C, H, W) near [0, 1] and sigma, a float or (B,). Modules with parameters are put in evaluation
        mode, frozen, and given x in the dtype of their parameters.
    channels: number of channels it was made for, None if any; sigma_min, sigma_max: the noise levels it was made for,
        which samplers use as their end and start.
    """

    sigma_max: float
    sigma_min: float

    def __init__(
        self,
        denoiser: Callable[..., torch.Tensor],
        channels: int | None = None,
        sigma_min: float = Prior.sigma_min,
        sigma_max: float = Prior.sigma_max,
    ) -> None:
        if not callable(denoiser):
            raise UsageError(f"denoiser must be callable as denoiser(x, sigma), got {type(denoiser).__name__}")
        if not 0 < sigma_min < sigma_max:
            raise UsageError(f"a prior needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        if isinstance(denoiser, torch.nn.Module):
            denoiser.eval().requires_grad_(False)
        self.denoiser = denoiser
        self.channels = channels
        self.sigma_min: float = float(sigma_min)
        self.sigma_max: float = float(sigma_max)
        # Four standard deviations of a natural image; denoisers made for photographs rarely know more noise than that.
        self.sigma_start: float | None = min(1.0, self.sigma_max)

    def _parameter(self) -> torch.Tensor | None:
        return next(self.denoiser.parameters(), None) if isinstance(self.denoiser, torch.nn.Module) else None

    @property
    def device(self) -> torch.device:
        parameter = self._parameter()
        return torch.device("cpu") if parameter is None else parameter.device

    def to(self, device: torch.device | str) -> DeepinvPrior:
        """Move the denoiser, where it is a module; returns self."""
        if isinstance(self.denoiser, torch.nn.Module):
            self.denoiser.to(device)
        return self

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """The denoiser's answer in x's dtype. Raises UsageError for sigma <= 0 and for wrong shapes."""
        self.check_shape(x.shape[1:])
        levels = per_sample(sigma, x).reshape(-1)
        parameter = self._parameter()
        dtype = x.dtype if parameter is None else parameter.dtype
        level = levels.to(dtype).expand(x.shape[0]) if isinstance(sigma, torch.Tensor) else float(sigma)
        clean = self.denoiser(x.to(dtype), level)
        if not isinstance(clean, torch.Tensor) or clean.shape != x.shape:
            got = tuple(clean.shape) if isinstance(clean, torch.Tensor) else type(clean).__name__
            raise UsageError(
                f"the denoiser must return an image of the shape it was given, {tuple(x.shape)}, got {got}"
            )
        return clean.to(x.dtype)

    def describe(self) -> dict[str, Any]:
        kind = type(self.denoiser)
        return {**super().describe(), "denoiser": f"{kind.__module__}.{kind.__qualname__}"}


def is_deepinv_denoiser(candidate: Any) -> bool:
    """True for an instance of a class that descends from deepinv's Denoiser; deepinv is not imported to find out."""
    return any(c.__module__.startswith("deepinv.") and c.__name__ == "Denoiser" for c in type(candidate).__mro__)


def as_deepinv_denoiser(prior: Prior) -> Any:
    """An instance of `deepinv.models.Denoiser` that answers with this prior.

    Called as denoiser(x, sigma): sigma a number, or a tensor or list of one or B numbers in any shape; where it is 0
    the answer is x. A prior's network is its submodule, so `.to(device)` and `.parameters()` reach it.
    """
    return _denoiser_class()(prior)


@functools.cache
def _denoiser_class() -> type:
    """The class is made on first use, because deepinv costs seconds to import."""
    with explain_import_failure():
        from deepinv.models.base import Denoiser

    class PriorDenoiser(Denoiser):
        """A Prior as a deepinv denoiser."""

        def __init__(self, prior: Prior) -> None:
            super().__init__(device=prior.device)
            self.prior = prior
            inner = getattr(prior, "network", getattr(prior, "denoiser", None))
            if isinstance(inner, torch.nn.Module):
                self.network = inner

        def forward(self, x: torch.Tensor, sigma: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            return denoise_from_zero(self.prior, x, sigma)

    return PriorDenoiser


def denoise_from_zero(prior: Prior, x: torch.Tensor, sigma: Any) -> torch.Tensor:
    """prior.denoise(x, sigma) for sigma >= 0 in every form that deepinv passes; E[x_0 | x] = x where sigma = 0."""
    if not isinstance(sigma, torch.Tensor):
        sigma = torch.as_tensor(np.asarray(sigma, dtype=np.float64))
    levels = sigma.detach().to(torch.float64 if sigma.device.type != "mps" else sigma.dtype).reshape(-1)
    if levels.numel() not in (1, x.shape[0]):
        raise UsageError(f"sigma needs one value, or one per image ({x.shape[0]}), got {levels.numel()}")
    noisy = levels > 0
    if noisy.all():
        return prior.denoise(x, levels)
    if not (levels >= 0).all():
        raise UsageError(f"sigma must be zero or more, got {float(levels.min()):.6g}")
    if not noisy.any():
        return x.clone()
    clean = prior.denoise(x, torch.where(noisy, levels, levels[noisy].min()))
    return torch.where(noisy.to(x.device).reshape(-1, *([1] * (x.ndim - 1))), clean, x)
