"""PSNR of restorations under noise that counts, with the average sigma_y and with the whitened measurement.

    python benchmarks/noise.py [--noise poisson:gain=0.02] [--operator gaussian_blur:sigma=1.5] [--solver diffpir ...] \\
        [--markdown OUT.md]

Protocol: the prior on three 96 x 96 crops of scikit-image's photographs, one sample each, PSNR of clipped, unrounded images
averaged over images. "average": every entry has the noise of the average, so operators keep their decomposition;
"whitened": each its own (invdiff/problem/whitening.py). Seconds are those of computing, on the CPU, for one image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import skimage.data
import torch

import invdiff
from invdiff import solvers
from invdiff.restoration.api import resolve_prior
from invdiff.scores.metrics import psnr

CROPS = {"astronaut": (20, 170), "chelsea": (80, 110), "coffee": (150, 250)}
SIDE = 96
SOLVERS = ["diffpir", "ddrm", "ddnm", "pigdm", "dps:steps=50"]


def photographs() -> torch.Tensor:
    """(3, 3, 96, 96) in [0, 1]."""
    crops = [getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE] for name, (top, left) in CROPS.items()]
    return torch.stack([torch.from_numpy(crop).permute(2, 0, 1).float() / 255 for crop in crops])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--noise", action="append")
    parser.add_argument("--operator", default="gaussian_blur:sigma=1.5")
    parser.add_argument("--solver", action="append")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior, x = resolve_prior(arguments.prior, arguments.device), photographs()
    lines = [
        "| noise | solver | calls | measurement | average | whitened | its seconds | its seconds |",
        "|" + "---|" * 8,
    ]
    print("\n".join(lines))
    for noise in arguments.noise or ["poisson:gain=0.02"]:
        y = invdiff.degrade(x, arguments.operator, noise=noise, ids=list(CROPS))
        for spec in arguments.solver or SOLVERS:
            found, seconds = [], []
            for whitens in (False, True):
                solver = solvers.get(spec)
                object.__setattr__(solver, "whitens", whitens)
                started = time.process_time()
                solution = invdiff.restore(
                    y, arguments.operator, noise, prior=prior, solver=solver, ids=list(CROPS), batch_size=1
                )
                seconds.append((time.process_time() - started) / len(x))
                found.append(statistics.mean(psnr(solution.mean.clamp(0, 1), x).tolist()))
            before = statistics.mean(psnr(y.clamp(0, 1), x).tolist())
            cells = [f"{value:.2f}" for value in (before, *found)] + [f"{value:.1f}" for value in seconds]
            lines.append(f"| `{noise}` | `{spec}` | {solution.nfe} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            if arguments.markdown:
                arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
