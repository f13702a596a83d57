"""RED-diff: A Variational Perspective on Solving Inverse Problems with Diffusion Models.

Mardani, Song, Kautz, Vahdat. ICLR 2024, https://arxiv.org/abs/2305.04391. Implements algorithm 1.

p(x_0 | y) is approximated by one point mu, found by stochastic descent through the noise levels:

    gradient = grad_mu ||y - A(mu)||^2 / 2 + lambda_t sg[eps(mu + sigma_t z) - z] / 2,    lambda_t = lambda / SNR_t

With the signal-to-noise ratio SNR_t = alpha_t / sigma_t of the paper the weight cancels the level, and the second term is
(lambda / 2) (mu - D(mu + sigma_t z)): the denoiser's own step. Adam takes the gradient.

This is a point estimate with no posterior spread: the samples of several seeds differ by the noise of the optimisation alone.

Differs from the paper:
- lambda / 2 is `lam` sigma_y, with sigma_y on [0, 1]: the more noise, the more prior. lam = 5, fitted on photographs at noise
  0.01 to 0.2, is the paper's lambda = 0.25 at sigma_y = 1/40;
- the levels go from sigma_max = 1/4 to sigma_y instead of all the way from noise to data: below sigma_y the denoiser would
  say ever less and the noise be fitted;
- Adam's step size falls linearly to 0, so that the last steps average instead of trembling;
- mu starts where all solvers here do (invdiff/solvers/solver.py), without their noise; `steps` counts iterations.
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
from invdiff.solvers.point import PointEstimate
from invdiff.solvers.solver import Move
from invdiff.specs.parameters import parameter

BETAS = (0.9, 0.99)
EPSILON = 1e-8


@dataclass(frozen=True)
class REDDiff(PointEstimate):
    """Stochastic optimisation of one image; one network call a step, no gradients through the network."""

    name: ClassVar[str] = "red_diff"
    consistent: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    remedy: ClassVar[str] = "a smaller rate"

    lam: float = parameter(5.0, low=0, help="weight of the prior's step, lambda / 2, over sigma_y")
    rate: float = parameter(0.05, above=0, help="first step size of Adam: what a pixel moves in one step", unit="[0,1]")
    sigma_max: float | None = parameter(0.25, above=0, help="first noise level", unit="[0,1]")

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        A, y, weight = problem.operator, problem.y, self.lam * problem.sigma_y
        mu = self.start(problem, prior, 0.0, noise)
        m, v = torch.zeros_like(mu), torch.zeros_like(mu)
        for step, (sigma, next_sigma) in enumerate(itertools.pairwise([*levels, 0.0]), 1):
            clean = prior.denoise(mu + sigma * noise(), sigma)
            gradient = A.A_vjp(mu, A.A(mu) - y) + weight * (mu - clean)
            m = torch.lerp(gradient, m, BETAS[0])
            v = torch.lerp(gradient**2, v, BETAS[1])
            scale = (v / (1 - BETAS[1] ** step)).sqrt() + EPSILON
            rate = self.rate * (1 - (step - 1) / len(levels))
            mu = mu - rate / (1 - BETAS[0] ** step) * m / scale
            yield Move(sigma, next_sigma, clean, mu, mu)
