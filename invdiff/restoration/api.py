"""`restore`, the function that most users call, and `solve`, which does it for a Problem."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from invdiff import solvers
from invdiff.errors import InputWarning, UsageError
from invdiff.files.images import fit_channels
from invdiff.machine.random import Draws, generator
from invdiff.noise import Gaussian, estimate
from invdiff.priors.prior import Prior
from invdiff.priors.tiled import TiledPrior, tiled
from invdiff.problem.problem import Problem
from invdiff.problem.simulation import check_ids
from invdiff.restoration.auto import choose
from invdiff.restoration.grey import is_grey_for, repeated
from invdiff.restoration.loop import State, run, seen_by
from invdiff.restoration.runs import Runs, residuals
from invdiff.restoration.solution import Solution, standard_error
from invdiff.solvers.solver import Solver
from invdiff.specs.parameters import whole

FIRST_SAMPLES, MOST_SAMPLES = 4, 64
"""samples="auto" draws as many at a time, and no more than that in all."""
TOLERANCE = 0.01
"""The standard error at which it stops, where the user gives none, in [0, 1] units."""


def restore(
    y: torch.Tensor,
    operator: Any,
    noise: Any,
    prior: Prior | Any = "natural",
    solver: str | Solver = "auto",
    steps: int | None = None,
    samples: int | str = 1,
    seed: int = 0,
    *,
    tolerance: float = TOLERANCE,
    batch_size: int | None = None,
    ids: Sequence[str | int] | None = None,
    device: str = "auto",
    precision: str = "auto",
    compile: bool | None = None,
    tile: int | str = "auto",
    progress: bool = False,
    **hyperparameters: Any,
) -> Solution:
    """Samples of p(x | y) for y = A(x) + sigma_y z.

    y: (B, *measurement shape), float, [0, 1] units. operator: an Operator, a name or spec, or a deepinv Physics.
    noise: sigma_y in [0, 1] units, a number or "12.75/255", a noise model's spec ("poisson:gain=0.02"), or "auto": white
    Gaussian noise whose sigma_y is estimated from y, one image at a time (`invdiff.noise.estimate`).
    prior: a Prior, or what `load_prior` takes.
    solver: a Solver, a name or spec, or "auto", the best that was measured; steps and further keywords are its
    hyperparameters, and for "auto" steps is the most network calls for one sample, backward passes counted too.
    samples: how many for each image, or "auto": until the standard error of the mean of every image (root mean square
    over its pixels) is at most `tolerance`, in [0, 1] units, or there are MOST_SAMPLES.
    seed, ids: sample k of image id depends on (seed, id, k) alone, so not on batch_size (how many samples run
    together; default 1 on a CPU, 16 elsewhere; where the memory runs out fewer do, and an InputWarning says so once).
    device, precision, compile: where and how the network runs, as for `load_prior`, if the prior is loaded here; a Prior
    says so itself.
    tile: the network sees large images by overlapping tiles of at most so many pixels a side, "auto" (as the memory
    allows) or "off"; the result changes by less than 0.05 dB, `solution.prior` says what was taken (docs/tiles.md).
    Warns (InputWarning) where the measurement is not fitted. Raises UsageError for arguments that cannot be used,
    NumericalError if the computation leaves the finite numbers.
    """
    started = time.perf_counter()
    estimated = estimate(y, operator) if isinstance(noise, str) and noise == "auto" else None
    problem = Problem.from_measurement(y, operator, Gaussian(estimated.sigma) if estimated else noise)
    solution = solve(
        problem,
        tiled(resolve_prior(prior, device, precision, compile), tile),
        solver,
        steps,
        samples,
        seed,
        tolerance=tolerance,
        batch_size=batch_size,
        ids=ids,
        progress=progress,
        **hyperparameters,
    )
    if solution.misfit:
        warnings.warn(solution.misfit, InputWarning, stacklevel=2)
    return replace(solution, seconds=time.perf_counter() - started, noise_from=estimated.method if estimated else "")


def solve(
    problem: Problem,
    prior: Prior,
    solver: str | Solver = "auto",
    steps: int | None = None,
    samples: int | str = 1,
    seed: int = 0,
    *,
    tolerance: float = TOLERANCE,
    batch_size: int | None = None,
    ids: Sequence[str | int] | None = None,
    progress: bool = False,
    **hyperparameters: Any,
) -> Solution:
    """Samples of p(x | y) for a problem, whose images a prior may see by tiles (`tiled`). Arguments and errors: as `restore`.

    A grey image is restored with a colour prior as three equal channels, and the samples become grey again (`repeated`).
    """
    started = time.perf_counter()
    asked, grey = problem, is_grey_for(problem, prior)
    if grey:
        problem = repeated(problem)
    if solver == "auto":
        replaced = problem.noise is not None and problem.noise.trusted(problem.y) is not None
        solver = choose(
            problem.operator,
            problem.image_shape,
            problem.sigma_y,
            steps and whole(steps),
            several=samples != 1,
            replaced=replaced,
        )
        steps = None
    chosen = solvers.get(solver, **hyperparameters, **({} if steps is None else {"steps": steps}))
    solvers.check(chosen, problem.operator)
    prior.check_shape(problem.image_shape)
    count = check_samples(samples)
    if count is None and chosen.population > 1:
        raise UsageError(
            f"samples='auto' needs independent samples, but the {chosen.population} particles of a {chosen.name} run depend "
            "on each other; give a number of samples"
        )
    if not 0 < tolerance < float("inf"):
        raise UsageError(f"tolerance must be more than 0, in [0, 1] units, got {tolerance}")
    size = default_batch_size(prior.device) if batch_size is None else batch_size
    if size < 1:
        raise UsageError(f"batch_size must be at least 1, got {size}")
    if isinstance(prior, TiledPrior) and prior.batch is not None:
        size = min(size, prior.batch)

    # A population gives as many samples as it has particles; other methods run once for each sample.
    runs = Runs(problem, prior, chosen, seed, check_ids(ids, len(problem.y)), size)
    if count is not None:
        drawn = runs.draw(-(-count // chosen.population), progress)[:count]
    else:
        drawn = runs.draw(FIRST_SAMPLES, progress)
        while len(drawn) < MOST_SAMPLES and float(standard_error(drawn).max()) > tolerance:
            drawn = runs.draw(FIRST_SAMPLES, progress)
    if grey:
        drawn = fit_channels(drawn, 1)
    return Solution(
        samples=drawn,
        residual=residuals(asked, drawn, prior.device, size) if grey else runs.residual(drawn),
        nfe=runs.nfe,
        seconds=time.perf_counter() - started,
        seed=seed,
        sigma_y=asked.sigma_y,
        operator=problem.operator.settings(),
        solver=chosen.settings(),
        prior=prior.describe(),
        diagnostics=runs.diagnostics(),
        noise=asked.noise_model.spec,
        solved_with=problem.sigma_y if grey else None,
    )


def check_samples(samples: int | str) -> int | None:
    """The number of samples, or None for "auto". Raises UsageError for anything else."""
    if samples == "auto":
        return None
    if isinstance(samples, str) or int(samples) != samples or samples < 1:
        raise UsageError(f'samples must be a whole number of at least 1, or "auto", got {samples!r}')
    return int(samples)


def states(problem: Problem, prior: Prior, solver: Solver, seed: int = 0) -> Iterator[State]:
    """The states of one restoration of every image of a problem, as they are computed: for trajectories, early stops
    and plots. Row b uses the same random numbers as `restore(..., seed=seed)` for image b, sample 0."""
    generators = [generator(seed, image, 0) for image in range(problem.y.shape[0])]
    problem = seen_by(solver, problem.to(prior.device))
    return run(problem, prior, solver, Draws(generators, problem.image_shape, problem.y))


def resolve_prior(prior: Any, device: str = "auto", precision: str = "auto", compile: bool | None = None) -> Prior:
    """A Prior as it is, or whatever `load_prior` makes of it, on the chosen device in the chosen precision.

    Raises UsageError if a device, precision or compile is given for a Prior, which has its own.
    """
    if isinstance(prior, Prior):
        for name, value in (("device", device), ("precision", precision), ("compile", compile)):
            if value not in ("auto", None):
                raise UsageError(
                    f"{name}={value!r} does not move a Prior that is already loaded; give it to load_prior"
                )
        return prior
    from invdiff.priors import load_prior

    return load_prior(prior, device=device, precision=precision, compile=compile)


def default_batch_size(device: torch.device) -> int:
    """How many samples run together: one on a CPU, where more only take more memory; 16 elsewhere."""
    return 1 if device.type == "cpu" else 16
