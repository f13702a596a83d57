"""From an input of `invdiff restore` to a Problem: a picture, a raw array or a measurement file, and its reference."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .files import Job
from .restore_settings import Settings

if TYPE_CHECKING:
    import torch

    from invdiff.noise import NoiseEstimate, NoiseModel
    from invdiff.problem.problem import Problem


@dataclass(frozen=True)
class Reading:
    """One input, ready to be restored. problem: of one image, with its truth where there is a reference."""

    job: Job
    problem: Problem
    description: str
    notes: list[str] = field(default_factory=list)
    estimate: NoiseEstimate | None = None


def read(job: Job, settings: Settings) -> Reading:
    """Read one input and its reference. Raises what they cannot be used for, with the file's name."""
    from invdiff.files.images import read_image
    from invdiff.noise import Gaussian, estimate
    from invdiff.problem.problem import Problem
    from invdiff.restoration.grey import is_grey_for
    from invdiff.scores.comparison import fit_reference

    found = None
    if _is_measurement_file(job, settings):
        problem, description, notes = _read_measurement_file(job, settings)
        if settings.estimated:
            found = estimate(problem.y, problem.operator)
            problem = Problem.of(problem.operator, problem.y, Gaussian(found.sigma), problem.image_shape)
    else:
        y, description, notes = _read_array(job, settings)
        if settings.estimated:
            found = estimate(y, settings.operator)
        noise = settings.noise if found is None else Gaussian(found.sigma)
        problem = Problem.from_measurement(y, settings.operator, noise)
    notes += found.notes if found else ()
    given = problem.noise_model
    if is_grey_for(problem, settings.prior):
        notes.append(
            "grey repeated to three channels for a colour prior, result turned back to grey; solved with a third of the "
            f"likelihood for each, {brief(given.tempered(3))} in place of {brief(given)}"
        )
    if settings.preset is not None:
        assert not isinstance(settings.solver, str)  # a preset's own, perhaps changed
        spec = problem.operator.spec
        notes += settings.preset.remarks(spec, given.spec, settings.prior.describe(), settings.solver)
    if job.source in settings.references:
        reference = read_image(settings.references[job.source]).tensor
        truth, remarks = fit_reference(reference, problem.image_shape, problem.operator)
        problem = replace(problem, truth=truth[None])
        notes += remarks
    return Reading(job, problem, description, notes, found)


def _is_measurement_file(job: Job, settings: Settings) -> bool:
    from invdiff.files.raw import is_raw
    from invdiff.problem.files import SUFFIXES

    return not is_raw(job.source, settings.layout) and job.source.suffix.lower() in SUFFIXES


def _read_array(job: Job, settings: Settings) -> tuple[torch.Tensor, str, list[str]]:
    """y (1, *measurement shape), what the file is, and notes."""
    from invdiff.files.images import read_measurement
    from invdiff.files.raw import is_raw, read_raw

    assert settings.operator is not None  # checked with the options
    if is_raw(job.source, settings.layout):
        image = read_raw(job.source, settings.layout)
    else:
        image = read_measurement(job.source, settings.operator.image_shape)
    return image.tensor[None], image.description, list(image.notes)


def _read_measurement_file(job: Job, settings: Settings) -> tuple[Problem, str, list[str]]:
    """The file's problem, with the operator and noise of the options where they say others; what it is, and notes."""
    from invdiff.errors import ImageError
    from invdiff.problem import files

    file = files.load(job.source)
    if len(file.y) != 1:
        raise ImageError(
            f"{job.source} holds {len(file.y)} measurements; save them one by one, problem.rows([0]).save(...)"
        )
    operator, noise = settings.operator, settings.noise
    problem = file.problem(operator, noise)
    notes = [
        f"--{name} {given} in the place of the file's {file.about[name]}"
        for name, given in (("operator", operator and operator.spec), ("noise", noise and noise.spec))
        if given and given != file.about[name]
    ]
    text = f"measurement of {file.about['operator']} with {file.about['noise']}"
    return replace(problem, y=problem.y.float()), text, notes


def brief(noise: NoiseModel) -> str:
    """poisson:gain=0.02, with six digits at most."""
    return re.sub(r"\d+\.\d{6,}", lambda found: f"{float(found[0]):.6g}", noise.spec)
