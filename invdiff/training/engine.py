"""The training: what it starts from, and its loop of steps, with a clean stop on Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import NumericalError, UsageError
from invdiff.files.images import centre
from invdiff.machine.device import choose_precision, keep_single_precision
from invdiff.machine.threads import StopFlag, cores, in_background, prepared
from invdiff.priors.stored.tensor_files import read_json
from invdiff.training.checkpoint import TrainingState, replacing, state_path, write_recipe
from invdiff.training.config import TrainingConfig
from invdiff.training.data.decoding import load, to_unit
from invdiff.training.data.entries import find_entries
from invdiff.training.data.entry import Entry
from invdiff.training.data.photographs import Photographs
from invdiff.training.data.resident import ResidentFeeder
from invdiff.training.data.sampler import CropSampler, Usable, check_weights, split, split_by_key
from invdiff.training.distributed import Processes, launched
from invdiff.training.leader import Leader, Report
from invdiff.training.learner import Feeder, Learner, MicroBatch, Outcome
from invdiff.training.network import build_network, start_from
from invdiff.training.objective import Objective
from invdiff.training.optimizers import Budget, rate
from invdiff.training.provenance import Provenance, describe_device
from invdiff.training.statistics import image_statistics
from invdiff.training.utilisation import Utilisation
from invdiff.training.watch.watch import PictureSettings, Watch

log: logging.Logger = logging.getLogger(__name__)


def train(
    config: TrainingConfig,
    data: Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    precision: torch.dtype | None = None,
    tensorboard: bool = False,
    drawing: PictureSettings | None = PictureSettings(),  # noqa: B008  frozen
    report: Report | None = None,
) -> Path:
    """Train a network and write it to `out` as a diffusers folder (averaged weights, 16-bit).

    `out/training/` holds what a resume needs (weights, optimiser, step, names of the images held back), `out/log.csv`
    the curves, `out/recipe.json` the settings, `out/provenance.json` what made it. precision: None for that of the
    settings; drawing: None for no pictures. Ctrl-C or SIGTERM saves and returns; a second one interrupts at once. Where
    `accelerate launch` or torchrun started several processes, they share the batches, and the first one writes.
    Raises UsageError if `out` already holds a prior and resume is False, or if resume changes a setting of
    config.FIXED; ImageError if the data cannot be used; CheckpointError if `out` cannot be written or resumed;
    NumericalError if the loss or its gradient stops being finite; InvdiffError when memory runs out.
    """
    out, device = Path(out), torch.device(device)
    precision = precision or choose_precision(config.precision, device)
    _check_folder(config, out, resume)
    entries = find_entries(data)
    check_weights(config, entries)
    learning, held = _split(entries, config, out, resume)
    photographs = Photographs(learning, config.channels, min(config.crops), config.value_range)
    sampler = CropSampler(photographs, config)
    sampler.check()
    validation = [_validation_image(entry, config) for entry in held]
    network = build_network(config)
    origin = start_from(network, config, config.init) if config.init and not resume else None

    processes = Processes(device, precision, config.accumulate)
    keep_single_precision(processes.device, precision)
    schedule = Schedule.named(config.schedule, config.schedule_steps)
    objective = build_objective(config, schedule).to(processes.device)
    state = TrainingState.start(network.to(processes.device), objective, config, out, processes.device, resume=resume)
    learner = Learner(config, state, objective, processes)
    leader = None
    if processes.main:
        utilisation = Utilisation.measure(build_network(config), config, processes.device, precision)
        provenance = Provenance(out / "provenance.json", resume=resume)
        provenance.start(config, data, step=state.step, processes=processes, precision=precision, origin=origin)
        write_recipe(config, out / "recipe.json")
        with replacing(out / "training" / "holdout.json") as temporary:
            temporary.write_text(json.dumps({"held_back": [entry.key for entry in held]}, indent=2), encoding="utf-8")
        leader = Leader(
            config,
            state,
            out,
            budget=Budget(config, state.seconds),
            watch=Watch(out, config, step=state.step, state=state.watch, tensorboard=tensorboard, drawing=drawing),
            provenance=provenance,
            images=validation,
            statistics=image_statistics(photographs, config),
            precision=precision,
            utilisation=utilisation,
            report=report,
        )
        where = describe_device(processes.device) + (f", {processes.count} processes" if processes.count > 1 else "")
        log.info("training on %d images, %d held back, %s", len(learning), len(held), where)
    run(learner, Feeder(sampler, schedule, config, processes.rank, processes.count), leader)
    return out


def run(learner: Learner, feeder: Feeder, leader: Leader | None) -> None:
    """The loop: steps until the budget is used up or a signal comes. leader: in the main process alone.

    What the clock says, a signal to one of the processes, and the timer of the checkpoints are agreed upon once a step:
    processes that disagree would wait for one another for ever.
    """
    state, config, processes = learner.state, learner.config, learner.processes
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopFlag(patient=launched()))
        if leader:
            stack.enter_context(leader.closing())
        batches = stack.enter_context(_batches(feeder, state.step, processes.device, stop))
        waiting: Outcome | None = None
        while True:
            clock = (leader.progress(), float(leader.due())) if leader else (0.0, 0.0)
            progress, due, stopping = processes.total(*clock, float(bool(stop)))
            ends = progress >= 1 or stopping
            if waiting and (ends or due or state.step % config.validate_every == 0):
                _settle(waiting, learner, leader)
                waiting = None
            if leader and state.step % config.validate_every == 0:
                leader.validate()
            if ends:
                break
            if due and leader:
                leader.save()
            outcome = learner.step(next(batches), rate(config, state.step, progress))
            if waiting:
                _settle(waiting, learner, leader)
            # A GPU computes a step while the next one is being prepared: what came of it is read after that.
            waiting = outcome
            if processes.device.type != "cuda":
                _settle(outcome, learner, leader)
                waiting = None
        if leader and not stopping:
            leader.finished()


def _settle(outcome: Outcome, learner: Learner, leader: Leader | None) -> None:
    """Look at what came of a step: raise if it is not finite, and log it."""
    state, processes = learner.state, learner.processes
    mean, norm, errors = outcome.read()
    (loss,) = processes.total(mean / processes.count)
    _check_finite("loss", loss, outcome.step, leader)
    if not learner.scaled:  # a scaler meets infinite gradients on its way, and skips such steps itself
        _check_finite("gradient", norm, outcome.step, leader)
    state.loss = loss if math.isnan(state.loss) else 0.98 * state.loss + 0.02 * loss
    if leader:
        images = processes.count * len(outcome.t)
        leader.stepped(outcome.step + 1, loss, outcome.lr, images, pixels=outcome.pixels, t=outcome.t, errors=errors)


@contextlib.contextmanager
def _batches(feeder: Feeder, step: int, device: torch.device, stop: StopFlag) -> Iterator[Iterator[list[MicroBatch]]]:
    """The batches from this step on: cut on the device, where the images fit there, or ahead of time by the processor."""
    photographs = feeder.sampler.photographs
    if (
        feeder.config.feed == "auto"
        and device.type == "cuda"
        and ResidentFeeder.fits(photographs, device, lambda: stop.raised)
    ):
        resident = ResidentFeeder(feeder, device)
        log.info("crops are cut on the device: %s", resident.summary())
        yield map(resident, itertools.count(step))
        return
    with contextlib.ExitStack() as stack:
        workers = 1
        if device.type != "cpu":  # the processor has nothing else to do than to prepare batches
            workers = max(1, min(8, cores() - 1))
            stack.enter_context(in_background(photographs.preload))
        made = stack.enter_context(contextlib.closing(prepared(feeder, itertools.count(step), workers + 3, workers)))
        yield (batch.result() for _, batch in made)


def _check_finite(what: str, value: float, step: int, leader: Leader | None) -> None:
    if not math.isfinite(value):
        raise leader.not_finite(what, value, step) if leader else NumericalError(f"training {what} is {value}")


def build_objective(config: TrainingConfig, schedule: Schedule) -> Objective:
    """The objective of these settings."""
    return Objective(
        schedule,
        config.prediction,
        config.weighting,
        gamma=config.gamma,
        sigma_data=config.sigma_data,
        low_noise=config.low_noise,
    )


def _check_folder(config: TrainingConfig, out: Path, resume: bool) -> None:
    """Refuse, before anything is loaded, an `out` that would be overwritten or does not go with these settings."""
    if not resume:
        if state_path(out).exists():
            raise UsageError(f"{out} already holds a training; continue it with --resume or choose another --out")
        if (out / "model_index.json").exists():
            raise UsageError(f"{out} already holds a prior; choose another --out")
    elif (out / "recipe.json").is_file():
        earlier = TrainingConfig.from_dict(read_json(out / "recipe.json"))
        config.check_continues(earlier, str(out))
        then, now = earlier.to_dict(), config.to_dict()
        if changed := [f"{name} {then[name]} -> {now[name]}" for name in now if then[name] != now[name]]:
            log.info("settings changed since: %s", ", ".join(changed))


def _split(entries: list[Entry], config: TrainingConfig, out: Path, resume: bool) -> tuple[list[Entry], list[Entry]]:
    """The images to learn from and to hold back; with resume the same as before, even if the data has grown."""
    path = out / "training" / "holdout.json"
    if resume and path.is_file():
        return split_by_key(entries, read_json(path)["held_back"])

    return split(entries, config.holdout, config.seed, Usable(config))


def _validation_image(entry: Entry, config: TrainingConfig, side: int = 256) -> torch.Tensor:
    """The centre (C, h, w) in [0, 1] of an image, at most `side` pixels a side."""
    pixels = to_unit(load(entry, config.channels, config.value_range))
    middle = centre(torch.from_numpy(pixels).permute(2, 0, 1), side)
    return middle.clone(memory_format=torch.contiguous_format)
