"""The contract of a prior: `denoise(x, sigma) = E[x_0 | x_0 + sigma n = x]`, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from invdiff.errors import UsageError
from invdiff.specs.registry import import_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from invdiff.diffusion.schedule import Schedule

Sigma = float | torch.Tensor


def per_sample(sigma: Sigma, x: torch.Tensor) -> torch.Tensor:
    """sigma as a tensor (B, 1, .., 1) or (1, .., 1) that broadcasts over x, in x's dtype and on its device.

    Raises UsageError unless sigma is a positive number or a tensor of B of them.
    """
    if isinstance(sigma, torch.Tensor):
        values = sigma.to(x.device, x.dtype)
    else:  # created on the device: a copy to an accelerator would wait until it has finished computing
        values = torch.full((1,), float(sigma), dtype=x.dtype, device=x.device)
    if values.numel() not in (1, x.shape[0]):
        raise UsageError(f"sigma needs one value, or one per image ({x.shape[0]}), got {values.numel()}")
    # The argument is checked, not its copy: reading that back from an accelerator would stall it.
    lowest = float(sigma.min()) if isinstance(sigma, torch.Tensor) else float(sigma)
    if not lowest > 0:
        raise UsageError(f"sigma must be positive, got {lowest:.6g}")
    return values.reshape(-1, *([1] * (x.ndim - 1)))


class Prior:
    """A prior is anything with `denoise(x, sigma)`; a subclass writes that one method.

    x: (B, ...) float tensor, images (B, C, H, W) with x_0 in [0, 1]; sigma: noise standard deviation in the same units,
    a float or a tensor (B,). A prior is callable, so it can stand where a denoiser(x, sigma) is expected.
    """

    channels: int | None = None
    """Number of channels the prior was made for, or None if it takes any."""

    sigma_max: float = 40.0
    """The largest noise level, in [0, 1] units, at which it is worth denoising: x_0 cannot be seen in x there."""

    sigma_start: float | None = None
    """The noise level at which solvers start by default, high enough to hide what y does not determine. None: sigma_max."""

    sigma_min: float = 1e-3
    """The smallest noise level at which the prior can still separate noise from image."""

    can_sample: bool = False
    """Whether `sample` draws from the prior itself, without a diffusion."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def coarse(self) -> bool:
        """Whether the answers are rounded to half precision, so that computations on them need no more digits than that."""
        return False

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """E[x_0 | x_0 + sigma n = x], same shape and dtype as x; differentiable in x."""
        raise NotImplementedError

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count, *shape) draws from the prior, where `can_sample`; generator: a CPU torch.Generator."""
        raise UsageError(f"{type(self).__name__} cannot be sampled directly; use `invdiff sample`")

    def epsilon(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """E[n | x] = (x - denoise(x, sigma)) / sigma."""
        return (x - self.denoise(x, sigma)) / per_sample(sigma, x)

    def score(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """grad_x log p_sigma(x) = (denoise(x, sigma) - x) / sigma^2  (Tweedie; Efron 2011)."""
        return (self.denoise(x, sigma) - x) / per_sample(sigma, x) ** 2

    def __call__(self, x: torch.Tensor, sigma: Sigma, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.denoise(x, sigma)

    def to_deepinv(self) -> Any:
        """A `deepinv.models.Denoiser` (a torch module) that answers with this prior."""
        # Imported by name, because that module imports this one.
        return import_target("invdiff.priors.deepinv_denoiser:as_deepinv_denoiser")(self)

    def describe(self) -> dict[str, Any]:
        """What identifies this prior in a provenance record."""
        return {"class": type(self).__name__, "channels": self.channels}

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise UsageError if images of this (C, H, W) shape are not what the prior was made for."""
        if self.channels is not None and shape[0] != self.channels:
            raise UsageError(
                f"this prior is for images of {self.channels} channel(s), the image has {shape[0]}; "
                "convert it, or choose a prior trained for it"
            )


class WrappedPrior(Prior):
    """A prior that wraps another one and has its noise levels, schedule, channels and device."""

    sigma_max: float
    sigma_min: float
    sigma_start: float | None

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.channels: int | None = prior.channels
        self.sigma_max, self.sigma_start, self.sigma_min = prior.sigma_max, prior.sigma_start, prior.sigma_min

    @property
    def schedule(self) -> Schedule | None:
        return getattr(self.prior, "schedule", None)

    @property
    def device(self) -> torch.device:
        return self.prior.device

    @property
    def coarse(self) -> bool:
        return self.prior.coarse


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
