"""The Gaussian-mixture benchmark (`invdiff.exactness.mixture_benchmark`) as cases of a validation.

Every solver starts at the benchmark's first level from the noised prior itself (`initial=prior`), because at d = 800 that
level does not drown the means, and pure noise would be wrong for any sampler; the levels are even in log sigma.
"""

from __future__ import annotations

from collections.abc import Mapping

from invdiff.exactness import mixture_benchmark as mixtures
from invdiff.exactness.problems import MIXTURE, Case, ExactProblem
from invdiff.operator.spectral import dense_matrix

_FIRST, _LAST = mixtures.log_levels(2)
# Where a method has a parameter for the deviation of the data, or of a mode of it, it is told: 1 for every component.
START = {"initial": "prior", "sigma_max": _FIRST, "sigma_min": _LAST, "data_std": 1.0, "spread": 1.0}


def mixture_problem(d: int, dy: int, index: int) -> ExactProblem:
    """Problem number `index` of the cell (d, dy); the same for every number of steps."""
    found = mixtures.mixture_problem(d, dy, index)
    matrix = dense_matrix(found.problem.operator, found.problem.image_shape)
    return ExactProblem(found.name, found.problem, found.prior, found.posterior, matrix, mixtures.UNIT)


def mixture_cases(problems: Mapping[int, int], steps: tuple[int, ...], samples: int, seed: int) -> list[Case]:
    """A case for each d, dy and number of steps. problems: d -> how many problems a cell has; another seed takes others.

    Particle methods run with as many particles as samples are compared, in one population.
    """
    cases = []
    options = {**START, "particles": samples}
    for d, count in problems.items():
        for dy in mixtures.MEASURED:
            indices = range(seed * count, (seed + 1) * count)
            operator = mixture_problem(d, dy, indices[0]).problem.operator  # the others offer as much

            def make(d: int = d, dy: int = dy, indices: range = indices) -> list[ExactProblem]:
                return [mixture_problem(d, dy, index) for index in indices]

            label = f"d={d} dy={dy} steps="
            cases += [Case(MIXTURE, f"{label}{n}", make, operator, n, samples, options, f"{d},{dy}") for n in steps]
    return cases
