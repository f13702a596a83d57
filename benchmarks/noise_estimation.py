"""How far the noise that `--noise auto` estimates is from the truth, for each operator and level, on a folder of photographs.

    python benchmarks/noise_estimation.py FOLDER [--operator SPEC ...] [--markdown docs/tables/noise_estimation.md]

FOLDER: CBSD68 for the published table. Each photograph is measured with white Gaussian noise of sigma / 255, not clipped, and
sigma is estimated from the measurement alone. Cells: the median over the photographs of |estimate / sigma - 1|, and the worst
tenth (90 % quantile), in percent. The last rows compare: the median absolute deviation of the diagonal details of a db2
wavelet, as in skimage.restoration.estimate_sigma (without its PyWavelets), and deepinv's PatchCovarianceNoiseEstimator.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import invdiff
from invdiff import operators
from invdiff.files.images import list_images, read_image
from invdiff.noise import estimate
from invdiff.noise.estimation import MAD
from invdiff.operator.contract import Operator

OPERATORS = [
    "identity",
    "gaussian_blur:sigma=2",
    "motion_blur:length=9,angle=30",
    "downsample:factor=4,kernel=bicubic",
    "inpaint:keep=0.3",
    "inpaint:box=128x128",
    "grayscale",
    "random_subsample:keep=0.3",
]
LEVELS = [5, 10, 15, 25, 50]
DB2 = [-0.12940952255092145, -0.22414386804185735, 0.836516303737469, -0.48296291314469025]

Estimator = Callable[[torch.Tensor, Operator], tuple[float, str]]


def ours(y: torch.Tensor, operator: Operator) -> tuple[float, str]:
    found = estimate(y, operator)
    return found.sigma, found.method


def wavelet(y: torch.Tensor, operator: Operator) -> tuple[float, str]:
    """The mean over channels, as scikit-image does it."""
    taps = y.new_tensor(DB2)
    details = torch.nn.functional.conv2d(y.transpose(0, 1), (taps[:, None] * taps)[None, None], stride=2)
    return float(details.abs().flatten(1).median(1).values.mean()) / MAD, "wavelet MAD"


def deepinv_patches(y: torch.Tensor, operator: Operator) -> tuple[float, str]:
    from deepinv.models import PatchCovarianceNoiseEstimator

    return float(PatchCovarianceNoiseEstimator()(y)), "deepinv, patch covariance"


def row(images: list[torch.Tensor], spec: str, estimator: Estimator) -> str:
    operator, cells, names, seconds = operators.get(spec), [], set(), 0.0
    for level in LEVELS:
        errors = []
        for index, x in enumerate(images):
            height, width = operator.usable_shape(tuple(x.shape[1:]))[1:]
            y = invdiff.degrade(x[..., :height, :width], operator, noise=level / 255, ids=[index])
            started = time.process_time()
            sigma, name = estimator(y, operator)
            seconds += time.process_time() - started
            names.add(name)
            errors.append(100 * abs(255 * sigma / level - 1))
        tenth = statistics.quantiles(errors, n=10)[-1] if len(errors) > 1 else errors[0]
        cells.append(f"{statistics.median(errors):.1f} / {tenth:.1f}")
    milliseconds = 1000 * seconds / len(images) / len(LEVELS)
    return f"| `{spec}` | {', '.join(sorted(names))} | {' | '.join(cells)} | {milliseconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--operator", action="append")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    images = [read_image(path).tensor[None] for path in list_images([arguments.folder])]
    lines = [
        f"| operator | estimator | {' | '.join(f'{level}/255' for level in LEVELS)} | ms |",
        "|" + "---|" * (len(LEVELS) + 3),
    ]
    print("\n".join(lines))
    jobs: list[tuple[str, Estimator]] = [(spec, ours) for spec in arguments.operator or OPERATORS]
    if not arguments.operator:
        jobs += [(spec, other) for spec in ("identity", "grayscale") for other in (wavelet, deepinv_patches)]
    for spec, estimator in jobs:
        lines.append(row(images, spec, estimator))
        print(lines[-1], flush=True)
    note = (
        f"Relative error of the estimated sigma in percent, median / 90 % quantile over {len(images)} photographs "
        f"({Path(arguments.folder).name}); ms of computing for one on one core."
    )
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + f"\n\n{note}\n")


if __name__ == "__main__":
    main()
