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

Every solver starts at the benchmark's first noise level from the noised prior itself (`initial=prior`), because at d = 800
that level does not drown the means, and pure noise would be wrong for any sampler; the levels are even in log sigma.

Differs from the paper: the random numbers are our own, and a problem is the same for every number of steps. The paper's
noise levels and its other settings are in benchmarks/mixtures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from invdiff import operators
from invdiff.exactness.problems import MIXTURE, Case, ExactProblem
from invdiff.machine.random import generator
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.problem.problem import Problem

MEASURED = (1, 2, 4)
"""The numbers of measured values, dy."""
UNIT = 2.0
"""The paper's unit in [0, 1] units: distances are multiplied by it."""
DEVIATION = 0.5
"""Standard deviation of a component, in [0, 1] units."""
LAST = 0.15
"""The last noise level, in [0, 1] units."""


def schedule() -> np.ndarray:
    """abar_t of the paper's 1000 times t: 1 at t = 0, then the product of 1 - beta with beta falling from 0.02 to 1e-4."""
    return np.cumprod(np.concatenate([[1.0], 1 - np.linspace(0.02, 1e-4, 999)]))


SIGMA_MAX = float(np.sqrt(1 / schedule()[-1] - 1)) / UNIT
"""The first noise level of the paper's schedule, in [0, 1] units."""
# Solvers that have a parameter for the standard deviation of the data, or of one mode, get it: 1 for every component.
START: dict[str, Any] = {"initial": "prior", "sigma_max": SIGMA_MAX, "sigma_min": LAST, "data_std": 1.0, "spread": 1.0}


def mixture_prior(d: int) -> GaussianMixturePrior:
    """The prior in d dimensions, an even number, in [0, 1] units."""
    grid = -8.0 * torch.cartesian_prod(*2 * [torch.arange(-2, 3, dtype=torch.float64)])
    draw = torch.randn(25, generator=generator(0, f"mixtures/{d}/weights", 0), dtype=torch.float64)
    means = (grid.repeat(1, d // 2) + 1) / UNIT
    return GaussianMixturePrior(means, torch.tensor([[DEVIATION**2]]), draw.square())


def mixture_problem(d: int, dy: int, index: int) -> ExactProblem:
    """Problem number `index` of the cell (d, dy); the same for every number of steps."""
    name = f"mixtures/{d}/{dy}/{index}"
    prior, draws = mixture_prior(d), generator(0, name, 0)
    left, _, right = torch.linalg.svd(torch.randn(dy, d, generator=draws, dtype=torch.float64), full_matrices=False)
    s = torch.rand(dy, generator=draws, dtype=torch.float64).sort(descending=True).values
    matrix = left @ (s[:, None] * right)
    sigma_y = float(torch.rand(1, generator=draws, dtype=torch.float64) * s.max()) / UNIT
    operator = operators.get("linear", matrix=matrix)
    y = operator.A(prior.sample(1, draws)) + sigma_y * torch.randn(1, dy, generator=draws, dtype=torch.float64)
    problem = Problem(operator, y, sigma_y, (d,))
    return ExactProblem(name, problem, prior, prior.posterior(matrix, y[0], sigma_y), matrix, UNIT)


def mixture_cases(problems: Mapping[int, int], steps: tuple[int, ...], samples: int, seed: int) -> list[Case]:
    """A case for each d, dy and number of steps. problems: d -> how many problems a cell has; another seed takes others.

    Particle methods run with as many particles as samples are compared, in one population.
    """
    cases = []
    options = {**START, "particles": samples}
    for d, count in problems.items():
        for dy in MEASURED:
            indices = range(seed * count, (seed + 1) * count)
            operator = mixture_problem(d, dy, indices[0]).problem.operator  # the others offer as much

            def make(d: int = d, dy: int = dy, indices: range = indices) -> list[ExactProblem]:
                return [mixture_problem(d, dy, index) for index in indices]

            label = f"d={d} dy={dy} steps="
            cases += [Case(MIXTURE, f"{label}{n}", make, operator, n, samples, options, f"{d},{dy}") for n in steps]
    return cases
