"""The runs of a solver on every image of a problem, in batches, with fewer at once where the memory runs out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from invdiff.errors import InputWarning
from invdiff.machine.memory import is_out_of_memory
from invdiff.machine.random import Draws, generator
from invdiff.priors.prior import Prior
from invdiff.priors.tiled import TiledPrior, at_once
from invdiff.problem import Problem
from invdiff.restoration.loop import State, run
from invdiff.solvers.solver import Solver


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
        for state in run(part, self.prior, self.solver, Draws(generators, self.problem.image_shape, part.y)):
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
