"""DAPS: Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing.

Zhang, Chu, Berner, Meng, Anandkumar, Song. 2024, https://arxiv.org/abs/2407.01521. Implements algorithm 1.

Consecutive levels are decoupled: from x_t to a draw of x_0 given x_t and y, and from there, by fresh noise alone, to x_s.

    x0_hat = probability flow from x_t at sigma_t down to 0
    x_0 ~ N(x_0; x0_hat, r_t^2 I) N(y; A(x_0), sigma_y^2 I),    r_t = c sigma_t / sqrt(1 + sigma_t^2 / nu)
    x_s = x_0 + sigma_s z

Differs from the paper:
- for a linear operator x_0 is drawn exactly (invdiff/solvers/conditional.py) instead of by Langevin dynamics, which
  remains for the others (`sampler=langevin` takes it everywhere), its step size from the curvature instead of tuned;
- the paper's r_t = sigma_t is c = 1 (`spread`) and nu without bound. With c = 1, nu the variance of the data and
  x0_hat = E[x_0 | x_t] the method is exact for white Gaussian data. But an exact draw, unlike a short Langevin chain, fills
  the directions that y does not tell with white noise of deviation r_t, which the network at the next level takes for
  image: on photographs c = 1/2 restores best;
- the probability flow takes Euler's steps at sigma (1 - j / ode_steps), and by default only one: x0_hat = E[x_0 | x_t];
- start and levels are those of all solvers here (solver.py); `steps` counts levels, each of `ode_steps` calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.conditional import LikelihoodStep, inner_levels
from invdiff.solvers.solver import Move
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class DAPS(LikelihoodStep):
    """Decoupled levels; `ode_steps` network calls a level, no gradients through the network."""

    name: ClassVar[str] = "daps"
    remedy: ClassVar[str] = "a smaller langevin_size"

    ode_steps: int = parameter(1, kind=whole, low=1, help="steps of the probability flow for each level", unit="calls")
    spread: float = parameter(0.5, above=0, help="the factor c of r_t; 1 is the paper's")
    data_std: float = parameter(0.5, above=0, help="standard deviation sqrt(nu) of the data in r_t", unit="[0,1]")

    @property
    def nfe(self) -> int:
        return self.steps * self.ode_steps

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        draw = self.likelihood_step(problem)
        x = self.start(problem, prior, levels[0], noise)
        for sigma, next_sigma in itertools.pairwise([*levels, 0.0]):
            clean = self._flow(prior, x, sigma)
            x0 = draw(clean, self.spread * sigma * (1 + (sigma / self.data_std) ** 2) ** -0.5, noise)
            x = x0 + next_sigma * noise() if next_sigma > 0 else x0
            yield Move(sigma, next_sigma, clean, x0, x)

    def _flow(self, prior: Prior, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """x0_hat: Euler's steps of dx/dsigma = (x - D(x, sigma)) / sigma."""
        for s, next_s in itertools.pairwise([*inner_levels(sigma, self.ode_steps), 0.0]):
            x = torch.lerp(prior.denoise(x, s), x, next_s / s)
        return x
