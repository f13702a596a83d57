"""MCGdiff: Monte Carlo Guided Diffusion.

Cardoso, Janati, Le Corff, Moulines. Monte Carlo guided Denoising Diffusion Models for Bayesian Linear Inverse Problems. ICLR
2024, https://arxiv.org/abs/2308.07983. Implements the noisy case of its particle algorithm, with a decomposition of A.

In the singular coordinates of A = U diag(s) V^T the measurement of direction i is y_i / s_i = x_i + tau_i n with
tau_i = sigma_y / s_i: it is a draw of that coordinate of the diffusion itself, x_0 + sigma n, at the level sigma = tau_i. So
the posterior is a noiseless problem: the diffusion whose coordinate i passes through y_i / s_i at tau_i (kappa softens that),

    x_tau[i] ~ N(y_i / s_i, kappa (tau^2 + 1/4)),

and above tau_i the measurement is diffused on, which is the potential that guides and weighs the particles there,

    g_s(x)  =  prod over tau_i <= sigma_s of  N(x_i; y_i / s_i, sigma_s^2 - tau_i^2 + kappa (tau_i^2 + 1/4)).

Everything that follows from the model p(x_s | x_t) = DDIM(eta) is Gaussian, coordinate by coordinate: a particle is weighted
by the evidence of p(x_s | x_t) g_s(x_s), over g_t(x_t), resampled, and moved to a draw of p(x_s | x_t) g_s(x_s). Where tau_i
lies between the two levels, the model goes to tau_i, is conditioned there, and goes on to s. Below tau_i, and where s_i = 0,
a coordinate follows the model alone.

Differs from the paper:
- any levels: the paper puts each tau_i on a level of its grid, which images with thousands of singular values cannot;
- kappa = 1e-4 by default, the variance in the paper's unit (that of the diffusion sqrt(abar) x on [-1, 1]);
- eta = 1 by default (the paper's mixtures: 0.6 with 20 steps, 0.85 with 100);
- start and levels are those of all solvers here (invdiff/solvers/solver.py), the start drawn given g;
- resampling where the effective sample size is below `threshold` N, systematic (the paper: at every level, multinomial).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM
from invdiff.solvers.particles import Filter, ParticleNoise, ParticleSolver, View, expanded
from invdiff.solvers.solver import spectral_measurement
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class MCGDiff(ParticleSolver):
    """Particles guided per singular direction; one network call for each, no gradients."""

    name: ClassVar[str] = "mcg_diff"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "svd"})
    remedy: ClassVar[str] = "more steps"

    eta: float = parameter(1.0, above=0, high=1, help="share of fresh noise in the model's steps; 1: ancestral")
    kappa: float = parameter(1e-4, above=0, help="variance left to a measured coordinate at its own noise level")

    def filter(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Filter:
        return _Guided(expanded(problem, self.particles), prior, self.eta, self.kappa)


class _Guided(Filter):
    """A coordinate meets y at the next level, or at tau where that lies above. All in singular coordinates, [R, *r]."""

    def __init__(self, problem: Problem, prior: Prior, eta: float, kappa: float) -> None:
        self.prior, self.eta = prior, eta
        self.svd = problem.operator.svd(problem.image_shape)
        self.y, self.tau, self.measured = spectral_measurement(problem, problem.y)
        self.softness = kappa * (self.tau**2 + 0.25)

    def start(
        self, centre: torch.Tensor, variance: float, sigma: float, draws: ParticleNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        z, base = draws(), self.svd.V_adjoint(centre)
        guided, of_g = self._guided(sigma), self._of_g(torch.full_like(self.tau, sigma))
        mean, left = _product(base, torch.full_like(self.tau, variance), self.y, of_g)
        x = self._replace(guided, centre + variance**0.5 * z, mean + left.sqrt() * self.svd.V_adjoint(z))
        return x, _log_normal(guided, self.y - base, variance + of_g)

    def look(self, x: torch.Tensor, sigma: float, next_sigma: float, rows: slice) -> View:
        clean = self.prior.denoise(x, sigma)
        x_bar, guided, y = self.svd.V_adjoint(x), self._guided(sigma), self.y[rows]
        mean, variance, of_g = self._meeting(x_bar, self.svd.V_adjoint(clean), sigma, next_sigma)
        before = _log_normal(guided, y - x_bar, self._of_g(torch.full_like(self.tau, sigma)))
        return View(x, clean, clean, _log_normal(guided, y - mean, variance + of_g) - before)

    def move(
        self, view: View, sigma: float, next_sigma: float, draws: ParticleNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        z, clean_bar = draws(), self.svd.V_adjoint(view.clean)
        step = DDIM(self.eta)
        free = torch.lerp(view.clean, view.x, step.kept(sigma, next_sigma)) + step.fresh(sigma, next_sigma) * z
        mean, variance, of_g = self._meeting(self.svd.V_adjoint(view.x), clean_bar, sigma, next_sigma)
        mean, variance = _product(mean, variance, self.y, of_g)
        kept, fresh = self._model(self.tau.clamp(min=next_sigma), next_sigma)
        mean, variance = clean_bar + kept * (mean - clean_bar), kept**2 * variance + fresh**2
        x = self._replace(self._guided(sigma), free, mean + variance.sqrt() * self.svd.V_adjoint(z))
        return x, torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def _guided(self, sigma: float) -> torch.Tensor:
        return self.measured & (self.tau <= sigma)

    def _of_g(self, level: torch.Tensor) -> torch.Tensor:
        """The variance of the potential at a level, where it is not below tau."""
        return (level**2 - self.tau**2).clamp(min=0) + self.softness

    def _model(self, sigma: torch.Tensor, next_sigma: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """(kept, fresh) of x_s = D + kept (x_t - D) + fresh z in DDIM(eta), for levels that differ by coordinate."""
        fresh = self.eta * next_sigma * (1 - (next_sigma / sigma) ** 2).clamp(min=0).sqrt()
        return (next_sigma**2 - fresh**2).clamp(min=0).sqrt() / sigma, fresh

    def _meeting(
        self, x_bar: torch.Tensor, clean_bar: torch.Tensor, sigma: float, next_sigma: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The model's mean and variance of x where it meets y, and the variance of y there."""
        level = self.tau.clamp(min=next_sigma, max=sigma)
        kept, fresh = self._model(torch.full_like(self.tau, sigma), level)
        return clean_bar + kept * (x_bar - clean_bar), fresh**2, self._of_g(level)

    def _replace(self, guided: torch.Tensor, free: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`free`, with the guided coordinates of `target`."""
        return free + self.svd.V(torch.where(guided, target - self.svd.V_adjoint(free), 0.0))


def _product(
    mean: torch.Tensor, variance: torch.Tensor, y: torch.Tensor, of_y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of N(mean, variance) N(y, of_y), normalised."""
    share = variance / (variance + of_y)
    return mean + share * (y - mean), share * of_y


def _log_normal(guided: torch.Tensor, offset: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """log N(offset; 0, variance) over the guided coordinates, without the constant, (R,), float64."""
    variance = variance.double()
    terms = -0.5 * (offset.double() ** 2 / variance + variance.log())
    return torch.where(guided, terms, 0.0).flatten(1).sum(1)
