"""The one loop that runs every solver, the noise levels it visits, and the random numbers it draws."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from invdiff.drawing import Ahead
from invdiff.errors import NumericalError, UsageError, unknown
from invdiff.linalg import SHARE, missing
from invdiff.operator import Shape
from invdiff.priors.base import Prior, Sigma, WrappedPrior
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
        self._ahead = Ahead(self._generators, like.dtype, like.device) if like.is_cuda else None

    def __call__(self) -> torch.Tensor:
        """(B, *shape) of independent N(0, 1), of an image's shape."""
        return self.normal(*self._shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """(B, *shape) of independent N(0, 1), of any shape: noise of a measurement, or of many particles."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> torch.Tensor:
        """(B, *shape) of independent uniform numbers in [0, 1)."""
        return self._draw(torch.rand, shape)

    def sample(self, draw: Callable[[int, torch.Generator], torch.Tensor], count: int = 1) -> torch.Tensor:
        """(B * count, ...): `count` draws for each row by draw(count, generator), which a prior's `sample` is."""
        if self._ahead:
            self._ahead.undo()
        return torch.cat([draw(count, g) for g in self._generators])

    def _draw(self, make: Callable[..., torch.Tensor], shape: Shape) -> torch.Tensor:
        if self._ahead:
            return self._ahead(make, tuple(shape))
        rows = [make(shape, generator=g, dtype=self._like.dtype, device=g.device) for g in self._generators]
        return (rows[0][None] if len(rows) == 1 else torch.stack(rows)).to(self._like.device)


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


class CountedPrior(WrappedPrior):
    """A prior that counts its calls: the number of function evaluations (NFE) for each of `rows` samples."""

    def __init__(self, prior: Prior, rows: int = 1) -> None:
        super().__init__(prior)
        self.rows = rows
        self.images = 0

    @property
    def calls(self) -> int:
        """Network calls for each sample, on average, rounded up: all particles of a population count."""
        return -(-self.images // self.rows)

    @property
    def can_sample(self) -> bool:  # type: ignore[override]
        return self.prior.can_sample

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.prior.sample(count, generator)

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        self.images += len(x)
        return self.prior.denoise(x, sigma)


@dataclass(frozen=True, eq=False)
class State:
    """What the loop knows after one move.

    step: 1-based, of `steps`; sigma: the level just left, next_sigma: the level reached (0 at the end,
    unless the method is done before);
    clean: E[x_0 | x]; estimate: the solver's E[x_0 | x, y]; x: the sample at next_sigma. All (B, *image shape).
    nfe: network calls so far, for each sample. population: at the end of a method that works with particles, all of
    them, equally weighted, (B, N, *image shape). diagnostics: what the method reports of this move, (B,) each.
    """

    step: int
    steps: int
    sigma: float
    next_sigma: float
    clean: torch.Tensor
    estimate: torch.Tensor
    x: torch.Tensor
    nfe: int
    population: torch.Tensor | None = None
    diagnostics: Mapping[str, torch.Tensor] = field(default_factory=dict)


def lag(x: torch.Tensor) -> int:
    """Moves that are not looked at yet: while a GPU makes one, the processor launches the next."""
    return 1 if x.is_cuda else 0


class Finite:
    """Whether all numbers of a tensor are finite; on a GPU, which computes it meanwhile, to be asked for later."""

    def __init__(self, x: torch.Tensor) -> None:
        self._answer = torch.isfinite(x).all()
        self._written: torch.cuda.Event | None = None
        if x.is_cuda:
            self._answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(self._answer, non_blocking=True)
            self._written = torch.cuda.Event()
            self._written.record(torch.cuda.current_stream(x.device))

    def __bool__(self) -> bool:
        if self._written is not None:
            self._written.synchronize()
        return bool(self._answer)


def run(problem: Problem, prior: Prior, solver: Solver, noise: Noise) -> Iterator[State]:
    """Reverse diffusion from the first noise level to zero. Yields the State after each move; the last one's x is the
    sample.

    Raises UsageError if the solver cannot use the operator, NumericalError on NaN or infinity (on a GPU, where that is
    noticed one move later, after the state of the move).
    """
    solver.check(problem.operator)
    prior.check_shape(problem.image_shape)
    if solver.sees_whitened:
        problem = problem.whitened()
    elif problem.noise is not None and problem.noise.trusted(problem.y) is not None:
        raise UsageError(
            f"{solver.name} needs all values of y, and {problem.noise.name} noise has replaced some; any solver without "
            'the need "svd" leaves them out, solver=auto among them'
        )
    problem = problem.lasting()
    counted = CountedPrior(prior, len(problem.y))
    levels = solver.levels(problem, counted)
    moves = solver.walk(problem, counted, levels, noise)
    total = solver.moves(levels)
    checks: deque[tuple[int, float, Finite]] = deque()

    def look(left: int) -> None:
        """Raise if one of the moves, all but the last `left`, was not finite."""
        while len(checks) > left:
            step, sigma, finite = checks.popleft()
            if not finite:
                raise NumericalError(
                    f"{solver.name}: NaN or infinity at step {step} of {total}, sigma {sigma:.4g}; try "
                    f"{solver.remedy}, --precision fp32, or check the operator with float64 input"
                )

    for step in itertools.count(1):
        # Left before every yield: the caller's own gradients and data steps must not change between two states.
        with torch.no_grad(), missing(SHARE if counted.coarse else 0.0):
            move = next(moves, None)
            if move is None:
                look(0)
                return
            checks.append((step, move.sigma, Finite(move.x)))
        look(lag(move.x) if step < total else 0)
        yield State(
            step,
            total,
            move.sigma,
            move.next_sigma,
            move.clean,
            move.estimate,
            move.x,
            counted.calls,
            move.population,
            move.diagnostics,
        )
        del move  # its images would lie in memory beside the next one's
