"""Score-ALD: annealed Langevin dynamics with the likelihood.

Jalal, Arvinte, Daras, Price, Dimakis, Tamir. Robust Compressed Sensing MRI with Deep Generative Priors. NeurIPS 2021,
https://arxiv.org/abs/2108.01368. Implements its posterior sampling by annealed Langevin dynamics.

At each level, `iterations` steps of

    x <- x + eta_t [ (D(x) - x) / sigma_t^2 + A^T (y - A x) / (sigma_y^2 + gamma_t^2) ] + sqrt(2 eta_t) z

where gamma_t^2 makes up for the noise that A sees in x and not in y.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py): 20 instead of 2311, so at the end one call
  takes the noise of the last level off (Jolicoeur-Martineau et al. 2021, https://arxiv.org/abs/2009.05475);
- with so few levels the steps are long. With k = exp(-eta_t / sigma_t^2), the step is the exact solution for D and the
  likelihood's gradient g held fixed, x <- D + k (x - D) + (1 - k) sigma_t^2 g + sqrt(1 - k^2) sigma_t z: to first order in
  eta_t the paper's, but its noise is sigma_t^2 at any length;
- gamma_t and eta_t, tuned by hand there, are derived. Of x = x_0 + sigma_t n, y is a measurement with covariance
  sigma_y^2 I + sigma_t^2 A A^T, hence gamma_t = `gamma` ||A|| sigma_t, and with gamma = 1 a step of any length is stable;
  eta_t = `step_size` sigma_t^2. Scaling sigma_y and A together changes nothing: one default serves all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import Move, Solver
from invdiff.specs.parameters import parameter, whole


@dataclass(frozen=True)
class ScoreALD(Solver):
    """Langevin steps on prior and likelihood at every level; several network calls a level, no gradients."""

    name: ClassVar[str] = "score_ald"
    consistent: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    remedy: ClassVar[str] = "a larger gamma"

    iterations: int = parameter(3, kind=whole, low=1, help="Langevin steps at each level", unit="calls")
    step_size: float = parameter(2.0, above=0, help="Langevin step eta_t in units of sigma_t^2")
    gamma: float = parameter(1.0, low=0, help="gamma_t in units of ||A|| sigma_t")

    @property
    def nfe(self) -> int:
        return self.steps * self.iterations + 1

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        A, y = problem.operator, problem.y
        norm, kept = A.norm(problem.image_shape), math.exp(-self.step_size)
        x = self.start(problem, prior, levels[0], noise)
        for sigma, next_sigma in itertools.pairwise([*levels, 0.0]):
            variance = problem.sigma_y**2 + (self.gamma * norm * sigma) ** 2
            for _ in range(self.iterations):
                clean = prior.denoise(x, sigma)
                estimate = clean + sigma**2 / variance * A.A_adjoint(y - A.A(x))
                # D + sigma^2 g + k (x - D - sigma^2 g)
                x = torch.lerp(estimate, x, kept) + (1 - kept**2) ** 0.5 * sigma * noise()
            if next_sigma == 0:
                x = prior.denoise(x, sigma)
            yield Move(sigma, next_sigma, clean, estimate, x)
