"""`invdiff degrade`: simulate measurements of clean images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from . import errors, files, options
from .files import Job

if TYPE_CHECKING:
    from invdiff.operator.contract import Operator

EXAMPLES = """
invdiff degrade photo.png -o blurred.png --operator gaussian_blur:sigma=2 --noise 0.05

# a folder, four times smaller; float TIFF keeps values outside [0, 1]
invdiff degrade clean/ -o small/ --operator downsample:factor=4 --noise 12.75/255 --format tiff

# one file with operator and noise in it: invdiff restore holes.npz -o out.png needs nothing else
invdiff degrade photo.png -o holes.npz --operator inpaint:mask=mask.png --noise 0.01
"""


@click.command(cls=options.Command, epilog=EXAMPLES)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--out", metavar="OUT", required=True, help="Output file for one input, else a folder.")
@options.operator_option
@click.option(
    "--noise",
    metavar="SIGMA|SPEC",
    required=True,
    help="Noise level sigma_y to add, [0, 1] units: 0.05, 12.75/255, or 0 for none; or a model: "
    "poisson:photons=1000 (the counts of white), laplace:scale=0.05, salt_and_pepper:p=0.1, ... (docs/noise.md).",
)
@options.seed_option
@options.format_option(
    "png", "tiff", "npy", "npz", "safetensors", more="; npz and safetensors hold operator and noise too"
)
@options.file_options
@options.quiet_option
def degrade(
    inputs: tuple[str, ...],
    out: str,
    operator: str,
    noise: str,
    seed: int,
    bits: int | None,
    extension: str | None,
    overwrite: bool,
    skip_existing: bool,
    quiet: bool,
) -> int:
    """Simulate measurements Y = A(X) + sigma_y Z of clean images.

    INPUT: image files, folders or 'patterns*.png'. An image that the operator cannot take whole (blocks of pixels, say)
    is cropped at the bottom and right. Each output gets a record OUT.json. The noise depends on --seed and the file's
    name alone. An .npz or .safetensors is a measurement file: y, operator with its arrays, and noise, all that `restore`
    needs.
    """
    from invdiff.noise import noise_model
    from invdiff.operator.contract import files_of
    from invdiff.operator.from_file import absolute
    from invdiff.operators import resolve_operator

    chosen = resolve_operator(operator)
    noise_model(noise, zero=True)
    jobs = files.plan(
        inputs,
        out,
        extension=extension,
        bits=bits,
        overwrite=overwrite,
        skip_existing=skip_existing,
        writes=files.MEASUREMENT_BITS,
    )
    files.refuse_inputs(jobs, files_of(chosen))
    if not jobs:
        click.echo("nothing to do: every output exists", err=True)
    failed = []
    for job in jobs:
        command = options.repeat_command(
            inputs=[job.source], out=job.target, operator=absolute(operator), extension=None
        )
        try:
            degrade_one(job, chosen, noise, seed, bits, command, quiet)
        except Exception as error:
            line = errors.explain(error)
            if line is None or len(jobs) == 1:
                raise
            failed.append(job.source.name)
            click.echo(errors.about(job.source, line), err=True)
    if failed:
        click.echo(f"wrote {len(jobs) - len(failed)} of {len(jobs)} images; failed: {', '.join(failed)}", err=True)
    return 1 if failed else 0


def degrade_one(
    job: Job, operator: Operator, noise: str, seed: int, bits: int | None, command: str, quiet: bool
) -> None:
    """Measure one image, write y and its record, and print what was done."""
    from invdiff.files.images import WRITABLE_BITS, read_measurement, write_json, write_measurement
    from invdiff.machine.versions import package_versions
    from invdiff.noise import noise_model
    from invdiff.problem.problem import Problem
    from invdiff.problem.simulation import degrade as degrade_tensor

    def fits(shape: tuple[int, ...]) -> object:
        return operator.measurement_shape(operator.usable_shape(shape))

    image = read_measurement(job.source, fits)  # an .npy may hold an image of any shape that the operator takes
    x, notes = image.tensor, list(image.notes)
    usable = tuple(operator.usable_shape(tuple(x.shape)))
    if usable != tuple(x.shape):
        notes.append(f"cropped from {x.shape[1]} x {x.shape[2]} to {usable[1]} x {usable[2]} pixels for {operator}")
        x = x[:, : usable[1], : usable[2]]
    y = degrade_tensor(x[None], operator, noise=noise, seed=seed, ids=[job.key])[0]
    model = noise_model(noise, zero=True)
    problem = Problem.of(operator, y[None], model, tuple(x.shape))
    sigma_y = problem.sigma_y
    record = {
        "operator": operator.settings(),
        "noise": {"model": model.spec, "sigma_y": sigma_y, "unit": "standard deviation, images in [0, 1]"},
        "seed": seed,
        "versions": package_versions(),
        "input": files.describe_input(job.source, image.description, notes),
        "command": command,
        "working_folder": os.getcwd(),
    }
    clipped = 0.0
    with files.replacing(job):
        if job.target.suffix.lower() in WRITABLE_BITS:
            clipped = write_measurement(job.target, y, bits)
        else:
            problem.save(job.target, seed)
        shapes = {"image_shape": list(x.shape), "measurement_shape": list(y.shape)}
        write_json(job.record, record | {"output": {"path": str(job.target), "clipped": clipped, **shapes}})
    if quiet:
        return
    for note in notes:
        click.echo(f"note: {job.source.name}: {note}", err=True)
    if clipped:
        remedy = "leave out --bits" if job.target.suffix.startswith(".tif") else "write .tiff or .npy to keep them"
        click.echo(
            f"warning: {job.target.name}: {100 * clipped:.2g} % of the values were clipped to [0, 1]; {remedy}",
            err=True,
        )
    size = f"{y.shape[1]} x {y.shape[2]} pixels" if y.ndim == 3 else f"{' x '.join(map(str, y.shape))} values"
    amount = f"noise {sigma_y:g}" if model.name == "gaussian" else f"{model.spec}, sigma_y {sigma_y:.3g} on average"
    click.echo(f"{job.target}  {operator}, {amount}, {size}")
