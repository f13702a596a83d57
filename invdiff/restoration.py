"""`degrade` and `restore`: the two functions that most users call."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from invdiff import solvers
from invdiff.errors import UsageError
from invdiff.priors.base import Prior
from invdiff.problem import Problem, check_images, check_noise, resolve_operator
from invdiff.sampling import Noise, State, generator, run
from invdiff.solution import Solution
from invdiff.solvers.auto import choose
from invdiff.solvers.base import Solver


def degrade(
    x: torch.Tensor, operator: Any, noise: Any = 0.05, seed: int = 0, ids: Sequence[str | int] | None = None
) -> torch.Tensor:
    """y = A(x) + sigma_y z for images x (B, C, H, W) in [0, 1]; y is not clipped.

    operator: an Operator, a name or spec, or a deepinv Physics. noise: sigma_y in [0, 1] units, 0 allowed.
    The noise depends on (seed, id) alone; ids default to the position in the batch.
    Raises UsageError if the operator cannot take images of this shape.
    """
    check_images(x, "the image x")
    operator = resolve_operator(operator)
    sigma_y = check_noise(noise, zero=True)
    shape = operator.measurement_shape(tuple(x.shape[1:]))
    generators = [generator(seed, f"{key}/measurement", 0) for key in _ids(ids, x.shape[0])]
    return operator.degrade(x, Noise(generators, shape, x)(), sigma_y)


def restore(
    y: torch.Tensor,
    operator: Any,
    noise: Any,
    prior: Prior | Any = "natural",
    solver: str | Solver = "auto",
    steps: int | None = None,
    samples: int = 1,
    seed: int = 0,
    *,
    batch_size: int | None = None,
    ids: Sequence[str | int] | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = False,
    **hyperparameters: Any,
) -> Solution:
    """Samples of p(x | y) for y = A(x) + sigma_y z.

    y: (B, *measurement shape), float, [0, 1] units. operator: an Operator, a name or spec, or a deepinv Physics.
    noise: sigma_y in [0, 1] units, a number or "12.75/255". prior: a Prior, or what `load_prior` takes.
    solver: a Solver, a name or spec, or "auto"; steps and further keywords are its hyperparameters.
    samples: how many for each image; seed, ids: sample k of image id depends on (seed, id, k) alone, so not on
    batch_size (how many samples run together; default 1 on a CPU, 16 elsewhere).
    device, precision: where and how the network runs, if the prior is loaded here; a Prior says so itself.
    Raises UsageError for arguments that cannot be used, NumericalError if the computation leaves the finite numbers.
    """
    started = time.perf_counter()
    problem = Problem.from_measurement(y, operator, noise)
    prior = resolve_prior(prior, device, precision)
    if solver == "auto":
        solver = choose(problem.operator, problem.image_shape)
    chosen = solvers.get(solver, **hyperparameters, **({} if steps is None else {"steps": steps}))
    chosen.check(problem.operator)
    prior.check_shape(problem.image_shape)
    if samples < 1:
        raise UsageError(f"samples must be at least 1, got {samples}")
    rows = [(image, sample) for sample in range(samples) for image in range(y.shape[0])]
    keys = _ids(ids, y.shape[0])
    size = default_batch_size(prior.device) if batch_size is None else batch_size
    if size < 1:
        raise UsageError(f"batch_size must be at least 1, got {size}")

    finished, nfe = [], 0
    with _progress(progress, -(-len(rows) // size), chosen) as advance:
        for first in range(0, len(rows), size):
            chunk = rows[first : first + size]
            part = problem.rows([image for image, _ in chunk])
            part = part.to(prior.device)
            generators = [generator(seed, keys[image], sample) for image, sample in chunk]
            state = None
            for state in run(part, prior, chosen, Noise(generators, part.image_shape, part.y)):
                advance(state)
            assert state is not None  # run yields at least once
            nfe = state.nfe
            finished.append(state.x.to(y.device))
    stacked = torch.cat(finished).reshape(samples, y.shape[0], *problem.image_shape)
    residual = torch.stack([problem.residual(sample) for sample in stacked])
    return Solution(
        samples=stacked,
        residual=residual,
        nfe=nfe,
        seconds=time.perf_counter() - started,
        seed=seed,
        sigma_y=problem.sigma_y,
        operator=problem.operator.settings(),
        solver=chosen.settings(),
        prior=prior.describe(),
    )


def states(problem: Problem, prior: Prior, solver: Solver, seed: int = 0) -> Iterator[State]:
    """The states of one restoration of every image of a problem, as they are computed: for trajectories, early stops
    and plots. Row b uses the same random numbers as `restore(..., seed=seed)` for image b, sample 0."""
    generators = [generator(seed, image, 0) for image in range(problem.y.shape[0])]
    problem = problem.to(prior.device)
    return run(problem, prior, solver, Noise(generators, problem.image_shape, problem.y))


def resolve_prior(prior: Any, device: str = "auto", precision: str = "auto") -> Prior:
    """A Prior as it is, or whatever `load_prior` makes of it, on the chosen device in the chosen precision.

    Raises UsageError if a device or precision is given for a Prior, which has its own.
    """
    if isinstance(prior, Prior):
        for name, value in (("device", device), ("precision", precision)):
            if value != "auto":
                raise UsageError(
                    f"{name}={value!r} does not move a Prior that is already loaded; give it to load_prior"
                )
        return prior
    from invdiff.priors import load_prior

    return load_prior(prior, device=device, precision=precision)


def default_batch_size(device: torch.device) -> int:
    """How many samples run together: one on a CPU, where more only take more memory; 16 elsewhere."""
    return 1 if device.type == "cpu" else 16


def _ids(ids: Sequence[str | int] | None, count: int) -> list[str | int]:
    keys: list[str | int] = list(range(count)) if ids is None else list(ids)
    if len(keys) != count or len(set(keys)) != count:
        raise UsageError(f"ids must be {count} different names, one for each image, got {len(keys)}")
    return keys


class _progress:
    """A bar over all network calls, or nothing."""

    def __init__(self, show: bool, chunks: int, solver: Solver) -> None:
        self._bar = None
        if show:
            from tqdm import tqdm

            self._bar = tqdm(total=chunks * solver.steps, desc=solver.name, unit="call", leave=False)

    def __enter__(self) -> Any:
        return (lambda state: self._bar.update(1)) if self._bar else (lambda state: None)

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.close()
