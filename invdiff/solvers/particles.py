"""Sequential Monte Carlo: what the particle methods share.

N particles x^1 .. x^N with log weights walk down the noise levels together. At each level the method looks at every particle
(its network call), which gives a factor for its weight; where the effective sample size

    ESS = (sum_i w_i)^2 / sum_i w_i^2

has fallen below `threshold` N the particles are resampled, and then every particle moves on. A method is a `Filter`: what
its weights and its moves are. Resampling is systematic (Douc, Cappe, Moulines 2005, https://arxiv.org/abs/cs/0507025,
section 2.4): one uniform number u for each population, and particle i is copied as often as a point of (u + 0 .. N-1) / N
falls into its share of the unit interval. Every row of a batch has its own population, weights, u and decision.

At the end the population is resampled once more, so that its particles are equally weighted samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import psutil
import torch

from invdiff.errors import UsageError
from invdiff.machine.random import Draws
from invdiff.operator.contract import Shape
from invdiff.operator.linalg import over
from invdiff.operator.weighted import for_rows
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import Move, Solver
from invdiff.specs.parameters import parameter, whole

# Numbers in the images of one network call, unless `chunk` says otherwise: 21 colour images of 64 x 64 pixels. A network
# with a backward pass holds some thousand activations for each.
CHUNK_VALUES = 2**18
# Images of the population that are alive at once: x, D(x), the shift, the noise and the results of arithmetic on them.
COPIES = 6


@dataclass(frozen=True, eq=False)
class View:
    """What a filter sees of particles at a level; rows are particles, (R, ...).

    x, clean, estimate: the particles, D(x), and the method's E[x_0 | x, y]; log_weight: (R,), float64, what the look adds
    to the log weight; more: what the move will need.
    """

    x: torch.Tensor
    clean: torch.Tensor
    estimate: torch.Tensor
    log_weight: torch.Tensor
    more: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[View]) -> View:
        return cls(
            torch.cat([part.x for part in parts]),
            torch.cat([part.clean for part in parts]),
            torch.cat([part.estimate for part in parts]),
            torch.cat([part.log_weight for part in parts]),
            {name: torch.cat([part.more[name] for part in parts]) for name in parts[0].more},
        )

    def take(self, index: torch.Tensor) -> View:
        more = {name: values[index] for name, values in self.more.items()}
        return View(self.x[index], self.clean[index], self.estimate[index], self.log_weight[index], more)


class ParticleNoise:
    """The random numbers of a population: N of each kind for every row, flattened to (B N, ...)."""

    noise: Draws
    particles: int
    shape: tuple[int, ...]

    def __init__(self, noise: Draws, particles: int, shape: Shape) -> None:
        self.noise, self.particles, self.shape = noise, particles, tuple(shape)

    def __call__(self) -> torch.Tensor:
        """(B N, *image shape) of independent N(0, 1)."""
        return self.normal(*self.shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """(B N, *shape) of independent N(0, 1)."""
        return self.noise.normal(self.particles, *shape).flatten(0, 1)


class Filter:
    """A method's weights and moves for one problem whose rows are particles: y (R, ...), images (R, *image shape)."""

    pinned = False
    """Whether the start `measurement` already stands for the first level's target, so that the first look weighs nothing."""

    def start(
        self, centre: torch.Tensor, variance: float, sigma: float, draws: ParticleNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Particles at the first level from N(centre, variance I), and their log weights (R,)."""
        z = draws()
        return centre + variance**0.5 * z, torch.zeros(len(z), dtype=torch.float64, device=z.device)

    def look(self, x: torch.Tensor, sigma: float, next_sigma: float, rows: slice) -> View:
        """One network call for the particles x, which are these rows of the problem."""
        raise NotImplementedError

    def move(
        self, view: View, sigma: float, next_sigma: float, draws: ParticleNoise
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The particles at next_sigma, and what the move adds to their log weights (R,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ParticleSolver(Solver):
    """A solver that is a population of particles. Subclasses write `filter`."""

    particles: int = parameter(16, kind=whole, low=1, help="number of particles N; each pays for its own network calls")
    threshold: float = parameter(
        0.5, low=0, high=1, help="resample where the effective sample size is below this share of N; 1: at every level"
    )
    chunk: int | None = parameter(
        None, kind=whole, low=1, help="particles for one network call, which bounds the memory; default: by their size"
    )

    def filter(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Filter:
        """The method for a problem (B rows, one for each population)."""
        raise NotImplementedError

    @property
    def population(self) -> int:
        return self.particles

    @property
    def nfe(self) -> int:
        return self.steps * self.particles

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        self.check_memory(problem)
        count, shape = len(problem.y), problem.image_shape
        draws = ParticleNoise(noise, self.particles, shape)
        method = self.filter(problem, prior, levels, noise)
        x, log_w = method.start(*self._centres(problem, prior, levels[0], noise), levels[0], draws)
        unweighted = method.pinned and self.initial == "measurement"
        for sigma, next_sigma in itertools.pairwise([*levels, 0.0]):
            view = self._look(method, x, sigma, next_sigma)
            log_w = torch.zeros_like(log_w) if unweighted else log_w + view.log_weight
            unweighted = False
            table = log_w.unflatten(0, (count, -1))
            ess = effective_size(table)
            low = (
                ess < self.threshold * self.particles if self.threshold < 1 else torch.ones_like(ess, dtype=torch.bool)
            )
            index = torch.where(low[:, None], systematic(table, noise.uniform(1)), _identity(table))
            view = view.take(_flat(index))
            log_w = torch.where(low[:, None], 0.0, table).flatten()
            x, gained = method.move(view, sigma, next_sigma, draws)
            log_w = log_w + gained
            population = None
            if next_sigma == 0:
                table = log_w.unflatten(0, (count, -1))
                ess = torch.minimum(ess, effective_size(table))
                x = x[_flat(systematic(table, noise.uniform(1)))]
                population = x.unflatten(0, (count, -1))
            clean, estimate, first = (part.unflatten(0, (count, -1))[:, 0] for part in (view.clean, view.estimate, x))
            # A weight that left the finite numbers must not hide behind a finite first particle: 0 * NaN is NaN.
            first = first + over(0 * log_w.unflatten(0, (count, -1)).sum(1), first).to(first)
            yield Move(sigma, next_sigma, clean, estimate, first, population, {"ess": ess})

    def _look(self, method: Filter, x: torch.Tensor, sigma: float, next_sigma: float) -> View:
        """The look at all particles, a chunk for each network call."""
        size = self.chunk or max(1, CHUNK_VALUES // math.prod(x.shape[1:]))
        starts = range(0, len(x), size)
        rows = [slice(first, min(first + size, len(x))) for first in starts]
        return View.joined([method.look(x[part], sigma, next_sigma, part) for part in rows])

    def _centres(self, problem: Problem, prior: Prior, sigma: float, noise: Draws) -> tuple[torch.Tensor, float]:
        """The centres (B N, *image shape) and the variance of the first level's law, as `initial` says (`Solver.start`)."""
        if self.initial == "prior":
            return self.draw_prior(prior, noise, self.particles).to(problem.y), sigma**2
        centres = self.middle(problem).repeat_interleave(self.particles, 0)
        return centres, sigma**2 + (0.25 if self.initial == "noise" else 0.0)

    def check_memory(self, problem: Problem) -> None:
        """Raise UsageError, saying how many would fit, if the particles do not fit into the free memory."""
        device = problem.y.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        one = COPIES * len(problem.y) * math.prod(problem.image_shape) * problem.y.element_size()
        if self.particles * one > free:
            raise UsageError(
                f"{self.name}: {self.particles} particles of {'x'.join(map(str, problem.image_shape))} values need about "
                f"{self.particles * one / 2**30:.1f} GiB for {len(problem.y)} image(s) at a time, and {free / 2**30:.1f} GiB "
                f"are free; particles={max(1, free // one)} would fit, or more with a smaller batch_size"
            )


def expanded(problem: Problem, particles: int) -> Problem:
    """The problem with each row repeated for its particles, (B N, ...), in the operator too if it has some."""
    rows = torch.arange(len(problem.y)).repeat_interleave(particles)
    return replace(problem, operator=for_rows(problem.operator, rows), y=problem.y[rows], truth=None)


def effective_size(log_weights: torch.Tensor) -> torch.Tensor:
    """(sum w)^2 / sum w^2 of each row of log weights (B, N): (B,), from 1 to N."""
    return (2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1)).exp()


def systematic(log_weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Which particle takes each place, (B, N), for log weights (B, N) and u (B, 1) in [0, 1)."""
    count = log_weights.shape[1]
    share = log_weights.double().softmax(1).cumsum(1)
    points = (u.double() + torch.arange(count, device=share.device)) / count
    return torch.searchsorted(share / share[:, -1:], points, right=True).clamp(max=count - 1)


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of each row in float64, (R,): log weights are differences of large numbers."""
    return (a.double() * b.double()).flatten(1).sum(1)


def _identity(table: torch.Tensor) -> torch.Tensor:
    return torch.arange(table.shape[1], device=table.device).expand_as(table)


def _flat(index: torch.Tensor) -> torch.Tensor:
    """Places within each row (B, N) as places within the flattened population (B N,)."""
    first = torch.arange(len(index), device=index.device)[:, None] * index.shape[1]
    return (index + first).flatten()
