"""The work of `invdiff restore`: read, batch, solve and write, where one bad image does not stop the others."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from invdiff.machine.device import PRECISION_NAMES
from invdiff.machine.threads import Behind, ahead
from invdiff.scores.comparison import Comparison, compare, fit_reference

from . import errors, files, options
from .files import Job
from .grey import repeat_grey
from .grouping import batches

if TYPE_CHECKING:
    import torch

    from invdiff.files.images import ImageFile
    from invdiff.files.raw import Layout
    from invdiff.noise import NoiseEstimate, NoiseModel
    from invdiff.operator.contract import Operator
    from invdiff.priors.prior import Prior
    from invdiff.restoration.presets import Preset
    from invdiff.restoration.solution import Solution
    from invdiff.solvers.solver import Solver

AHEAD = 2
"""Batches that are read before, or written after, the one in the network."""


AMBIGUOUS = (
    "magnitudes are the same for the image turned by 180 degrees, negative, or moved inside a dark field, and a run may "
    "end far from all of them: try several --seed and keep the one of least residual"
)


@dataclass(frozen=True)
class Settings:
    """The options that decide a result, resolved."""

    operator: Operator | None
    operator_text: str | None
    noise: NoiseModel | None  # None: a measurement file's own, or estimated from each input
    noise_text: str | None
    layout: Layout
    prior: Prior
    prior_text: str
    solver: Solver | str
    hyperparameters: dict[str, Any]
    preset: Preset | None
    samples: int | str
    tolerance: float
    quantiles: tuple[float, ...]
    seed: int
    bits: int | None
    device: str
    precision: str
    tile: int | str
    batch_size: int
    quiet: bool
    references: dict[Path, Path]

    @property
    def arithmetic(self) -> str:
        """The precision that was chosen, as an option's value."""
        return PRECISION_NAMES.get(self.prior.describe().get("precision", ""), self.precision)

    @property
    def estimated(self) -> bool:
        """Whether sigma_y is estimated from each input."""
        return self.noise_text == "auto"

    def command(self, job: Job, record: dict[str, Any]) -> str:
        """The command that makes this one output again, with everything spelled out, as the record says it was resolved."""
        solver, noise, tile = record["solver"], record["noise"]["model"], record["prior"].get("tile", self.tile)
        words = ["invdiff", "restore", str(job.source), "-o", str(job.target)]
        words += ["--operator", self.operator_text] if self.operator_text is not None else []
        if self.noise_text is not None:
            words += ["--noise", noise if self.estimated else self.noise_text]
        for name in ("key", "axes", "scale"):
            value = getattr(self.layout, name)
            words += [f"--{name}", str(value)] if value is not None else []
        words += ["--prior", self.prior_text]
        words += ["--solver", spell_out(solver), "--samples", str(self.samples), "--seed", str(self.seed)]
        words += ["--tolerance", str(self.tolerance)] if self.samples == "auto" else []
        words += ["--quantiles", ",".join(map(str, self.quantiles))] if self.quantiles else []
        words += [
            "--device",
            self.prior.device.type if self.device == "auto" else self.device,
            "--precision",
            self.arithmetic,
            "--tile",
            str(tile),
        ]
        words += options.compile_words(self.prior.describe().get("compiled"))
        words += ["--bits", str(self.bits)] if self.bits else []
        words += ["--reference", str(self.references[job.source])] if job.source in self.references else []
        return shlex.join(words)


