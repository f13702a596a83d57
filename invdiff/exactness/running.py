"""A solver on a case: its samples, their scores and their cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from invdiff import samplers, solvers
from invdiff.errors import InvdiffError, UsageError
from invdiff.exactness.measures import Score, Yardstick, average, verdict
from invdiff.exactness.problems import Case, ExactProblem
from invdiff.machine.random import Draws, generator
from invdiff.restoration.loop import run
from invdiff.solvers.solver import Solver
from invdiff.specs.parameters import declarations, parse_spec

# Rows x particles x components x dimensions of one batch: what a denoiser holds at once, 200 MB in float64.
BATCH_NUMBERS = 25_000_000


@dataclass(frozen=True, eq=False)
class Row:
    """The result of one solver on one case.

    solver: the spec asked for; settings: the solver's, resolved; scores: measure -> Score, empty where the run failed; each:
    the values of the single problems; failure: why there is no score; calls: network calls of one run; population: samples
    that a run gives; seconds: for all samples of all problems; shown: samples to plot (count, n).
    """

    solver: str
    case: Case
    settings: dict[str, object]
    scores: dict[str, Score] = field(default_factory=dict)
    each: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""
    calls: int = 0
    population: int = 1
    seconds: float = 0.0
    shown: torch.Tensor | None = None

    @property
    def verdict(self) -> str:
        return "no result" if self.failure else verdict(self.scores)


@dataclass(frozen=True, eq=False)
class Measured:
    """A case with all its rows. yardsticks: one for each of its problems, for as many samples as the rows compare."""

    case: Case
    yardsticks: list[Yardstick]
    rows: list[Row]


EXACT = "exact samples"
SCORE = "exact score"


class JointDraws(Draws):
    """Draws of all rows of a batch from one generator at once, which is many times faster than row by row.

    The numbers of a row depend on the number of rows, which does not matter to any measure here.
    """

    def __init__(self, source: torch.Generator, rows: int, shape: tuple[int, ...], like: torch.Tensor) -> None:
        super().__init__([source] * rows, shape, like)
        self._source, self._rows = source, rows

    def sample(self, draw: Callable[[int, torch.Generator], torch.Tensor], count: int = 1) -> torch.Tensor:
        return draw(count * self._rows, self._source)

    def _draw(self, make: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        return make((self._rows, *shape), generator=self._source, dtype=self._like.dtype).to(self._like.device)


def configured(spec: str, case: Case) -> Solver:
    """The solver of a spec with the case's number of steps and options, where the spec does not say otherwise."""
    name, given = parse_spec(spec)
    known = {declaration.name for declaration in declarations(solvers.REGISTRY[name])}
    wanted = {"steps": case.steps, **case.options}
    return solvers.get(spec, **{key: value for key, value in wanted.items() if key in known and key not in given})


