"""The measurement SDE: the corruption seen as a diffusion, and inversion as its reverse.

Exact for A = I. For other operators after Kawar, Vaksman, Elad, "SNIPS: Solving Noisy Inverse Problems Stochastically",
NeurIPS 2021, https://arxiv.org/abs/2105.14951, and Kawar, Elad, Ermon, Song, "Denoising Diffusion Restoration Models",
NeurIPS 2022, https://arxiv.org/abs/2201.11793, which give each singular direction a noise level of its own.

Derivation. Y = A(X) + sigma_y Z is the end of dX_t = sigma_y dW_t, t from 0 to 1, started at A(X). Let A = I. In the
coordinate x_sigma = x_0 + W(sigma^2) of the prior, with W a Brownian motion of variance sigma^2, this is the same process:
Y is x_sigma at sigma = sigma_y. So p(x_0 | y) = p(x_0 | x_{sigma_y} = y), and the prior's own reverse diffusion, started at
the level sigma_y from y, samples it.

Let A = U diag(s) V^T, with bars for coordinates: (V^T x)_i, and for the measurement y_bar_i = (U^T y)_i / s_i, whose noise
is tau_i = sigma_y / s_i. The noises of different directions are independent, so each may be read off its own W_i: Y
observes the path x_bar_{sigma, i} at its own level, x_bar_{tau_i, i} = y_bar_i. What is known of the path of direction i is

    above tau_i    x_bar_sigma = y_bar + (W(sigma^2) - W(tau^2)): the measurement plus extra noise that says nothing of
                   x_0. Going down from sigma to s this is a Brownian bridge to y_bar at tau: mean
                   y_bar + b (x_bar_sigma - y_bar), variance b (sigma^2 - s^2), b = (s^2 - tau^2) / (sigma^2 - tau^2)
    at tau_i       x_bar = y_bar: the direction enters
    below tau_i    all that y says of direction i is where its path entered: the prior's reverse diffusion alone

and nothing is known of the directions with s_i = 0: they follow the prior's reverse diffusion from the first level on. Its
steps are ancestral with D held over the step, x_s ~ N(D + (s / u)^2 (x_u - D), s^2 (1 - s^2 / u^2)), with u the level
left for, or tau_i in the step that passes it.

What is exact: with all s_i equal and none zero, everything but the discretisation, of first order in the steps. What is not:
D(x_sigma) sees the directions with tau_i < sigma through noise sigma, while y tells them up to tau_i. So a direction that
is not measured, or enters higher up, is drawn as if the others were known less well, and correlations of the prior
between directions are lost in part. The reverse diffusion of the joint law would need E[x_0 | y, x_sigma].

Choices:
- levels are those of all solvers here (invdiff/solvers/solver.py), but where every direction is measured the first is at most
  the highest tau_i, above which nothing happens; a level sigma_max of your own is taken as it is;
- directions that entered above the first level sigma start as for data of mean and deviation 1/2, whose x_bar_sigma
  given x_bar_tau = y_bar has mean 1/2 + k (y_bar - 1/2) and variance k (tau^2 - sigma^2), with
  k = (1/4 + sigma^2) / (1/4 + tau^2);
- directions with s_i = 0 start as in all solvers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.diffusion.levels import noise_levels
from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import Estimate
from invdiff.solvers.solver import Solver, Transition, spectral_measurement


@dataclass(frozen=True)
class MeasurementSDE(Solver):
    """The prior's reverse diffusion, entered by each measured direction at its own level; one network call a step."""

    name: ClassVar[str] = "measurement_sde"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "svd"})
    remedy: ClassVar[str] = "a smaller sigma_max"

    def levels(self, problem: Problem, prior: Prior) -> list[float]:
        levels = super().levels(problem, prior)
        if self.sigma_max is not None:
            return levels
        entry = self._highest_entry(problem)
        if entry >= levels[0]:
            return levels
        if entry <= levels[-1]:
            return [entry]  # y tells all that the prior's last level would leave open
        return noise_levels(self.level_count(), entry, levels[-1], self.spacing, getattr(prior, "schedule", None))

    def _highest_entry(self, problem: Problem) -> float:
        """max tau_i, or infinity if a direction is not measured."""
        svd = problem.operator.svd(problem.image_shape)
        like = problem.y.new_zeros(1, *problem.image_shape)
        coordinates = svd.V_adjoint(like)
        s = svd.singular_values.to(like).expand(coordinates.shape)
        inverse = svd.inverse_singular_values.to(like).expand(coordinates.shape)
        if s.numel() < like.numel() or not (inverse > 0).all():
            return math.inf
        return problem.sigma_y / float(svd.singular_values.min())

    def start(self, problem: Problem, prior: Prior, sigma: float, noise: Draws) -> torch.Tensor:
        """x at the first level: measured directions given y, the others as in all solvers."""
        x = super().start(problem, prior, sigma, noise)
        svd = problem.operator.svd(problem.image_shape)
        y_bar, tau, measured = spectral_measurement(problem, x)
        middle_bar, z_bar = svd.V_adjoint(torch.full_like(x, 0.5)), svd.V_adjoint(noise())
        entered = y_bar + (sigma**2 - tau**2).clamp(min=0).sqrt() * z_bar
        share = (0.25 + sigma**2) / (0.25 + tau**2)
        below = torch.lerp(middle_bar, y_bar, share) + (share * (tau**2 - sigma**2).clamp(min=0)).sqrt() * z_bar
        known = torch.where(tau <= sigma, entered, below)
        return x + svd.V(torch.where(measured, known - svd.V_adjoint(x), 0.0))

    def step(self, problem: Problem) -> Transition:
        svd = problem.operator.svd(problem.image_shape)
        y_bar, tau, measured = spectral_measurement(problem, problem.y)

        def step(x: torch.Tensor, estimate: Estimate, sigma: float, s: float, noise: Draws) -> torch.Tensor:
            x0, z = estimate.estimate, noise()
            free = x0 + (s / sigma) ** 2 * (x - x0) + s * math.sqrt(max(0.0, 1 - (s / sigma) ** 2)) * z
            x_bar, x0_bar, z_bar = svd.V_adjoint(x), svd.V_adjoint(x0), svd.V_adjoint(z)
            above = measured & (tau < sigma)  # has not entered yet: enters in this step, or stays above
            b = ((s**2 - tau**2) / (sigma**2 - tau**2)).clamp(min=0)  # read where tau <= s < sigma only
            bridge = y_bar + b * (x_bar - y_bar) + (b * max(0.0, sigma**2 - s**2)).sqrt() * z_bar
            kept = (s / tau) ** 2
            entered = x0_bar + kept * (y_bar - x0_bar) + s * (1 - kept).clamp(min=0).sqrt() * z_bar
            target = torch.where(tau <= s, bridge, entered)
            return free + svd.V(torch.where(above, target - svd.V_adjoint(free), 0.0))

        return step