@dataclass(frozen=True)
class Measurement:
    """One input, ready to be restored. y: in the measurement's shape; grey: the grey image's, which was repeated to it for a
    colour prior, and the noise, for the solver, is then that of three copies (see `repeat_grey`); given: the input's."""

    job: Job
    y: torch.Tensor
    operator: Operator
    noise: NoiseModel
    given: NoiseModel
    description: str
    grey: torch.Tensor | None = None
    notes: list[str] = field(default_factory=list)
    truth: torch.Tensor | None = None
    estimate: NoiseEstimate | None = None


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

    def attempt(batch: Sequence[Measurement], batch_size: int) -> None:
        try:
            solution = solve(batch, settings, batch_size)
        except Exception as error:
            if not retry_smaller(error, batch, batch_size):
                return fail(batch[0].job, error)
        else:
            for index, measurement in enumerate(batch):
                behind.submit(close, measurement, solution, index, len(batch))
            return None
        # Outside the except block, whose traceback would keep the failed attempt's tensors in memory.
        for measurement in batch:
            attempt([measurement], 1)
        return None

    def close(measurement: Measurement, solution: Solution, index: int, count: int) -> None:
        try:
            finish(measurement, solution, index, count, settings)
        except Exception as error:
            fail(measurement.job, error)

    with Behind(AHEAD * settings.batch_size) as behind:
        readings = ahead(partial(prepare, settings=settings), jobs, AHEAD * settings.batch_size)
        for batch in batches(readings, settings.batch_size, settings.samples == "auto", fail):
            attempt(batch, settings.batch_size)
    if failed:
        names = ", ".join(job.source.name for job in failed)
        click.echo(f"restored {len(jobs) - len(failed)} of {len(jobs)} images; failed: {names}", err=True)
    return 1 if failed else 0


def retry_smaller(error: Exception, batch: Sequence[Measurement], batch_size: int) -> bool:
    """One bad image must not take the others with it, and the samples of one may fit into memory one by one."""
    return len(batch) > 1 or (batch_size > 1 and errors.explain(error) == errors.OUT_OF_MEMORY)


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


def read(job: Job, settings: Settings) -> tuple[ImageFile, Operator, NoiseModel | None]:
    """The input, and its operator and noise: a measurement file's own, unless others are given; None: to be estimated."""
    from invdiff.errors import ImageError
    from invdiff.files.images import ImageFile, read_measurement
    from invdiff.files.raw import is_raw, read_raw
    from invdiff.problem import files as measurement_files

    operator, noise = settings.operator, settings.noise
    if is_raw(job.source, settings.layout) or job.source.suffix.lower() not in measurement_files.SUFFIXES:
        assert operator is not None  # checked with the options
        if is_raw(job.source, settings.layout):
            return read_raw(job.source, settings.layout), operator, noise
        return read_measurement(job.source, operator.image_shape), operator, noise
    file = measurement_files.load(job.source)
    if len(file.y) != 1:
        raise ImageError(
            f"{job.source} holds {len(file.y)} measurements; save them one by one, problem.rows([0]).save(...)"
        )
    problem = file.problem(operator, noise)
    notes = [
        f"--{name} {given} in the place of the file's {file.about[name]}"
        for name, given in (("operator", operator and operator.spec), ("noise", noise and noise.spec))
        if given and given != file.about[name]
    ]
    text = f"measurement of {file.about['operator']} with {file.about['noise']}"
    return (
        ImageFile(problem.y[0].float(), text, tuple(notes)),
        problem.operator,
        None if settings.estimated else problem.noise_model,
    )


def prepare(job: Job, settings: Settings) -> Measurement:
    """Read one input and its reference, and check that operator and prior fit it."""
    from invdiff.files.images import read_image
    from invdiff.noise import Gaussian, estimate

    image, operator, given = read(job, settings)
    prior, grey, found = settings.prior, None, None
    y, notes = image.tensor, list(image.notes)
    shape = operator.image_shape(tuple(y.shape))
    if given is None:
        found = estimate(y[None], operator)
        given = Gaussian(found.sigma)
        notes += found.notes
    noise = given
    if y.ndim == len(shape) == 3 and shape[0] == 1 and prior.channels == 3:
        grey = y
        y, noise = repeat_grey(grey, operator, noise)
        shape = (3, *shape[1:])
        notes.append(
            "grey repeated to three channels for a colour prior, result turned back to grey; "
            f"solved with a third of the likelihood for each, {brief(noise)} in place of {brief(given)}"
        )
    prior.check_shape(shape)
    if settings.preset is not None:
        assert not isinstance(settings.solver, str)  # a preset's own, perhaps changed
        notes += settings.preset.remarks(operator.spec, given.spec, prior.describe(), settings.solver)
    truth = None
    if job.source in settings.references:
        original = read_image(settings.references[job.source])
        truth, remarks = fit_reference(original.tensor, tuple(shape) if grey is None else (1, *shape[1:]), operator)
        notes += remarks
    return Measurement(job, y, operator, noise, given, image.description, grey, notes, truth, found)


