"""PSNR and SSIM of restorations, before and after, for solvers x operators on a folder of images.

    python benchmarks/restoration.py --data DIR [--limit 3] [--solver auto --solver diffpir:zeta=0.3 ...] [--markdown OUT.md]

Protocol: images in [0, 1], cropped top-left to what the operator takes; noise seeded by file name; PSNR and SSIM of
clipped, unrounded images, averaged over images. "before" is the measurement (enlarged bicubically where
it samples coarser, against the centre of the truth where boundary=valid made it smaller).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import invdiff
from invdiff import operators
from invdiff.files.images import centre, list_images, read_image
from invdiff.restoration.api import resolve_prior
from invdiff.scores.comparison import compare

OPERATORS = [
    "identity",
    "gaussian_blur:sigma=2",
    "motion_blur:length=15,angle=30",
    "downsample:factor=4,kernel=bicubic",
    "inpaint:keep=0.4",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument(
        "--skip", type=int, default=0, help="images to leave out at the start (defaults were chosen there)"
    )
    parser.add_argument("--crop", type=int, help="centre crop of this side")
    parser.add_argument("--noise", default="0.05")
    parser.add_argument("--operator", action="append")
    parser.add_argument("--solver", action="append")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device, arguments.precision)
    images = [
        (path.name, read_image(path).tensor)
        for path in list_images([arguments.data])[arguments.skip :][: arguments.limit]
    ]
    head = [
        "| operator | solver | calls | PSNR before | PSNR after | gain | SSIM before | SSIM after | residual | s/image |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(head))
    rows = []
    for spec in arguments.operator or OPERATORS:
        operator = operators.get(spec)
        for solver in arguments.solver or ["auto"]:
            scores = []
            for name, image in images:
                if arguments.crop:
                    image = centre(image, arguments.crop)
                _, height, width = operator.usable_shape(tuple(image.shape))
                x = image[None, :, :height, :width]
                y = invdiff.degrade(x, operator, noise=arguments.noise, ids=[name])
                started = time.perf_counter()
                solution = invdiff.restore(
                    y, operator, arguments.noise, prior=prior, solver=solver, steps=arguments.steps, ids=[name]
                )
                seconds = time.perf_counter() - started
                comparison = compare(y[0], solution.mean[0], x[0])
                both = (comparison.before, comparison.after)
                psnrs = [math.nan if score is None else score.psnr for score in both]
                ssims = [math.nan if score is None or score.ssim is None else score.ssim for score in both]
                scores.append([*psnrs, *ssims, float(solution.residual.mean()), seconds])
            p0, p1, s0, s1, residual, seconds = (statistics.fmean(column) for column in zip(*scores, strict=True))
            used = solution.solver["name"] if solver == "auto" else solver
            label = f"auto ({used})" if solver == "auto" else f"`{solver}`"
            rows.append(
                f"| `{spec}` | {label} | {solution.nfe} | {p0:.2f} | {p1:.2f} | {p1 - p0:+.2f} "
                f"| {s0:.3f} | {s1:.3f} | {residual:.2f} | {seconds:.1f} |"
            )
            print(rows[-1], flush=True)
    note = f"{len(images)} images, noise {arguments.noise}, one sample each, precision {prior.describe()['precision']}."
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*head, *rows, "", note]) + "\n")
    print(note)


if __name__ == "__main__":
    main()
