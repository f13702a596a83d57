"""The training loop: prefetched batches, AdamW, EMA, validation, checkpoints, and a clean stop on Ctrl-C."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.device import autocast
from invdiff.errors import ImageError, NumericalError, UsageError
from invdiff.priors.network import NetworkPrior
from invdiff.priors.tensor_files import read_json
from invdiff.schedule import Schedule
from invdiff.training.background import Prefetcher, StopFlag
from invdiff.training.checkpoint import TrainingState, export_pipeline, replacing, state_path, write_recipe
from invdiff.training.config import TrainingConfig
from invdiff.training.curves import Curves
from invdiff.training.data import CropSampler, check_weights, split, split_by_key
from invdiff.training.entries import Entry, find_entries
from invdiff.training.network import build_network, build_scheduler
from invdiff.training.objective import simple_loss
from invdiff.training.photographs import Photographs, decode
from invdiff.training.validation import SIGMAS, denoising_psnr

log = logging.getLogger(__name__)


def train(
    config: TrainingConfig,
    data: Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    save_minutes: float = 5.0,
    validate_every: int = 500,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Path:
    """Train an epsilon network and write it to `out` as a diffusers folder (EMA weights, 16-bit).

    `out/training/` holds what a resume needs (weights, optimiser, step, names of the images held back), `out/log.csv`
    the curves, `out/recipe.json` the settings. Ctrl-C or SIGTERM saves and returns; a second one interrupts at once.
    Raises UsageError if `out` already holds a prior and resume is False, or if resume changes a setting of
    config.FIXED; ImageError if the data cannot be used; CheckpointError if `out` cannot be written or resumed;
    NumericalError if the loss or its gradient stops being finite.
    """
    out, device = Path(out), torch.device(device)
    _check_folder(config, out, resume)
    entries = find_entries(data)
    check_weights(config, entries)
    learning, held = _split(entries, config, out, resume)
    sampler = CropSampler(Photographs(learning, config.channels, min(config.crops)), config)
    sampler.check()
    validation = [_validation_image(entry, config.channels) for entry in held]
    network = build_network(config).to(device)
    state = TrainingState.start(network, config, out, device, resume=resume)
    loop = _Loop(config, state, device, precision, report)
    write_recipe(config, out / "recipe.json")
    with replacing(out / "training" / "holdout.json") as temporary:
        temporary.write_text(json.dumps({"held_back": [entry.key for entry in held]}, indent=2), encoding="utf-8")
    curves = Curves(out / "log.csv", state.step)
    log.info("training on %d images, %d held back, %s", len(learning), len(held), device)

    last_save, first = time.monotonic(), state.step
    with StopFlag() as stop, Prefetcher(sampler.batch, state.step) as batches:
        while not stop and loop.progress() < 1:
            loop.step(next(batches))
            finished = loop.progress() >= 1
            if state.step % validate_every == 0 or finished:
                curves.append(loop.validate(validation))
            if not finished and time.monotonic() - last_save > 60 * save_minutes:
                _save(loop, out)
                last_save = time.monotonic()
        if state.step > first or not (out / "model_index.json").exists():
            _save(loop, out)
    return out


def _check_folder(config: TrainingConfig, out: Path, resume: bool) -> None:
    """Refuse, before anything is loaded, an `out` that would be overwritten or does not go with these settings."""
    if not resume:
        if state_path(out).exists():
            raise UsageError(f"{out} already holds a training; continue it with --resume or choose another --out")
        if (out / "model_index.json").exists():
            raise UsageError(f"{out} already holds a prior; choose another --out")
    elif (out / "recipe.json").is_file():
        config.check_continues(TrainingConfig.from_dict(read_json(out / "recipe.json")), str(out))


def _split(entries: list[Entry], config: TrainingConfig, out: Path, resume: bool) -> tuple[list[Entry], list[Entry]]:
    """The images to learn from and to hold back; with resume the same as before, even if the data has grown."""
    path = out / "training" / "holdout.json"
    if resume and path.is_file():
        return split_by_key(entries, read_json(path)["held_back"])

    def usable(entry: Entry) -> bool:
        try:
            return decode(entry.read(), config.channels).size > 0
        except (ImageError, OSError) as error:
            log.warning("skipped %s: %s", entry.key, error)
            return False

    return split(entries, config.holdout, config.seed, usable)


def _validation_image(entry: Entry, channels: int, side: int = 256) -> torch.Tensor:
    """The centre (C, h, w) in [0, 1] of an image, at most `side` pixels a side."""
    pixels = decode(entry.read(), channels)
    top, left = ((extent - min(side, extent)) // 2 for extent in pixels.shape[:2])
    crop = np.ascontiguousarray(pixels[top : top + side, left : left + side].transpose(2, 0, 1))
    return torch.from_numpy(crop).float() / 255


def _save(loop: _Loop, out: Path) -> None:
    loop.state.save(out, seconds=loop.elapsed())
    export_pipeline(loop.state.ema, build_scheduler(loop.config), loop.config, out)


class _Loop:
    """One training in progress: a step, the learning-rate curve, the validation."""

    def __init__(
        self,
        config: TrainingConfig,
        state: TrainingState,
        device: torch.device,
        precision: torch.dtype,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.state = config, state
        self.schedule = Schedule.named(config.schedule, config.schedule_steps)
        self.device, self.precision = device, precision
        self.report = report
        self.started = time.monotonic()
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.state.seconds + time.monotonic() - self.started

    def progress(self) -> float:
        """0 at the start, 1 when the budget of steps or minutes is used up."""
        by_time = self.elapsed() / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(self.state.step / self.config.steps, by_time)

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero at the end of the budget."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        return self.config.lr * min(1.0, (self.state.step + 1) / max(1, self.config.warmup)) * cosine

    def step(self, batch: np.ndarray) -> None:
        """One optimiser step and one EMA update."""
        config, state = self.config, self.state
        lr = self.learning_rate()
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.network.train()
        with autocast(self.device, self.precision):
            loss = simple_loss(state.network, batch, self.schedule, config, state.step, self.device)
        value = float(loss.detach())
        self._check_finite("loss", value)
        state.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
        if not self.scaler.is_enabled():  # the scaler meets infinity on its way, and skips such steps itself
            self._check_finite("gradient", float(norm))
        self.scaler.step(state.optimizer)
        self.scaler.update()
        state.scaler = self.scaler.state_dict()
        state.advance()
        state.loss = value if math.isnan(state.loss) else 0.98 * state.loss + 0.02 * value
        if self.report:
            self.report({"step": state.step, "loss": state.loss, "lr": lr, "progress": self.progress()})

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NumericalError(
                f"training {what} is {value} at step {self.state.step}; "
                "go on from the last checkpoint with --resume and a lower --lr, or with --precision fp32"
            )

    def validate(self, images: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Denoising PSNR of the EMA weights on the held-back images: a row of log.csv."""
        prior = NetworkPrior(
            self.state.ema,
            self.schedule,
            channels=self.config.channels,
            multiple=self.config.downsampling,
            precision=self.precision,
        )
        scores = denoising_psnr(prior, images)
        row = {"step": self.state.step, "seconds": round(self.elapsed()), "loss": round(self.state.loss, 5)}
        row |= {f"psnr_{round(255 * sigma)}": round(scores[sigma], 3) for sigma in SIGMAS}
        log.info("%s", "  ".join(f"{key} {value}" for key, value in row.items()))
        return row
