"""The work of `invdiff restore`: read, batch, solve and write, where one bad image does not stop the others."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import errors, files
from .comparison import Comparison, compare, fit_reference
from .files import Job

if TYPE_CHECKING:
    import torch

    from invdiff.operator import Operator
    from invdiff.priors.base import Prior
    from invdiff.solution import Solution
    from invdiff.solvers.base import Solver

PRECISION_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Settings:
    """The options that decide a result, resolved."""

    operator: Operator
    operator_text: str
    sigma_y: float
    noise_text: str
    prior: Prior
    prior_text: str
    solver: Solver | str
    hyperparameters: dict[str, Any]
    samples: int
    seed: int
    bits: int | None
    device: str
    precision: str
    batch_size: int
    quiet: bool
    references: dict[Path, Path]

    @property
    def arithmetic(self) -> str:
        """The precision that was chosen, as an option's value."""
        return PRECISION_NAMES.get(self.prior.describe().get("precision", ""), self.precision)

    def command(self, job: Job, solver: dict[str, Any]) -> str:
        """The command that makes this one output again, with everything spelled out; solver: as it was resolved."""
        words = ["invdiff", "restore", str(job.source), "-o", str(job.target)]
        words += ["--operator", self.operator_text, "--noise", self.noise_text, "--prior", self.prior_text]
        words += ["--solver", spell_out(solver), "--samples", str(self.samples), "--seed", str(self.seed)]
        words += [
            "--device",
            self.prior.device.type if self.device == "auto" else self.device,
            "--precision",
            self.arithmetic,
        ]
        words += ["--bits", str(self.bits)] if self.bits else []
        words += ["--reference", str(self.references[job.source])] if job.source in self.references else []
        return shlex.join(words)


@dataclass(frozen=True)
class Measurement:
    """One input, ready to be restored. y: (C, H, W); to_grey: a grey y was repeated for a colour prior."""

    job: Job
    y: torch.Tensor
    to_grey: bool
    description: str
    notes: list[str] = field(default_factory=list)
    truth: torch.Tensor | None = None


def spell_out(solver: dict[str, Any]) -> str:
    """A solver's settings, those that are not None, in full precision: a spec that builds exactly this one."""
    settings = {key: value for key, value in solver.items() if key != "name" and value is not None}
    return f"{solver['name']}:{','.join(f'{key}={value}' for key, value in settings.items())}"


def run(jobs: Sequence[Job], settings: Settings) -> int:
    """Restore and write every job; the exit code. One that fails does not stop the others, if there are any."""
    failed: list[Job] = []

    def fail(job: Job, error: Exception) -> None:
        line = errors.explain(error)
        if line is None or len(jobs) == 1:
            raise error
        failed.append(job)
        click.echo(errors.about(job.source, line), err=True)

    def attempt(batch: Sequence[Measurement]) -> None:
        try:
            solution = solve(batch, settings)
        except Exception as error:
            if len(batch) == 1:
                return fail(batch[0].job, error)
            # One bad image must not take the others with it, and a smaller batch may fit into memory.
            for measurement in batch:
                attempt([measurement])
            return None
        for index, measurement in enumerate(batch):
            try:
                finish(measurement, solution, index, len(batch), settings)
            except Exception as error:
                fail(measurement.job, error)
        return None

    for batch in batches(jobs, settings, fail):
        attempt(batch)
    if failed:
        names = ", ".join(job.source.name for job in failed)
        click.echo(f"restored {len(jobs) - len(failed)} of {len(jobs)} images; failed: {names}", err=True)
    return 1 if failed else 0


def batches(
    jobs: Sequence[Job], settings: Settings, fail: Callable[[Job, Exception], None]
) -> Iterator[list[Measurement]]:
    """Neighbours of one measurement shape, up to the batch size, no name twice: random numbers are keyed by names."""
    batch: list[Measurement] = []
    for job in jobs:
        try:
            measurement = prepare(job, settings)
        except Exception as error:
            fail(job, error)
            continue
        fits = batch and batch[0].y.shape == measurement.y.shape and len(batch) < settings.batch_size
        if batch and not (fits and job.key not in {other.job.key for other in batch}):
            yield batch
            batch = []
        batch.append(measurement)
    if batch:
        yield batch


