"""Networks on tiles: how far a pixel is felt, whether the tiles show, what a call takes.

    python benchmarks/tiles.py --data Set14 [--prior natural] [--only reach same cost] [--markdown docs/tables]

reach: the gradient of the middle pixel's answer, at each noise level: where its largest entry at a distance has fallen to
    twice what it is far away, where only GroupNorm's averages are left; in units of the network's downsampling too.
same: PSNR of restorations of one image without tiles and with several sizes of them, and the largest difference, in levels
    of 8 bits; on photographs, and on a shallow gradient beside flat sky, where seams would show first: there also the mean
    step across the tiles' borders over the mean step elsewhere, of what the tiles change.
cost: time and memory of one call for each pixel, each in a process of its own, with and without a gradient.
large: time and peak memory of `invdiff restore` of a large deblurring, start to end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import invdiff
from invdiff.files.images import centre, list_images, read_image, write_image
from invdiff.priors.tiled import TiledPrior, tiled
from invdiff.priors.tiles import Tiles
from invdiff.restoration.api import resolve_prior
from invdiff.scores.metrics import psnr

SIDES = (128, 256)
CASES = [("diffpir", "gaussian_blur:sigma=2"), ("dpir", "inpaint:keep=0.3")]
COST = """
import resource, sys, time, torch, invdiff
prior, side, gradient = invdiff.load_prior(sys.argv[1], precision=sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "yes"
def call(side):
    x = torch.rand(1, 3, side, side).requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        answer = prior.denoise(x, 0.1)
        if gradient:
            torch.autograd.grad(answer, x, answer.detach())
call(64)
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
call(side)
seconds = time.process_time() - started
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def reach(prior, paths: list[Path]) -> list[str]:
    """Rows of the table, one for each noise level."""
    x = centre(read_image(paths[0]).tensor[None], 256)
    middle = [length // 2 for length in x.shape[-2:]]
    rows, columns = (abs(torch.arange(length) - m) for length, m in zip(x.shape[-2:], middle, strict=True))
    distance = torch.maximum(rows[:, None], columns)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    lines = ["| sigma | largest entry | far away | felt up to (px) | over the downsampling |", "|---|---|---|---|---|"]
    for sigma in (0.002, 0.02, 0.1, 0.5, 2.0):
        leaf = (x + sigma * noise).requires_grad_()
        answer = prior.denoise(leaf, sigma)[0, :, middle[0], middle[1]].sum()
        size = torch.autograd.grad(answer, leaf)[0].abs().amax((0, 1))
        at = [float(size[distance == d].max()) for d in range(min(middle))]
        floor = max(at[96:])
        felt = max(d for d, value in enumerate(at) if value > 2 * floor)
        lines.append(f"| {sigma:g} | {max(at):.1e} | {floor:.1e} | {felt} | {felt / prior.multiple:.1f} |")
    return lines


def sky() -> torch.Tensor:
    """(1, 3, 384, 512): flat above, a shallow gradient below."""
    rows, columns = torch.linspace(-1, 1, 384).clamp(min=0)[:, None], torch.linspace(0, 1, 512)
    plane = 0.6 - 0.2 * rows * columns
    return torch.stack([0.7 * plane, 0.85 * plane, plane])[None]


def steps_at_borders(difference: torch.Tensor, tiles: Tiles) -> float:
    """Mean absolute step of a difference (1, C, H, W) across columns where a tile begins or ends, over that elsewhere."""
    step = difference.diff(dim=-1).abs().mean((0, 1, 2))
    border = torch.zeros(len(step), dtype=torch.bool)
    edges = [edge - 1 for _, _, span in tiles.places for edge in (span.start, span.stop) if 0 < edge <= len(step)]
    border[edges] = True
    return float(step[border].mean() / step[~border].mean())


def same(prior, paths: list[Path], steps: int) -> list[str]:
    lines = ["| image | solver, operator | off | " + " | ".join(f"tile {side}" for side in SIDES) + " |"]
    lines.append("|---" * (3 + len(SIDES)) + "|")
    pictures = [(path.stem, read_image(path).tensor[None][..., :384, :528]) for path in paths[:2]]
    for name, x in [*pictures, ("sky", sky())]:
        for solver, operator in CASES:
            y = invdiff.degrade(x, operator, noise=0.05)
            settings = {"noise": 0.05, "solver": solver, "steps": steps}
            whole = invdiff.restore(y, operator, prior=prior, tile="off", **settings).mean
            row = [f"| {name} | {solver}, `{operator}` | {float(psnr(whole, x)):.3f}"]
            for side in SIDES:
                cut = tiled(prior, side)
                assert isinstance(cut, TiledPrior)
                found = invdiff.restore(y, operator, prior=cut, **settings).mean
                text = f"{float(psnr(found, x)):.3f}, {255 * float((found - whole).abs().max()):.2f}"
                if name == "sky":
                    tiles = Tiles(x.shape[-2:], side, cut.overlap, prior.multiple)
                    text += f", {steps_at_borders(found - whole, tiles):.2f}"
                row.append(text)
            lines.append(" | ".join(row) + " |")
            print(lines[-1], flush=True)
    return [*lines, "", f"PSNR, largest difference from off in levels of 8 bits, on sky the steps; {steps} calls."]


def cost(prior_name: str) -> list[str]:
    lines = ["| precision | side | gradient | microseconds a pixel | bytes a pixel |", "|---|---|---|---|---|"]
    for precision, side, gradient in [
        ("bf16", 256, "no"), ("bf16", 512, "no"), ("bf16", 1024, "no"), ("bf16", 512, "yes"),
        ("fp32", 512, "no"), ("fp32", 512, "yes"),
    ]:  # fmt: skip
        command = [sys.executable, "-c", COST, prior_name, precision, str(side), gradient]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, size = map(float, done.stdout.split())
        lines.append(f"| {precision} | {side} | {gradient} | {seconds / side**2 * 1e6:.1f} | {size / side**2:.0f} |")
        print(lines[-1], flush=True)
    return [*lines, "", f"Processor time of {torch.get_num_threads()} thread(s); memory beyond that of a small call."]


def large(prior_name: str, sides: list[int], steps: int) -> list[str]:
    lines = ["| side | calls | seconds a call and megapixel | peak memory, MiB |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            y, out = Path(folder, "y.png"), Path(folder, "x.png")
            x = torch.linspace(0.2, 0.8, side).expand(3, side, side)
            write_image(y, invdiff.degrade(x[None], "gaussian_blur:sigma=1", noise=0.05)[0])
            words = f"-m invdiff restore {y} -o {out} --overwrite --prior {prior_name} --solver diffpir --steps {steps}"
            command = [sys.executable, *words.split(), "--operator", "gaussian_blur:sigma=1", "--noise", "0.05"]
            _, status, used = os.wait4(subprocess.Popen(command).pid, 0)
            if status:
                raise SystemExit(f"{' '.join(command)} failed")
            seconds = (used.ru_utime + used.ru_stime) / steps / (side**2 / 1e6)
            lines.append(f"| {side} | {steps} | {seconds:.1f} | {used.ru_maxrss / 1024:.0f} |")
            print(lines[-1], flush=True)
    return [
        *lines,
        "",
        f"Processor time of {torch.get_num_threads()} thread(s), start to end; torch {torch.__version__}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--data", required=True)
    names = ("reach", "same", "cost", "large")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--sides", type=int, nargs="+", default=(1024, 2048, 4096), help="for large")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--markdown", type=Path, help="folder of the tables")
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, "cpu", arguments.precision)
    paths = [path for path in list_images([arguments.data]) if min(read_image(path).tensor.shape[-2:]) >= 384]
    paths = [path for path in paths if read_image(path).tensor.shape[0] == prior.channels]
    tables = {
        "reach": lambda: reach(prior, paths),
        "same": lambda: same(prior, paths, arguments.steps),
        "cost": lambda: cost(arguments.prior),
        "large": lambda: large(arguments.prior, arguments.sides, arguments.steps),
    }
    for name in arguments.only:
        text = "\n".join(tables[name]()) + "\n"
        if arguments.markdown:
            (arguments.markdown / f"tiles-{name}.md").write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
