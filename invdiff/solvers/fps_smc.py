"""FPS-SMC: Filtering Posterior Sampling with sequential Monte Carlo.

Dou, Song. Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective. ICLR 2024,
https://openreview.net/forum?id=tplXNcHZs1. Implements its particle version.

The measurement is diffused along with the image: with W_s the noise of x_s = x_0 + W_s and n that of y,

    y_s = y + A W_s = A x_s + sigma_y n,

so that a path of measurements, drawn backwards from W at the first level and W_s | W_t ~ N(k W_t, sigma_s^2 (1 - k) I) with
k = sigma_s^2 / sigma_t^2, gives the filter an observation of A x_s at every level. One path serves all particles of a
population. The noise n is the same at every level; each particle draws its own share of it and believes the rest to be
drawn afresh at each level,

    y_s - sqrt(1 - e^2) sigma_y n  ~  N(A x_s, e^2 sigma_y^2 I),        e = `fresh`.

With the model p(x_s | x_t) = N(m, v^2 I), m = D + k (x_t - D), v^2 = sigma_s^2 (1 - k), all is Gaussian (a fully adapted
auxiliary filter), with y' = y_s - sqrt(1 - e^2) sigma_y n:

    weight   N(y'; A m, v^2 A A^T + e^2 sigma_y^2 I),   then resampling
    move     x_s ~ p(x_s | x_t, y'),   proportional to N(m, v^2 I) N(y'; A x_s, e^2 sigma_y^2 I)

The move is one proximal step of A, without a decomposition:
x_s = argmin |A x - b|^2 / (2 e^2 sigma_y^2) + |x - a|^2 / (2 v^2) for a ~ N(m, v^2 I) and b ~ N(y', e^2 sigma_y^2 I).

Differs from the paper:
- e = 0.1 and the particles' own n. The paper's filter is e = 1: it takes the whole noise as drawn afresh at each level, which
  counts y as often as there are levels, so that its target is sharper than p(x_0 | y) unless sigma_y = 0; for e -> 0 the
  target is p(x_0 | y) for any sigma_y;
- the last move, to level 0, is x_0 = D and weighs nothing: A x is held already;
- the path starts from y + A W at the first level and not from white noise;
- in the coordinate x = x_0 + sigma n, where sigma_y is the same at every level (the paper's is scaled by sqrt(abar));
- start and levels are those of all solvers here (invdiff/solvers/solver.py), the start drawn given y' at its level;
- resampling where the effective sample size is below `threshold` N, systematic (the paper: at every level).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.machine.random import Draws
from invdiff.operator.weighted import for_rows
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.particles import Filter, ParticleNoise, ParticleSolver, View, expanded, inner
from invdiff.specs.parameters import parameter


@dataclass(frozen=True)
class FPSSMC(ParticleSolver):
    """Particles that filter a diffused measurement; one network call for each, no gradients."""

    name: ClassVar[str] = "fps_smc"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    remedy: ClassVar[str] = "more steps"

    fresh: float = parameter(
        0.1,
        above=0,
        high=1,
        help="share e of the measurement's noise (its deviation) taken as new at each level; 1: paper",
    )

    def filter(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Filter:
        return _Filtering(problem, prior, self.particles, self.fresh, _path(problem, levels, noise))


def _path(problem: Problem, levels: Sequence[float], noise: Draws) -> dict[float, torch.Tensor]:
    """Level -> y_s (B, *measurement shape)."""
    path = {}
    walk = levels[0] * noise()
    for sigma, following in itertools.pairwise([*levels, 0.0]):
        path[sigma] = problem.y + problem.operator.A(walk)
        if following > 0:
            k = (following / sigma) ** 2
            walk = k * walk + following * (1 - k) ** 0.5 * noise()
    return path


class _Filtering(Filter):
    def __init__(
        self, problem: Problem, prior: Prior, particles: int, fresh: float, path: dict[float, torch.Tensor]
    ) -> None:
        self.A, self.prior, self.path, self.particles = expanded(problem, particles).operator, prior, path, particles
        self.own = (1 - fresh**2) ** 0.5 * problem.sigma_y
        self.variance = (fresh * problem.sigma_y) ** 2
        self.n = problem.y  # the particles' own noise, from `start` on: (B N, *measurement shape)

    def measured(self, sigma: float, n: torch.Tensor, rows: slice) -> torch.Tensor:
        """y' for particles, (R, *measurement shape)."""
        return self.path[sigma].repeat_interleave(self.particles, 0)[rows] - self.own * n

    def start(
        self, centre: torch.Tensor, variance: float, sigma: float, draws: ParticleNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.n = draws.normal(*self.n.shape[1:])
        log_evidence = self._log_evidence(centre, variance, sigma, self.n, slice(None))
        return self._draw(centre, variance, sigma, draws), log_evidence

    def look(self, x: torch.Tensor, sigma: float, next_sigma: float, rows: slice) -> View:
        clean = self.prior.denoise(x, sigma)
        k = (next_sigma / sigma) ** 2
        base, n = torch.lerp(clean, x, k), self.n[rows]
        if next_sigma > 0:
            log_weight = self._log_evidence(base, next_sigma**2 * (1 - k), next_sigma, n, rows)
        else:
            log_weight = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return View(x, clean, clean, log_weight, {"base": base, "n": n})

    def move(
        self, view: View, sigma: float, next_sigma: float, draws: ParticleNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, self.n = view.more["base"], view.more["n"]
        if next_sigma > 0:
            x = self._draw(x, next_sigma**2 * (1 - (next_sigma / sigma) ** 2), next_sigma, draws)
        return x, torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def _draw(self, base: torch.Tensor, variance: float, sigma: float, draws: ParticleNoise) -> torch.Tensor:
        a = base + variance**0.5 * draws()
        b = self.measured(sigma, self.n, slice(None)) + self.variance**0.5 * draws.normal(*self.n.shape[1:])
        return self.A.prox_l2(a, b, variance / self.variance)

    def _log_evidence(
        self, base: torch.Tensor, variance: float, sigma: float, n: torch.Tensor, rows: slice
    ) -> torch.Tensor:
        """log N(y'; A base, variance A A^T + e^2 sigma_y^2 I) at a level, for the particles in these rows; without the
        determinant, which is the same for all particles of an image."""
        A = for_rows(self.A, range(*rows.indices(len(self.n))))
        misfit = self.measured(sigma, n, rows) - A.A(base)
        return -0.5 * inner(misfit, A.solve_data(misfit, variance, self.variance))
