"""The space of settings to search, from the declarations of a solver's parameters.

    choices, true or false      every one that the solver accepts
    a number with both bounds   between them, evenly
    a positive number           from a tenth to ten times its default, evenly in its logarithm
    a whole number              from its lower bound (or 1) to four times its default
    zero without upper bound    from 0 to 1
    sigma_max, sigma_min        from a quarter to four times the levels that the solver visits, inside the prior's

Parameters declared with `search=False` are searched only on request: the route from noise to image (spacing, initial,
transition), where most changes ruin a method, and those that only trade time for accuracy, such as the iterations of a linear
solver. `steps` is the budget and is never searched, and neither is a parameter without a default. A setting that makes a step
cost more network calls leaves fewer steps: every trial makes as many calls as the defaults, not more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from invdiff import solvers
from invdiff.errors import UsageError, unknown
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import Solver
from invdiff.specs.parameters import Declaration, declarations, fraction, truth, whole

BUDGET = "steps"
DIGITS = 3


@dataclass(frozen=True)
class Dimension:
    """One setting: its choices, or the numbers from low to high. default: what the solver takes without it."""

    name: str
    default: Any
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def log(self) -> bool:
        """Whether numbers are drawn evenly in their logarithm."""
        return not self.whole and self.low > 0 and self.high / self.low >= 4

    @property
    def holds_default(self) -> bool:
        """Whether the default is one of the values to search."""
        return self.default in self.choices if self.choices else self.low <= self.default <= self.high

    @property
    def distribution(self) -> Any:
        """The dimension as Optuna describes it."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high))
        return distributions.FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, trial: Any) -> Any:
        """The value of an Optuna trial; numbers are rounded to three digits."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high))
        value = trial.suggest_float(self.name, self.low, self.high, log=self.log)
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))

    def __str__(self) -> str:
        if self.choices:
            return "|".join(map(str, self.choices))
        return f"{self.low:.{DIGITS}g} to {self.high:.{DIGITS}g}{', whole' if self.whole else ''}"


def space(
    solver: Solver, problem: Problem, prior: Prior, fixed: Collection[str] = (), only: Iterable[str] = ()
) -> list[Dimension]:
    """The dimensions to search for this solver, around its settings. fixed: names to leave out; only: names to search instead
    of all that are declared to be searched.

    problem: any one of those to be solved. Raises UsageError for a name in `only` that cannot be searched, and if nothing
    is left.
    """
    levels = solver.levels(problem, prior)
    visited = {"sigma_max": float(levels[0]), "sigma_min": float(levels[-1])}
    found, unasked = {}, set()
    for declaration in declarations(type(solver)):
        current = getattr(solver, declaration.name)
        if current is None and declaration.name in visited:
            current = visited[declaration.name]
        made = None if declaration.name in (BUDGET, *fixed) else _dimension(declaration, current, solver, prior)
        if made is not None:
            found[made.name] = made
            unasked |= {made.name} if declaration.search else set()
    for name in only:
        if name not in found:
            raise unknown(f"parameter of {solver.name} to search:", name, found)
    kept = [found[name] for name in dict.fromkeys(only)] or [found[name] for name in found if name in unasked]
    if not kept:
        given = f" besides {', '.join(sorted(fixed))}" if fixed else ""
        raise UsageError(
            f"{solver.name} has nothing to tune{given}; leave out a --fix, ask for one with --only (such as spacing), "
            "or take another solver"
        )
    return kept


def _dimension(declared: Declaration, default: Any, solver: Solver, prior: Prior) -> Dimension | None:
    """How to search one parameter; None where its declaration does not say enough."""
    name = declared.name
    if declared.choices or declared.kind is truth:
        every = declared.choices or (False, True)
        choices = tuple(choice for choice in every if _accepts(solver, name, choice, prior))
        return Dimension(name, default, choices) if len(choices) > 1 else None
    if declared.kind not in (float, whole, int, fraction) or default is None:
        return None
    if name in ("sigma_max", "sigma_min"):
        low, high = max(prior.sigma_min, default / 4), min(prior.sigma_max, default * 4)
        return Dimension(name, default, low=low, high=high) if low < high else None
    bottom = declared.low if declared.low is not None else declared.above
    if declared.kind in (whole, int):
        low = 1 if bottom is None else bottom + (declared.low is None)
        high = declared.high if declared.high is not None else max(4 * default, low + 1)
        return Dimension(name, default, low=low, high=high, whole=True)
    if bottom is not None and declared.high is not None:
        # An open bound is not itself allowed, so that the search keeps a distance from it.
        margin = 0.0 if declared.low is not None else 0.01 * (declared.high - bottom)
        return Dimension(name, default, low=bottom + margin, high=declared.high)
    if default > 0:
        low = default / 10 if bottom is None else max(bottom, default / 10)
        high = default * 10 if declared.high is None else min(declared.high, default * 10)
        return Dimension(name, default, low=low, high=high)
    return Dimension(name, default, low=0.0, high=1.0) if default == 0 == bottom else None


def _accepts(solver: Solver, name: str, choice: Any, prior: Prior) -> bool:
    if name == "initial" and choice == "prior":
        return prior.can_sample
    try:
        solvers.get(solver, **{name: choice})
    except UsageError:
        return False
    return True


def with_settings(solver: Solver, values: Mapping[str, Any]) -> Solver:
    """The solver of a trial: these settings, at the same number of network calls (more steps, where each costs less)."""
    from invdiff.restoration.recommendation import within

    changed = solvers.get(solver, **values)
    found = within(changed, solver.nfe)
    if found is None:
        raise UsageError(f"{changed.spec}: one step costs more than {solver.nfe} network calls")
    return found
