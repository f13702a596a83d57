"""The continuous view of a prior: its diffusion as a stochastic differential equation, the two ways back, and the
likelihood that follows.

Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole. "Score-Based Generative Modeling through Stochastic Differential
Equations". ICLR 2021, https://arxiv.org/abs/2011.13456: eq. 5 and 11 (the variance-preserving SDE), 6 (its reversal, due to
Anderson 1982, "Reverse-time diffusion equation models"), 13 (probability flow), 29 (marginals), 39 and 40 (likelihood).

    forward    dx = -1/2 beta(s) x ds + sqrt(beta(s)) dw                                s from 0 (clean) to 1 (noise)
    reverse    dx = [-1/2 beta x - beta grad log q_s(x)] ds + sqrt(beta) dw~            s from 1 to 0
    flow       dx/ds = -1/2 beta x - 1/2 beta grad log q_s(x)                           same marginals, no noise

The state x_s here is the paper's, in the network's units; a prior speaks [0, 1] and x_0 + sigma n. The map between them:

    x_s = sqrt(abar(s)) (2 x - 1),    sigma = sqrt((1 - abar(s)) / abar(s)) / 2,    x = x_0 + sigma n
    grad log q_s(x_s) = grad log p_sigma(x) / (2 sqrt(abar(s)))

Differs from the paper:
- the likelihood integrates the flow over log sigma instead of s, where it is smooth up to both ends:
  dx / d log sigma = x - E[x_0 | x]. It is the same curve;
- Hutchinson's probes are drawn anew at every evaluation instead of once: they do not move the path, and independent errors
  cancel in the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from invdiff.diffusion.schedule import MeanVariance, Schedule
from invdiff.errors import NumericalError, UsageError
from invdiff.machine.random import generator
from invdiff.priors.prior import Prior

EXACT_SIZE = 4096  # numbers in an image up to which the exact divergence, one backward pass for each, is allowed
PROBED_STEPS = 32

# x -> (dx / d log sigma, its divergence), at one noise level; the divergence is (K, B), K estimates of it.
Field = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class VPSDE:
    """The variance-preserving SDE of a prior. States x_s are (B, ...) in the paper's units, s is a float, 0 < s.

    schedule: whose beta(s); default: the prior's own, or the linear one for priors that have none.
    """

    prior: Prior
    schedule: Schedule

    @classmethod
    def of(cls, prior: Prior, schedule: Schedule | None = None) -> VPSDE:
        return cls(prior, schedule or getattr(prior, "schedule", None) or Schedule.named("linear"))

    def root_abar(self, s: float) -> float:
        """sqrt(abar(s))."""
        return math.exp(0.5 * float(self.schedule.log_abar(s)))

    def level(self, s: float) -> float:
        """sigma at time s, in [0, 1] units."""
        return math.sqrt(math.expm1(-float(self.schedule.log_abar(s)))) / 2

    def time(self, sigma: float) -> float:
        """The time s of a noise level in [0, 1] units."""
        return float(self.schedule.time(2 * sigma))

    def state(self, x: torch.Tensor, s: float) -> torch.Tensor:
        """x_s = sqrt(abar) (2 x - 1) of x = x_0 + sigma n."""
        return self.root_abar(s) * (2 * x - 1)

    def image(self, x_s: torch.Tensor, s: float) -> torch.Tensor:
        """x = x_0 + sigma n of x_s: the inverse of `state`."""
        return (x_s / self.root_abar(s) + 1) / 2

    def marginal(self, x_0: torch.Tensor, s: float) -> MeanVariance:
        """q(x_s | x_0) for a clean x_0 in [0, 1]: mean sqrt(abar) (2 x_0 - 1), variance 1 - abar  (eq. 29)."""
        return MeanVariance(self.state(x_0, s), -math.expm1(float(self.schedule.log_abar(s))))

    def score(self, x_s: torch.Tensor, s: float) -> torch.Tensor:
        """grad log q_s(x_s)."""
        return self.prior.score(self.image(x_s, s), self.level(s)) / (2 * self.root_abar(s))

    def drift(self, x_s: torch.Tensor, s: float) -> torch.Tensor:
        """f(x, s) of the forward SDE  (eq. 11)."""
        return self.schedule.drift(x_s, s)

    def diffusion(self, s: float) -> float:
        """g(s) of the forward and of the reverse SDE  (eq. 11)."""
        return self.schedule.diffusion(s)

    def reverse_drift(self, x_s: torch.Tensor, s: float) -> torch.Tensor:
        """f(x, s) - g(s)^2 grad log q_s(x)  (eq. 6; Anderson 1982)."""
        return self.drift(x_s, s) - self.diffusion(s) ** 2 * self.score(x_s, s)

    def flow(self, x_s: torch.Tensor, s: float) -> torch.Tensor:
        """dx/ds = f(x, s) - 1/2 g(s)^2 grad log q_s(x)  (eq. 13)."""
        return self.drift(x_s, s) - 0.5 * self.diffusion(s) ** 2 * self.score(x_s, s)


class Likelihood(NamedTuple):
    """log_prob: (B,) log-density in nats of x in [0, 1] units; standard_error: (B,) of the divergence's estimate, 0 if it
    was exact; latent: x moved to sigma_max, (B, ...); calls: network calls for one image."""

    log_prob: torch.Tensor
    standard_error: torch.Tensor
    latent: torch.Tensor
    calls: int


def log_likelihood(
    prior: Prior,
    x: torch.Tensor,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    steps: int | None = None,
    probes: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-7,
) -> Likelihood:
    """log p(x) of images x (B, ...) in [0, 1], by the instantaneous change of variables along the flow:

        log p(x) = log N(x(sigma_max); 1/2, sigma_max^2 I) + int div(dx / d log sigma) d log sigma

    That is the density of what the flow makes of the samplers' first noise. It is the prior's own density p_sigma_min as
    far as x_0 is drowned at sigma_max: its relative error there is about |x_0 - 1/2| / sigma_max.

    sigma_min, sigma_max: default the prior's, in [0, 1] units. probes: None takes the exact divergence (one backward pass
    for each number in the image); K >= 2 estimates it by K random probes, for networks. steps: of the classical
    Runge-Kutta method, four calls each; None: 32 with probes, otherwise as many as an adaptive method needs for
    `tolerance`, relative and absolute. Image k's probes depend on (seed, k) alone.
    Raises UsageError for values that cannot be used, NumericalError if the integration fails.
    """
    low = prior.sigma_min if sigma_min is None else sigma_min
    high = prior.sigma_max if sigma_max is None else sigma_max
    if not 0 < low < high < math.inf:
        raise UsageError(f"the likelihood needs 0 < sigma_min < sigma_max, got {low:g} and {high:g}")
    if x.ndim < 2 or not x.is_floating_point() or not torch.isfinite(x).all():
        raise UsageError(f"x must be a finite floating-point batch (B, ...), got {x.dtype} of shape {tuple(x.shape)}")
    prior.check_shape(x.shape[1:])
    if probes is None and (size := x[0].numel()) > EXACT_SIZE:
        raise UsageError(f"the exact divergence of {size} numbers takes too long; estimate it, e.g. probes=8")
    if probes is not None and probes < 2:
        raise UsageError(f"probes must be 2 or more, or there is no standard error, got {probes}")
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    ends = math.log(low), math.log(high)
    x = x.to(prior.device)
    if probes is None and steps is None:
        parts = [_adaptive(_field(prior, _trace), row[None], ends, tolerance) for row in x]
        latent, volume = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], 1)
        calls = max(part[2] for part in parts)
    else:
        steps = steps or PROBED_STEPS
        divergence = _trace if probes is None else _Probes(probes, seed, len(x))
        latent, volume = _runge_kutta(_field(prior, divergence), x, ends, steps)
        calls = 4 * steps
    offset = (latent.double() - 0.5).flatten(1) / high
    base = -0.5 * offset.square().sum(1) - offset.shape[1] * math.log(math.sqrt(2 * math.pi) * high)
    log_prob = base + volume.mean(0)
    if not torch.isfinite(log_prob).all():
        raise NumericalError("likelihood: NaN or infinity; is x an image in [0, 1] that this prior was made for?")
    error = volume.std(0) / math.sqrt(len(volume)) if probes else torch.zeros_like(log_prob)
    return Likelihood(log_prob.cpu(), error.cpu(), latent.cpu(), calls)


def _field(prior: Prior, divergence: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Field:
    def field(x: torch.Tensor, log_sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            clean = prior.denoise(leaf, math.exp(log_sigma))
            inner = divergence(clean, leaf)  # of E[x_0 | x]
        return leaf.detach() - clean.detach(), leaf[0].numel() - inner

    return field


def _trace(clean: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """tr dD/dx of every image, (1, B). One image's D does not depend on another's x, so one pass serves the batch."""
    flat = clean.flatten(1)
    rows = [torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1) for i in range(flat.shape[1])]
    return sum(row[:, i].double() for i, row in enumerate(rows))[None]  # type: ignore[union-attr,index]


class _Probes:
    """Hutchinson's estimate: E[v^T (dD/dx) v] = tr dD/dx for v of independent signs; (K, B)."""

    def __init__(self, count: int, seed: int, images: int) -> None:
        self._count = count
        self._generators = [generator(seed, "likelihood", k) for k in range(images)]

    def __call__(self, clean: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        estimates = []
        for _ in range(self._count):
            signs = [torch.randint(0, 2, x.shape[1:], generator=g) for g in self._generators]
            v = (2 * torch.stack(signs) - 1).to(x)
            (pulled,) = torch.autograd.grad(clean, x, v, retain_graph=True)
            estimates.append((pulled * v).flatten(1).double().sum(1))
        return torch.stack(estimates)


def _runge_kutta(
    field: Field, x: torch.Tensor, ends: tuple[float, float], steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x at the end, int divergence) by the classical method of order 4, in equal steps."""
    h = (ends[1] - ends[0]) / steps
    volume = torch.zeros((), dtype=torch.float64, device=x.device)
    for step in range(steps):
        u = ends[0] + step * h
        k1, d1 = field(x, u)
        k2, d2 = field(x + h / 2 * k1, u + h / 2)
        k3, d3 = field(x + h / 2 * k2, u + h / 2)
        k4, d4 = field(x + h * k3, u + h)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        volume = volume + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return x, volume


def _adaptive(
    field: Field, x: torch.Tensor, ends: tuple[float, float], tolerance: float
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The same for one image (1, ...), in steps that keep the local error at `tolerance` (Dormand and Prince 1980)."""
    from scipy.integrate import solve_ivp

    def rate(u: float, state: np.ndarray) -> np.ndarray:
        velocity, divergence = field(torch.from_numpy(state[:-1]).to(x).reshape(x.shape), u)
        return np.append(velocity.double().cpu().numpy().ravel(), float(divergence))

    start = np.append(x.double().cpu().numpy().ravel(), 0.0)
    solution = solve_ivp(rate, ends, start, method="RK45", rtol=tolerance, atol=tolerance, t_eval=[ends[1]])
    if not solution.success:
        raise NumericalError(f"likelihood: {solution.message}; try steps=100")
    end = torch.from_numpy(solution.y[:-1, -1]).to(x).reshape(x.shape)
    return end, torch.tensor([[solution.y[-1, -1]]], dtype=torch.float64, device=x.device), int(solution.nfev)
