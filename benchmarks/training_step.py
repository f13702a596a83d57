"""A training step: pixels a second, and the share of a matrix product's rate that they make the device compute.

    python benchmarks/training_step.py --data photos.tar [--recipe natural] [--seconds 5] [--compile] [--markdown OUT.md]

Each way to make the step is run for so many seconds after a warm-up, one after the other in one process: as `invdiff train`
makes it, without its CUDA graphs, and without its fused kernels either; --compile adds torch.compile, for one size of crops,
as compiling takes a minute for each. The profile is of the first way, two steps of each size of crops.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.machine.device import choose_device, choose_precision
from invdiff.training import learner as learning
from invdiff.training.checkpoint import TrainingState
from invdiff.training.config import TrainingConfig
from invdiff.training.data.entries import find_entries
from invdiff.training.data.photographs import Photographs
from invdiff.training.data.resident import ResidentFeeder
from invdiff.training.data.sampler import CropSampler
from invdiff.training.distributed import Processes
from invdiff.training.engine import build_objective
from invdiff.training.learner import Feeder, Learner
from invdiff.training.network import build_network
from invdiff.training.recipe import overridden, read_recipe
from invdiff.training.utilisation import Utilisation

Feed = Callable[[int], Any]


def build(config: TrainingConfig, device: torch.device, *, graphs: bool, fused: bool) -> Learner:
    schedule = Schedule.named(config.schedule, config.schedule_steps)
    objective = build_objective(config, schedule).to(device)
    network = build_network(config).to(device)
    state = TrainingState.start(network, objective, config, Path("unused"), device, resume=False)
    processes = Processes(device, choose_precision(config.precision, device))
    with mock.patch.object(learning, "fuse", learning.fuse if fused else lambda network: 0):
        one = Learner(config, state, objective, processes)
    one._graphs = one._graphs if graphs else None
    return one


def run(one: Learner, feed: Feed, seconds: float, sizes: int) -> tuple[float, float, float]:
    """(seconds of the warm-up, pixels a second, seconds a step)."""
    begun = time.perf_counter()
    for step in range(4 * sizes):
        outcome = one.step(feed(step), 0.1)
    outcome.read()
    warm, started = time.perf_counter() - begun, time.perf_counter()
    pixels, steps, waiting = 0, 0, outcome
    while time.perf_counter() - started < seconds or steps < 2:
        outcome = one.step(feed(1000 + steps), 0.1)
        waiting.read()
        waiting, pixels, steps = outcome, pixels + outcome.pixels, steps + 1
    waiting.read()
    taken = time.perf_counter() - started
    return warm, pixels / taken, taken / steps


def profile(one: Learner, feed: Feed, device: torch.device, steps: int) -> list[str]:
    activity = torch.profiler.ProfilerActivity
    cuda = device.type == "cuda"
    with torch.profiler.profile(activities=[activity.CUDA] if cuda else [activity.CPU]) as profiler:
        for step in range(steps):
            one.step(feed(step), 0.1).read()
    events = profiler.key_averages()

    def own(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    total = sum(map(own, events))
    top = sorted(events, key=own, reverse=True)[:20]
    rows = [
        f"| `{event.key[:100]}` | {event.count / steps:.0f} | {own(event) / steps / 1000:.2f} | {own(event) / total:.0%} |"
        for event in top
    ]
    return [
        f"{total / steps / 1000:.1f} ms a step in kernels.",
        "",
        "| kernel | times | ms a step | share |",
        "|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--recipe", default="natural")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    pairs = [tuple(pair.split("=", 1)) for pair in arguments.set]
    settings = overridden(read_recipe(arguments.recipe).settings, pairs) | {"weights": {}}
    config = TrainingConfig.from_dict(settings)
    photographs = Photographs(find_entries(arguments.data), config.channels, min(config.crops), config.value_range)
    schedule = Schedule.named(config.schedule, config.schedule_steps)
    resident = device.type == "cuda" and ResidentFeeder.fits(photographs, device)

    def feeder(config: TrainingConfig) -> Feed:
        host = Feeder(CropSampler(photographs, config), schedule, config)
        return ResidentFeeder(host, device) if resident else host

    precision = choose_precision(config.precision, device)
    utilisation = Utilisation.measure(build_network(config), config, device, precision)
    feed = feeder(config)
    times = []
    for step in range(24):
        started = time.perf_counter()
        feed(step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    lines = [
        "| way | ms a step | Mpixel/s | of the device |",
        "|---|---|---|---|",
    ]
    ways: list[tuple[str, TrainingConfig, dict[str, bool]]] = [
        ("as `invdiff train`", config, {"graphs": True, "fused": True})
    ]
    if device.type == "cuda":
        ways += [
            ("kernels launched one by one", config, {"graphs": False, "fused": True}),
            ("torch's own kernels", config, {"graphs": False, "fused": False}),
        ]
    if arguments.compile:
        single = dataclasses.replace(config, compile=True, crops=config.crops[:1])
        ways.append((f"`compile`, crops of {config.crops[0]}", single, {"graphs": False, "fused": False}))
    kernels: list[str] = []
    for label, chosen, options in ways:
        one, batches = build(chosen, device, **options), feeder(chosen)
        warm, rate, spent = run(one, batches, arguments.seconds, len(set(chosen.crops)))
        lines.append(f"| {label} | {1000 * spent:.1f} | {rate / 1e6:.2f} | {utilisation.describe(rate)} |")
        print(lines[-1], f"warm-up {warm:.1f} s", flush=True)
        if not kernels:
            kernels = profile(one, batches, device, 2 * len(set(chosen.crops)))
    lines += [
        "",
        f"Batches of {config.pixels} pixels (crops of {', '.join(map(str, config.crops))}), {config.optimizer}, "
        f"{str(precision).removeprefix('torch.')}, {name}, torch {torch.__version__}; a matrix product runs at "
        f"{utilisation.peak / 1e12:.3g} TFLOP/s. Cutting a batch's crops "
        f"{'on the device' if resident else 'by the processor'} and drawing its noise takes "
        f"{1000 * statistics.median(times):.2f} ms.",
        "",
        "Where the time goes, as `invdiff train` makes the step:",
        "",
        *kernels,
    ]
    text = "\n".join(lines) + "\n"
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
