"""The Gaussian-mixture benchmark of posterior samplers: no network, and the posterior known exactly.

Cardoso, Janati, Le Corff, Moulines. Monte Carlo guided Denoising Diffusion Models for Bayesian Linear Inverse Problems. ICLR
2024, https://arxiv.org/abs/2308.07983; the definition is that of the experiments' code. In the paper's unit:

    prior      25 components of covariance I and means (-8i, -8j, -8i, -8j, ...), i, j in -2 .. 2, in d = 8, 80, 800
               dimensions; weights g^2 / sum g^2, g ~ N(0, I)
    operator   A = U diag(s) V^T from the decomposition of a (dy, d) matrix of N(0, 1), dy = 1, 2, 4; s uniform on (0, 1)
    noise      sigma_y = u max s, u uniform on (0, 1);  y = A x + sigma_y z, x from the prior
    score      sliced Wasserstein-1 distance of 1000 samples to 1000 exact ones: the mean over 100 random directions

Here the same problems stand in [0, 1] units, (x + 1) / 2: means (m + 1) / 2, covariance I / 4, sigma_y / 2. Then the data
deviate by 1/2 around a mode as DDPM supposes, and sqrt(abar) = 1 / sqrt(1 + 4 sigma^2) is the benchmark's own. Distances are
given in the paper's unit.

Differs from the paper: the random numbers are our own, and a problem is the same for every number of steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from invdiff import operators
from invdiff.machine.random import Draws, generator
from invdiff.priors.counted import CountedPrior
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import Solver

DIMENSIONS, MEASURED, STEPS, PROBLEMS = (8, 80, 800), (1, 2, 4), (20, 100), 20
SAMPLES, SLICES = 1000, 100
UNIT = 2.0
"""The paper's unit in [0, 1] units: distances are multiplied by it."""
# The deviation of a component, in [0, 1] units.
DEVIATION = 0.5
# Where the paper's levels stop being even in sqrt(abar).
_DROWNED = 1e-2


def schedule() -> np.ndarray:
    """abar_t of the paper's 1000 times t: 1 at t = 0, then the product of 1 - beta with beta falling from 0.02 to 1e-4."""
    return np.cumprod(np.concatenate([[1.0], 1 - np.linspace(0.02, 1e-4, 999)]))


SIGMA_MAX = float(np.sqrt(1 / schedule()[-1] - 1)) / UNIT
"""The first noise level of the paper's schedule, in [0, 1] units."""


@dataclass(frozen=True, eq=False)
class MixtureProblem:
    """One problem of the benchmark, in [0, 1] units: y (1, dy), the prior, the exact posterior, the singular values of A."""

    name: str
    problem: Problem
    prior: GaussianMixturePrior
    posterior: GaussianMixturePrior
    singular_values: np.ndarray

    def exact(self, purpose: str, count: int = SAMPLES) -> torch.Tensor:
        """(count, d) exact samples; `purpose` names their random numbers."""
        return self.posterior.sample(count, generator(0, f"{self.name}/exact/{purpose}", 0))

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> float:
        """Sliced Wasserstein-1 distance of two sets (count, d) of equally many samples, in the paper's unit.

        Always in the same directions, so that two samplers are compared in the same ones.
        """
        directions = torch.randn(
            a.shape[1], SLICES, generator=generator(0, f"{self.name}/slices", 0), dtype=torch.float64
        )
        return UNIT * sliced_wasserstein(a, b, directions)

    def score(self, samples: torch.Tensor) -> float:
        """The distance of samples (count, d) to exact ones."""
        return self.distance(samples, self.exact("reference", len(samples)))

    def floor(self, count: int = SAMPLES) -> float:
        """What exact samples score."""
        return self.score(self.exact("floor", count))

    def paper_levels(self, steps: int) -> list[float]:
        """The paper's noise levels, decreasing: see `paper_times`."""
        abar = schedule()
        tau = self.problem.sigma_y * UNIT / self.singular_values
        return [float(np.sqrt(1 / abar[t] - 1)) / UNIT for t in paper_times(steps, tau)[::-1] if t > 0]


