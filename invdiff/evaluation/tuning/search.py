"""The search: Optuna proposes settings, and every proposal is scored on the same measurements with the same random numbers.

The search maximises the gain over the defaults, image by image and then averaged, because pictures differ much more than
settings do. Trials that are below the median of the others after two batches of images or more are given up. Trial n draws
from a generator of its own, so that a search that was stopped proposes the same settings as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import NumericalError, UsageError, unknown
from invdiff.evaluation.measured_folder import Picture, batches
from invdiff.files.atomic import drop_torn_line
from invdiff.noise import NoiseModel
from invdiff.operator.contract import Operator
from invdiff.priors.prior import Prior
from invdiff.restoration.api import default_batch_size, restore
from invdiff.scores.metrics import crps, psnr, ssim
from invdiff.solvers.solver import Solver

from .space import Dimension, with_settings

SIGNS = {"psnr": 1, "ssim": 1, "crps": -1}
"""Metric -> 1 where more is better, -1 where less is."""
MOST_PSNR = 100.0
"""The score, in dB, of an image without any error, whose PSNR is infinite."""
RANDOM_TRIALS = 10
"""Trials, the defaults included, that are drawn at random before Optuna learns from them."""
UNPRUNED = 5
"""Finished trials before any later one may be given up."""
MOST_TOGETHER = 4
"""Images of a batch: trials are judged after each batch, so that larger ones would spend more on hopeless trials."""


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores solvers on pictures: the mean of `samples` samples of each, rounded to 8 bits, or the samples' CRPS."""

    operator: Operator
    noise: NoiseModel
    prior: Prior
    metric: str = "psnr"
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in SIGNS:
            raise unknown("metric", self.metric, SIGNS)
        if self.samples < (2 if self.metric == "crps" else 1):
            least = "2 samples an image" if self.metric == "crps" else "1 sample an image"
            raise UsageError(f"samples={self.samples}: {self.metric} takes at least {least}")

    @property
    def batch_size(self) -> int:
        """Images that run together."""
        return min(MOST_TOGETHER, max(1, default_batch_size(self.prior.device) // self.samples))

    def scores(self, solver: Solver, pictures: Sequence[Picture]) -> dict[str, float]:
        """Picture key -> score, of pictures of one shape."""
        solution = restore(
            torch.stack([picture.y for picture in pictures]),
            self.operator,
            self.noise,
            self.prior,
            solver,
            samples=self.samples,
            seed=self.seed,
            ids=[picture.key for picture in pictures],
            batch_size=self.batch_size * self.samples,
        )
        truth = torch.stack([picture.truth for picture in pictures])
        if self.metric == "crps":
            values = crps(solution.samples, truth)
        else:
            measure = {"psnr": psnr, "ssim": ssim}[self.metric]
            values = measure(solution.mean, truth, eight_bit=True).clamp(max=MOST_PSNR)
        return {picture.key: float(value) for picture, value in zip(pictures, values, strict=True)}

    def all_scores(self, solver: Solver, pictures: Sequence[Picture]) -> dict[str, float]:
        """Picture key -> score, of pictures of any shapes."""
        groups = batches(pictures, self.batch_size)
        return {key: score for group in groups for key, score in self.scores(solver, group).items()}

    def gain(self, scores: dict[str, float], defaults: dict[str, float]) -> float:
        """By how much the images got better than with the defaults, on average."""
        return statistics.fmean(SIGNS[self.metric] * (score - defaults[key]) for key, score in scores.items())


@dataclass(frozen=True)
class Trial:
    """One proposal: its settings, its solver's spec, scores by picture, mean gain; state: complete, pruned or impossible."""

    number: int
    settings: dict[str, Any]
    solver: str
    state: str
    scores: dict[str, float] = field(default_factory=dict)
    gain: float | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Found:
    """What a search found. best: the trial of the largest gain above zero; None if nothing beats the defaults."""

    defaults: dict[str, float]
    seconds: float
    trials: tuple[Trial, ...]
    best: Trial | None


def search(
    judge: Judge,
    solver: Solver,
    dimensions: Sequence[Dimension],
    pictures: Sequence[Picture],
    *,
    trials: int,
    setup: dict[str, Any],
    journal: str | os.PathLike[str] | None = None,
    advance: Callable[[Trial, Trial | None], None] = lambda trial, best: None,
) -> Found:
    """Try the solver as it is, and then `trials` other settings of it, those in the journal included.

    setup: plain data that says what is searched, for what; journal: Optuna's journal file, which makes the search go on
    where it was stopped; advance: called with each new trial, and the best so far. Raises UsageError if the journal is
    of another setup, and what the solver raises with the settings that it was given.
    """
    optuna = import_optuna()
    study = _opened(optuna, setup, journal)
    if "defaults" not in study.user_attrs:
        started = time.perf_counter()
        scores = judge.all_scores(solver, pictures)
        study.set_user_attr("defaults", {"scores": scores, "seconds": (time.perf_counter() - started) / len(pictures)})
    base, states = study.user_attrs["defaults"], optuna.trial.TrialState
    groups = batches(pictures, judge.batch_size)
    if not study.trials:
        inside = {d.name: d.default for d in dimensions if d.holds_default}
        first = optuna.trial.create_trial(
            value=0.0,
            params=inside,
            distributions={d.name: d.distribution for d in dimensions if d.name in inside},
            intermediate_values=dict.fromkeys(range(len(groups)), 0.0),
            user_attrs={"defaults": True},
        )
        study.add_trial(first)
    while len(finished := _trials(study)) < trials:
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, seed=_seed(judge.seed, len(finished))
        )
        proposal = study.ask()
        try:
            settings = {dimension.name: dimension.suggest(proposal) for dimension in dimensions}
            state = (
                states.COMPLETE
                if _complete(judge, solver, settings, groups, base["scores"], proposal)
                else states.PRUNED
            )
        except BaseException:  # Ctrl-C included: this trial will be tried again, the others are kept
            study.tell(proposal, state=states.FAIL)
            raise
        study.tell(proposal, proposal.user_attrs["gain"] if state == states.COMPLETE else None, state=state)
        done = _trials(study)
        advance(done[-1], _best(done))
    return Found(base["scores"], base["seconds"], tuple(finished), _best(finished))


def import_optuna() -> Any:
    """The module optuna, quiet. Raises UsageError with the way to install it."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(
            "tuning needs the package optuna, which is not installed: pip install 'invdiff[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _opened(optuna: Any, setup: dict[str, Any], journal: str | os.PathLike[str] | None) -> Any:
    """The study, new or from the journal. Raises UsageError if the journal is of another setup."""
    storage = None
    if journal is not None:
        Path(journal).parent.mkdir(parents=True, exist_ok=True)
        with open(journal, "ab+", buffering=0) as file:
            drop_torn_line(file)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(os.fspath(journal)))
    text = json.dumps(setup, sort_keys=True)
    earlier = storage.get_all_studies() if storage is not None else []
    if earlier and (other := earlier[0].user_attrs.get("setup")) != text:
        raise UsageError(
            f"{journal} belongs to a search of {_difference(other, setup)}; choose another -o, or --restart"
        )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=1)
    study = optuna.create_study(
        storage=storage, study_name="tune", direction="maximize", load_if_exists=True, pruner=pruner
    )
    study.set_user_attr("setup", text)
    for stale in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(stale.number, state=optuna.trial.TrialState.FAIL)  # the run that tried it was killed
    return study


def _complete(
    judge: Judge,
    solver: Solver,
    settings: dict[str, Any],
    groups: Sequence[Sequence[Picture]],
    defaults: dict[str, float],
    proposal: Any,
) -> bool:
    """Score a proposal batch by batch; whether it got through all of them."""
    proposal.set_user_attr("settings", settings)
    started = time.perf_counter()
    scores: dict[str, float] = {}
    try:
        chosen = with_settings(solver, settings)
        proposal.set_user_attr("solver", chosen.spec)
        for index, group in enumerate(groups):
            scores |= judge.scores(chosen, group)
            proposal.report(judge.gain(scores, defaults), index)
            if index + 1 < len(groups) and proposal.should_prune():
                return False
    except (UsageError, NumericalError) as error:
        # Settings that exclude each other, or diverge: no value, which Optuna takes for the worst.
        proposal.set_user_attr("error", str(error))
        return False
    finally:
        proposal.set_user_attr("scores", scores)
        proposal.set_user_attr("seconds", (time.perf_counter() - started) / max(1, len(scores)))
        if scores:
            proposal.set_user_attr("gain", judge.gain(scores, defaults))
    return True


def _trials(study: Any) -> list[Trial]:
    """The finished trials besides the defaults, in order."""
    from optuna.trial import TrialState

    found: list[Trial] = []
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
        told = dict(frozen.user_attrs)
        if told.pop("defaults", False):
            continue
        state = "impossible" if "error" in told else frozen.state.name.lower()
        told.setdefault("solver", "")
        found.append(Trial(number=len(found) + 1, state=state, **told))
    return found


def _best(trials: Sequence[Trial]) -> Trial | None:
    better = [trial for trial in trials if trial.state == "complete" and (trial.gain or 0.0) > 0]
    return max(better, key=lambda trial: trial.gain or 0.0, default=None)


def _seed(seed: int, count: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/tune/{count}".encode()).digest()[:4], "little")


def _difference(earlier: str | None, setup: dict[str, Any]) -> str:
    """The settings of another search that differ from this one's: "noise gaussian:sigma=0.1"."""
    known = json.loads(earlier) if earlier else {}
    found = [
        f"{key} {known[key]}" for key in setup if key in known and known[key] != json.loads(json.dumps(setup[key]))
    ]
    return ", ".join(found) or "something else"
