"""`degrade` and `restore`: the two functions that most users call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from invdiff import solvers
from invdiff.errors import InputWarning, UsageError
from invdiff.memory import is_out_of_memory
from invdiff.noise import Gaussian, estimate, noise_model
from invdiff.parameters import whole
from invdiff.priors.base import Prior
from invdiff.priors.tiled import TiledPrior, at_once, tiled
from invdiff.problem import Problem, check_answer, check_images, resolve_operator
from invdiff.sampling import Noise, State, generator, run
from invdiff.solution import Solution, standard_error
from invdiff.solvers.auto import choose
from invdiff.solvers.base import Solver

FIRST_SAMPLES, MOST_SAMPLES = 4, 64
"""samples="auto" draws as many at a time, and no more than that in all."""
TOLERANCE = 0.01
"""The standard error at which it stops, where the user gives none, in [0, 1] units."""


def degrade(
    x: torch.Tensor, operator: Any, noise: Any = 0.05, seed: int = 0, ids: Sequence[str | int] | None = None
) -> torch.Tensor:
    """y = A(x) + sigma_y z, or A(x) seen through another noise model, for images x (B, C, H, W) in [0, 1]; not clipped.

    operator: an Operator, a name or spec, or a deepinv Physics. noise: sigma_y in [0, 1] units, 0 allowed, or a noise
    model's spec ("poisson:gain=0.02"). The noise depends on (seed, id) alone; ids default to the position in the batch.
    Raises UsageError if the operator cannot take images of this shape, or the model no measurement like A(x).
    """
    check_images(x, "the image x")
    operator = resolve_operator(operator)
    model = noise_model(noise, zero=True)
    operator.measurement_shape(tuple(x.shape[1:]))
    generators = [generator(seed, f"{key}/measurement", 0) for key in _ids(ids, x.shape[0])]
    z = check_answer(operator, operator.A(x))
    y = model.sample(z, generators)
    mask = operator.observed(tuple(x.shape[1:]))
    return y if mask is None else torch.where(mask.to(y) > 0, y, z)


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
    Raises UsageError for arguments that cannot be used, NumericalError if the computation leaves the finite numbers.
    """
    started = time.perf_counter()
    estimated = estimate(y, operator) if isinstance(noise, str) and noise == "auto" else None
    problem = Problem.from_measurement(y, operator, Gaussian(estimated.sigma) if estimated else noise)
    prior = tiled(resolve_prior(prior, device, precision, compile), tile)
    if solver == "auto":
        calls = hyperparameters.pop("steps", None) if steps is None else steps
        replaced = problem.noise is not None and problem.noise.trusted(problem.y) is not None
        solver = choose(
            problem.operator,
            problem.image_shape,
            problem.sigma_y,
            calls and whole(calls),
            several=samples != 1,
            replaced=replaced,
        )
        steps = None
    chosen = solvers.get(solver, **hyperparameters, **({} if steps is None else {"steps": steps}))
    chosen.check(problem.operator)
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
    runs = _Runs(problem, prior, chosen, seed, _ids(ids, y.shape[0]), size)
    if count is not None:
        drawn = runs.draw(-(-count // chosen.population), progress)[:count]
    else:
        drawn = runs.draw(FIRST_SAMPLES, progress)
        while len(drawn) < MOST_SAMPLES and float(standard_error(drawn).max()) > tolerance:
            drawn = runs.draw(FIRST_SAMPLES, progress)
    return Solution(
        samples=drawn,
        residual=residuals(problem.whitened(), drawn, prior.device, size),
        nfe=runs.nfe,
        seconds=time.perf_counter() - started,
        seed=seed,
        sigma_y=problem.sigma_y,
        operator=problem.operator.settings(),
        solver=chosen.settings(),
        prior=prior.describe(),
        diagnostics=runs.diagnostics(),
        noise=problem.noise_model.spec,
        noise_from=estimated.method if estimated else "",
    )


def check_samples(samples: int | str) -> int | None:
    """The number of samples, or None for "auto". Raises UsageError for anything else."""
    if samples == "auto":
        return None
    if isinstance(samples, str) or int(samples) != samples or samples < 1:
        raise UsageError(f'samples must be a whole number of at least 1, or "auto", got {samples!r}')
    return int(samples)


def residuals(problem: Problem, samples: torch.Tensor, device: torch.device, size: int) -> torch.Tensor:
    """`problem.residual` of each of samples (n, B, *image shape): (n, B). Where they lie elsewhere than on the device, it
    computes them there, `size` images at a time: a processor would take longer for A than a GPU for everything else."""
    if samples.device == device:
        return torch.stack([problem.residual(sample) for sample in samples])
    parts = []
    for first in range(0, samples.shape[1], size):
        chunk = samples[:, first : first + size]
        part = problem.rows(list(range(first, first + chunk.shape[1]))).to(device)
        parts.append(torch.stack([part.residual(sample.to(device)) for sample in chunk]).to(samples.device))
    return joined(parts, 1)


def joined(parts: Sequence[torch.Tensor], dimension: int = 0) -> torch.Tensor:
    """Tensors one after the other; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dimension)


class _Runs:
    """Runs of a solver on every image of a problem, in batches of `size`."""

    def __init__(
        self, problem: Problem, prior: Prior, solver: Solver, seed: int, keys: Sequence[str | int], size: int
    ) -> None:
        self.problem, self.prior, self.solver, self.seed, self.keys, self.size = (
            problem, prior, solver, seed, keys, size,
        )  # fmt: skip
        self._spent = self._finished = 0  # network calls of all runs, and their number
        self._runs = 0
        self._drawn: list[torch.Tensor] = []
        self._diagnostics: list[dict[str, torch.Tensor]] = []

    @property
    def nfe(self) -> int:
        """Network calls for each run, on average, rounded up: an image that is done early takes fewer."""
        return -(-self._spent // max(1, self._finished))

    def draw(self, runs: int, progress: bool = False) -> torch.Tensor:
        """`runs` more runs; all samples so far, (n, B, *image shape)."""
        images = list(range(len(self.keys)))
        # The average sigma_y of a batch depends on its images, where the noise depends on the brightness: those run alone.
        alone = self.problem.noise is not None and self.problem.noise.signal_dependent
        groups = [[image] for image in images] if alone else [images]
        parts = [self._draw(runs, group, progress) for group in groups]
        self._runs += runs
        self._drawn.append(joined([samples for samples, _ in parts], 1))
        self._diagnostics.append({name: torch.cat([found[name] for _, found in parts], 1) for name in parts[0][1]})
        return joined(self._drawn)

    def _draw(self, runs: int, images: list[int], progress: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Samples (n, images, *image shape) and diagnostics (runs, images, moves) of `runs` more runs of these images."""
        shape = self.problem.image_shape
        rows = [(image, k) for k in range(self._runs, self._runs + runs) for image in images]
        finished = []
        diagnostics = Diagnostics()
        with _progress(progress, -(-len(rows) // self.size), self.solver) as advance:
            done = 0
            while done < len(rows):
                chunk = rows[done : done + self.size]
                try:
                    finished.append(self._run(chunk, advance, diagnostics))
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error) or not (len(chunk) > 1 or isinstance(self.prior, TiledPrior)):
                        raise
                else:
                    diagnostics.next_batch()
                    done += len(chunk)
                    continue
                # Outside the except block, whose traceback would keep the failed attempt's tensors.
                diagnostics.forget_batch()
                self._take_less(len(chunk))
        every = joined(finished)  # (runs * images, particles, *image shape)
        every = every.reshape(runs, len(images), -1, *shape).transpose(1, 2).flatten(0, 1)
        return every, diagnostics.collected(runs, len(images))

    def _run(
        self, chunk: Sequence[tuple[int, int]], advance: Callable[[State], None], diagnostics: Diagnostics
    ) -> torch.Tensor:
        """One run for each (image, run) together: (len(chunk), particles, *image shape)."""
        part = self.problem.rows([image for image, _ in chunk]).to(self.prior.device)
        generators = [generator(self.seed, self.keys[image], k) for image, k in chunk]
        particles, calls = None, 0
        for state in run(part, self.prior, self.solver, Noise(generators, self.problem.image_shape, part.y)):
            advance(state)
            diagnostics.add(state)
            calls = state.nfe
            particles = state.x[:, None] if state.population is None else state.population
            del state  # its images would lie in memory beside the next one's
        assert particles is not None  # run yields at least once
        self._spent, self._finished = self._spent + calls * len(chunk), self._finished + len(chunk)
        return particles.to(self.problem.y.device)

    def _take_less(self, together: int) -> None:
        """After so many runs together ran out of memory: half as many from now on, or smaller tiles."""
        tiles = self.prior if isinstance(self.prior, TiledPrior) else None
        if together == 1:
            assert tiles is not None
            tiles.take_less(self.problem.image_shape, tiles.used)
            return
        self.size = together // 2
        words = at_once(self.size, "image")
        if tiles is None:
            warnings.warn(f"not enough memory: going on with {words}", InputWarning, stacklevel=2)
            return
        tiles.batch = self.size
        tiles.prior.forget_graphs()
        tiles.tell(words)

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Name -> (runs, images, moves)."""
        return {name: torch.cat([part[name] for part in self._diagnostics]) for name in self._diagnostics[0]}


class Diagnostics:
    """What a method reports move by move (effective sample sizes, say), over all batches."""

    def __init__(self) -> None:
        self._batch: dict[str, list[torch.Tensor]] = {}
        self._finished: list[dict[str, torch.Tensor]] = []

    def add(self, state: State) -> None:
        for name, values in state.diagnostics.items():
            self._batch.setdefault(name, []).append(values.detach().cpu())

    def next_batch(self) -> None:
        self._finished.append({name: torch.stack(values, -1) for name, values in self._batch.items()})
        self._batch = {}

    def forget_batch(self) -> None:
        """What was added since the last batch: it is computed again."""
        self._batch = {}

    def collected(self, runs: int, images: int) -> dict[str, torch.Tensor]:
        """Name -> (runs, images, moves)."""
        names = self._finished[0]
        return {
            name: torch.cat([batch[name] for batch in self._finished]).unflatten(0, (runs, images)) for name in names
        }


def states(problem: Problem, prior: Prior, solver: Solver, seed: int = 0) -> Iterator[State]:
    """The states of one restoration of every image of a problem, as they are computed: for trajectories, early stops
    and plots. Row b uses the same random numbers as `restore(..., seed=seed)` for image b, sample 0."""
    generators = [generator(seed, image, 0) for image in range(problem.y.shape[0])]
    problem = problem.to(prior.device)
    return run(problem, prior, solver, Noise(generators, problem.image_shape, problem.y))


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

            self._bar = tqdm(total=chunks * solver.nfe, desc=solver.name, unit="call", leave=False)
        self._calls = 0

    def __enter__(self) -> Any:
        return self._advance

    def _advance(self, state: State) -> None:
        if self._bar:
            # The count starts again with every chunk.
            self._bar.update(state.nfe - self._calls if state.step > 1 else state.nfe)
            self._calls = state.nfe

    def __exit__(self, *exc: object) -> None:
        if self._bar:
            self._bar.close()
