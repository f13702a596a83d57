"""Score-SDE conditioning: Solving Inverse Problems in Medical Imaging with Score-Based Generative Models.

Song, Shen, Xing, Ermon. ICLR 2022, https://arxiv.org/abs/2111.08005. Implements the conditional sampling of sec. 3.

Before each step of the sampler, the state is mixed with the measurement noised to its own level, y_t = y + sigma_t A z:

    x' = argmin_u  lam ||A u - y_t||^2 + (1 - lam) ||u - x_t||^2,        x_s = ancestral step(x', D(x'))

lam = 1 puts the measurement in the place of what A sees (`ilvr` does so after a step instead of before it), lam = 0 leaves
it out.

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- in the coordinate x = x_0 + sigma n, images in [0, 1];
- any linear operator: the paper diagonalises A by an invertible transform and mixes there;
- y may be noisy, and A has any norm: the ratio of the two weights is (1 - lam) / lam ||A||^2 + sigma_y^2 / (w sigma_t^2), so
  that the mix fades out where the level falls below the measurement's noise, and one lam serves all noise levels. w = 1 -
  (sigma_s / sigma_t)^2 is the share of the noise that the step will renew: many short steps trust y no more than a few;
- the sampler is the ancestral chain, the exponential integrator of the paper's reverse SDE, without its corrector.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.solvers.ilvr import renewed
from invdiff.solvers.solver import Move, Solver
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class ScoreSDE(Solver):
    """Proximal mix with the noised measurement before each step; one network call a step, no gradients."""

    name: ClassVar[str] = "score_sde"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    remedy: ClassVar[str] = "a smaller lam"

    lam: float = parameter(0.9, above=0, high=1, help="weight of the measurement in the mix, 1: all of it")

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        A, y = problem.operator, problem.y
        ancestral = DDIM(1.0)
        stiffness = (1 - self.lam) / self.lam * A.norm(problem.image_shape) ** 2
        x = self.start(problem, prior, levels[0], noise)
        for sigma, next_sigma in itertools.pairwise([*levels, 0.0]):
            ratio = stiffness + (problem.sigma_y / sigma) ** 2 / renewed(sigma, next_sigma)
            x = A.prox_l2(x, y + sigma * A.A(noise()), 1 / ratio)
            clean = prior.denoise(x, sigma)
            x = ancestral(x, Estimate(clean, clean), sigma, next_sigma, noise)
            yield Move(sigma, next_sigma, clean, clean, x)
