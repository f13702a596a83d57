"""`invdiff restore`: measured images to restored ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import files, options
from .files import Job
from .restore_settings import Settings
from .restoring import run
from .writing import companions

if TYPE_CHECKING:
    from invdiff.operator.contract import Operator
    from invdiff.restoration.presets import Preset
    from invdiff.solvers.solver import Solver

EXAMPLES = """
# one image, blurred by a Gaussian of 2 pixels, with noise of 12.75 grey levels of 255
invdiff restore blurred.png -o out.png --operator gaussian_blur:sigma=2 --noise 12.75/255

# a folder, another method with its own settings, 16-bit files
invdiff restore small/ -o large/ --operator downsample:factor=4 --noise 0.02 --bits 16 \\
    --solver ddrm --set eta=0.9 --steps 40

# how sure is it? four samples, their mean and their standard deviation (out-std.png)
invdiff restore holes.png -o out.png --operator inpaint:mask=mask.png --noise 0.01 --samples 4

# as many samples as the mean needs, and an interval that holds 90 % of them at every pixel
invdiff restore holes.png -o out.png --operator inpaint:mask=mask.png --noise 0.01 --samples auto --quantiles 0.05,0.95

# a measurement file of `invdiff degrade`, which knows its operator and noise
invdiff restore holes.npz -o out.png

# raw data: one slice of stored k-space, photon counts
invdiff restore scan.h5 -o out.npy --key 'kspace[17]' --axes CHW --operator my_scanner --noise 0.01
invdiff restore counts.npy -o out.png --axes HW --scale 1/255 --operator identity --noise poisson:gain=1/255

# with settings that `invdiff tune` found for this operator and noise
invdiff restore blurred.png -o out.png --operator gaussian_blur:sigma=2 --noise 0.05 --preset blur.yaml

