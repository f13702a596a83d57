"""The runs of a solver on every image of a problem, in batches, with fewer at once where the memory runs out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from invdiff.errors import InputWarning
from invdiff.machine.memory import until_it_fits
from invdiff.machine.random import Draws, generator
from invdiff.priors.prior import Prior
from invdiff.priors.tiled import TiledPrior, at_once
from invdiff.problem import Problem
from invdiff.restoration.loop import State, run, seen_by
from invdiff.solvers.solver import Solver


def joined(parts: Sequence[torch.Tensor], dimension: int = 0) -> torch.Tensor:
    """Tensors one after the other; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dimension)


def residuals(problem: Problem, samples: torch.Tensor, device: torch.device, size: int) -> torch.Tensor:
    """`problem.residual` of each of samples (n, B, *image shape): (n, B). Where they lie elsewhere than on the device, it
    computes them there, `size` images at a time: a processor would take longer for A than a GPU for everything else."""
    problem = problem.whitened()
    if samples.device == device:
        return torch.stack([problem.residual(sample) for sample in samples])
    parts = []
    for first in range(0, samples.shape[1], size):
        chunk = samples[:, first : first + size]
        part = problem.rows(list(range(first, first + chunk.shape[1]))).to(device)
        parts.append(torch.stack([part.residual(sample.to(device)) for sample in chunk]).to(samples.device))
    return joined(parts, 1)


class Runs:
    """Runs of a solver on every image of a problem, in batches of `size`, or less where the memory does not suffice."""

    keys: Sequence[str | int]
    size: int
    prior: Prior
    problem: Problem
    seed: int
    solver: Solver

    def __init__(
        self, problem: Problem, prior: Prior, solver: Solver, seed: int, keys: Sequence[str | int], size: int
    ) -> None:
        self.problem, self.prior, self.solver, self.seed, self.keys, self.size = (
            problem, prior, solver, seed, keys, size,
        )  # fmt: skip
        images = list(range(len(keys)))
        # The average sigma_y of a batch depends on its images, where the noise depends on the brightness: those run alone.
        alone = problem.noise is not None and problem.noise.signal_dependent
        self._groups = [
            (group, problem.rows(group)) for group in ([[image] for image in images] if alone else [images])
        ]
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
        parts = [self._draw(runs, images, group, progress) for images, group in self._groups]
        self._runs += runs
        self._drawn.append(joined([samples for samples, _ in parts], 1))
        self._diagnostics.append({name: torch.cat([found[name] for _, found in parts], 1) for name in parts[0][1]})
        return joined(self._drawn)

    def residual(self, samples: torch.Tensor) -> torch.Tensor:
        """`Problem.residual` of each of samples (n, B, *image shape): (n, B)."""
        parts = [residuals(group, samples[:, images], self.prior.device, self.size) for images, group in self._groups]
        return joined(parts, 1)

    def _draw(
        self, runs: int, images: list[int], group: Problem, progress: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Samples (n, images, *image shape) and diagnostics (runs, images, moves) of `runs` more runs of these images, whose
        problem is `group`."""
        seen, shape = seen_by(self.solver, group), self.problem.image_shape
        rows = [(row, k) for k in range(self._runs, self._runs + runs) for row in range(len(images))]
        finished: list[torch.Tensor] = []
        diagnostics = Diagnostics()
        done = 0
        with progress_bar(progress, -(-len(rows) // self.size), self.solver) as advance:

            def together() -> list[tuple[int, int]]:
                return rows[done : done + self.size]

            def attempt() -> torch.Tensor:
                diagnostics.forget_batch()
                chunk = together()
                generators = [generator(self.seed, self.keys[images[row]], k) for row, k in chunk]
                return self._run(seen.rows([row for row, _ in chunk]), generators, advance, diagnostics)

            while done < len(rows):
                fits = until_it_fits(
                    attempt,
                    lambda: self._take_less(len(together())),
                    lambda: len(together()) > 1 or isinstance(self.prior, TiledPrior),
                )
                diagnostics.next_batch()
                finished.append(fits)
                done += len(fits)
        every = joined(finished)  # (runs * images, particles, *image shape)
        every = every.reshape(runs, len(images), -1, *shape).transpose(1, 2).flatten(0, 1)
        return every, diagnostics.collected(runs, len(images))

    def _run(
        self,
        part: Problem,
        generators: Sequence[torch.Generator],
        advance: Callable[[State], None],
        diagnostics: Diagnostics,
    ) -> torch.Tensor:
        """One run for each row of a problem, together: (rows, particles, *image shape)."""
        part = part.to(self.prior.device)
        particles, calls = None, 0
        for state in run(part, self.prior, self.solver, Draws(generators, part.image_shape, part.y)):
            advance(state)
            diagnostics.add(state)
            calls = state.nfe
            particles = state.x[:, None] if state.population is None else state.population
            del state  # its images would lie in memory beside the next one's
        assert particles is not None  # run yields at least once
        self._spent, self._finished = self._spent + calls * len(generators), self._finished + len(generators)
        return particles.to(self.problem.y.device)

    def _take_less(self, together: int) -> None:
        """Go on with half as many runs at once, or smaller tiles, after `together` runs ran out of memory."""
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


@contextlib.contextmanager
def progress_bar(shown: bool, batches: int, solver: Solver) -> Iterator[Callable[[State], None]]:
    """A function to call with each State, which moves a bar over the network calls of all batches; or does nothing."""
    if not shown:
        yield lambda state: None
        return
    from tqdm import tqdm

    calls = 0
    with tqdm(total=batches * solver.nfe, desc=solver.name, unit="call", leave=False) as bar:

        def advance(state: State) -> None:
            nonlocal calls
            bar.update(state.nfe - calls if state.step > 1 else state.nfe)  # each batch counts from 0
            calls = state.nfe

        yield advance
