"""Time of `invdiff evaluate` over the time of the bare `restore` calls that it makes.

    python benchmarks/evaluate_overhead.py [--prior natural] [--side 256] [--images 4] [--steps 10] [--batch-size 1]
        [--repeats 5] [--markdown OUT.md]

A: an evaluation of the images into a new folder, start to end: reading, degrading, restoring, PSNR and SSIM, pictures, lines
on the disk. B: the same images, in memory, degraded before the clock starts, through `invdiff.restore` in the same batches.
A and B alternate in one process; the table has the median of each and of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

import torch

import invdiff
from invdiff.evaluation.datasets import BUILTIN, PHOTOGRAPHS, DataSet
from invdiff.evaluation.speed import alternate, median_ratio
from invdiff.files.atomic import atomic_path
from invdiff.files.images import centre, write_image
from invdiff.restoration.api import resolve_prior


def write_images(folder: Path, side: int, count: int) -> list[torch.Tensor]:
    """Middles of scikit-image's photographs, turned where there are more to write than there are photographs."""
    sources = DataSet(BUILTIN, BUILTIN).sources()
    images = []
    for number in range(count):
        image = centre(sources[number % len(PHOTOGRAPHS)].read(), side).rot90(number // len(PHOTOGRAPHS), (1, 2))
        write_image(folder / f"{number}.png", image)
        images.append(image)
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device)
    operator, noise, size = "gaussian_blur:sigma=2", 0.05, arguments.batch_size
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = write_images(folder / "images", arguments.side, arguments.images)
        batches = [torch.stack(images[first : first + size]) for first in range(0, len(images), size)]
        measured = [invdiff.degrade(batch, operator, noise) for batch in batches]
        runs = itertools.count()

        def whole() -> None:
            invdiff.evaluate(
                folder / "images", operator, noise, "diffpir", steps=arguments.steps, prior=prior, batch_size=size,
                out=folder / f"run-{next(runs)}",
            )  # fmt: skip

        def bare() -> None:
            for y in measured:
                invdiff.restore(y, operator, noise, prior, "diffpir", steps=arguments.steps, batch_size=size)

        seconds = alternate({"evaluate": whole, "restore": bare}, arguments.repeats, prior.device)
    ratio = median_ratio(seconds["evaluate"], seconds["restore"])
    ours, theirs = (statistics.median(values) for values in seconds.values())
    table = (
        "| evaluate (s) | bare restore (s) | ratio |\n|---|---|---|\n"
        f"| {ours:.2f} | {theirs:.2f} | {ratio:.3f} |\n\n"
        f"{arguments.images} images of {arguments.side} x {arguments.side}, batch {size}, {arguments.steps} calls of "
        f"`diffpir`, {prior.device.type} ({torch.get_num_threads()} threads), torch {torch.__version__}, medians of "
        f"{arguments.repeats}.\n"
    )
    print(table)
    if arguments.markdown:
        with atomic_path(arguments.markdown) as part:
            part.write_text(table)


if __name__ == "__main__":
    main()