# compare with the truth
invdiff restore 'noisy/*.png' -o out/ --operator identity --noise 0.1 --reference clean/
"""


@click.command(cls=options.Command, epilog=EXAMPLES)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--out", metavar="OUT", required=True, help="Output file for one input, else a folder.")
@click.option(
    "--operator",
    metavar="SPEC",
    help="Forward operator A: NAME or NAME:key=value,... (`invdiff operators list`); not needed for a measurement file.",
)
@click.option(
    "--noise",
    metavar="SIGMA|SPEC|auto",
    help="Noise level sigma_y of the input, [0, 1] units: 0.05 or 12.75/255; auto: estimated from "
    "it; or a model: poisson:photons=1000 (the counts of white), laplace:scale=0.05, ... (docs/noise.md); "
    "not needed for a measurement file.",
)
@options.raw_options
@options.prior_option
@click.option(
    "--solver",
    metavar="SPEC",
    default="auto",
    help="NAME or NAME:key=value,... (`invdiff solvers list`); auto chooses by operator.",
)
@click.option(
    "--preset",
    "preset_file",
    metavar="FILE",
    help="Solver and settings that `invdiff tune` found, in the place of --solver; --steps and --set change them.",
)
@options.count("--steps", help="Noise levels to visit, one network call each.  [default: the solver's]")
@click.option(
    "--set",
    "hyperparameters",
    type=options.KEY_VALUE,
    multiple=True,
    metavar="KEY=VALUE",
    help="A hyperparameter of the solver; repeatable.",
)
@click.option(
    "--samples",
    type=options.SAMPLES,
    metavar="N|auto",
    default=1,
    help="Posterior samples. With more than one, OUT is their mean, which has the best PSNR, OUT-std their standard "
    "deviation (white = the largest, recorded in the .json; unscaled in float files), OUT-sample-1.. the samples, which "
    "look real. auto: until the mean is known to --tolerance.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    metavar="E",
    help="Standard error of the mean at which --samples auto stops, [0, 1] units.  [default: 0.01]",
)
@click.option(
    "--quantiles",
    type=options.QUANTILES,
    metavar="Q,Q,...",
    help="Also write these quantiles of the samples at every pixel: 0.05,0.95 gives OUT-q05 and OUT-q95.",
)
@options.seed_option
@click.option(
    "--reference",
    metavar="FILE|FOLDER",
    help="The truth, to print PSNR and SSIM: a file, or a folder with the inputs' names.",
)
@options.hardware_options
@options.compile_option
@options.count(
    "--batch-size",
    help="Images of one size that run together; the result does not depend on it.  [default: 1 on a CPU, else 16]",
)
@click.option(
    "--tile",
    type=options.TILE,
    metavar="N|auto|off",
    default="auto",
    help="Show large images to the network by overlapping tiles of at most N pixels a side (docs/tiles.md); auto: as the "
    "memory allows, images of up to a megapixel whole; halved where the memory runs out.",
)
@options.format_option("png", "tiff", "npy")
@options.file_options
@options.quiet_option
def restore(
    inputs: tuple[str, ...],
    out: str,
    operator: str | None,
    noise: str | None,
    key: str | None,
    axes: str | None,
    scale: float | None,
    prior: str,
    solver: str,
    preset_file: str | None,
    steps: int | None,
    hyperparameters: tuple[tuple[str, str], ...],
    samples: int | str,
    tolerance: float | None,
    quantiles: tuple[float, ...] | None,
    seed: int,
    reference: str | None,
    device: str,
    precision: str,
    compile: bool | None,
    batch_size: int | None,
    tile: int | str,
    bits: int | None,
    extension: str | None,
    overwrite: bool,
    skip_existing: bool,
    quiet: bool,
) -> int:
    """Restore measured images.

    Draws samples of X given Y = A(X) + sigma_y Z.

    INPUT: image files, folders or 'patterns*.png' of measurements that exist already (PNG, JPEG, WebP, BMP, TIFF,
    .npy). Each output gets a record OUT.json: settings, seed, versions, hashes, and the command that repeats it. Random
    numbers depend on --seed and the file's name alone. A grey input with a colour prior is repeated to three channels and
    the result turned back to grey, if the operator treats channels alike. An .npy may hold a measurement of any shape.

    An .npz or .safetensors that `invdiff degrade` wrote brings its own operator and noise; --operator and --noise stand
    in for them, with a note. --key, --axes and --scale read raw arrays (docs/measurements.md).
    """
    from invdiff.files.images import IMAGE_SUFFIXES
    from invdiff.files.raw import HDF5_SUFFIXES, Layout, is_raw
    from invdiff.noise import noise_model
    from invdiff.operator.contract import files_of
    from invdiff.operators import resolve_operator
    from invdiff.priors.tiled import tiled
    from invdiff.problem import files as measurement_files
    from invdiff.restoration.api import TOLERANCE, default_batch_size, resolve_prior

    if tolerance is not None and samples != "auto":
        raise click.UsageError("--tolerance is for --samples auto; add that, or leave it out.")
    if quantiles and samples == 1:
        raise click.UsageError("--quantiles needs more than one sample: add --samples 16, or auto.")
    layout = Layout(key, axes, scale)
    chosen_operator = None if operator is None else resolve_operator(operator)
    model = None if noise in (None, "auto") else noise_model(noise)
    preset = read_preset(preset_file, solver)
    method, extra = resolve_solver(
        preset.solver if preset else solver, steps, options.unique(hyperparameters, "--set"), chosen_operator
    )
    jobs = files.plan(
        inputs,
        out,
        extension=extension,
        bits=bits,
        overwrite=overwrite,
        skip_existing=skip_existing,
        suffixes=companions(samples, quantiles or ()),
        reads=(*IMAGE_SUFFIXES, *measurement_files.SUFFIXES, *HDF5_SUFFIXES),
        skips=lambda path: not layout.given and measurement_files.is_other(path),
    )
    for job in jobs:
        if job.source.suffix.lower() not in measurement_files.SUFFIXES or is_raw(job.source, layout):
            missing = [name for name, value in (("--operator", operator), ("--noise", noise)) if value is None]
            if missing:
                raise click.UsageError(
                    f"Missing option {missing[0]!r}: {job.source} does not say it (a measurement file would)."
                )
    references = match_references(jobs, reference)
    files.refuse_inputs(jobs, [*references.values(), *(files_of(chosen_operator) if chosen_operator else ())])
    if not jobs:
        click.echo("nothing to do: every output exists", err=True)
        return 0
    network = tiled(resolve_prior(prior, device, precision, compile), tile)
    settings = Settings(
        context=click.get_current_context(),
        operator=chosen_operator,
        noise=model,
        estimated=noise == "auto",
        layout=layout,
        prior=network,
        solver=method,
        hyperparameters=extra,
        preset=preset,
        samples=samples,
        tolerance=TOLERANCE if tolerance is None else tolerance,
        quantiles=quantiles or (),
        seed=seed,
        bits=bits,
        batch_size=batch_size or default_batch_size(network.device),
        quiet=quiet,
        references=references,
    )
    return run(jobs, settings)


def read_preset(path: str | None, solver: str) -> Preset | None:
    """The preset in the file given, if any."""
    from invdiff.solvers import load_preset

    if path is None:
        return None
    if solver != "auto":
        raise click.UsageError("--preset and --solver are both given; a preset names its solver.")
    return load_preset(path)


def resolve_solver(
    solver: str | Solver, steps: int | None, hyperparameters: dict[str, Any], operator: Operator | None
) -> tuple[Solver | str, dict[str, Any]]:
    """The solver with all its settings, checked against the operator; or "auto", which is chosen for each image's
    shape, and the settings to change in it."""
    from invdiff import solvers

    if steps is not None and "steps" in hyperparameters:
        raise click.UsageError("--steps and --set steps=... are both given.")
    if steps is not None:
        hyperparameters = hyperparameters | {"steps": steps}
    if solver == "auto":
        return solver, hyperparameters
    if isinstance(solver, str) and solver.partition(":")[0] == "auto":
        raise click.UsageError("--solver auto takes no settings of its own; use --set key=value.")
    chosen = solvers.get(solver, **hyperparameters)
    if operator is not None:
        solvers.check(chosen, operator)
    return chosen, {}


def match_references(jobs: Sequence[Job], reference: str | None) -> dict[Path, Path]:
    """input -> its truth: the file given, or the one of the same name (any file type) in the folder given."""
    from invdiff.errors import ImageError, UsageError
    from invdiff.files.images import IMAGE_SUFFIXES, list_images

    if reference is None:
        return {}
    if not Path(reference).is_dir():
        (single,) = list_images([reference])[:1]
        if len(jobs) > 1:
            raise UsageError(f"--reference {reference} is one file for {len(jobs)} inputs; give a folder")
        return {job.source: single for job in jobs}
    found = {}
    for job in jobs:
        stems = [Path(reference, job.inside), Path(reference, job.source.name)]
        candidates = [stem.with_suffix(suffix) for stem in stems for suffix in (stem.suffix, *IMAGE_SUFFIXES)]
        match = next((path for path in candidates if path.is_file()), None)
        if match is None:
            raise ImageError(f"--reference {reference}: no image called {job.inside.with_suffix('')} there")
        found[job.source] = match
    return found
