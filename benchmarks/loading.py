"""How fast training data is decoded, and how fast random crops of it are cut.

    python benchmarks/loading.py DATA... [--channels 3] [--side 64 --side 256] [--threads 1 --threads 2]
                                 [--seconds 2] [--markdown OUT.md]

DATA: folders, tars, patterns or datasets, as for `invdiff train --data`. Decoding: every image once, nothing kept
before. Crops: `CropSampler.batch`, 2^20 pixels a batch, of images that were decoded before and lie in memory or on disk, or
that are decoded each time; with no crop reduced, and with half of them (the setting `downscale`, and its default).
"bookkeeping" is the same with crops of 8 x 8 pixels: what a crop costs in Python, where one thread runs at a time.

"per second" is by the clock; "per CPU second" by the processor time of this process, which other programs on the machine
disturb less: times the number of free cores, it is what these could do. The best of three repeats is taken.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from invdiff.training.config import TrainingConfig
from invdiff.training.data.cache import Cache
from invdiff.training.data.entries import find_entries
from invdiff.training.data.photographs import Photographs
from invdiff.training.data.sampler import CropSampler

HEAD = ["| what | threads | per second | per CPU second | Mpixel per CPU second |", "|---|---|---|---|---|"]
PIXELS = 2**20


def timed(work: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """(seconds by the clock, seconds of the processor), each the best of the repeats."""
    clocks, processors = [], []
    for _ in range(repeats):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        clocks.append(time.perf_counter() - clock)
        processors.append(time.process_time() - processor)
    return min(clocks), min(processors)


def row(what: str, threads: int, count: int, pixels: float, seconds: tuple[float, float]) -> str:
    clock, processor = seconds
    return f"| {what} | {threads} | {count / clock:.0f} | {count / processor:.0f} | {pixels / processor / 1e6:.0f} |"


def cut_batches(photographs: Photographs, side: int, share: float, threads: int, seconds: float) -> tuple[int, tuple]:
    """(crops, times) of so many batches that one thread is busy for about so many seconds."""
    pixels = PIXELS if side > 8 else PIXELS // 64
    config = TrainingConfig(channels=photographs.channels, crops=(side,), pixels=pixels, downscale=share, widths=(8,))
    sampler = CropSampler(photographs, config)
    _, one = timed(lambda: sampler.batch(0))
    steps = max(2 * threads, round(seconds / one))

    def work() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(sampler.batch, range(steps)):
                pass

    return steps * sampler.count(0), timed(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--side", type=int, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sides, threads, lines = arguments.side or [64, 256], arguments.threads or [1, 2], list(HEAD)

    def show(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    print("\n".join(HEAD))
    entries = find_entries(arguments.data)
    images = partial(Photographs, entries, arguments.channels, min(sides))
    for count in threads:
        memory = images(cache=Cache(disk=0))
        seconds = timed(partial(memory.preload, count), repeats=1)
        usable = [image for k in range(len(entries)) if (image := memory.kept(k)) is not None]
        pixels = sum(image.shape[0] * image.shape[1] for image in usable)
        show(row(f"images decoded ({pixels / len(usable) / 1e6:.2f} Mpixel each)", count, len(usable), pixels, seconds))
    cases = [(memory, side, share, "") for side in sides for share in (0.0, 0.5)]
    disk = images(cache=Cache(memory=0))
    disk.preload()
    cases += [
        (disk, sides[0], 0.5, ", kept on disk"),
        (images(cache=Cache(0, 0), workers=1), sides[0], 0.5, ", not kept"),
    ]
    for photographs, side, share, where in cases:
        for count in threads:
            crops, seconds = cut_batches(photographs, side, share, count, arguments.seconds)
            show(row(f"crops {side} x {side}, {share:.0%} reduced{where}", count, crops, crops * side**2, seconds))
    for share in (0.0, 1.0):
        crops, seconds = cut_batches(memory, 8, share, 1, arguments.seconds)
        show(row(f"bookkeeping (crops 8 x 8), {share:.0%} reduced", 1, crops, crops * 64, seconds))
    if arguments.markdown:
        load = f", {os.getloadavg()[0]:.1f} other programs ready to run on average" if hasattr(os, "getloadavg") else ""
        note = f"{len(entries)} images; {os.cpu_count()} cores{load}; torch {torch.__version__}."
        arguments.markdown.write_text("\n".join([*lines, "", note]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
