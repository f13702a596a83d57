"""DPIR: Plug-and-Play Image Restoration with Deep Denoiser Prior.

Zhang, Li, Zuo, Zhang, Van Gool, Timofte. TPAMI 2021, https://arxiv.org/abs/2008.13751. Implements its half-quadratic
splitting.

    x_k = argmin_x  ||y - A x||^2 / (2 sigma_y^2) + lambda ||x - z_{k-1}||^2 / (2 sigma_k^2)           (data step)
    z_k = D(x_k, sigma_k)                                                                              (denoiser)

sigma_k decreases evenly in log sigma from `sigma_max` to sigma_y / 4. Nothing is random: a point estimate, with no posterior
spread. A single step is a denoiser's answer to the measurement's own estimate: for A = I, where that is y and its error
sigma_y, the estimate of least squared error.

Differs from the paper:
- the denoiser is the diffusion prior, which knows higher and lower levels than one trained for noise up to 50/255. So the
  first level is what the operator leaves to fill in (49/255 is the paper's): for linear operators found from the error
  of the measurement's own estimate (invdiff/solvers/first_level.py), else 2. The last is below sigma_y, where the paper
  stops (sigma_min; at sigma_y = 0.2 that smooths too much);
- z_0 is where all solvers here start (invdiff/solvers/solver.py), without the noise, instead of an interpolation of y;
- an image whose residual is explained by the noise, and which no longer moves, is done before the last level
  (`settled`): on the lower ones it only loses detail;
- the data step is exact for every linear operator: in closed form with a decomposition, else by conjugate gradients;
- operators that are not linear: a few Gauss-Newton steps (invdiff/operator/gauss_newton.py), or the operator's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.first_level import first_level
from invdiff.solvers.point import FIRST, PointEstimate
from invdiff.solvers.solver import Move
from invdiff.specs.parameters import parameter

MARGIN = 1.5
"""First level over the first estimate's error in the worst places, where there are steps enough to come down from there."""
EXPLAINED = 1.05
"""Residual at which the noise explains what is left between A z and y (Morozov's discrepancy principle)."""
FEW = 2
"""Up to so many steps, the first level is the root mean square of the first estimate's error: too few steps are left to come
down from the error in the worst places."""


@dataclass(frozen=True)
class DPIR(PointEstimate):
    """Half-quadratic splitting; one network call a step, no gradients, no noise."""

    name: ClassVar[str] = "dpir"
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    deterministic: ClassVar[bool] = True
    end: ClassVar[float] = 0.25
    remedy: ClassVar[str] = "a larger lam"

    sigma_max: float | None = parameter(
        None, above=0, help="first noise level, in [0, 1] units; default: from what A leaves to fill in", unit="[0,1]"
    )
    lam: float = parameter(0.23, above=0, help="weight lambda of the network's estimate against the measurement")

    settled: float = parameter(
        0.7,
        low=0,
        search=False,
        help="an image is done once the noise is explained and it moves less than this by e-fold of the level, in units "
        "of sigma_y; 0: never before the last level",
    )

    def levels(self, problem: Problem, prior: Prior) -> list[float]:
        if self.sigma_max is not None:
            return super().levels(problem, prior)
        found = first_level(problem) if self.initial == "measurement" else None
        if found is None:
            first = FIRST
        elif self.steps <= FEW:
            first = found.error
        else:
            first = min(max(MARGIN * found.worst, found.hidden), FIRST)
        last = prior.sigma_min if self.sigma_min is None else self.sigma_min
        return replace(self, sigma_max=max(min(max(first, prior.sigma_min), prior.sigma_max), last)).levels(
            problem, prior
        )

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        z = self.start(problem, prior, 0.0, noise)
        x, going, part = z, list(range(len(z))), problem
        for sigma, next_sigma in itertools.pairwise([*levels, 0.0]):
            before = z if len(going) == len(z) else z[going]
            solved = part.operator.prox_l2(before, part.y, sigma**2 / (self.lam * problem.sigma_y**2))
            clean = prior.denoise(solved, sigma)
            x, z = _put(x, going, solved), _put(z, going, clean)
            yield Move(sigma, next_sigma, z, x, z)
            if self.settled and next_sigma > 0:
                still = self.settled * problem.sigma_y * math.log(sigma / next_sigma)
                moving = (clean - before).square().flatten(1).mean(1).sqrt() > still
                if moving.all():
                    continue
                rest = (moving | (part.residual(clean) > EXPLAINED)).tolist()
                if not any(rest):
                    return
                if not all(rest):
                    going = [row for row, more in zip(going, rest, strict=True) if more]
                    part = problem.rows(going)


def _put(whole: torch.Tensor, rows: list[int], values: torch.Tensor) -> torch.Tensor:
    """`values` in the place of these rows of a batch."""
    if len(rows) == len(whole):
        return values
    return whole.index_copy(0, torch.tensor(rows, device=whole.device), values)
