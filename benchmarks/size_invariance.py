"""Does the network care about the image's size? PSNR in one central window, denoised as part of larger and larger crops.

    python benchmarks/size_invariance.py --prior natural --data DIR [--limit 16] [--markdown OUT.md]

GroupNorm averages over the whole input, so a network trained on small crops can behave differently on large images. The
window (64 x 64, noise 25/255, the same noise each time) is cut out of crops of each side.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import invdiff
from invdiff.evaluation.metrics import psnr
from invdiff.images import list_images, read_image
from invdiff.restoration import resolve_prior

WINDOW = 64
SIDES = (64, 96, 128, 192, 256, 320)


def centre(x: torch.Tensor, side: int) -> torch.Tensor:
    top, left = ((extent - side) // 2 for extent in x.shape[-2:])
    return x[..., top : top + side, left : left + side]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device, arguments.precision)
    scores: dict[int, list[float]] = {side: [] for side in SIDES}
    for path in list_images([arguments.data])[: arguments.limit]:
        x = read_image(path).tensor[None]
        y = invdiff.degrade(x, "identity", noise=25 / 255, ids=[path.name])
        for side in SIDES:
            with torch.inference_mode():
                restored = prior.denoise(centre(y, side).to(prior.device), 25 / 255).cpu()
            scores[side].append(float(psnr(centre(restored, WINDOW), centre(x, WINDOW))))
    lines = ["| side of the crop | " + " | ".join(map(str, SIDES)) + " |", "|---" * (len(SIDES) + 1) + "|"]
    lines.append(
        "| PSNR in the central 64 x 64 | " + " | ".join(f"{statistics.fmean(scores[s]):.2f}" for s in SIDES) + " |"
    )
    text = "\n".join(lines) + "\n"
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
