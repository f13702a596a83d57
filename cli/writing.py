"""From a Solution to the files of `invdiff restore`: the result, its companions, its record, and the lines printed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from . import files
from .files import Job
from .reading import Reading
from .restore_settings import Settings

if TYPE_CHECKING:
    import torch

    from invdiff.restoration.solution import Solution
    from invdiff.scores.comparison import Comparison

AMBIGUOUS = (
    "magnitudes are the same for the image turned by 180 degrees, negative, or moved inside a dark field, and a run may "
    "end far from all of them: try several --seed and keep the one of least residual"
)


def companions(samples: int | str, quantiles: Sequence[float] = ()) -> tuple[str, ...]:
    """The suffixes of the outputs besides OUT; all that there may be, where the number of samples is not known yet."""
    from invdiff.restoration.api import MOST_SAMPLES

    count = MOST_SAMPLES if isinstance(samples, str) else samples
    if count == 1:
        return ()
    return ("-std", *map(quantile_suffix, quantiles), *(f"-sample-{k}" for k in range(1, count + 1)))


def quantile_suffix(q: float) -> str:
    """-q05 for 0.05, -q005 for 0.005, -q100 for 1."""
    digits = f"{q:.10f}".rstrip("0").partition(".")[2].ljust(2, "0")
    return "-q100" if q == 1 else f"-q{digits}"


def finish(reading: Reading, solution: Solution, index: int, count: int, settings: Settings) -> None:
    """Write the files of one image of a batch of `count`, and print its lines."""
    from invdiff.restoration.solution import NOT_FITTED, standard_error
    from invdiff.scores.comparison import compare

    job, problem = reading.job, reading.problem
    samples, residual = solution.samples[:, index], solution.residual[:, index]
    record = solution.provenance(index)
    if settings.preset is not None:
        record["preset"] = settings.preset.record()
    if reading.estimate is not None:
        record["noise"]["estimated_by"] = reading.estimate.method
    comparison = None if problem.truth is None else compare(problem.y[0], samples.mean(0), problem.truth[0])
    record["input"] = files.describe_input(job.source, reading.description, reading.notes)
    write(job, samples, record, comparison, settings)
    if settings.quiet:
        return
    for note in reading.notes:
        click.echo(f"note: {job.source.name}: {note}", err=True)
    calls, indent = f"{solution.nfe} network call{'s' * (solution.nfe != 1)}", " " * len(str(job.target))
    click.echo(
        f"{job.target}  {solution.solver['name']}, {calls}, {solution.seconds / count:.1f} s, "
        f"residual {float(residual.mean()):.2f}"
    )
    if reading.estimate is not None:
        click.echo(f"{indent}  {reading.estimate}")
    if comparison:
        click.echo(f"{indent}  {comparison}")
    if solution.misfit and float(residual.max()) > NOT_FITTED:
        click.echo(f"note: {job.source.name}: {solution.misfit}", err=True)
    if problem.operator.family == "phase":
        click.echo(f"note: {job.source.name}: {AMBIGUOUS}", err=True)
    if len(samples) > 1:
        error = float(standard_error(samples[:, None]))
        # Particles of one run depend on each other.
        known = "" if "particles" in solution.solver else f", standard error {error:.4f}"
        click.echo(
            f"{indent}  mean of {len(samples)} samples (best PSNR){known}; "
            f"single samples (look real): {job.companion('-sample-1')}, ..."
        )
        if settings.samples == "auto" and error > settings.tolerance:
            click.echo(
                f"note: {job.source.name}: stopped at {len(samples)} samples, above --tolerance {settings.tolerance:g}",
                err=True,
            )


def write(
    job: Job, samples: torch.Tensor, record: dict[str, Any], comparison: Comparison | None, settings: Settings
) -> None:
    """The mean, with several samples their standard deviation and themselves, and the record: all of them or none."""
    from invdiff.files.images import WRITABLE_BITS, write_image, write_json
    from invdiff.restoration.solution import quantile

    bits, path = settings.bits, job.target
    is_float = (bits or WRITABLE_BITS[path.suffix.lower()][0]) == 32
    kind = "one posterior sample" if len(samples) == 1 else f"posterior mean, over {len(samples)} samples"
    output: dict[str, Any] = {"path": str(path), "is": kind}
    with files.replacing(job):
        if len(samples) > 1:
            std = samples.std(0)
            scale = 1.0 if is_float else float(std.max()) or 1.0
            output["std"] = {"path": str(job.companion("-std")), "white": scale}
            write_image(job.companion("-std"), std / scale, bits)
            for q in settings.quantiles:
                name = job.companion(quantile_suffix(q))
                output.setdefault("quantiles", {})[str(q)] = str(name)
                write_image(name, quantile(samples, q), bits)
            output["samples"] = [str(job.companion(f"-sample-{k}")) for k in range(1, len(samples) + 1)]
            for name, sample in zip(output["samples"], samples, strict=True):
                write_image(name, sample, bits)
        output["clipped"] = write_image(path, samples[0] if len(samples) == 1 else samples.mean(0), bits)
        record |= {
            "output": output,
            "command": settings.command(job, record),
            "working_folder": os.getcwd(),
        }
        if comparison is not None:
            reference = settings.references[job.source]
            record["reference"] = {"path": str(reference), "sha256": files.sha256(reference)}
            record["metrics"] = comparison.record()
        write_json(job.record, record)
