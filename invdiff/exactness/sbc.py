"""Simulation-based calibration: whether a solver samples the posterior, where the posterior is not known.

S. Talts, M. Betancourt, D. Simpson, A. Vehtari, A. Gelman, "Validating Bayesian Inference Algorithms with Simulation-Based
Calibration", 2018, https://arxiv.org/abs/1804.06788; M. Modrak et al., "Simulation-Based Calibration Checking for Bayesian
Computation: The Choice of Test Quantities Shapes Sensitivity", 2023, https://arxiv.org/abs/2211.02383.

    x ~ p(x),  y ~ p(y | x),  x_1 .. x_K ~ solver(y)        then, for any f,  rank of f(x) among f(x_k) is uniform on 0 .. K

if the solver is exact, because x itself is a sample of p(x | y). The quantities f are pixels, random projections, brightness,
contrast, total variation, and log p(y | x), which detects a solver that ignores y (samples of the prior itself have uniform
ranks in all other quantities).

For a trained prior x is drawn by a diffusion sampler: the solver is then tested against the distribution that this sampler
draws from, with its errors. Uniform ranks do not prove a solver exact; other ranks prove that it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from invdiff import samplers, solvers
from invdiff.errors import UsageError
from invdiff.machine.random import generator
from invdiff.noise import noise_model
from invdiff.operator.contract import Shape
from invdiff.operators import resolve_operator
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.problem.simulation import degrade
from invdiff.restoration.api import default_batch_size, resolve_prior, restore
from invdiff.samplers import generation
from invdiff.scores.calibration import ranks as ranks_of

LEVEL = 0.01
"""The p-value of all tests together below which a solver is called not calibrated."""
MOST_BINS, BIN_DRAWS = 20, 5
_EACH = 3  # pixels and projections

Quantity = Callable[[torch.Tensor, Problem], torch.Tensor]


@dataclass(frozen=True)
class Uniformity:
    """How uniform the ranks of one quantity are.

    ranks: one per draw, 0 .. samples; counts: of their histogram. u, between 0 and 1, is a rank with a random place inside
    its 1 / (samples + 1): uniform for an exact solver. bias: mean of u - 1/2, above 0 where the samples are too small;
    spread: 12 times the mean of (u - 1/2)^2, above 1 where the samples are too narrow (or biased), below 1 where they are too
    wide; *_error: what both deviate by for an exact solver. p_value: of the chi-square test of the counts, the
    Kolmogorov-Smirnov test of u and the test of the spread together (three times the smallest).
    """

    ranks: tuple[int, ...]
    counts: tuple[int, ...]
    bias: float
    bias_error: float
    spread: float
    spread_error: float
    chi_square: float
    chi_square_p: float
    ks: float
    ks_p: float
    p_value: float


@dataclass(frozen=True)
class Simulation:
    """The ranks of every quantity. band: what 95 % of all bins of a histogram hold for an exact solver; nfe: network calls
    for one posterior sample; about: operator, noise, solver, prior, sampler of x and seed, as plain data."""

    quantities: Mapping[str, Uniformity]
    draws: int
    samples: int
    band: tuple[int, int]
    nfe: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def p_value(self) -> float:
        """The p-value of all quantities together: the smallest times their number (Bonferroni)."""
        return min(1.0, len(self.quantities) * min(found.p_value for found in self.quantities.values()))

    @property
    def calibrated(self) -> bool:
        """Whether these draws are consistent with an exact solver."""
        return self.p_value >= LEVEL

    def record(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            **{name: getattr(self, name) for name in ("draws", "samples", "nfe", "p_value", "calibrated")},
            "band": list(self.band),
            **self.about,
            "quantities": {name: asdict(found) for name, found in self.quantities.items()},
        }

    def lines(self) -> list[str]:
        """A table for the terminal, and what it says."""
        rows = [f"{'quantity':<16} {'p-value':>8}  {'bias':>15}  {'spread, 1 if exact':>18}"]
        for name, found in self.quantities.items():
            bias = f"{found.bias:+.3f} +- {found.bias_error:.3f}"
            rows.append(
                f"{name:<16} {found.p_value:>8.2g}  {bias:>15}  {f'{found.spread:.2f} +- {found.spread_error:.2f}':>18}"
            )
        verdict = "nothing speaks against exact samples" if self.calibrated else "not the posterior"
        return [*rows, f"{self.draws} draws, {self.samples} samples each: p = {self.p_value:.2g}, {verdict}"]


def simulate(
    prior: Any,
    operator: Any,
    noise: Any,
    solver: Any = "auto",
    steps: int | None = None,
    *,
    shape: Shape | None = None,
    draws: int = 100,
    samples: int = 19,
    seed: int = 0,
    sampler: Any = None,
    sampler_steps: int | None = None,
    batch_size: int | None = None,
    advance: Callable[[], None] = lambda: None,
    **settings: Any,
) -> Simulation:
    """Draw `draws` images of the prior, measure them, restore each `samples` times, and rank each among its restorations.

    prior, operator, noise, solver, steps, settings (hyperparameters): as `invdiff.restore` takes them. shape: (C, H, W) of
    the images, needed where the prior has none of its own. sampler, sampler_steps: of
    `invdiff.samplers.generation.sample`, which draws x where the prior cannot do so directly. batch_size: samples that run
    together, default 1 on a CPU (closed-form priors: 1000). Draw i depends on (seed, i) alone. `advance` is called once for
    each draw.
    Raises UsageError for fewer than 10 draws, fewer than 2 samples, and samples that are no whole number of populations,
    where a method works with particles; else as `restore`.
    """
    if draws < 10 or samples < 2:
        raise UsageError(
            f"calibration needs at least 10 draws and 2 samples of each, got draws={draws}, samples={samples}"
        )
    noise_model(noise)  # refused before images are drawn, which may take long
    prior, operator = resolve_prior(prior), resolve_operator(operator)
    shape = tuple(getattr(prior, "shape", ()) if shape is None else shape)
    if not shape:
        raise UsageError("this prior makes images of any size; give shape=(C, H, W), such as shape=(3, 64, 64)")
    if solver != "auto":
        solver = solvers.get(solver, **settings, **({} if steps is None else {"steps": steps}))
        steps, settings = None, {}
        solvers.check(solver, operator)
        _check_population(solver.population, samples)
    size = batch_size or (1000 if prior.can_sample else default_batch_size(prior.device))
    measures, images = quantities(shape, seed), _images(prior, shape, draws, seed, size, sampler, sampler_steps)
    truths, drawn, solution = [], [], None
    for first in range(0, draws, rows := max(1, size // samples)):
        index = range(first, min(first + rows, draws))
        x, keys = images[first : index.stop], [f"sbc/{i}" for i in index]
        y = degrade(x, operator, noise, seed, keys)
        solution = restore(
            y, operator, noise, prior, solver, steps, samples, seed, batch_size=size, ids=keys, **settings
        )
        problem = Problem.from_measurement(y, operator, noise)
        truths.append(torch.stack([f(x, problem) for f in measures.values()]))
        drawn.append(torch.stack([torch.stack([f(s, problem) for f in measures.values()]) for s in solution.samples]))
        for _ in index:
            advance()
    assert solution is not None  # draws >= 10
    ranks = ranks_of(torch.cat(drawn, 2), torch.cat(truths, 1), seed).numpy()  # [quantity, draw]
    places = np.random.default_rng(seed).random(ranks.shape)
    found = {name: uniformity(row, samples, place) for name, row, place in zip(measures, ranks, places, strict=True)}
    about = {
        "operator": solution.operator,
        "noise": solution.noise,
        "solver": solution.solver,
        "prior": solution.prior,
        "sampler": "the prior's own" if prior.can_sample else str(sampler or "default"),
        "shape": list(shape),
        "seed": seed,
    }
    return Simulation(found, draws, samples, _band(draws, _bins(draws, samples)), solution.nfe, about)


def _check_population(particles: int, samples: int) -> None:
    if samples % particles:
        raise UsageError(
            f"the {particles} particles of a run are samples of the posterior only together; samples={samples} must be a "
            f"multiple of {particles}, or the solver needs other particles"
        )


def _images(
    prior: Prior, shape: Shape, count: int, seed: int, size: int, sampler: Any, steps: int | None
) -> torch.Tensor:
    """(count, *shape) images of the prior; number i is the same however many there are."""
    if prior.can_sample:
        return torch.cat([prior.sample(1, generator(seed, f"sbc/{i}/x", 0)) for i in range(count)])
    method = samplers.get(sampler, **({} if steps is None else {"steps": steps}))
    return generation.sample(prior, shape, count, method, seed=seed, batch_size=size)


def quantities(shape: Shape, seed: int = 0) -> dict[str, Quantity]:
    """Functions of images (B, *shape) and of the problem that they answer, (B,) float64 each, by name."""
    draws = generator(seed, "sbc/quantities", 0)
    size = math.prod(shape)
    places = torch.randperm(size, generator=draws)[:_EACH].tolist()
    directions = torch.randn(_EACH, size, generator=draws, dtype=torch.float64)
    found: dict[str, Quantity] = {
        "brightness": lambda x, _: x.double().flatten(1).mean(1),
        "contrast": lambda x, _: x.double().flatten(1).var(1, correction=0),
        "total variation": lambda x, _: _total_variation(x.double()),
        "log likelihood": lambda x, problem: problem.log_likelihood(x).double(),
    }
    for k, place in enumerate(places, start=1):
        found[f"pixel {k}"] = lambda x, _, place=place: x.double().flatten(1)[:, place]  # type: ignore[misc]
    for k, direction in enumerate(directions, start=1):
        found[f"projection {k}"] = lambda x, _, v=direction: x.double().flatten(1) @ v.to(x.device)  # type: ignore[misc]
    return found


def _total_variation(x: torch.Tensor) -> torch.Tensor:
    return x.diff(dim=-1).abs().flatten(1).sum(1) + x.diff(dim=-2).abs().flatten(1).sum(1)


def uniformity(ranks: np.ndarray, samples: int, places: np.ndarray) -> Uniformity:
    """From the ranks (draws,) of one quantity, 0 .. samples; places (draws,), uniform on [0, 1): where in its rank u lies."""
    from scipy import stats

    draws = len(ranks)
    u = (ranks + places) / (samples + 1)
    counts, _ = np.histogram(u, _bins(draws, samples), (0, 1))
    chi_square, ks = stats.chisquare(counts), stats.kstest(u, "uniform")
    # for uniform u: Var[u] = 1/12, E[(u - 1/2)^2] = 1/12, Var[(u - 1/2)^2] = 1/180
    spread, spread_error = 12 * float(np.mean((u - 0.5) ** 2)), 12 / math.sqrt(180 * draws)
    spread_p = 2 * stats.norm.sf(abs(spread - 1) / spread_error)
    return Uniformity(
        tuple(ranks.tolist()),
        tuple(counts.tolist()),
        float(u.mean() - 0.5),
        1 / math.sqrt(12 * draws),
        spread,
        spread_error,
        float(chi_square.statistic),
        float(chi_square.pvalue),
        float(ks.statistic),
        float(ks.pvalue),
        min(1.0, 3 * float(min(chi_square.pvalue, ks.pvalue, spread_p))),
    )


def _bins(draws: int, samples: int) -> int:
    """The number of bins: five draws in each on average, for the chi-square distribution to be a good approximation."""
    return min(MOST_BINS, samples + 1, draws // BIN_DRAWS)


def _band(draws: int, bins: int) -> tuple[int, int]:
    from scipy import stats

    low, high = stats.binom.interval(0.95, draws, 1 / bins)
    return int(low), int(high)
