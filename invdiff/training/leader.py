"""What the main process does beside learning: logs, validations, checkpoints. The others wait for it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import NumericalError
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.priors.network import NetworkPrior
from invdiff.training.checkpoint import TrainingState, export_pipeline, state_path
from invdiff.training.config import TrainingConfig
from invdiff.training.network import build_scheduler
from invdiff.training.optimizers import Budget
from invdiff.training.provenance import Provenance
from invdiff.training.utilisation import Utilisation
from invdiff.training.watch.validation import denoising_psnr, validate
from invdiff.training.watch.watch import Watch

Report = Callable[[dict[str, Any]], None]

CHOOSING = (15 / 255, 25 / 255, 50 / 255)
"""Noise levels at which averages of the weights are compared: the mean of their PSNR decides."""


class Leader:
    """Watches over one training, and writes everything that is under `out`.

    images: held-back images (C, H, W) in [0, 1]; statistics: of the training images, for high noise, if any;
    report: takes the facts of every step, for a progress bar.
    """

    config: TrainingConfig
    out: Path
    state: TrainingState
    budget: Budget
    provenance: Provenance
    report: Callable[[dict[str, Any]], None] | None
    watch: Watch
    images: Sequence[torch.Tensor]
    precision: torch.dtype
    statistics: GaussianImages | None
    first: int
    validated: int

    def __init__(
        self,
        config: TrainingConfig,
        state: TrainingState,
        out: Path,
        *,
        budget: Budget,
        watch: Watch,
        provenance: Provenance,
        images: Sequence[torch.Tensor],
        statistics: GaussianImages | None,
        precision: torch.dtype,
        utilisation: Utilisation,
        report: Report | None,
    ) -> None:
        self.config, self.state, self.out = config, state, out
        self.budget, self.watch, self.provenance, self.report = budget, watch, provenance, report
        self.images, self.statistics, self.precision = images, statistics, precision
        self.utilisation = utilisation
        self.schedule: Schedule = Schedule.named(config.schedule, config.schedule_steps)
        self.first, self.validated = state.step, state.step
        """Steps at which this session began, and at which it validated last."""
        self.saved: int | None = state.step or None
        """Step of the checkpoint on the disk."""
        self._saved_at = budget.elapsed()
        self._facts: dict[str, Any] = {}

    def progress(self) -> float:
        """Share of the budget that is used up."""
        return self.budget.progress(self.state.step)

    def due(self) -> bool:
        """Whether the timer asks for a checkpoint."""
        return self.budget.elapsed() - self._saved_at > 60 * self.config.save_minutes

    def stepped(self, step: int, loss: float, lr: float, images: int, **errors: Any) -> None:
        """After step number `step`, counted from 1: its loss and its crops over all processes; pixels, t and errors of
        this process' crops."""
        self.watch.step(step, loss=loss, lr=lr, images=images, seconds=self.budget.elapsed(), **errors)
        speed = self.watch.speed
        self._facts = {"step": step, "loss": self.state.loss, "lr": lr, "progress": self.progress()}
        self._facts |= {"images_per_second": speed.images_per_second, "remaining": speed.remaining}
        if math.isfinite(speed.pixels_per_second):
            self._facts["rate"] = self.utilisation.describe(speed.pixels_per_second)
        if self.report:
            self.report(self._facts)

    def finished(self) -> None:
        """Validate after the last step, when the budget is used up, and report the result."""
        self.validate()
        if self.report and self._facts:
            self.report(self._facts | {"progress": 1.0, "remaining": 0.0})

    def validate(self) -> None:
        """Compare the averages on the held-back images, write a row of log.csv and the pictures of the best one; nothing
        where no step was made since the last time."""
        if self.validated == self.state.step:
            return
        self.validated = self.state.step
        averages, row = self.state.averages, {}
        priors = {decay: self._prior(module) for decay, module in averages.modules.items()}
        if len(priors) > 1:
            scores = {decay: _mean_psnr(prior, self.images) for decay, prior in priors.items()}
            row = {"ema": averages.choose(scores)} | {f"psnr_ema_{d!r}": round(s, 3) for d, s in scores.items()}
        best = priors[averages.best]
        row = validate(best, self.images, self.schedule) | row
        facts = {"step": self.state.step, "seconds": round(self.budget.elapsed()), "loss": round(self.state.loss, 5)}
        self.watch.validated(facts | row)
        self.watch.pictures(best, self.images)

    def _prior(self, module: torch.nn.Module) -> NetworkPrior:
        return NetworkPrior(
            module,
            self.schedule,
            channels=self.config.channels,
            prediction=self.config.prediction,
            multiple=self.config.downsampling,
            precision=self.precision,
            high_noise=self.statistics,
        )

    def save(self) -> None:
        """Write the state to resume from, the exported folder and what made them.

        Raises CheckpointError where they cannot be written; what was saved before is then intact.
        """
        state, averages = self.state, self.state.averages
        state.watch, seconds = self.watch.state(), self.budget.elapsed()
        state.save(self.out, seconds)
        self.saved, self._saved_at = state.step, seconds
        export_pipeline(averages.exported, build_scheduler(self.config), self.config, self.out, self.statistics)
        exported = {"step": state.step, "ema": averages.best, "compared": list(averages.modules)}
        self.provenance.write(state.step, seconds, exported)

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Around the loop: at its end, and after a clean stop, save and write the report."""
        with self.watch:
            yield
            if self.state.step > self.first or not (self.out / "model_index.json").exists():
                self.save()
                self.watch.finish()

    def not_finite(self, what: str, value: float, step: int) -> NumericalError:
        """The error for a loss or gradient that is not finite; it names the checkpoint to go on from."""
        where = "no checkpoint was saved yet: start again"
        if self.saved is not None:
            where = f"the last good checkpoint is {state_path(self.out)} of step {self.saved}: go on with --resume"
        return NumericalError(
            f"training {what} is {value} at step {step}; {where}, and a lower --lr or --precision fp32"
        )


def _mean_psnr(prior: NetworkPrior, images: Sequence[torch.Tensor]) -> float:
    scores = denoising_psnr(prior, images, CHOOSING)
    return sum(scores.values()) / len(scores)