def brief(noise: NoiseModel) -> str:
    """poisson:gain=0.02, with six digits at most."""
    return re.sub(r"\d+\.\d{6,}", lambda found: f"{float(found[0]):.6g}", noise.spec)


def solve(batch: Sequence[Measurement], settings: Settings, batch_size: int) -> Solution:
    """All samples of a batch of measurements of one shape."""
    import torch

    from invdiff.restoration.api import restore as restore_tensors

    return restore_tensors(
        torch.stack([measurement.y for measurement in batch]) if len(batch) > 1 else batch[0].y[None],
        batch[0].operator,
        batch[0].noise,
        settings.prior,
        settings.solver,
        samples=settings.samples,
        tolerance=settings.tolerance,
        seed=settings.seed,
        batch_size=batch_size,
        ids=[measurement.job.key for measurement in batch],
        tile=settings.tile,
        progress=not settings.quiet and sys.stderr.isatty(),
        **settings.hyperparameters,
    )


def finish(measurement: Measurement, solution: Solution, index: int, count: int, settings: Settings) -> None:
    """Write the files of one image of a batch of `count`, and print its lines."""
    import torch

    from invdiff.files.images import fit_channels
    from invdiff.problem.problem import Problem
    from invdiff.restoration.solution import standard_error

    job = measurement.job
    samples, residual, y = solution.samples[:, index], solution.residual[:, index], measurement.y
    record = solution.provenance(index)
    if measurement.grey is not None:
        samples, y = fit_channels(samples, 1), measurement.grey
        problem = Problem.from_measurement(y[None], measurement.operator, measurement.given)
        residual = torch.cat([problem.residual(sample[None]) for sample in samples])
        record["residual"] = [round(float(value), 5) for value in residual]
        record["noise"] |= {
            "model": measurement.given.spec,
            "sigma_y": problem.sigma_y,
            "solved_with": solution.sigma_y,
        }
    if settings.preset is not None:
        record["preset"] = settings.preset.record()
    if measurement.estimate is not None:
        record["noise"]["estimated_by"] = measurement.estimate.method
    comparison = None if measurement.truth is None else compare(y, samples.mean(0), measurement.truth)
    record["input"] = files.describe_input(job.source, measurement.description, measurement.notes)
    write(job, samples, record, comparison, settings)
    if settings.quiet:
        return
    for note in measurement.notes:
        click.echo(f"note: {job.source.name}: {note}", err=True)
    calls = f"{solution.nfe} network call{'s' * (solution.nfe != 1)}"
    click.echo(
        f"{job.target}  {solution.solver['name']}, {calls}, {solution.seconds / count:.1f} s, "
        f"residual {float(residual.mean()):.2f}"
    )
    if measurement.estimate is not None:
        click.echo(f"{' ' * len(str(job.target))}  {measurement.estimate}")
    if comparison:
        click.echo(f"{' ' * len(str(job.target))}  {comparison}")
    if measurement.operator.family == "phase":
        click.echo(f"note: {job.source.name}: {AMBIGUOUS}", err=True)
    if len(samples) > 1:
        error = float(standard_error(samples[:, None]))
        # Particles of one run depend on each other.
        known = "" if "particles" in solution.solver else f", standard error {error:.4f}"
        click.echo(
            f"{' ' * len(str(job.target))}  mean of {len(samples)} samples (best PSNR){known}; "
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
    from invdiff.files.atomic import all_or_nothing
    from invdiff.files.images import WRITABLE_BITS, write_image, write_json
    from invdiff.restoration.solution import quantile

    bits, path = settings.bits, job.target
    is_float = (bits or WRITABLE_BITS[path.suffix.lower()][0]) == 32
    kind = "one posterior sample" if len(samples) == 1 else f"posterior mean, over {len(samples)} samples"
    output: dict[str, Any] = {"path": str(path), "is": kind}
    with all_or_nothing():
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