def prepare(job: Job, settings: Settings) -> Measurement:
    """Read one input and its reference, and check that operator and prior fit it."""
    from invdiff.images import fit_channels, read_image

    image = read_image(job.source)
    y, operator, prior = image.tensor, settings.operator, settings.prior
    shape = operator.image_shape(tuple(y.shape))
    to_grey = False
    if y.shape[0] == 1 and prior.channels == 3 and shape[0] == 1:
        colour = fit_channels(y, 3)
        if operator.image_shape(tuple(colour.shape))[0] == 3:
            y, to_grey = colour, True
            shape = operator.image_shape(tuple(y.shape))
    prior.check_shape(shape)
    notes = list(image.notes)
    if to_grey:
        notes.append("grey repeated to three channels for a colour prior, result turned back to grey")
    truth = None
    if job.source in settings.references:
        original = read_image(settings.references[job.source])
        truth, remarks = fit_reference(original.tensor, (1, *shape[1:]) if to_grey else tuple(shape), operator)
        notes += remarks
    return Measurement(job, y, to_grey, image.description, notes, truth)


def solve(batch: Sequence[Measurement], settings: Settings) -> Solution:
    """All samples of a batch of measurements of one shape."""
    import torch

    from invdiff.restoration import restore as restore_tensors

    return restore_tensors(
        torch.stack([measurement.y for measurement in batch]),
        settings.operator,
        settings.sigma_y,
        settings.prior,
        settings.solver,
        samples=settings.samples,
        seed=settings.seed,
        batch_size=settings.batch_size,
        ids=[measurement.job.key for measurement in batch],
        progress=not settings.quiet and sys.stderr.isatty(),
        **settings.hyperparameters,
    )


def finish(measurement: Measurement, solution: Solution, index: int, count: int, settings: Settings) -> None:
    """Write the files of one image of a batch of `count`, and print its lines."""
    from invdiff.images import fit_channels

    job = measurement.job
    samples = solution.samples[:, index]
    y = measurement.y
    if measurement.to_grey:
        samples, y = fit_channels(samples, 1), y[:1]
    comparison = None if measurement.truth is None else compare(y, samples.mean(0), measurement.truth)
    record = solution.provenance(index)
    record["input"] = files.describe_input(job.source, measurement.description, measurement.notes)
    write(job, samples, record, comparison, settings)
    if settings.quiet:
        return
    for note in measurement.notes:
        click.echo(f"note: {job.source.name}: {note}", err=True)
    residual = float(solution.residual[:, index].mean())
    click.echo(
        f"{job.target}  {solution.solver['name']}, {solution.nfe} network calls, {solution.seconds / count:.1f} s, "
        f"residual {residual:.2f}"
    )
    if comparison:
        click.echo(f"{' ' * len(str(job.target))}  {comparison}")


def write(
    job: Job, samples: torch.Tensor, record: dict[str, Any], comparison: Comparison | None, settings: Settings
) -> None:
    """The mean, with several samples their standard deviation and themselves, and the record: all of them or none."""
    from invdiff.images import WRITABLE_BITS, write_image, write_json

    bits, path = settings.bits, job.target
    is_float = (bits or WRITABLE_BITS[path.suffix.lower()][0]) == 32
    output: dict[str, Any] = {"path": str(path)}
    with files.all_or_nothing() as written:
        if len(samples) > 1:
            std = samples.std(0)
            scale = 1.0 if is_float else float(std.max()) or 1.0
            output["std"] = {"path": str(job.companion("-std")), "white": scale}
            write_image(job.companion("-std"), std / scale, bits)
            written.append(job.companion("-std"))
            output["samples"] = [str(job.companion(f"-sample-{k}")) for k in range(1, len(samples) + 1)]
            for name, sample in zip(output["samples"], samples, strict=True):
                write_image(name, sample, bits)
                written.append(Path(name))
        output["clipped"] = write_image(path, samples.mean(0), bits)
        written.append(path)
        record |= {"output": output, "command": settings.command(job, record["solver"]), "working_folder": os.getcwd()}
        if comparison is not None:
            reference = settings.references[job.source]
            record["reference"] = {"path": str(reference), "sha256": files.sha256(reference)}
            record["metrics"] = comparison.record()
        write_json(job.record, record)
