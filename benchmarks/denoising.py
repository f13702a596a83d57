"""Denoising PSNR of a prior on a folder of images: one `denoise` call for each image and noise level.

    python benchmarks/denoising.py --prior natural --data DIR [--markdown OUT.md]

Protocol: whole images, white Gaussian noise of known sigma_y from a seed for each image, output clipped to [0, 1] and
not rounded, PSNR of each image averaged over images. Images are sorted by name.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import invdiff
from invdiff.files.images import list_images, read_image
from invdiff.restoration.api import resolve_prior
from invdiff.scores.metrics import psnr, ssim

SIGMAS = (5, 15, 25, 50, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--sigmas", type=int, nargs="+", default=SIGMAS, help="noise levels, in units of 1/255")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device, arguments.precision)
    files = list_images([arguments.data])[: arguments.limit]
    rows = []
    for sigma in arguments.sigmas:
        scores = []
        for path in files:
            x = read_image(path).tensor[None]
            y = invdiff.degrade(x, "identity", noise=sigma / 255, seed=0, ids=[path.name])
            with torch.inference_mode():
                restored = prior.denoise(y.to(prior.device), sigma / 255).cpu()
            scores.append((float(psnr(y, x)), float(psnr(restored, x)), float(ssim(restored, x))))
        noisy, clean, structure = (statistics.fmean(column) for column in zip(*scores, strict=True))
        rows.append(f"| {sigma} | {noisy:.2f} | {clean:.2f} | {structure:.4f} |")
        print(rows[-1], flush=True)
    head = ["| sigma x 255 | noisy PSNR | denoised PSNR | denoised SSIM |", "|---|---|---|---|"]
    note = f"{len(files)} images, precision {prior.describe().get('precision', 'float32')}, one call each."
    text = "\n".join([*head, *rows, "", note]) + "\n"
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
