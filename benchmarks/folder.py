"""Images a second of `invdiff restore` on a folder, over those of bare batched calls of its network.

    python benchmarks/folder.py [--images 12] [--side 128] [--batch 4] [--steps 10] [--markdown OUT.md]

The folder holds PNG files of two sizes in turn, side x side and side x 3/4 side. A: the command's own loop, once the prior is
loaded: reads, groups, restores, writes images and records. B: as many calls of the bare network in full batches. They
alternate in one process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from skimage import data

from invdiff.cli import restoring
from invdiff.cli.restore import restore
from invdiff.evaluation.speed import Call, alternate, median_ratio, replay
from invdiff.files.images import write_image
from invdiff.priors import load_prior
from invdiff.priors.network import NetworkPrior


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
    side, half = arguments.side, arguments.images // 2
    sizes = [(side, side), (side, side * 3 // 4)]
    with tempfile.TemporaryDirectory() as folder:
        for k in range(2 * half):
            height, width = sizes[k % 2]
            write_image(Path(folder, "y", f"{k:03}.png"), photograph[:, 8 * k :, 8 * k :][:, :height, :width])
        kept: list[tuple[object, ...]] = []
        run, restoring.run = restoring.run, lambda *given: kept.append(given) or 0  # type: ignore[func-returns-value]
        import invdiff.cli.restore as command

        command.run = restoring.run  # the command resolves its options and leaves the work to us
        options = ["--operator", "gaussian_blur:sigma=1", "--noise", "0.05", "--solver", "diffpir", "--quiet"]
        options += ["--steps", str(arguments.steps), "--batch-size", str(arguments.batch), "--device", arguments.device]
        restore([f"{folder}/y", "-o", f"{folder}/x", *options], standalone_mode=False)
        ((jobs, settings),) = kept
        prior = load_prior("natural", device=arguments.device)
        assert isinstance(prior, NetworkPrior)

        def bare() -> None:
            for size in sizes:
                for first in range(0, half, arguments.batch):
                    call = Call(min(arguments.batch, half - first), False)
                    replay(prior, (3, *size), [call] * arguments.steps)

        turns = {"restore": partial(run, jobs, settings), "bare": bare}
        seconds = alternate(turns, arguments.repeats, prior.device)
    ratio = median_ratio(seconds["bare"], seconds["restore"])
    a, b = (2 * half / statistics.median(seconds[name]) for name in ("restore", "bare"))
    text = (
        "| restore, images/s | bare calls, images/s | ratio |\n|---|---|---|\n"
        f"| {a:.3f} | {b:.3f} | {ratio:.3f} |\n\n"
        f"{2 * half} images of {side} x {side} and {side} x {side * 3 // 4} in turn, batches of {arguments.batch}, "
        f"{arguments.steps} calls of diffpir, {prior.device.type} ({torch.get_num_threads()} threads), "
        f"{prior.describe()['precision']}, medians of {arguments.repeats}.\n"
    )
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
