"""The one loop that runs every solver: from state to state, with its network calls counted and its numbers checked."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from invdiff import solvers
from invdiff.errors import NumericalError, UsageError
from invdiff.machine.random import Draws
from invdiff.operator.linalg import SHARE, stopping_early
from invdiff.priors.prior import CountedPrior, Prior
from invdiff.problem.problem import Problem

if TYPE_CHECKING:
    from invdiff.solvers.solver import Move, Solver


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stands after one move, from one noise level to the next.

    step: number of the move, 1 to `steps`; sigma: the level just left; next_sigma: the level reached, 0 at the end unless
    the method ends earlier. clean: E[x_0 | x]; estimate: the solver's E[x_0 | x, y]; x: the sample at next_sigma; all
    (B, *image shape). nfe: network calls so far, for each sample. population: at the end of a method with particles, all of
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
    """How many of the latest moves are not checked yet: while a GPU computes one, the processor launches the next."""
    return 1 if x.is_cuda else 0


class Finite:
    """Whether all numbers of a tensor are finite. A GPU computes it while the processor goes on, and is asked later."""

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


def seen_by(solver: Solver, problem: Problem) -> Problem:
    """The problem that a solver is given: whitened, unless it takes the noise as it is.

    Raises UsageError for a solver that needs all values of y, where the noise has replaced some.
    """
    if solver.sees_whitened:
        return problem.whitened()
    if problem.noise is not None and problem.noise.trusted(problem.y) is not None:
        raise UsageError(
            f"{solver.name} needs all values of y, and {problem.noise.name} noise has replaced some; any solver without "
            'the need "svd" leaves them out, solver=auto among them'
        )
    return problem


def _ended(solver: Solver, problem: Problem, prior: Prior, move: Move) -> Move:
    """The last move, with its sample, or all its particles, as `Solver.impose` leaves them."""
    x, population = solver.impose(problem, prior, move.sigma, move.x), move.population
    if x is not move.x and population is not None:
        rows = torch.arange(len(population), device=x.device).repeat_interleave(population.shape[1])
        population = solver.impose(problem.rows(rows), prior, move.sigma, population.flatten(0, 1)).reshape(
            population.shape
        )
    return replace(move, x=x, population=population)


def run(problem: Problem, prior: Prior, solver: Solver, noise: Draws) -> Iterator[State]:
    """Reverse diffusion from the first noise level to zero. Yields the State after each move; the last one's x is the
    sample. problem: as the solver sees it (`seen_by`).

    Raises UsageError if the solver cannot use the operator, NumericalError on NaN or infinity (on a GPU, where that is
    noticed one move later, after the state of the move).
    """
    solvers.check(solver, problem.operator)
    prior.check_shape(problem.image_shape)
    problem = problem.lasting()
    counted = CountedPrior(prior, len(problem.y))
    levels = solver.levels(problem, counted)
    moves = solver.walk(problem, counted, levels, noise)
    total = solver.moves(levels)
    checks: deque[tuple[int, float, Finite]] = deque()

    def look(left: int) -> None:
        """Raise NumericalError if a move other than the last `left` has numbers that are not finite."""
        while len(checks) > left:
            step, sigma, finite = checks.popleft()
            if not finite:
                raise NumericalError(
                    f"{solver.name}: NaN or infinity at step {step} of {total}, sigma {sigma:.4g}; try "
                    f"{solver.remedy}, --precision fp32, or check the operator with float64 input"
                )

    for step in itertools.count(1):
        # Both end before each yield, so that gradients and data steps of the caller, between two states, are his own.
        with torch.no_grad(), stopping_early(SHARE if counted.coarse else 0.0):
            move = next(moves, None)
            if move is None:
                look(0)
                return
            if move.next_sigma == 0:
                move = _ended(solver, problem, prior, move)
            checks.append((step, move.sigma, Finite(move.x)))
        look(lag(move.x) if step < total else 0)
        yield State(
            step, total, move.sigma, move.next_sigma, move.clean, move.estimate, move.x, counted.calls, move.population,
            move.diagnostics,
        )  # fmt: skip
        del move  # its images would lie in memory beside the next one's
