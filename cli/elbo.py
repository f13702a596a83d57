"""`invdiff prior elbo`: how many bits a dimension a prior needs for images, by its variational bound."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from invdiff.errors import ImageError, UsageError

from . import files, options, tables

if TYPE_CHECKING:
    import torch

    from invdiff.scores.bound import Bound, Term

EXAMPLES = """
# a minute on two cores
invdiff prior elbo natural --data photos/ --limit 8 --crop 64 --timesteps 50

# all terms of the bound, L_t over t included
invdiff prior elbo runs/mine --data photos/ -o bound.json
"""

MARK = "invdiff prior elbo"
"""Text near the beginning of the file, by which a later run knows that it may replace it."""


@click.command("elbo", cls=options.Command, epilog=EXAMPLES)
@click.argument("prior", default="natural")
@click.option(
    "--data",
    metavar="DIR|FILE",
    multiple=True,
    required=True,
    help="Images: a folder (with sub-folders), a file or a pattern; repeatable.",
)
@options.count("--limit", help="Only the first N images.  [default: all]")
@options.count("--crop", metavar="PX", help="Only the centre PX x PX pixels of each.")
@click.option(
    "--timesteps",
    type=click.IntRange(min=3),
    metavar="K",
    help="Estimate the sum from K time steps an image, without bias.  [default: all of them]",
)
@click.option(
    "--decoder",
    type=click.Choice(["discrete", "gaussian"]),
    default="discrete",
    help="Probability of 8-bit levels, or density of any values (float and 16-bit data).",
)
@click.option(
    "--variance",
    type=click.Choice(["posterior", "beta"]),
    default="posterior",
    help="Variance of the reverse steps: beta~_t or beta_t.",
)
@options.seed_option
@options.hardware_options
@options.count("--batch-size", help="Noise images in one call of the network.  [default: by the images' size]")
@click.option("-o", "--out", metavar="OUT.json", help="Write everything, each L_t and each image included.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file that this command did not write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
@options.quiet_option
def elbo(
    prior: str,
    data: tuple[str, ...],
    limit: int | None,
    crop: int | None,
    timesteps: int | None,
    decoder: str,
    variance: str,
    seed: int,
    device: str,
    precision: str,
    batch_size: int | None,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """The variational bound of a prior on images, in bits per dimension: fewer is better.

    PRIOR: a shipped name, a diffusers folder or a Hugging Face id (default: natural). The bound is L_T, the information
    about the image left at the last noise level, plus the sum of L_t over the steps, plus L_0, the last step to the pixels.
    The two errors estimate how much the mean would change for other images of the same kind, and with other random numbers.
    """
    from tqdm import tqdm

    from invdiff.files.atomic import has_mark
    from invdiff.files.images import list_images, write_json
    from invdiff.machine.versions import package_versions
    from invdiff.restoration.api import resolve_prior
    from invdiff.scores.bound import variational_bound

    paths = list_images(data)[:limit]
    if out is not None and not out.lower().endswith(".json"):
        raise UsageError(f"-o {out}: must end in .json")
    targets = files.check_results({"-o": out}, overwrite, lambda path: has_mark(path, MARK))
    images, inputs = _read(paths, crop)
    network = resolve_prior(prior, device, precision)
    bar_off = quiet or not sys.stderr.isatty()
    with tqdm(desc="elbo", unit="call", leave=False, disable=bar_off) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        bound = variational_bound(
            network,
            images,
            decoder=decoder,
            variance=variance,
            timesteps=timesteps,
            seed=seed,
            batch_size=batch_size,
            names=[str(path) for path in paths],
            progress=progress,
        )
    if out is not None:
        record = {"kind": MARK, "prior": network.describe(), "bits_per_dimension": bound.to_dict(), "seed": seed}
        record |= {"crop": crop, "inputs": inputs, "output": {"path": out}, "versions": package_versions()}
        write_json(out, record | {"command": options.repeat_command(out=None)})
    deep = sum(not item["description"].startswith("8-bit") for item in inputs)
    if deep and decoder == "discrete" and not quiet:
        click.echo(
            f"note: {deep} of {len(paths)} images are not 8-bit and were rounded to its levels; --decoder gaussian takes "
            "their values as they are",
            err=True,
        )
    if as_json:
        click.echo(json.dumps(bound.to_dict(), indent=2))
    elif not quiet:
        click.echo(_table(bound, prior, images))
        for target in targets:
            click.echo(f"written: {target}")


def _read(paths: Sequence[Path], crop: int | None) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """The images, cropped, and the descriptions of their files for the record."""
    from invdiff.files.images import centre, read_image

    images, inputs = [], []
    for path in paths:
        file = read_image(path)
        image = file.tensor
        height, width = image.shape[1:]
        if crop is not None:
            if min(height, width) < crop:
                raise ImageError(
                    f"{path}: {height} x {width} pixels are too few for --crop {crop}; give a smaller crop"
                )
            image = centre(image, crop)
        images.append(image)
        inputs.append(files.describe_input(path, file.description, file.notes))
    return images, inputs


def _table(bound: Bound, prior: str, images: Sequence[torch.Tensor]) -> str:
    sizes = {f"{image.shape[-2]} x {image.shape[-1]}" for image in images}
    size = f"of {sizes.pop()} pixels" if len(sizes) == 1 else f"of {len(sizes)} sizes"
    steps = f"all {bound.steps}" if bound.timesteps is None else f"{bound.timesteps} of {bound.steps}"
    rows = [("L_T", bound.L_T), (f"L_1 + .. + L_{bound.steps - 1}", bound.diffusion), ("L_0", bound.L_0)]
    body = [(name, *_cells(term)) for name, term in [*rows, ("total", bound.total)]]
    head = ("term", "bits/dim", "+- other images", "+- other random numbers")
    return "\n".join(
        [
            f"{prior} on {len(images)} image(s) {size}, {steps} time steps, {bound.calls} calls",
            tables.table(head, body, wrapped=0),
            f"({bound.measure})",
        ]
    )


def _cells(term: Term) -> list[str]:
    return [_number(value) for value in (term.value, term.standard_error, term.monte_carlo_error)]


def _number(value: float | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
