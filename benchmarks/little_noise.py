"""What the data step at the end of a run gains where y tells more than the last noise level (`Solver.impose`).

    python benchmarks/little_noise.py [--prior natural] [--steps 20] [--markdown docs/tables/little_noise.md]

Windows of three photographs that come with scikit-image, restored with the step and without it.
"""

from __future__ import annotations

import argparse
import datetime
import warnings
from pathlib import Path

import skimage.data
import torch

import invdiff
from invdiff import solvers

SIDE = 64
PICTURES = (("astronaut", 100, 200), ("coffee", 150, 250), ("chelsea", 100, 150))
NOISES = (0.001, 0.002, 0.004)
OPERATORS = ("identity", "gaussian_blur:sigma=1.5", "downsample:factor=2")
SOLVERS = ("ddrm", "ddnm", "diffpir", "dpir", "mmps")


def windows() -> torch.Tensor:
    """(3, 3, SIDE, SIDE) in [0, 1]."""
    pixels = [getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE] for name, top, left in PICTURES]
    return torch.stack([torch.from_numpy(window.copy()).permute(2, 0, 1).float() / 255 for window in pixels])


def measure(
    y: torch.Tensor, x: torch.Tensor, spec: str, noise: float, prior: invdiff.Prior, name: str, steps: int
) -> str:
    """PSNR in dB, mean over the images, and the residual."""
    solution = invdiff.restore(y, spec, noise, prior, name, steps=steps)
    psnr = -10 * (solution.mean - x).square().flatten(1).mean(1).log10()
    return f"{float(psnr.mean()):.2f} ({float(solution.residual.mean()):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    x, prior = windows(), invdiff.load_prior(arguments.prior, precision="fp32")
    lines = ["| noise | operator | solver | without | with |", "|---|---|---|---|---|"]
    for noise in NOISES:
        for spec in OPERATORS:
            y = invdiff.degrade(x, spec, noise=noise)
            for name in SOLVERS:
                cls, cells = solvers.REGISTRY[name], []
                for cls.consistent in (False, True):
                    cells.append(measure(y, x, spec, noise, prior, name, arguments.steps))
                lines.append(f"| {noise} | `{spec}` | `{name}` | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    lines += [
        "",
        f"PSNR in dB, and the residual, without and with the data step at the end. {len(x)} windows of {SIDE} x {SIDE} "
        f"pixels, {arguments.steps} calls, one sample, prior {prior.name} (last level {prior.sigma_min:.4f}), "
        f"{datetime.date.today()}.",
    ]
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
