"""The training loop: prefetched batches, AdamW, EMA, validation, checkpoints, and a clean stop on Ctrl-C."""

from __future__ import annotations

import csv
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from invdiff.device import autocast
from invdiff.errors import NumericalError, UsageError
from invdiff.priors.network import NetworkPrior
from invdiff.schedule import Schedule
from invdiff.training.checkpoint import TrainingState, export_pipeline
from invdiff.training.config import TrainingConfig
from invdiff.training.data import CropSampler, Photographs, find_entries, split
from invdiff.training.network import build_network, build_scheduler
from invdiff.training.objective import simple_loss
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

    `out/training/` holds what a resume needs (weights, optimiser, step), `out/log.csv` the curves, `out/recipe.json`
    the settings. Ctrl-C saves and returns. Raises UsageError if `out` already holds a training and resume is False,
    NumericalError if the loss stops being finite.
    """
    out, device = Path(out), torch.device(device)
    out.mkdir(parents=True, exist_ok=True)
    if not resume and (out / "training").exists():
        raise UsageError(f"{out} already holds a training; continue it with --resume or choose another --out")
    schedule = Schedule.named(config.schedule, config.schedule_steps)
    learning, held = split(find_entries(data), config.holdout, config.seed)
    sampler = CropSampler(Photographs(learning, config.channels, min(config.crops)), config)
    validation = _validation_images(held, config)
    network = build_network(config).to(device)
    state = TrainingState.start(network, config, out, device, resume=resume)
    loop = _Loop(config, schedule, state, device, precision, report)
    log.info("training on %d images, %d held back, %s", len(learning), len(held), device)

    started, last_save, stop = time.monotonic(), time.monotonic(), _StopFlag()
    with stop, _Prefetcher(sampler.batch, state.step) as batches:
        while not stop and loop.progress(started) < 1:
            loop.step(next(batches), started)
            finished = loop.progress(started) >= 1
            if state.step % validate_every == 0 or finished:
                loop.validate(validation, out, started)
            if finished or stop or time.monotonic() - last_save > 60 * save_minutes:
                state.save(out, seconds=loop.elapsed(started))
                export_pipeline(state.ema, build_scheduler(config), config, out)
                last_save = time.monotonic()
    state.save(out, seconds=loop.elapsed(started))
    return export_pipeline(state.ema, build_scheduler(config), config, out)


class _Loop:
    """One training in progress: a step, the learning-rate curve, the log."""

    def __init__(
        self,
        config: TrainingConfig,
        schedule: Schedule,
        state: TrainingState,
        device: torch.device,
        precision: torch.dtype,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.config, self.schedule, self.state = config, schedule, state
        self.device, self.precision = device, precision
        self.report = report
        self.loss = math.nan
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    def elapsed(self, started: float) -> float:
        """Seconds of training, those before a resume included."""
        return self.state.seconds + time.monotonic() - started

    def progress(self, started: float) -> float:
        """0 at the start, 1 when the budget of steps or minutes is used up."""
        by_time = self.elapsed(started) / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(self.state.step / self.config.steps, by_time)

    def step(self, batch: np.ndarray, started: float) -> None:
        """One optimiser step and one EMA update."""
        config, state = self.config, self.state
        # Linear warm-up, then half a cosine down to zero at the end of the budget.
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress(started))))
        lr = config.lr * min(1.0, (state.step + 1) / max(1, config.warmup)) * cosine
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.network.train()
        with autocast(self.device, self.precision):
            loss = simple_loss(state.network, batch, self.schedule, config, state.step, self.device)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NumericalError(f"training loss is {value} at step {state.step}; lower --lr or use --precision fp32")
        state.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.clip)
        self.scaler.step(state.optimizer)
        self.scaler.update()
        state.advance()
        self.loss = value if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * value
        if self.report:
            self.report({"step": state.step, "loss": self.loss, "lr": lr, "progress": self.progress(started)})

    def validate(self, images: Sequence[torch.Tensor], out: Path, started: float) -> None:
        """Denoising PSNR of the EMA weights on the held-back images, appended to log.csv."""
        prior = NetworkPrior(
            self.state.ema,
            self.schedule,
            channels=self.config.channels,
            multiple=self.config.downsampling,
            precision=self.precision,
        )
        scores = denoising_psnr(prior, images)
        row = {"step": self.state.step, "seconds": round(self.elapsed(started)), "loss": round(self.loss, 5)}
        row |= {f"psnr_{round(255 * sigma)}": round(scores[sigma], 3) for sigma in SIGMAS}
        _append_row(out / "log.csv", row)
        log.info("%s", "  ".join(f"{key} {value}" for key, value in row.items()))


def _validation_images(held: Sequence[Any], config: TrainingConfig, side: int = 256) -> list[torch.Tensor]:
    """Centre crops (C, h, w) in [0, 1] of at most 256 pixels a side."""
    photographs = Photographs(held, config.channels, 1)
    images = []
    for index in range(len(photographs)):
        pixels = photographs.get(index)
        if pixels is not None:
            top, left = ((extent - min(side, extent)) // 2 for extent in pixels.shape[:2])
            crop = np.ascontiguousarray(pixels[top : top + side, left : left + side].transpose(2, 0, 1))
            images.append(torch.from_numpy(crop).float() / 255)
    if not images:
        raise UsageError("none of the images held back for validation can be read")
    return images


def _append_row(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


class _StopFlag:
    """True after the first Ctrl-C (or SIGTERM), so that the step in flight ends and the checkpoint is saved.
    The second one interrupts at once."""

    def __init__(self) -> None:
        self.raised = False
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.raised

    def __enter__(self) -> _StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True
        log.warning("stopping: saving the checkpoint (once more to stop at once)")


class _Prefetcher:
    """Yields make(step), make(step + 1), ... with a few of them prepared ahead by worker threads."""

    def __init__(self, make: Callable[[int], np.ndarray], first: int, ahead: int = 4, workers: int = 1) -> None:
        self._make, self._next = make, first
        self._pool = ThreadPoolExecutor(workers)
        self._pending = [self._submit() for _ in range(ahead)]

    def _submit(self) -> Any:
        future = self._pool.submit(self._make, self._next)
        self._next += 1
        return future

    def __enter__(self) -> Iterator[np.ndarray]:
        while_open = self

        def batches() -> Iterator[np.ndarray]:
            while True:
                batch = while_open._pending.pop(0).result()
                while_open._pending.append(while_open._submit())
                yield batch

        return batches()

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
