"""`invdiff sample`: pictures from the prior alone."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from . import files, options

EXAMPLES = """
invdiff sample -o sample.png --size 128
invdiff sample --prior runs/mine -o samples.png --count 9 --size 64x96 --steps 200 --seed 1
"""


@click.command(cls=options.Command, epilog=EXAMPLES)
@options.prior_option
@click.option("-o", "--out", metavar="OUT", required=True, help="Output file, or a folder (samples.png in it).")
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", default=1, help="Samples; OUT is then a grid of all of them."
)
@click.option("--size", type=options.Size(), metavar="HxW", default="128x128", help="Height and width in pixels.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", default=100, help="Network calls for one sample.")
@click.option(
    "--eta",
    type=click.FloatRange(0, 1),
    metavar="ETA",
    default=1.0,
    help="Fresh noise in each step: 1 is ancestral (DDPM), 0 deterministic (DDIM).",
)
@options.seed_option
@options.hardware_options
@click.option(
    "--batch-size", type=click.IntRange(min=1), metavar="N", help="Run together.  [default: 1 on a CPU, else 16]"
)
@click.option("--overwrite", is_flag=True, help="Replace existing files that invdiff did not write.")
@options.quiet_option
def sample(
    prior: str,
    out: str,
    count: int,
    size: tuple[int, int],
    steps: int,
    eta: float,
    seed: int,
    device: str,
    precision: str,
    batch_size: int | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Draw unconditional samples of a prior.

    With --count N > 1, OUT is a grid and OUT-1 .. OUT-N are the single samples. Sample k depends on --seed and k alone.
    """
    from tqdm import tqdm

    from invdiff.generation import sample as draw
    from invdiff.images import all_or_nothing, to_grid, write_image, write_json
    from invdiff.restoration import default_batch_size, resolve_prior
    from invdiff.solution import package_versions

    target = Path(out) if files.is_file_name(out) else Path(out) / "samples.png"
    suffixes = tuple(f"-{k}" for k in range(1, count + 1)) if count > 1 else ()
    job = files.Job(target, target, Path(target.name), suffixes)
    files.check_outputs(job, None, overwrite)
    network = resolve_prior(prior, device, precision)
    group = batch_size or default_batch_size(network.device)
    bar_off = quiet or not sys.stderr.isatty()
    with tqdm(total=steps * -(-count // group), desc="sample", unit="call", leave=False, disable=bar_off) as bar:
        images = draw(
            network,
            (network.channels or 3, *size),
            count,
            steps=steps,
            eta=eta,
            seed=seed,
            batch_size=group,
            advance=lambda: bar.update(1) and None,
        )
    words = ["invdiff", "sample", "--prior", prior, "-o", str(target), "--count", str(count)]
    words += ["--size", f"{size[0]}x{size[1]}", "--steps", str(steps), "--eta", str(eta), "--seed", str(seed)]
    words += ["--device", device, "--precision", precision]
    output: dict[str, object] = {"path": str(target)}
    with all_or_nothing():
        singles = [job.companion(suffix) for suffix in suffixes] or [target]
        for path, image in zip(singles, images, strict=True):
            write_image(path, image)
        if count > 1:
            write_image(target, to_grid(images))
            output["samples"] = [str(path) for path in singles]
        record = {"prior": network.describe(), "count": count, "size": size, "steps": steps, "eta": eta, "seed": seed}
        record |= {"output": output, "versions": package_versions(), "command": shlex.join(words)}
        write_json(job.record, record)
    if not quiet:
        click.echo(f"{target}  {count} sample(s) of {size[0]} x {size[1]} pixels, {steps} network calls each")
