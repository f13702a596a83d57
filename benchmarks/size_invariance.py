"""Does the network care about the image's size? PSNR in one central window, denoised as part of larger and larger crops.

    python benchmarks/size_invariance.py --prior natural --data DIR [--sides 64 128 256 512] [--markdown OUT.md]

GroupNorm averages over the whole input, so a network trained on small crops can behave differently on large images. The
window (32 x 32, noise 25/255, the same noise each time) is the middle of crops of each side. It is half as wide as the
smallest crop, so that no side lacks its surroundings. Images smaller than the largest side are left out.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import invdiff
from invdiff.files.images import centre, list_images, read_image
from invdiff.restoration.api import resolve_prior
from invdiff.scores.metrics import psnr

WINDOW = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sides", type=int, nargs="+", default=(64, 128, 256, 512))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device, arguments.precision)
    sides = arguments.sides
    scores: dict[int, list[float]] = {side: [] for side in sides}
    for path in list_images([arguments.data])[: arguments.limit]:
        x = read_image(path).tensor[None]
        if x.shape[1] != prior.channels or min(x.shape[-2:]) < max(sides):
            continue
        y = invdiff.degrade(x, "identity", noise=25 / 255, ids=[path.name])
        for side in sides:
            with torch.inference_mode():
                restored = prior.denoise(centre(y, side).to(prior.device), 25 / 255).cpu()
            scores[side].append(float(psnr(centre(restored, WINDOW), centre(x, WINDOW))))
    count = len(scores[max(sides)])
    if not count:
        parser.error(f"no image in {arguments.data} has {max(sides)} pixels on both sides")
    means = [statistics.fmean(scores[side]) for side in sides]
    lines = ["| side of the crop | " + " | ".join(map(str, sides)) + " |", "|---" * (len(sides) + 1) + "|"]
    lines.append("| PSNR in its middle | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    lines += ["", f"{count} images, noise 25/255; largest difference {max(means) - min(means):.2f} dB."]
    text = "\n".join(lines) + "\n"
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
