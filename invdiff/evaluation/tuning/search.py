"""The search: Optuna proposes settings, every proposal is scored on the same measurements with the same random numbers.

What is maximised is the gain over the defaults, image by image and then averaged: pictures differ much more than settings
do. Trials below the median of the others, after two batches of images or more, are given up. Trial n draws from a generator
of its own, so a search that was stopped and goes on proposes what the unbroken one would have.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import NumericalError, UsageError, unknown
from invdiff.evaluation.measured_folder import Picture, batches
from invdiff.noise import NoiseModel
from invdiff.operator.contract import Operator
from invdiff.priors.prior import Prior
from invdiff.restoration.api import default_batch_size, restore
from invdiff.scores.metrics import crps, psnr, ssim
from invdiff.solvers.solver import Solver

from .space import Dimension, with_settings

SIGNS = {"psnr": 1, "ssim": 1, "crps": -1}
"""Metric -> whether more is better."""
MOST_PSNR = 100.0
"""dB that an image without any error counts."""
RANDOM_TRIALS = 10
"""Trials, the defaults among them, before Optuna learns from them."""
UNPRUNED = 5
"""Finished trials before any is given up."""
MOST_TOGETHER = 4
"""Images of a batch: in larger ones a hopeless trial would have restored all of them before anybody looks."""


@dataclass(frozen=True, eq=False)
class Judge:
    """Scores solvers on pictures: by the mean of `samples` samples of each, rounded to 8 bits, or their CRPS."""

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

    def gains(self, scores: dict[str, float], defaults: dict[str, float]) -> list[float]:
        """By how much each image got better than with the defaults."""
        return [SIGNS[self.metric] * (score - defaults[key]) for key, score in scores.items()]


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
    study, base = _opened(optuna, judge, solver, dimensions, pictures, setup, journal)
    defaults, states = base["scores"], optuna.trial.TrialState
    while len(finished := _trials(study)) < trials:
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=RANDOM_TRIALS, seed=_seed(judge.seed, len(finished))
        )
        proposal = study.ask()
        try:
            state = _attempt(judge, solver, dimensions, pictures, defaults, proposal)
        except BaseException:  # Ctrl-C included: this trial will be tried again, the others are kept
            study.tell(proposal, state=states.FAIL)
            raise
        value = proposal.user_attrs["gain"] if state == states.COMPLETE else None
        study.tell(proposal, value, state=state)
        done = _trials(study)
        advance(done[-1], _best(done))
    done = _trials(study)
    return Found(defaults, base["seconds"], tuple(done), _best(done))


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


def _opened(
    optuna: Any,
    judge: Judge,
    solver: Solver,
    dimensions: Sequence[Dimension],
    pictures: Sequence[Picture],
    setup: dict[str, Any],
    journal: str | os.PathLike[str] | None,
) -> tuple[Any, dict[str, Any]]:
    """The study, new or from the journal, with the defaults as its first trial; and what is known of the defaults."""
    storage = None
    if journal is not None:
        Path(journal).parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(Path(journal))
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(os.fspath(journal)))
    text = json.dumps(setup, sort_keys=True)
    earlier = storage.get_all_studies() if storage is not None else []
    if earlier and (other := earlier[0].user_attrs.get("setup")) != text:
        raise UsageError(
            f"{journal} belongs to a search of {_difference(other, setup)}; choose another -o, or --restart"
        )
    study = optuna.create_study(
        storage=storage,
        study_name="tune",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=1),
    )
    study.set_user_attr("setup", text)
    for stale in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(stale.number, state=optuna.trial.TrialState.FAIL)  # the run that tried it was killed
    if "defaults" not in study.user_attrs:
        started = time.perf_counter()
        groups = batches(pictures, judge.batch_size)
        scores = {key: score for group in groups for key, score in judge.scores(solver, group).items()}
        base = {"scores": scores, "seconds": (time.perf_counter() - started) / len(pictures)}
        study.set_user_attr("defaults", base)
    if not study.trials:
        inside = {d.name: d.default for d in dimensions if d.holds_default}
        first = optuna.trial.create_trial(
            value=0.0,
            params=inside,
            distributions={d.name: d.distribution for d in dimensions if d.name in inside},
            intermediate_values=dict.fromkeys(range(len(batches(pictures, judge.batch_size))), 0.0),
            user_attrs={"defaults": True},
        )
        study.add_trial(first)
    return study, study.user_attrs["defaults"]


def _attempt(
    judge: Judge,
    solver: Solver,
    dimensions: Sequence[Dimension],
    pictures: Sequence[Picture],
    defaults: dict[str, float],
    proposal: Any,
) -> Any:
    """Score a proposal, batch by batch; the state it ends in."""
    from optuna.trial import TrialState

    settings = {dimension.name: dimension.suggest(proposal) for dimension in dimensions}
    proposal.set_user_attr("settings", settings)
    started = time.perf_counter()
    scores: dict[str, float] = {}
    groups = batches(pictures, judge.batch_size)
    try:
        chosen = with_settings(solver, settings)
        proposal.set_user_attr("solver", chosen.spec)
        for index, group in enumerate(groups):
            scores |= judge.scores(chosen, group)
            proposal.report(statistics.fmean(judge.gains(scores, defaults)), index)
            if index + 1 < len(groups) and proposal.should_prune():
                return TrialState.PRUNED
    except (UsageError, NumericalError) as error:
        # Settings that exclude each other, or diverge: no value, which counts as the worst.
        proposal.set_user_attr("error", str(error))
        return TrialState.PRUNED
    finally:
        proposal.set_user_attr("scores", scores)
        proposal.set_user_attr("seconds", (time.perf_counter() - started) / max(1, len(scores)))
        if scores:
            proposal.set_user_attr("gain", statistics.fmean(judge.gains(scores, defaults)))
    return TrialState.COMPLETE


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


def _drop_torn_line(journal: Path) -> None:
    """Remove what a killed run wrote of a last line: what would be appended to it could not be read."""
    with suppress(FileNotFoundError):
        content = journal.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(journal, content.rfind(b"\n") + 1)


def _difference(earlier: str | None, setup: dict[str, Any]) -> str:
    """What another search was of, where it differs: "noise gaussian:sigma=0.1"."""
    known = json.loads(earlier) if earlier else {}
    found = [
        f"{key} {known[key]}" for key in setup if key in known and known[key] != json.loads(json.dumps(setup[key]))
    ]
    return ", ".join(found) or "something else"
