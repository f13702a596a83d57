"""Watching a training: what it writes for people to look at. Nothing here decides what is learned.

    out/log.csv                  one row for each validation
    out/levels.csv               the noise error by noise level, one row for each validation
    out/loss_per_level.png       the same as a plot
    out/samples/step-000500.png  samples and denoised images at a validation
    out/tensorboard/             the same for TensorBoard, if asked for
    out/report.png               everything on one page, at the end

A log.csv that cannot be written ends the training (CheckpointError); pictures and TensorBoard only give one warning.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.errors import InvdiffError
from invdiff.files.images import write_image
from invdiff.priors.prior import Prior
from invdiff.training.config import TrainingConfig
from invdiff.training.watch.curves import Curves, History, LevelAverages, Speed
from invdiff.training.watch.plots import levels_figure, report_figure, report_title, save
from invdiff.training.watch.tensorboard import EventFile
from invdiff.training.watch.validation import sample_picture

log: logging.Logger = logging.getLogger(__name__)

WINDOW = 10
"""Steps that one point of TensorBoard's training curves is the mean of."""


@dataclass(frozen=True)
class PictureSettings:
    """What `Watch.pictures` draws: `samples` samples of at most `side` pixels by `steps` calls of DPM-Solver++; of the files
    step-*.png `kept` are kept, the first, the last and others evenly between."""

    samples: int = 8
    side: int = 64
    steps: int = 20
    kept: int = 22


