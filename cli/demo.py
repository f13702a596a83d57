"""`invdiff demo`: one photograph, three degradations, three restorations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from invdiff.scores.comparison import as_image, compare

from . import files, options, tables

if TYPE_CHECKING:
    import torch

EXAMPLES = """
invdiff demo
invdiff demo --image my-photo.jpg --size 384 --out my-demo
"""

TASKS = {
    "deblurring": "gaussian_blur:sigma=2",
    "super-resolution": "downsample:factor=4,kernel=bicubic",
    "inpainting": "inpaint:keep=0.4",
}
PHOTOGRAPH = "chelsea.png"


@click.command(cls=options.Command, epilog=EXAMPLES)
@click.option("--out", "-o", metavar="DIR", default="invdiff-demo", help="Folder for the pictures.")
@click.option("--size", type=click.IntRange(16, 2048), metavar="PX", default=256, help="Side of the square picture.")
@click.option("--image", metavar="FILE", help="Your own photograph.  [default: a cat that comes with scikit-image]")
@click.option("--noise", metavar="SIGMA", default="0.05", help="Noise level sigma_y, [0, 1] units.")
@options.count("--steps", help="Network calls.  [default: the solver's]")
@options.seed_option
@options.prior_option
@options.hardware_options
@options.quiet_option
def demo(
    out: str,
    size: int,
    image: str | None,
    noise: str,
    steps: int | None,
    seed: int,
    prior: str,
    device: str,
    precision: str,
    quiet: bool,
) -> None:
    """Blur, shrink and mask a photograph, and restore it.

    The result is in DIR/demo.png. Nothing is downloaded (unless --prior is a Hugging Face id). Files of an earlier
    demo in DIR are replaced.
    """
    from invdiff.errors import UsageError
    from invdiff.files.atomic import all_or_nothing
    from invdiff.files.images import to_grid, write_image, write_json
    from invdiff.machine.versions import package_versions
    from invdiff.noise import check_noise
    from invdiff.operators import resolve_operator
    from invdiff.problem.simulation import degrade
    from invdiff.restoration.api import resolve_prior, restore

    folder, sigma_y = Path(out), check_noise(noise)
    files.check_place(folder / "demo.png", "--out")
    if folder.is_dir() and any(folder.iterdir()) and not files.recorded(folder / "demo.json"):
        raise UsageError(f"{folder} holds other files; choose a new folder, e.g. --out {folder}-2")
    source = Path(image) if image else shipped_photograph()
    if folder.resolve() in source.resolve().parents:
        raise UsageError(f"{source} lies in {folder} and could be overwritten; choose another --out")
    network = resolve_prior(prior, device, precision)
    truth = square(source, size, network.channels or 3)
    pictures, labels, rows, records = [], [], [], {}
    with all_or_nothing():
        write_image(folder / "truth.png", truth)
        for task, spec in TASKS.items():
            operator = resolve_operator(spec)
            x = truth[(slice(None), *(slice(side) for side in operator.usable_shape(tuple(truth.shape))[1:]))]
            y = degrade(x[None], operator, noise=sigma_y, seed=seed, ids=[task])
            bar = not quiet and sys.stderr.isatty()
            solution = restore(y, operator, sigma_y, network, steps=steps, seed=seed, ids=[task], progress=bar)
            restored = solution.mean[0]
            write_image(folder / f"{task}-degraded.png", y[0])
            write_image(folder / f"{task}-restored.png", restored)
            comparison = compare(y[0], restored, x)
            records[task] = solution.provenance() | {"metrics": comparison.record()}
            before, after = comparison.before, comparison.after
            seen = as_image(y[0], tuple(x.shape))
            assert before is not None and seen is not None  # all three measurements are pictures
            pictures += [_padded(picture, truth) for picture in (x, seen, restored)]
            labels += [f"{task}: truth", f"{operator.name}, {before.psnr:.1f} dB", f"restored, {after.psnr:.1f} dB"]
            known = before.ssim is not None and after.ssim is not None  # not for pictures smaller than its window
            ssim = f"{before.ssim:.3f} -> {after.ssim:.3f}" if known else "-"
            solver, seconds = f"{solution.solver['name']}, {solution.nfe}", f"{solution.seconds:.1f}"
            rows.append((task, spec, f"{before.psnr:.2f} -> {after.psnr:.2f}", ssim, solver, seconds))
        write_image(folder / "demo.png", to_grid(pictures, labels, columns=3))
        record = {"input": str(source), "size": size, "tasks": records, "versions": package_versions()}
        write_json(folder / "demo.json", record | {"output": {"path": str(folder / "demo.png")}})
    if quiet:
        return
    click.echo(tables.table(("task", "operator", "PSNR in dB", "SSIM", "solver, calls", "seconds"), rows))
    click.echo(f"\nnoise {sigma_y:g}; degraded -> restored\n{folder / 'demo.png'}")


def _padded(picture: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """White at the bottom and right of a picture that the operator had to crop, so that all fit one grid."""
    from torch.nn import functional

    down, right = (whole - part for whole, part in zip(like.shape[1:], picture.shape[1:], strict=True))
    return functional.pad(picture, (0, right, 0, down), value=1.0)


def shipped_photograph() -> Path:
    """A colour photograph inside the installed scikit-image; nothing is fetched."""
    from invdiff.errors import ImageError

    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / PHOTOGRAPH if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ImageError(f"scikit-image is installed without its {PHOTOGRAPH}; give a photograph: --image FILE")
    return path


def square(path: Path, size: int, channels: int) -> torch.Tensor:
    """The middle square of a picture (C, size, size) in [0, 1], reduced or enlarged with an antialiased filter."""
    from torch.nn import functional

    from invdiff.files.images import centre, fit_channels, read_image

    image = fit_channels(read_image(path).tensor, channels)
    middle = centre(image, min(image.shape[1:]))
    resized = functional.interpolate(middle[None], size=(size, size), mode="bicubic", antialias=True)[0]
    return resized.clamp(0, 1)