def mixture_prior(d: int) -> GaussianMixturePrior:
    """The prior in d dimensions, an even number, in [0, 1] units."""
    grid = -8.0 * torch.cartesian_prod(*2 * [torch.arange(-2, 3, dtype=torch.float64)])
    draw = torch.randn(25, generator=generator(0, f"mixtures/{d}/weights", 0), dtype=torch.float64)
    means = (grid.repeat(1, d // 2) + 1) / UNIT
    return GaussianMixturePrior(means, torch.tensor([[DEVIATION**2]]), draw.square())


def mixture_problem(d: int, dy: int, index: int) -> MixtureProblem:
    """Problem number `index` of the cell (d, dy)."""
    name = f"mixtures/{d}/{dy}/{index}"
    prior, draws = mixture_prior(d), generator(0, name, 0)
    left, _, right = torch.linalg.svd(torch.randn(dy, d, generator=draws, dtype=torch.float64), full_matrices=False)
    s = torch.rand(dy, generator=draws, dtype=torch.float64).sort(descending=True).values
    matrix = left @ (s[:, None] * right)
    sigma_y = float(torch.rand(1, generator=draws, dtype=torch.float64) * s.max()) / UNIT
    operator = operators.get("linear", matrix=matrix)
    y = operator.A(prior.sample(1, draws)) + sigma_y * torch.randn(1, dy, generator=draws, dtype=torch.float64)
    posterior = prior.posterior(matrix, y[0], sigma_y)
    return MixtureProblem(name, Problem(operator, y, sigma_y, (d,)), prior, posterior, s.numpy())


def paper_times(steps: int, tau: np.ndarray) -> list[int]:
    """The paper's `steps` times t, increasing from 0 to 999, for the noise levels tau (its unit) of the measured directions.

    Even in sqrt(abar) down to sqrt(abar) < 0.01, with the times whose noise is that of a measured direction among them; what
    is left of `steps` is spread evenly over the rest.
    """
    abar = schedule()
    root, last = np.sqrt(abar), len(abar) - 1
    noise = 1 / abar - 1
    met = {int(np.abs(noise - value**2).argmin()) for value in tau} - {0}
    end = int(np.argmax(root < _DROWNED))
    increase = (root[0] - root[end]) / max(1, steps - 1 - len(met))
    times = [0]
    for t in range(1, end):
        if root[times[-1]] - root[t] >= increase or t in met:
            times.append(t)
    times = times[: steps - 1]
    rest = np.linspace(end, last, steps - len(times)).round().astype(int) if len(times) < steps - 1 else [last]
    return [*times, *map(int, rest)]


def log_levels(steps: int, last: float = 0.15) -> list[float]:
    """Levels even in log sigma from the paper's first one to `last`, in [0, 1] units."""
    return list(np.geomspace(SIGMA_MAX, last, steps)) if steps > 1 else [SIGMA_MAX]


def sliced_wasserstein(a: torch.Tensor, b: torch.Tensor, directions: torch.Tensor) -> float:
    """Mean over directions (d, S), of any length, of the Wasserstein-1 distance of samples a, b (count, d)."""
    directions = directions / directions.norm(dim=0)
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


@dataclass(frozen=True, eq=False)
class Run:
    """samples (count, d); nfe: network calls for each of them; seconds; diagnostics: name -> (moves,)."""

    samples: torch.Tensor
    nfe: float
    seconds: float
    diagnostics: Mapping[str, torch.Tensor]


def run_solver(
    solver: Solver, case: MixtureProblem, levels: Sequence[float], seed: int = 0, count: int = SAMPLES
) -> Run:
    """`count` samples of a solver that walks these levels: one population of particles, or as many independent runs.

    A population that is larger gives evenly spaced members of it.
    """
    rows = count if solver.population == 1 else 1
    problem = case.problem.rows([0] * rows)
    noise = Draws([generator(seed, case.name, k) for k in range(rows)], problem.image_shape, problem.y)
    counted = CountedPrior(case.prior, count)
    diagnostics: dict[str, list[torch.Tensor]] = {}
    begin = time.perf_counter()
    move = None
    with torch.no_grad():
        for move in solver.walk(problem, counted, levels, noise):
            for key, values in move.diagnostics.items():
                diagnostics.setdefault(key, []).append(values.mean())
    if move is None:
        raise RuntimeError(f"{solver.name}: no move for {len(levels)} levels")
    samples = move.x if move.population is None else move.population[0]
    if len(samples) > count:
        samples = samples[torch.linspace(0, len(samples) - 1, count).round().long()]
    collected = {key: torch.stack(values) for key, values in diagnostics.items()}
    return Run(samples, counted.images / count, time.perf_counter() - begin, collected)


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and 1.96 standard deviations over sqrt(n), values that are not finite left out."""
    finite = np.asarray([value for value in values if np.isfinite(value)])
    if not len(finite):
        return float("nan"), float("nan")
    return float(finite.mean()), float(1.96 * finite.std() / len(finite) ** 0.5)
