"""TDS: the Twisted Diffusion Sampler.

Wu, Trippe, Naesseth, Blei, Cunningham. Practical and Asymptotically Exact Conditional Sampling in Diffusion Models. NeurIPS
2023, https://arxiv.org/abs/2306.17775. Implements its twisted sequential Monte Carlo (algorithm 1) for measurements.

A particle at the level t carries the twist g_t(x), an approximation of p(y | x). It moves by a proposal that is guided by
grad log g_t, and its weight is corrected for both,

    w_s = w_t  p(x_s | x_t) g_s(x_s) / ( q(x_s | x_t, y) g_t(x_t) ),        g_0(x) = N(y; A x, sigma_y^2 I),

so that errors of the twist cost effective sample size and not exactness. With p(x_0 | x_t) taken as a Gaussian N(D, C),

    g_t(x)   = N(y; A D(x), A C A^T + sigma_y^2 I)
    shift    = C A^T (A C A^T + sigma_y^2 I)^-1 (y - A D)  =  sigma_t^2 grad log g_t  for fixed C, where C = sigma_t^2 dD/dx
    p(x_s | x_t)    = N(D + k (x_t - D), (v^2 + (1 - k)^2 r^2) I)         k = sigma_s^2 / sigma_t^2,  v^2 = sigma_s^2 (1 - k)
    q(x_s | x_t, y) = N(D + k (x_t - D) + (1 - k) shift, v^2 I + (1 - k)^2 C_y)
    C_y             = r^2 I - r^4 A^T (r^2 A A^T + sigma_y^2 I)^-1 A      r^2 = sigma_t^2 nu / (sigma_t^2 + nu)

`twist` says what C is in g_t. tweedie: sigma_t^2 dD/dx itself, by one backward pass for each measured value (the whole m x m
matrix, so for few of them; MAX_TWEEDIE is where auto stops). scalar: r^2 I with nu = data_std^2, and for A its Jacobian H at
D where it is not linear: r^2 H H^T + sigma_y^2 I damps what a steep curve would make overshoot; its determinant is left out,
as for a linear A. plain: A C A^T = r^2 I. auto takes the first that fits.

Differs from the paper:
- the kernel's variance: nu = spread^2 in p and q. The paper's model has r = 0 (the DDPM variance v^2, too small for coarse
  steps because it leaves out what is not known of x_0) or a learned one; and its q has the same variance as its p. With
  spread = the deviation of the data within a mode, moves are exact where p(x_0 | x) is a Gaussian of that deviation, the last
  one among them, however few levels there are;
- the covariance of the twist (the paper: p(y | D(x)), for inpainting with the variance of the level);
- start and levels are those of all solvers here (invdiff/solvers/solver.py). `initial=measurement` stands for the twisted law
  of the first level; `noise` and `prior` are weighted by the twist;
- resampling where the effective sample size is below `threshold` N, systematic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.operator.linalg import solve
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.particles import Filter, ParticleNoise, ParticleSolver, View, expanded, inner
from invdiff.solvers.tweedie import Moments
from invdiff.specs.parameters import parameter

TWISTS = ("auto", "tweedie", "scalar", "plain")
MAX_TWEEDIE = 16
LOCAL_TOLERANCE, LOCAL_ITERATIONS = 1e-2, 20
"""Accuracy and iterations of the inverse where A is not linear: a twist is an approximation, for which weights make up."""


@dataclass(frozen=True)
class TDS(ParticleSolver):
    """Guided particles, weighted so that they follow p(x | y); one network call and backward passes for each particle."""

    name: ClassVar[str] = "tds"
    needs: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    remedy: ClassVar[str] = "more steps"

    twist: str = parameter("auto", kind=str, choices=TWISTS, help="covariance of p(x_0 | x) in the likelihood of y")
    data_std: float = parameter(0.5, above=0, help="standard deviation of the data in the scalar twist", unit="[0,1]")
    spread: float = parameter(
        0.0, low=0, help="standard deviation of the data within a mode, in the moves; 0: the paper's", unit="[0,1]"
    )

    def _backward_passes_a_call(self) -> int:
        return 1

    def filter(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Filter:
        return _Twisted(self, expanded(problem, self.particles), prior, self._twist(problem))

    def _twist(self, problem: Problem) -> str:
        few = math.prod(problem.y.shape[1:]) <= MAX_TWEEDIE
        return self.twist if self.twist != "auto" else "tweedie" if few else "scalar"


def _variance(sigma: float, deviation: float) -> float:
    """r^2 = sigma^2 nu / (sigma^2 + nu): Var[x_0 | x] of Gaussian data."""
    nu = deviation**2
    return sigma**2 * nu / (sigma**2 + nu)


def _solved(p: Moments, r2: float, noise: float) -> torch.Tensor:
    """(r^2 H H^T + sigma_y^2 I)^-1 (y - A D), with H the Jacobian at D where A is not linear."""
    A = p.operator
    if A.linear:
        return A.solve_data(p.residual, r2, noise)

    def apply(v: torch.Tensor) -> torch.Tensor:
        return r2 * A.A_jvp(p.clean, A.A_vjp(p.clean, v)) + noise * v

    return solve(apply, p.residual, tolerance=LOCAL_TOLERANCE, iterations=LOCAL_ITERATIONS).x


class _Twisted(Filter):
    pinned = True

    def __init__(self, settings: TDS, problem: Problem, prior: Prior, twist: str) -> None:
        self.settings, self.problem, self.prior, self.twist = settings, problem, prior, twist

    def look(self, x: torch.Tensor, sigma: float, next_sigma: float, rows: slice) -> View:
        part = self.problem.rows(range(*rows.indices(len(self.problem.y))))
        p = Moments.at(part, self.prior, x, sigma)
        if self.twist == "tweedie":
            shift, log_g = self._tweedie(p)
        else:
            r2 = _variance(sigma, self.settings.data_std)
            noise = self.problem.sigma_y**2
            q = _solved(p, r2, noise) if self.twist == "scalar" else p.residual / (r2 + noise)
            # The determinant is the same for all particles, or (A not linear) part of what weights make up for.
            shift, log_g = p.covariance_adjoint(q), -0.5 * inner(p.residual, q)
        return View(x, p.clean, p.clean + shift, log_g, {"log_g": log_g})

    def _tweedie(self, p: Moments) -> tuple[torch.Tensor, torch.Tensor]:
        """shift and log g_t from S = A C A^T + sigma_y^2 I, one backward pass for each of its columns."""
        residual = p.residual.flatten(1)
        units = torch.eye(residual.shape[1]).to(residual)
        columns = [p.covariance_adjoint(unit.expand_as(residual).reshape(p.residual.shape)) for unit in units]
        rows = [p.operator.A_jvp(p.clean, column).flatten(1) for column in columns]
        S = torch.stack(rows, 1).double()  # [R, m, m]
        noise = self.problem.sigma_y**2
        # A network's Jacobian need not be symmetric, nor positive: its part below zero is no variance.
        values, basis = torch.linalg.eigh((S + S.mT) / 2)
        values = values.clamp(min=0) + noise
        inside = torch.einsum("rji,rj->ri", basis, residual.double())  # U^T (y - A D)
        log_g = -0.5 * (inside**2 / values + values.log()).sum(1)
        q = torch.einsum("rij,rj->ri", basis, inside / values).to(residual)
        shift = torch.einsum("ri,ri...->r...", q, torch.stack(columns, 1))
        return shift, log_g

    def move(
        self, view: View, sigma: float, next_sigma: float, draws: ParticleNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        A, noise = self.problem.operator, self.problem.sigma_y**2
        k = (next_sigma / sigma) ** 2
        v2, r2 = next_sigma**2 * (1 - k), _variance(sigma, self.settings.spread) if self.settings.spread else 0.0
        total = v2 + (1 - k) ** 2 * r2
        base = torch.lerp(view.clean, view.x, k)
        drift = (1 - k) * (view.estimate - view.clean)
        fresh = v2**0.5 * draws()
        if r2 > 0 and A.linear:
            # u with covariance C_y: a draw of N(0, r^2 I), moved by what a measurement of noise alone says of it.
            u = r2**0.5 * draws()
            n = self.problem.sigma_y * draws.normal(*self.problem.y.shape[1:])
            fresh = fresh + (1 - k) * A.prox_l2(u, n, r2 / noise)
        elif r2 > 0:
            fresh = fresh + (1 - k) * r2**0.5 * draws()
        x = base + drift + fresh
        gained = -view.more["log_g"]
        if total > 0:
            # log p / q, with |x - base|^2 - |fresh|^2 = drift . (2 fresh + drift)
            gained = gained - inner(drift, 2 * fresh + drift) / (2 * total)
            if r2 > 0 and A.linear:
                # q's inverse covariance is (I + b A^T (v^2 r^2 A A^T + total sigma_y^2 I)^-1 A) / total, b = ((1 - k) r^2)^2
                seen = A.A(fresh)
                b = ((1 - k) * r2) ** 2
                gained = gained + b * inner(seen, A.solve_data(seen, v2 * r2, total * noise)) / (2 * total)
        if next_sigma == 0:
            misfit = self.problem.y - A.A(x)
            gained = gained - 0.5 * inner(misfit, misfit) / noise
        return x, gained
