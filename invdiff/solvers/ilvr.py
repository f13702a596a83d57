"""ILVR: Iterative Latent Variable Refinement.

Choi, Kim, Jeong, Gwon, Yoon. ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models. ICCV 2021,
https://arxiv.org/abs/2108.02938. Implements algorithm 1.

After each ancestral step, what the reference tells of the image (there: its low frequencies, phi = upsampling of
downsampling) is replaced by the reference noised to the level reached, x_s <- phi(y_s) + (I - phi) x_s. For any linear A
the counterpart of phi is A^+ A and the noised reference is A^+ y + sigma_s z:

    x_s <- x_s + A^+ (y + sigma_s A z - A x_s)

Differs from the paper:
- start and levels are those of all solvers here (invdiff/solvers/solver.py);
- in the coordinate x = x_0 + sigma n, images in [0, 1];
- y may be noisy. Of the state, y + sigma_s A z is a measurement with noise sigma_y, while the state holds noise sigma_s; so
  A^+ becomes A^T (A A^T + sigma_y^2 / (w sigma_s^2) I)^-1: a direction with singular value s is replaced as long as sigma_s
  is above sigma_y / s and left to the network below. With sigma_y -> 0 this is the paper's A^+. Scaling sigma_y and A
  together changes nothing, so one weight serves all noise levels and operators;
- w is `weight` times 1 - (sigma_s / sigma_t)^2, the share of the noise that the step has renewed, so that many short steps
  trust y, whose noise is the same in each, no more than a few long ones;
- the range of levels that are conditioned (sec. 3.4) follows from that too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import DDIM, Estimate
from invdiff.solvers.solver import Solver, Transition
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class ILVR(Solver):
    """What is measured is replaced by the noised measurement after each step; one network call a step, no gradients."""

    name: ClassVar[str] = "ilvr"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})

    weight: float = parameter(1.0, above=0, help="trust in the measurement; 1 weighs it by its noise")

    def step(self, problem: Problem) -> Transition:
        return refined(problem, self.weight)


def refined(problem: Problem, weight: float) -> Transition:
    """The ancestral step, and what is measured replaced after it. weight: trust in the measurement."""
    ancestral = DDIM(1.0)

    def step(x: torch.Tensor, estimate: Estimate, sigma: float, next_sigma: float, noise: Draws) -> torch.Tensor:
        moved = ancestral(x, estimate, sigma, next_sigma, noise)
        return refine(problem, moved, next_sigma, weight * renewed(sigma, next_sigma), noise)

    return step


def refine(problem: Problem, x: torch.Tensor, sigma: float, weight: float, noise: Draws) -> torch.Tensor:
    """x at the level sigma, moved to the noised measurement y + sigma A z as far as its noise allows; x itself at sigma = 0.

    argmin_u  weight ||A u - (y + sigma A z)||^2 / sigma_y^2  +  ||u - x||^2 / sigma^2
    """
    if sigma == 0:
        return x
    noised = problem.y + sigma * problem.operator.A(noise())
    return problem.operator.prox_l2(x, noised, weight * (sigma / problem.sigma_y) ** 2)


def renewed(sigma: float, next_sigma: float) -> float:
    """1 - (sigma_s / sigma_t)^2, the share of the noise that an ancestral step renews: short steps add up to a long one."""
    return 1 - (next_sigma / sigma) ** 2
