"""From pictures to a preset: search, score the winner on pictures that were held back, and say whether it is better."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invdiff import solvers
from invdiff.errors import UsageError
from invdiff.evaluation.measured_folder import Pictures
from invdiff.machine.versions import package_versions
from invdiff.problem.problem import Problem
from invdiff.restoration.presets import Preset, identity
from invdiff.scores.statistics import Interval, mean_interval
from invdiff.solvers.solver import Solver

from .search import SIGNS, Found, Judge, Trial, search
from .space import Dimension, space


@dataclass(frozen=True)
class Part:
    """Scores by picture key of the defaults and of the tuned settings, on one part of the pictures. sign: of `SIGNS`."""

    sign: int
    defaults: Mapping[str, float]
    tuned: Mapping[str, float]

    @property
    def gains(self) -> dict[str, float]:
        """Picture key -> by how much it got better."""
        return {key: self.sign * (self.tuned[key] - value) for key, value in self.defaults.items()}

    @property
    def gain(self) -> float:
        """The mean of the gains."""
        return statistics.fmean(self.gains.values())

    @property
    def interval(self) -> Interval:
        """The mean of the gains with its 95 % interval; NaN for one picture."""
        return mean_interval(list(self.gains.values()))

    @property
    def wins(self) -> str:
        """In how many of the images it got better: "7 of 8"."""
        return f"{sum(gain > 0 for gain in self.gains.values())} of {len(self.gains)}"

    def record(self) -> dict[str, Any]:
        """Plain data for the preset."""
        images = {
            key: {"default": round(value, 6), "tuned": round(self.tuned[key], 6)}
            for key, value in self.defaults.items()
        }
        return {
            "default": round(statistics.fmean(self.defaults.values()), 6),
            "tuned": round(statistics.fmean(self.tuned.values()), 6),
            "gain": round(self.gain, 6),
            "interval": [round(self.interval.low, 6), round(self.interval.high, 6)] if len(images) > 1 else None,
            "better": self.wins,
            "images": images,
        }


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a search. solver: with the defaults; tuned: with the settings that gained most, the defaults if none
    did; better: whether these beat the defaults on the pictures searched on and, if there are any, on those held back."""

    judge: Judge
    pictures: Pictures
    solver: Solver
    tuned: Solver
    dimensions: tuple[Dimension, ...]
    found: Found
    searched: Part
    held_back: Part | None

    @property
    def better(self) -> bool:
        return self.found.best is not None and (self.held_back is None or self.held_back.gain > 0)

    def preset(self, command: str = "", test_set: str | None = None) -> Preset:
        """The tuned solver if it is better, else the defaults, with all the numbers. test_set: which pictures of a test set
        it was tuned on."""
        judge, count = self.judge, len(self.held_back.gains) if self.held_back else 0
        data: dict[str, Any] = {
            "path": str(self.pictures.folder),
            "images": len(self.pictures.usable),
            "held_back": count,
            "crop": self.pictures.crop,
            "fingerprint": self.pictures.fingerprint,
        }
        if test_set is not None:
            data["test_set"] = test_set
        states = [trial.state for trial in self.found.trials]
        return Preset(
            solver=self.tuned if self.better else self.solver,
            better=self.better,
            tuned_for={
                "operator": judge.operator.spec,
                "noise": judge.noise.spec,
                "prior": identity(judge.prior.describe()),
                "data": data,
                "metric": judge.metric,
                "samples": judge.samples,
                "seed": judge.seed,
            },
            scores={"searched_on": self.searched.record()}
            | ({"held_back": self.held_back.record()} if self.held_back else {}),
            search={
                "default": self.solver.spec,
                "tuned": self.tuned.spec,
                "trials": len(states),
                **{state: states.count(state) for state in ("complete", "pruned", "impossible")},
                "space": {dimension.name: str(dimension) for dimension in self.dimensions},
            },
            command=command,
            versions=package_versions(),
        )


def prepare(solver: str, steps: int | None, fixed: Mapping[str, Any]) -> tuple[Solver, dict[str, Any]]:
    """The solver to tune, with its fixed settings, and these. solver: NAME or NAME:key=value,..., whose values are fixed.

    Raises UsageError for auto, an unknown name or setting, and a setting given twice.
    """
    from invdiff.specs.parameters import parse_spec

    name, values = parse_spec(solver)
    if name == "auto":
        raise UsageError("solver='auto' chooses by measurement; name the solver to tune (`invdiff solvers recommend`)")
    given = {} if steps is None else {"steps": steps}
    for key in [key for key in (*fixed, *given) if key in values or (key in fixed and key in given)]:
        raise UsageError(f"{key} of {name} is given twice; give it once")
    everything = {**values, **fixed, **given}
    return solvers.get(name, **everything), everything


def tune(
    judge: Judge,
    pictures: Pictures,
    solver: Solver,
    *,
    trials: int = 50,
    fixed: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    journal: str | os.PathLike[str] | None = None,
    advance: Callable[[Trial, Trial | None], None] = lambda trial, best: None,
) -> Outcome:
    """Search for better settings of `solver` than its own.

    trials: how many settings to try, beside the solver's own, which come first; fixed: settings not to search (their
    values are in `solver`); only: the names to search, instead of all; journal: file that keeps every trial, from which
    the search goes on (None: nothing is kept); advance: called after each trial. Raises UsageError for trials < 1, a
    solver that cannot use the operator, or that has nothing to search, and a journal of another search.
    """
    if trials < 1:
        raise UsageError(f"trials={trials}: must be at least 1")
    solvers.check(solver, judge.operator)
    searched_on, kept = pictures.split(judge.seed)
    problem = Problem.from_measurement(searched_on[0].y[None], judge.operator, judge.noise)
    dimensions = space(solver, problem, judge.prior, fixed or {}, only)
    described = judge.prior.describe()
    setup = {
        "solver": solver.spec,
        "operator": judge.operator.spec,
        "noise": judge.noise.spec,
        "prior": {**identity(described), "precision": described.get("precision")},
        "metric": judge.metric,
        "samples": judge.samples,
        "seed": judge.seed,
        "data": f"of {len(pictures.usable)} images ({pictures.fingerprint})",
        "space": {dimension.name: str(dimension) for dimension in dimensions},
    }
    found = search(judge, solver, dimensions, searched_on, trials=trials, setup=setup, journal=journal, advance=advance)
    tuned = solver if found.best is None else solvers.get(found.best.solver)
    scores = found.defaults if found.best is None else found.best.scores
    sign = SIGNS[judge.metric]
    held_back = None
    if kept:
        before = judge.all_scores(solver, kept)
        held_back = Part(sign, before, before if tuned is solver else judge.all_scores(tuned, kept))
    searched = Part(sign, found.defaults, scores)
    return Outcome(judge, pictures, solver, tuned, tuple(dimensions), found, searched, held_back)
