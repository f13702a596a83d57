"""The one loop that runs every solver, the noise levels it visits, and the random numbers it draws."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from invdiff.errors import NumericalError, UsageError, unknown
from invdiff.operator import Shape
from invdiff.priors.base import Prior, Sigma
from invdiff.problem import Problem
from invdiff.schedule import Schedule

if TYPE_CHECKING:
    from invdiff.solvers.base import Solver

SPACINGS = ("timestep", "quadratic", "log")


def generator(seed: int, image: str | int, sample: int) -> torch.Generator:
    """The random generator (on the CPU, for all devices alike) of one sample of one image. Nothing else decides its
    numbers: not the batch, not the order.

    Raises UsageError for a negative seed.
    """
    if int(seed) != seed or seed < 0:
        raise UsageError(f"seed must be a whole number, 0 or more, got {seed}")
    digest = hashlib.sha256(f"{int(seed)}/{image}/{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Noise:
    """Standard normal noise for a batch, one generator per row."""

    def __init__(self, generators: Sequence[torch.Generator], shape: Shape, like: torch.Tensor) -> None:
        self._generators, self._shape, self._like = list(generators), tuple(shape), like

    def __call__(self) -> torch.Tensor:
        """(B, *shape) of independent N(0, 1)."""
        rows = [
            torch.randn(self._shape, generator=g, dtype=self._like.dtype, device=g.device) for g in self._generators
        ]
        return torch.stack(rows).to(self._like.device)


def noise_levels(
    steps: int, sigma_max: float, sigma_min: float, spacing: str = "timestep", schedule: Schedule | None = None
) -> list[float]:
    """`steps` decreasing noise levels from sigma_max to sigma_min, in [0, 1] units.

    timestep: uniform in the DDPM time t (schedule, default linear); quadratic: uniform in sqrt(t), denser at low noise
    (Song, Meng, Ermon 2021, appendix D.2); log: a geometric sequence. The two ends are exact even where they lie
    outside the schedule's table.
    Raises UsageError for an unknown spacing, or steps < 1.
    """
    if spacing not in SPACINGS:
        raise unknown("spacing", spacing, SPACINGS)
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    if not 0 < sigma_min <= sigma_max:
        raise UsageError(f"noise levels need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")
    if spacing == "log":
        return list(np.geomspace(sigma_max, sigma_min, steps))
    schedule = schedule or Schedule.named("linear")
    first, last = (float(schedule.t(2 * sigma)) for sigma in (sigma_max, sigma_min))
    power = 2.0 if spacing == "quadratic" else 1.0
    times = np.linspace(first ** (1 / power), last ** (1 / power), steps) ** power
    levels = [float(schedule.sigma(min(t, len(schedule) - 1))) / 2 for t in times]
    return [sigma_max, *levels[1:-1], sigma_min] if steps > 1 else [sigma_max]


class CountedPrior(Prior):
    """A prior that counts its calls: the number of function evaluations (NFE)."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.channels = prior.channels
        self.sigma_max, self.sigma_start, self.sigma_min = prior.sigma_max, prior.sigma_start, prior.sigma_min
        self.calls = 0

    @property
    def schedule(self) -> Schedule | None:
        return getattr(self.prior, "schedule", None)

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        self.calls += 1
        return self.prior.denoise(x, sigma)


@dataclass(frozen=True, eq=False)
class State:
    """What the loop knows after one step.

    step: 1-based, of `steps`; sigma: the level just left, next_sigma: the level reached (0 at the end);
    clean: E[x_0 | x]; estimate: the solver's E[x_0 | x, y]; x: the sample at next_sigma. All (B, *image shape).
    """

    step: int
    steps: int
    sigma: float
    next_sigma: float
    clean: torch.Tensor
    estimate: torch.Tensor
    x: torch.Tensor
    nfe: int


def run(problem: Problem, prior: Prior, solver: Solver, noise: Noise) -> Iterator[State]:
    """Reverse diffusion from the first noise level to zero: correct, then move to the next level. Yields each State;
    the last one's x is the sample.

    Raises UsageError if the solver cannot use the operator, NumericalError on NaN or infinity.
    """
    solver.check(problem.operator)
    prior.check_shape(problem.image_shape)
    counted = CountedPrior(prior)
    sigmas = [*solver.levels(problem, counted), 0.0]
    with torch.no_grad():
        correction = solver.correction(problem, counted)
        transition = solver.transition(problem)
        x = solver.start(problem, sigmas[0], noise())
    for step, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas), start=1):
        # Left before every yield: the caller's own gradient mode must not change between two states.
        with torch.no_grad():
            estimate = correction(x, sigma, next_sigma)
            x = transition(x, estimate, sigma, next_sigma, noise)
            finite = bool(torch.isfinite(x).all())
        if not finite:
            raise NumericalError(
                f"{solver.name}: NaN or infinity at step {step} of {len(sigmas) - 1}, sigma {sigma:.4g}; "
                "try --precision fp32, a smaller weight, or check the operator with float64 input"
            )
        yield State(step, len(sigmas) - 1, sigma, next_sigma, estimate.clean, estimate.estimate, x, counted.calls)