class Watch:
    """The logs and pictures of one training; in a distributed one, only the main process has it.

    out: the folder of the training; step: where it starts or goes on (what the logs hold beyond was written by a killed
    run, and is dropped); state: what `state()` returned at that step; tensorboard: also write out/tensorboard;
    drawing: None for no picture at all, report.png included.

    Used as a context manager, or closed with `close`. Raises CheckpointError if log.csv cannot be read.
    """

    history: History
    levels: LevelAverages
    config: TrainingConfig
    drawing: PictureSettings | None
    out: Path
    by_level: Curves
    curves: Curves

    def __init__(
        self,
        out: Path,
        config: TrainingConfig,
        *,
        step: int = 0,
        state: Mapping[str, Any] | None = None,
        tensorboard: bool = False,
        drawing: PictureSettings | None = PictureSettings(),
    ) -> None:
        self.out, self.config, self.drawing = Path(out), config, drawing
        self.curves, self.by_level = Curves(self.out / "log.csv", step), Curves(self.out / "levels.csv", step)
        self.history, self.levels = History(), LevelAverages(config.schedule_steps)
        self.speed: Speed = Speed(config)
        self._start = self._step = self._last_drawn = self._last_shown = step
        self._seconds = 0.0
        self._lr = math.nan
        self._window = [0.0, 0.0]  # steps since the last point for TensorBoard, sum of their losses
        self._warned: set[str] = set()
        self._events: EventFile | None = None
        if state:
            self._attempt("go on with the averages of the training so far", lambda: self._restore(state))
        if tensorboard:
            self._attempt("log for TensorBoard", self._open_events)

    def step(
        self,
        step: int,
        *,
        loss: float,
        lr: float,
        images: int,
        seconds: float,
        t: np.ndarray,
        errors: np.ndarray,
        pixels: int = 0,
    ) -> None:
        """After every optimiser step (10 to 20 microseconds).

        step: its number, from 1; loss: its (weighted) loss, over all processes; lr: its learning rate; images: crops in
        its batch, over all processes; seconds: of training so far, those before a resume included; pixels: of this
        process' crops together; t (n,) and errors (n,): timesteps and unweighted mean squared noise errors
        (Objective.epsilon_errors) of this process' crops.
        """
        self._step, self._seconds, self._lr = step, seconds, lr
        self.levels.add(t, errors)
        self.history.add(step, loss, lr)
        self.speed.add(step, images, seconds, pixels)
        self._window = [self._window[0] + 1, self._window[1] + loss]
        if step % WINDOW == 0:
            mean, self._window = self._window[1] / self._window[0], [0.0, 0.0]
            if self._events:
                facts = {"loss": mean, "learning_rate": lr, "images_per_second": self.speed.images_per_second}
                self._record(lambda events: events.scalars(step, _tagged("training", facts)))

    def validated(self, row: Mapping[str, Any]) -> None:
        """Take a row of log.csv, "step" first: step, seconds, loss, and the columns of `validation.validate`. Adds lr
        and images_per_second, writes the CSV files and TensorBoard's, and logs one line.

        Raises CheckpointError where log.csv or levels.csv cannot be written.
        """
        step, speed = int(row["step"]), self.speed.images_per_second
        levels = {f"t_{first:04d}": error for first, error in self.levels.means().items()}
        extra = {"lr": float(f"{self._lr:.6g}"), "images_per_second": float(f"{speed:.4g}")}
        self.curves.append({**row, **{name: value for name, value in extra.items() if math.isfinite(value)}})
        known = {name: float(f"{error:.6g}") if math.isfinite(error) else "" for name, error in levels.items()}
        self.by_level.append({"step": step, **known})
        scores = {name: value for name, value in row.items() if name not in ("step", "seconds", "loss")}
        self._record(lambda events: events.scalars(step, _tagged("validation", scores) | _tagged("level", levels)))
        self.speed.pause()
        log.info("%s", "  ".join(f"{name} {value}" for name, value in row.items() if "_at_" not in name))

    def pictures(self, prior: Prior, images: Sequence[torch.Tensor]) -> None:
        """After `validated`: draw samples and denoised held-back images (C, H, W), and the loss per level.
        Never raises."""
        if self.drawing:
            self._attempt("draw samples", lambda: self._draw_samples(prior, images))
            path = self.out / "loss_per_level.png"
            self._attempt("plot the loss per level", lambda: save(levels_figure(self.by_level.rows), path))
            self.speed.pause()

    def finish(self) -> None:
        """At the end of a training, also of one that was stopped: write report.png and close TensorBoard's file.
        Never raises."""
        if self.drawing and self._step > self._start:
            self._attempt("write report.png", self._draw_report)
        self.close()

    def close(self) -> None:
        """Close TensorBoard's file. Never raises."""
        self._record(lambda events: events.close())
        self._events = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def state(self) -> dict[str, Any]:
        """What a resume needs to go on with the averages: plain data, for torch.save and a weights_only load. The same
        for a training that was interrupted and one that was not."""
        return {"levels": self.levels.state(), "history": self.history.state(), "window": list(self._window)}

    def _restore(self, state: Mapping[str, Any]) -> None:
        levels, history = LevelAverages(self.config.schedule_steps), History()
        levels.restore(state["levels"])
        history.restore(state["history"])
        steps, total = (float(value) for value in state["window"])
        self.levels, self.history, self._window = levels, history, [steps, total]

    def _attempt(self, what: str, action: Callable[[], None]) -> bool:
        """Do it, or warn once that it failed: what people look at must not end what they wait for."""
        try:
            action()
        except Exception as error:
            log.debug("%s failed", what, exc_info=True)
            if what not in self._warned:
                self._warned.add(what)
                kind = "" if isinstance(error, InvdiffError | OSError | ImportError) else f"{type(error).__name__}: "
                reason = " ".join(str(error).split())
                log.warning("could not %s: %s%s (said once; the training itself is not affected)", what, kind, reason)
            return False
        return True

    def _open_events(self) -> None:
        self._events = EventFile(self.out / "tensorboard", self._start)

    def _record(self, action: Callable[[EventFile], None]) -> None:
        events = self._events
        # A record that was cut short hides all that follows it in the file, so the first failure is the end of it.
        if events and not self._attempt("log for TensorBoard", lambda: action(events)):
            self._events = None
            with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
                events.close()

    def _draw_samples(self, prior: Prior, images: Sequence[torch.Tensor]) -> None:
        settings = self.drawing or PictureSettings()
        side = min(settings.side, max(self.config.crops))  # larger than all it has seen is no fair question
        picture = sample_picture(
            prior,
            images,
            shape=(self.config.channels, side, side),
            count=settings.samples,
            steps=settings.steps,
            seed=self.config.seed,
        )
        path, step = self.out / "samples" / f"step-{self._step:06d}.png", self._step
        write_image(path, picture)
        if step >= 1.05 * self._last_shown:  # what is in TensorBoard's file cannot be thinned out later
            self._record(lambda events: events.picture(step, "samples", path))
            self._last_shown = step
        drawn = _drawn(self.out)
        foreign = [other for other in drawn if other > self._last_drawn and other != step]  # of a run that was killed
        for other in [*foreign, *superfluous(drawn.keys() - foreign, settings.kept)]:
            drawn[other].unlink(missing_ok=True)
        self._last_drawn = step

    def _draw_report(self) -> None:
        pictures = _drawn(self.out)
        last = pictures[max(pictures)] if pictures else None
        name = self.out.resolve().name
        title = report_title(name, self.config, self.curves.rows, self._step, self._seconds)
        rows, levels = self.curves.rows, self.by_level.rows
        save(report_figure(title, rows, levels, self.history.arrays(), last), self.out / "report.png")


def _tagged(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items()}


def _drawn(out: Path) -> dict[int, Path]:
    """out/samples/step-*.png by step."""
    names = {path: re.fullmatch(r"step-(\d+)\.png", path.name) for path in (out / "samples").glob("step-*.png")}
    return {int(match[1]): path for path, match in names.items() if match}


def superfluous(steps: Collection[int], kept: int) -> list[int]:
    """Which of more than `kept` steps to give up: one by one, that whose neighbours are nearest to each other.

    The first and the last stay. Done whenever a step is added, it leaves gaps that differ by a factor of about two.
    """
    remaining, given_up = sorted(steps), []
    while len(remaining) > max(2, kept):
        inner = range(1, len(remaining) - 1)
        given_up.append(remaining.pop(min(inner, key=lambda i: remaining[i + 1] - remaining[i - 1])))
    return given_up
