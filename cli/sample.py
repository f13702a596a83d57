"""`invdiff sample`: pictures from the prior alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from . import files, options

EXAMPLES = """
invdiff sample -o sample.png --size 128
invdiff sample --prior runs/mine -o samples.png --count 9 --size 64x96 --steps 50 --seed 1
invdiff sample -o slow.png --sampler ancestral --steps 500
invdiff sample -o between.png --sampler ddim --eta 0.5
"""


@click.command(cls=options.Command, epilog=EXAMPLES)
@options.prior_option
@click.option("-o", "--out", metavar="OUT", required=True, help="Output file, or a folder (samples.png in it).")
@options.count("--count", default=1, help="Samples; OUT is then a grid of all of them.")
@click.option("--size", type=options.SIZE, metavar="HxW", default="128x128", help="Height and width in pixels.")
@click.option(
    "--sampler",
    metavar="SPEC",
    help="ancestral (DDPM), ddim, sde, ode, heun (EDM) or dpmpp (DPM-Solver++), or NAME:key=value,... for its other "
    "settings.  [default: dpmpp, or ddim with --eta]",
)
@options.count(
    "--steps",
    help="Network calls for one sample, at most (heun takes two a step).  [default: 30 for dpmpp, 59 for heun, else 100]",
)
@click.option(
    "--eta",
    type=click.FloatRange(0, 1),
    metavar="ETA",
    help="Fresh noise in each step of ddim, and of no other sampler: 0 is deterministic, 1 ancestral.  [default: 0]",
)
@options.seed_option
@options.hardware_options
@options.compile_option
@options.count("--batch-size", help="Run together.  [default: 1 on a CPU, else 16]")
@options.overwrite_option
@options.quiet_option
def sample(
    prior: str,
    out: str,
    count: int,
    size: tuple[int, int],
    sampler: str | None,
    steps: int | None,
    eta: float | None,
    seed: int,
    device: str,
    precision: str,
    compile: bool | None,
    batch_size: int | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Draw unconditional samples of a prior.

    With --count N > 1, OUT is a grid and OUT-1 .. OUT-N are the single samples. Sample k depends on --seed and k alone.
    """
    from tqdm import tqdm

    from invdiff import samplers
    from invdiff.files.images import to_grid, write_image, write_json
    from invdiff.machine.versions import package_versions
    from invdiff.restoration.api import default_batch_size, resolve_prior
    from invdiff.samplers.generation import sample as draw

    settings = {key: value for key, value in (("steps", steps), ("eta", eta)) if value is not None}
    method = samplers.get(sampler, **settings)
    target = Path(out) if files.is_file_name(out) else Path(out) / "samples.png"
    suffixes = tuple(f"-{k}" for k in range(1, count + 1)) if count > 1 else ()
    job = files.Job(target, target, Path(target.name), suffixes)
    files.check_outputs(job, None, overwrite)
    network = resolve_prior(prior, device, precision, compile)
    group = batch_size or default_batch_size(network.device)
    bar_off = quiet or not sys.stderr.isatty()
    with tqdm(total=method.nfe * -(-count // group), desc="sample", unit="call", leave=False, disable=bar_off) as bar:
        images = draw(
            network,
            (network.channels or 3, *size),
            count,
            method,
            seed=seed,
            batch_size=group,
            advance=lambda: bar.update(1) and None,
        )
    record: dict[str, Any] = {"prior": network.describe(), "sampler": method.settings(), "calls": method.nfe}
    record |= {"count": count, "size": size, "seed": seed, "output": {"path": str(target)}}
    command = options.repeat_command(out=target, sampler=method.spec, steps=None, eta=None, batch_size=None)
    record |= {"versions": package_versions(), "command": command}
    singles = [job.companion(suffix) for suffix in suffixes] or [target]
    with files.replacing(job):
        for path, image in zip(singles, images, strict=True):
            write_image(path, image)
        if count > 1:
            write_image(target, to_grid(images))
            record["output"]["samples"] = [str(path) for path in singles]
        write_json(job.record, record)
    if not quiet:
        pixels = f"{size[0]} x {size[1]} pixels"
        click.echo(f"{target}  {count} sample(s) of {pixels}, {method.nfe} network calls each ({method.spec})")
