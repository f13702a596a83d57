"""How fast a prior's network is on this machine, and what a solver adds to it.

All times are medians of runs that alternate, so that what else the machine does disturbs the ratios little.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from invdiff.machine.memory import peak_memory
from invdiff.machine.random import generator
from invdiff.priors.gpu.cuda_network import WORTH
from invdiff.priors.network import NetworkPrior
from invdiff.priors.prior import Prior, Sigma, WrappedPrior
from invdiff.problem.simulation import degrade
from invdiff.restoration.api import restore
from invdiff.solvers.solver import Solver

Size = tuple[int, int]
"""Height and width in pixels."""


def alternate(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function, called in turn `repeats` times, after `warm` turns that are not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + warm):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= warm:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def warm_up(device: torch.device) -> int:
    """How many calls of a network bring it to its full speed: on a GPU, those before its CUDA graph is made."""
    return WORTH + 2 if device.type == "cuda" else 1


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios turn by turn, which other load on the machine disturbs less than the ratio of medians."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@dataclass(frozen=True)
class CallTime:
    """One call of the network. seconds, speedup: by the precision's name; memory: `peak_memory`, in MB."""

    size: Size
    batch: int
    seconds: dict[str, float]
    speedup: dict[str, float]
    memory: float


def time_calls(
    priors: Mapping[str, NetworkPrior], sizes: Sequence[Size], batches: Sequence[int], repeats: int
) -> Iterator[CallTime]:
    """Time the same call of a network in several variants, such as precisions, by name; `speedup` is over the first one."""
    first = next(iter(priors))
    for height, width in sorted(sizes, key=lambda size: size[0] * size[1]):
        for batch in sorted(batches):
            prior = priors[first]
            x = torch.rand(batch, prior.channels, height, width, generator=generator(0, "speed", 0)).to(prior.device)
            if prior.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(prior.device)
            with torch.no_grad():
                calls = {name: partial(prior.denoise, x, 0.1) for name, prior in priors.items()}
                seconds = alternate(calls, repeats, prior.device, warm_up(prior.device))
            yield CallTime(
                (height, width),
                batch,
                {name: statistics.median(values) for name, values in seconds.items()},
                {name: median_ratio(seconds[first], values) for name, values in seconds.items()},
                peak_memory(prior.device),
            )


@dataclass
class Call:
    """One call of a network: the number of images, whether gradients were kept, and the backward passes through it."""

    images: int
    gradient: bool
    backwards: int = 0


class Recorder(WrappedPrior):
    """A prior that records how it is called."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        self.calls: list[Call] = []

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        clean = self.prior.denoise(x, sigma)
        call = Call(len(x), clean.requires_grad)
        self.calls.append(call)
        if clean.requires_grad:
            clean.register_hook(lambda _: setattr(call, "backwards", call.backwards + 1))
        return clean


def replay(prior: NetworkPrior, shape: Sequence[int], calls: Sequence[Call]) -> None:
    """The same calls of the bare network, each with its backward passes to the input, and nothing else."""
    channels, *sides = shape
    padded = (channels, *(side + -side % prior.multiple for side in sides))
    for call in calls:
        x = torch.zeros(call.images, *padded, device=prior.device, requires_grad=call.gradient)
        t = torch.full((call.images,), 50.0, device=prior.device)
        with torch.set_grad_enabled(call.gradient):
            output = prior.call_network(x, t)
            for k in range(call.backwards):
                torch.autograd.grad(output, x, output.detach(), retain_graph=k < call.backwards - 1)


@dataclass(frozen=True)
class SolverTime:
    """A restoration. seconds: for one image; bare: for its network calls alone; ratio: median of their quotient over the
    turns; calls, backwards: forward and backward passes for one image; memory: `peak_memory`, in MB."""

    solver: str
    operator: str
    size: Size
    calls: int
    backwards: int
    seconds: float
    bare: float
    ratio: float
    memory: float


def time_solver(
    prior: NetworkPrior, solver: Solver | str, operator: str, size: Size, batch: int, steps: int | None, repeats: int
) -> SolverTime:
    """Time `restore` from start to end, in turns with the same calls of the bare network."""
    shape = (prior.channels, *size)
    x = torch.rand(batch, *shape, generator=generator(0, "speed", 0))
    y = degrade(x, operator, noise=0.05)
    recorder = Recorder(prior)

    def solve(prior: Prior) -> dict[str, object]:
        return restore(y, operator, 0.05, prior, solver, steps, batch_size=batch).solver

    name = str(solve(recorder)["name"])
    if prior.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(prior.device)
    turns = {"solver": lambda: solve(prior), "bare": lambda: replay(prior, shape, recorder.calls)}
    seconds = alternate(turns, repeats, prior.device)
    return SolverTime(
        name,
        operator,
        size,
        sum(call.images for call in recorder.calls) // batch,
        sum(call.backwards * call.images for call in recorder.calls) // batch,
        statistics.median(seconds["solver"]) / batch,
        statistics.median(seconds["bare"]) / batch,
        median_ratio(seconds["solver"], seconds["bare"]),
        peak_memory(prior.device),
    )


@dataclass(frozen=True)
class CompileTime:
    """What `torch.compile` costs and gains. seconds: of the first call, which compiles; eager, compiled: of a call."""

    size: Size
    seconds: float
    eager: float
    compiled: float

    @property
    def pays_after(self) -> int | None:
        """The number of calls after which compiling has paid for itself; None: never."""
        saved = self.eager - self.compiled
        return math.ceil(self.seconds / saved) if saved > 0 else None


def time_compilation(eager: NetworkPrior, compiled: NetworkPrior, size: Size, repeats: int) -> CompileTime:
    """Time one call of each in turn, batch 1, after the compilation."""
    started = time.perf_counter()
    with torch.no_grad():
        compiled.denoise(torch.zeros(1, eager.channels, *size, device=eager.device), 0.1)
    seconds = time.perf_counter() - started
    (row,) = time_calls({"eager": eager, "compiled": compiled}, [size], [1], repeats)
    return CompileTime(size, seconds, **row.seconds)