def draw(problem: ExactProblem, solver: Solver, count: int, seed: int) -> tuple[torch.Tensor, int]:
    """(count, *shape) samples of one problem, and the network calls of one run."""
    population = solver.population
    runs = -(-count // population)
    size = max(1, BATCH_NUMBERS // (population * problem.size * len(problem.prior.means)))
    source = generator(seed, f"validate/{problem.name}/{solver.spec}", 0)
    finished, calls = [], 0
    for first in range(0, runs, size):
        rows = min(size, runs - first)
        part = problem.problem.rows([0] * rows)
        state = None
        for state in run(part, problem.prior, solver, JointDraws(source, rows, part.image_shape, part.y)):
            calls = state.nfe
        if state is None:  # a walk without a move
            raise UsageError(f"{solver.name} made no move with steps={solver.steps}")
        finished.append(state.x if state.population is None else state.population.flatten(0, 1))
    samples = torch.cat(finished)
    if len(samples) > count:
        # Resampled particles stand beside their copies, so that the first ones would not represent all.
        samples = samples[torch.randperm(len(samples), generator=source)[:count]]
    return samples, calls


def measure(spec: str, case: Case, yardsticks: Sequence[Yardstick], seed: int, shown: int = 0) -> Row:
    """One solver on one case. A run that diverges, or that the solver refuses, gives a Row that says so."""
    solver = configured(spec, case)
    settings, started, calls = solver.settings(), time.perf_counter(), 0
    drawn = []
    try:
        solvers.check(solver, case.operator)
        for yardstick in yardsticks:
            with warnings.catch_warnings():
                # Conjugate gradients warn where they end far from the answer; here the answer is measured.
                warnings.simplefilter("ignore", RuntimeWarning)
                samples, calls = draw(yardstick.problem, solver, yardstick.count, seed)
            drawn.append(samples)
    except InvdiffError as error:
        seconds = time.perf_counter() - started
        return Row(spec, case, settings, failure=str(error), population=solver.population, seconds=seconds)
    cost: dict[str, Any] = {"calls": calls, "population": solver.population, "seconds": time.perf_counter() - started}
    return _scored(Row(spec, case, settings, **cost), yardsticks, drawn, shown)


def _scored(row: Row, yardsticks: Sequence[Yardstick], drawn: Sequence[torch.Tensor], shown: int) -> Row:
    """The row with the scores of its samples of each problem, and the first `shown` samples to plot."""
    parts = [yardstick.scores(samples) for yardstick, samples in zip(yardsticks, drawn, strict=True)]
    each = [{name: score.value for name, score in part.items()} for part in parts]
    plotted = drawn[0].flatten(1)[:shown] if shown else None
    return replace(row, scores=average(parts), each=each, shown=plotted)


def exact_row(case: Case, yardsticks: Sequence[Yardstick], shown: int = 0) -> Row:
    """The row of exact samples: one more set of them, measured like those of a solver."""
    return _scored(Row(EXACT, case, {}), yardsticks, [yardstick.exact("row") for yardstick in yardsticks], shown)


def score_row(case: Case, yardsticks: Sequence[Yardstick], seed: int, shown: int = 0) -> Row:
    """The row of ancestral sampling with E[x_0 | x, y] itself, from p_T itself, through the levels that solvers take: what
    finitely many levels cost a method whose correction is exact."""
    settings = {key: value for key, value in case.options.items() if key in ("initial", "sigma_max", "sigma_min")}
    levels_of, sampler = Solver(steps=case.steps, **settings), samplers.get("ancestral")  # type: ignore[arg-type]
    started, drawn = time.perf_counter(), []
    for yardstick in yardsticks:
        problem, count = yardstick.problem, yardstick.count
        posterior = problem.posterior
        levels = levels_of.levels(problem.problem, problem.prior)
        source = generator(seed, f"validate/{problem.name}/{SCORE}", 0)
        draws = JointDraws(source, count, posterior.shape, problem.problem.y)
        x = posterior.sample(count, source) + levels[0] * draws()
        *_, last = sampler.walk(posterior, x, levels, draws)
        drawn.append(last.x)
    row = Row(SCORE, case, sampler.settings() | settings, calls=len(levels), seconds=time.perf_counter() - started)
    return _scored(row, yardsticks, drawn, shown)


def validate(
    specs: Sequence[str],
    cases: Sequence[Case],
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    shown: int = 2000,
) -> Iterator[Measured]:
    """Every solver (a spec each) on every case whose operator it can use, one case at a time.

    progress: called after each solver with "solver on case". shown: how many samples the rows of two-dimensional cases
    keep for plots. Solvers that the operator offers too little for are left out of a case.
    """
    made: tuple[object, int] = (None, 0)
    yardsticks: list[Yardstick] = []
    for case in cases:
        if made != (case.make, case.samples):  # cases that differ only in their steps share their yardsticks
            made = case.make, case.samples
            yardsticks = [Yardstick(problem, case.samples, seed) for problem in case.make()]
        kept = shown if all(yardstick.problem.size == 2 for yardstick in yardsticks) else 0
        rows = [exact_row(case, yardsticks, kept), score_row(case, yardsticks, seed, kept)]
        for spec in able(specs, case):
            rows.append(measure(spec, case, yardsticks, seed, kept))
            if progress is not None:
                progress(f"{spec} on {case.label}")
        yield Measured(case, yardsticks, rows)


def able(specs: Sequence[str], case: Case) -> list[str]:
    """The solvers, of those asked for, that can use the operator of a case."""
    return [spec for spec in specs if not configured(spec, case).unmet(case.operator)]


def check_some_work(specs: Sequence[str], cases: Sequence[Case]) -> None:
    """Raise UsageError for a solver that can use the operator of no case, naming what it needs and who could."""
    for spec in specs:
        if cases and not any(able([spec], case) for case in cases):
            solvers.check(configured(spec, cases[0]), cases[0].operator)
