"""DDPM noise schedules, exact in float64.

Discrete chain (Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2006.11239).
The time index runs t = 0 .. T-1, as in diffusers: index t is the paper's step t + 1, and "t = -1" is the clean image,
abar_{-1} = 1. Continuous limit: the VP-SDE (Song et al. 2021, https://arxiv.org/abs/2011.13456, eq. 11).

Everything here is in the network's units, images in [-1, 1]. The conversion to [0, 1], a factor of two in sigma, is done
in `invdiff.priors` and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from invdiff.errors import UsageError, unknown

if TYPE_CHECKING:
    import torch

Array = np.ndarray


class MeanVariance(NamedTuple):
    """A Gaussian with independent coordinates: its mean, and the variance of each coordinate."""

    mean: Any
    variance: Any


def linear_betas(steps: int, start: float, end: float) -> Array:
    """beta_t = start + (end - start) t / (T - 1)  (Ho et al. 2020, sec. 4)."""
    return np.linspace(start, end, steps)


def scaled_linear_betas(steps: int, start: float, end: float) -> Array:
    """beta_t = (sqrt(start) + (sqrt(end) - sqrt(start)) t / (T - 1))^2  (latent diffusion, Rombach et al. 2022)."""
    return np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2


def cosine_betas(steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Array:
    """beta_t = min(1 - f(t+1) / f(t), max_beta), f(t) = cos^2(pi/2 (t/T + s) / (1 + s))  (Nichol & Dhariwal 2021, eq. 17)."""
    f = np.cos((np.arange(steps + 1) / steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)


# "quadratic" is DDIM's name (Song, Meng, Ermon 2021, appendix D) for what latent diffusion later called "scaled_linear".
_TABLES: dict[str, Callable[..., Array]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "quadratic": scaled_linear_betas,
    "cosine": lambda steps, start, end: cosine_betas(steps),
}
_DIFFUSERS_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


@dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete DDPM noise schedule: the table beta_0 .. beta_{T-1} and all that follows from it.

    betas: (T,) float64, each in (0, 1). Raises UsageError for anything else.
    Tables are numpy float64 arrays of shape (T,); methods that take images take torch tensors and integer or float t.
    """

    betas: Array
    alphas: Array = field(init=False, repr=False)  # alpha_t = 1 - beta_t
    alphas_bar: Array = field(init=False, repr=False)  # abar_t = prod_{s <= t} alpha_s
    sigmas: Array = field(init=False, repr=False)  # sigma_t = sqrt((1 - abar_t) / abar_t), increasing

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, dtype=np.float64)
        if betas.ndim != 1 or betas.size < 1:
            raise UsageError(f"a schedule needs a vector of betas, got an array of shape {betas.shape}")
        if not (np.isfinite(betas).all() and (betas > 0).all() and (betas < 1).all()):
            raise UsageError("every beta of a schedule must lie strictly between 0 and 1")
        object.__setattr__(self, "betas", betas)
        alphas = 1.0 - betas
        alphas_bar = np.cumprod(alphas)
        object.__setattr__(self, "alphas", alphas)
        object.__setattr__(self, "alphas_bar", alphas_bar)
        object.__setattr__(self, "sigmas", np.sqrt((1.0 - alphas_bar) / alphas_bar))

    def __len__(self) -> int:
        return self.betas.size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and np.array_equal(self.betas, other.betas)

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    @classmethod
    def named(cls, name: str = "linear", steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Schedule:
        """A schedule of the literature by name: linear, scaled_linear (also called quadratic) or cosine. The two constants of
        `cosine` are fixed by its paper, so a `start` or `end` other than the default is refused."""
        if name not in _TABLES:
            raise unknown("schedule", name, _TABLES)
        if int(steps) != steps or steps < 1:
            raise UsageError(f"a schedule needs a positive whole number of steps, got {steps}")
        if not 0 < start <= end < 1:
            raise UsageError(f"a schedule needs 0 < start <= end < 1, got start={start}, end={end}")
        if name == "cosine" and (start, end) != (1e-4, 0.02):
            raise UsageError("the cosine schedule has no start and end; leave them out")
        return cls(_TABLES[name](int(steps), start, end))

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any] | Any) -> Schedule:
        """From a diffusers scheduler or its config (`scheduler_config.json` as a mapping).

        Reads num_train_timesteps, beta_start, beta_end, beta_schedule and trained_betas. Refuses what it cannot
        represent exactly (rescaled zero-SNR tables, beta schedules that diffusers has and this module lacks).
        """
        config = getattr(config, "config", config)
        trained = config.get("trained_betas")
        if config.get("rescale_betas_zero_snr"):
            raise UsageError(
                "this scheduler rescales its betas to zero terminal SNR: sigma is infinite at the last step, "
                "which an epsilon prior cannot use; retrain or save it with rescale_betas_zero_snr=false"
            )
        if trained is not None:
            return cls(np.asarray(trained, dtype=np.float64))
        name = config.get("beta_schedule", "linear")
        if name not in _DIFFUSERS_NAMES:
            raise unknown("diffusers beta_schedule", name, _DIFFUSERS_NAMES)
        steps = int(config.get("num_train_timesteps", 1000))
        if _DIFFUSERS_NAMES[name] == "cosine":
            return cls(cosine_betas(steps))
        return cls.named(name, steps, float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02)))

    @property
    def snr(self) -> Array:
        """SNR_t = abar_t / (1 - abar_t) = 1 / sigma_t^2, shape (T,)."""
        return self.alphas_bar / (1.0 - self.alphas_bar)

    @property
    def alphas_bar_previous(self) -> Array:
        """abar_{t-1}, with abar_{-1} = 1, shape (T,)."""
        return np.concatenate([[1.0], self.alphas_bar[:-1]])

    @property
    def posterior_variances(self) -> Array:
        """beta~_t = beta_t (1 - abar_{t-1}) / (1 - abar_t), shape (T,); beta~_0 = 0  (Ho et al. 2020, eq. 7)."""
        return self.betas * (1.0 - self.alphas_bar_previous) / (1.0 - self.alphas_bar)

    @property
    def posterior_coefficients(self) -> tuple[Array, Array]:
        """(a_t, b_t) of mu~_t = a_t x_0 + b_t x_t, each (T,)  (Ho et al. 2020, eq. 7)."""
        before, now = self.alphas_bar_previous, self.alphas_bar
        a = np.sqrt(before) * self.betas / (1.0 - now)
        b = np.sqrt(self.alphas) * (1.0 - before) / (1.0 - now)
        return a, b

    def _index(self, t: int) -> int:
        if int(t) != t or not 0 <= t < len(self):
            raise UsageError(f"t must be a whole number from 0 to {len(self) - 1}, got {t}")
        return int(t)

    def step(self, x_previous: torch.Tensor, t: int) -> MeanVariance:
        """q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I)  (Ho et al. 2020, eq. 2)."""
        t = self._index(t)
        return MeanVariance(math.sqrt(self.alphas[t]) * x_previous, float(self.betas[t]))

    def marginal(self, x_0: torch.Tensor, t: int) -> MeanVariance:
        """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)  (Ho et al. 2020, eq. 4)."""
        t = self._index(t)
        return MeanVariance(math.sqrt(self.alphas_bar[t]) * x_0, float(1.0 - self.alphas_bar[t]))

    def posterior(self, x_t: torch.Tensor, x_0: torch.Tensor, t: int) -> MeanVariance:
        """q(x_{t-1} | x_t, x_0) = N(mu~_t(x_t, x_0), beta~_t I)  (Ho et al. 2020, eq. 6 and 7)."""
        t = self._index(t)
        a, b = self.posterior_coefficients
        return MeanVariance(float(a[t]) * x_0 + float(b[t]) * x_t, float(self.posterior_variances[t]))

    # t <-> sigma. Between two table entries log sigma is linear in t, so that both maps are each other's inverse.

    def sigma(self, t: Any) -> Any:
        """sigma(t) for whole or fractional t in [0, T-1]; scalars or arrays. Raises UsageError outside that range."""
        t = np.asarray(t, dtype=np.float64)
        if not ((t >= 0) & (t <= len(self) - 1)).all():
            raise UsageError(f"t must lie in [0, {len(self) - 1}], got {t}")
        return np.exp(np.interp(t, np.arange(len(self)), np.log(self.sigmas)))[()]

    def t(self, sigma: Any) -> Any:
        """The fractional t with sigma(t) = sigma; below sigma_0 and above sigma_{T-1} it is the nearest end, because
        the network was trained at no other values of t. Raises UsageError unless sigma > 0."""
        sigma = np.asarray(sigma, dtype=np.float64)
        if not (np.isfinite(sigma) & (sigma > 0)).all():
            raise UsageError(f"sigma must be positive and finite, got {sigma}")
        return np.interp(np.log(sigma), np.log(self.sigmas), np.arange(len(self)))[()]

    # The continuous limit (Song et al. 2021): dx = -1/2 beta(s) x ds + sqrt(beta(s)) dw on s in [0, 1], beta(s) ~ T beta_t.
    # Its marginals are exact for the beta(s) below; they meet the table's abar_t in the limit, at first order in 1/T.

    def beta(self, s: Any) -> Any:
        """beta(s) of the VP-SDE at continuous time s in [0, 1]: T beta_t linearly interpolated, t = s T - 1
        (one discrete step lasts 1/T, and index t is reached after t + 1 of them). Beyond s = 1 it stays as it is there."""
        t = np.clip(np.asarray(s, dtype=np.float64) * len(self) - 1.0, 0, len(self) - 1)
        return (len(self) * np.interp(t, np.arange(len(self)), self.betas))[()]

    def drift(self, x: torch.Tensor, s: float) -> torch.Tensor:
        """f(x, s) = -1/2 beta(s) x  (Song et al. 2021, eq. 11)."""
        return -0.5 * float(self.beta(s)) * x

    def diffusion(self, s: float) -> float:
        """g(s) = sqrt(beta(s))  (Song et al. 2021, eq. 11)."""
        return math.sqrt(float(self.beta(s)))

    @cached_property
    def _pieces(self) -> tuple[Array, Array]:
        """beta(s) and its integral at s = 0, 1/T, .. 1, each (T + 1,): beta(s) is linear in between."""
        beta = len(self) * np.concatenate([self.betas[:1], self.betas])
        return beta, np.concatenate([[0.0], np.cumsum((beta[1:] + beta[:-1]) / 2)]) / len(self)

    def log_abar(self, s: Any) -> Any:
        """log abar(s) = -int_0^s beta(u) du, exactly, for s >= 0: the marginal of the VP-SDE is
        q(x_s | x_0) = N(sqrt(abar(s)) x_0, (1 - abar(s)) I)  (Song et al. 2021, eq. 29)."""
        s = np.asarray(s, dtype=np.float64)
        if not (s >= 0).all():
            raise UsageError(f"the continuous time s must be 0 or more, got {s}")
        beta, integral = self._pieces
        piece = np.minimum(s * len(self), len(self) - 1).astype(int)
        rest = s - piece / len(self)
        inside = np.minimum(rest, 1 / len(self))
        slope = (beta[piece + 1] - beta[piece]) * len(self)
        return -(integral[piece] + beta[piece] * inside + slope * inside**2 / 2 + beta[-1] * (rest - inside))[()]

    def time(self, sigma: Any) -> Any:
        """The continuous time s at which the VP-SDE has the noise level sigma >= 0: abar(s) = 1 / (1 + sigma^2).

        Beyond s = 1 beta(s) stays what it is at s = 1, so every level has its time."""
        sigma = np.asarray(sigma, dtype=np.float64)
        if not (np.isfinite(sigma) & (sigma >= 0)).all():
            raise UsageError(f"sigma must be finite and 0 or more, got {sigma}")
        beta, integral = self._pieces
        total = np.log1p(sigma**2)
        piece = np.clip(np.searchsorted(integral, total, side="right") - 1, 0, len(self) - 1)
        remaining = np.minimum(total, integral[-1]) - integral[piece]
        slope = (beta[piece + 1] - beta[piece]) * len(self)
        # The root of slope/2 u^2 + beta u = remaining, in the form that also holds for slope = 0.
        root = np.sqrt(np.maximum(beta[piece] ** 2 + 2 * slope * remaining, 0.0))
        u = 2 * remaining / (beta[piece] + root)
        return (piece / len(self) + u + np.maximum(total - integral[-1], 0.0) / beta[-1])[()]
