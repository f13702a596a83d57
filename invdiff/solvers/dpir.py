"""DPIR: Plug-and-Play Image Restoration with Deep Denoiser Prior.

Zhang, Li, Zuo, Zhang, Van Gool, Timofte. TPAMI 2021, https://arxiv.org/abs/2008.13751. Implements its half-quadratic
splitting.

    x_k = argmin_x  ||y - A x||^2 / (2 sigma_y^2) + lambda ||x - z_{k-1}||^2 / (2 sigma_k^2)           (data step)
    z_k = D(x_k, sigma_k)                                                                              (denoiser)

sigma_k decreases evenly in log sigma from `sigma_max` to sigma_y / 4. Nothing is random: a point estimate, with no posterior
spread.

Differs from the paper:
- the denoiser is the diffusion prior, which knows higher and lower levels than one trained for noise up to 50/255. So the
  first level fills what was not measured (sigma_max = 49/255 is the paper's), and the last is below sigma_y, where the
  paper stops (sigma_min; at sigma_y = 0.2 that smooths too much);
- z_0 is where all solvers here start (invdiff/solvers/base.py), without the noise, instead of an interpolation of y;
- the data step is exact for every linear operator: in closed form with a decomposition, else by conjugate gradients;
- operators that are not linear: a few Gauss-Newton steps (invdiff/nonlinear.py), or the operator's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from invdiff.parameters import parameter
from invdiff.priors.base import Prior
from invdiff.problem import Problem
from invdiff.sampling import Noise
from invdiff.solvers.base import Move
from invdiff.solvers.point import PointEstimate


@dataclass(frozen=True)
class DPIR(PointEstimate):
    """Half-quadratic splitting; one network call a step, no gradients, no noise."""

    name: ClassVar[str] = "dpir"
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    deterministic: ClassVar[bool] = True
    end: ClassVar[float] = 0.25
    remedy: ClassVar[str] = "a larger lam"

    lam: float = parameter(0.23, above=0, help="weight lambda of the network's estimate against the measurement")

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Noise) -> Iterator[Move]:
        z = self.start(problem, prior, 0.0, noise)
        for sigma, next_sigma in itertools.pairwise([*levels, 0.0]):
            x = problem.operator.prox_l2(z, problem.y, sigma**2 / (self.lam * problem.sigma_y**2))
            z = prior.denoise(x, sigma)
            yield Move(sigma, next_sigma, z, x, z)
