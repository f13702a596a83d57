"""Time of A and A^T together: ours, deepinv's for the same physics, and a network call; and of the data step.

    python benchmarks/operator_cost.py [--side 256] [--repeats 51] [--steps] [--markdown docs/tables/operator_cost.md]

A second table, data_step.md beside the first: the data step (prox_l2) of operators without a decomposition, with their
preconditioner and without, and as exact as a network in half precision needs. --steps: this one alone.

Float32, one image of three channels (MRI: a complex image of two), all in one process: ours and deepinv's alternate, and the
table holds the medians and the median of the ratios, pair by pair. The adjoint of each is applied to its own measurement.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from invdiff import operators
from invdiff.operator.contract import Operator
from invdiff.operator.linalg import SHARE, solve, stopping_early
from invdiff.restoration.api import resolve_prior

# Ours, and its deepinv counterpart by name in `physics` below; None: deepinv has none that fits.
PAIRS: list[tuple[str, str | None]] = [
    ("gaussian_blur:sigma=2,boundary=circular", "blur circular"),
    ("gaussian_blur:sigma=2", "blur reflect"),
    ("defocus_blur:radius=4", "disk reflect"),
    ("motion_blur:length=15,angle=30,boundary=circular", None),
    ("motion_blur:length=15,angle=30", None),
    ("varying_blur:radius=0.5,corner=4,grid=3x3", None),
    ("downsample:factor=4,kernel=bicubic", "downsampling"),
    ("inpaint:keep=0.5", "inpainting"),
    ("demosaic", "demosaicing"),
    ("grayscale", "decolorize"),
    ("pansharpen:factor=4", None),
    ("compressed_sensing:keep=0.25", None),
    ("fourier_subsample:acceleration=4,complex=true", "mri"),
    ("mri_multicoil:acceleration=4,coils=4,complex=true", None),
    ("tomography:angles=60", "tomography"),
    ("gaussian_blur:sigma=1 | downsample:factor=4", None),
]

# Where the data step iterates. gamma is (sigma / sigma_y)^2 at the noise level sigma of a solver.
ITERATED = [
    "mri_multicoil:acceleration=4,coils=8",
    "mri_multicoil:acceleration=4,coils=4,complex=true",
    "tomography:angles=60",
    "tomography:angles=30,stop=120",
    "varying_blur:radius=0.5,corner=4,grid=3x3",
    "motion_blur:length=15,angle=30",
]
GAMMAS = (10.0, 100.0, 1000.0)
SIGMA_Y = 0.05
STEP_NOTE = (
    "The proximal step argmin gamma/2 |A x - y|^2 + 1/2 |x - z|^2 by preconditioned conjugate gradients, noise 0.05; "
    "without: the iterations that serve where there is no preconditioner. half: with it, to a hundredth of the posterior's "
    "own deviation, as around a network in half precision."
)


def physics(name: str, side: int) -> Any:
    """deepinv's physics for images (3, side, side)."""
    from deepinv import physics as dp

    gauss = dp.functional.blur.gaussian_blur(sigma=(2.0, 2.0))
    disk = torch.ones(1, 1, 9, 9)
    grid = torch.arange(-4.0, 5.0)
    disk *= (grid[:, None] ** 2 + grid[None] ** 2 <= 16.5)[None, None]
    size = (3, side, side)
    made: dict[str, Callable[[], Any]] = {
        "blur circular": lambda: dp.BlurFFT(img_size=size, filter=gauss),
        "blur reflect": lambda: dp.Blur(filter=gauss, padding="reflect"),
        "disk reflect": lambda: dp.Blur(filter=disk / disk.sum(), padding="reflect"),
        "downsampling": lambda: dp.Downsampling(img_size=size, filter="bicubic", factor=4, padding="reflect"),
        "inpainting": lambda: dp.Inpainting(img_size=size, mask=0.5),
        "demosaicing": lambda: dp.Demosaicing(img_size=size),
        "decolorize": lambda: dp.Decolorize(),
        "mri": lambda: dp.MRI(mask=(torch.rand(side, side) < 0.25).float(), img_size=(2, side, side)),
        "tomography": lambda: dp.Tomography(angles=60, img_width=side, circle=True),
    }
    return made[name]()


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def round_trip(operator: Any, x: torch.Tensor) -> Callable[[], object]:
    y = operator.A(x)
    return lambda: (operator.A(x), operator.A_adjoint(y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--steps", action="store_true", help="the data steps alone")
    parser.add_argument("--markdown", type=Path, help="where the first table goes")
    arguments = parser.parse_args()
    image = torch.rand(1, 3, arguments.side, arguments.side, generator=torch.Generator().manual_seed(0))
    if not arguments.steps:
        write(arguments.markdown, costs(image, arguments.repeats))
    steps = [
        f"| data step | {' | '.join(f'gamma {gamma:g}: ms | without / with | half / with' for gamma in GAMMAS)} |",
        "|---" * (1 + 3 * len(GAMMAS)) + "|",
        *(data_step(spec, image, max(1, arguments.repeats // 17)) for spec in ITERATED),
    ]
    write(arguments.markdown and arguments.markdown.with_name("data_step.md"), [*steps, "", STEP_NOTE])


def write(path: Path | None, lines: list[str]) -> None:
    if path:
        path.write_text("\n".join(lines) + "\n")


def costs(image: torch.Tensor, repeats: int) -> list[str]:
    """The table of A and A^T."""
    prior, side = resolve_prior("natural", "cpu"), image.shape[-1]
    with torch.no_grad():
        prior.denoise(image, 0.1)
        call = statistics.median(timed(lambda: prior.denoise(image, 0.1)) for _ in range(5))
        rows = [row(spec, peer, image, repeats, call) for spec, peer in PAIRS]
    head = [
        "| operator | A and A^T, ms | share of a network call | deepinv, ms | ours / deepinv |",
        "|---|---|---|---|---|",
    ]
    note = (
        f"3 x {side} x {side}, float32, {torch.get_num_threads()} threads, medians of {repeats}; a network call "
        f"takes {call:.0f} ms (natural, {prior.describe()['precision']}). torch {torch.__version__}."
    )
    print(note)
    return [*head, *rows, "", note]


def row(spec: str, peer: str | None, image: torch.Tensor, repeats: int, call: float) -> str:
    operator: Operator = operators.get(spec)
    x = image[:, :2] if "complex=true" in spec else image
    runs = [round_trip(operator, x), *([round_trip(physics(peer, image.shape[-1]), x)] if peer else [])]
    for run in runs:
        run()
    times = [[timed(run) for run in runs] for _ in range(repeats)]
    ours = statistics.median(pair[0] for pair in times)
    beside = "- | -"
    if peer:
        theirs = statistics.median(pair[1] for pair in times)
        beside = f"{theirs:.1f} | {statistics.median(a / b for a, b in times):.2f}"
    text = spec.replace("|", "\\|")
    line = f"| `{text}` | {ours:.1f} | {100 * ours / call:.1f} % | {beside} |"
    print(line, flush=True)
    return line


def data_step(spec: str, image: torch.Tensor, repeats: int) -> str:
    """prox_l2 as a solver meets it, the same iterations without a preconditioner, and those of half precision, in turn."""
    operator: Operator = operators.get(spec)
    generator = torch.Generator().manual_seed(1)
    x = torch.nn.functional.avg_pool2d(image[:, :2] if "complex=true" in spec else image, 9, 1, 4)
    y = operator.degrade(x, torch.randn(operator.A(x).shape, generator=generator), SIGMA_Y)
    cells = []
    with torch.no_grad():
        for gamma in GAMMAS:
            z = x + gamma**0.5 * SIGMA_Y * torch.randn(x.shape, generator=generator)
            runs = [
                lambda z=z, g=gamma: operator.prox_l2(z, y, g),
                lambda z=z, g=gamma: plain_step(operator, z, y, g),
                lambda z=z, g=gamma: coarse_step(operator, z, y, g),
            ]
            runs[0]()
            times = [[timed(run) for run in runs] for _ in range(repeats)]
            ours = statistics.median(ours for ours, _, _ in times)
            ratios = [statistics.median(trio[other] / trio[0] for trio in times) for other in (1, 2)]
            cells.append(f"{ours:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f}")
    line = f"| `{spec}` | {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def plain_step(operator: Operator, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
    """z + gamma A^T (gamma A A^T + I)^-1 (y - A z)."""
    q = solve(lambda v: gamma * operator.A_A_adjoint(v) + v, y - operator.A(z)).x
    return z + gamma * operator.A_adjoint(q)


def coarse_step(operator: Operator, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
    with stopping_early(SHARE):
        return operator.prox_l2(z, y, gamma)


if __name__ == "__main__":
    main()
