"""Measures of samples of a known posterior, and what exact samples score.

Nothing here assumes a distribution of the measures. As many exact samples as the solver drew are measured REPEATS times; the
mean of those scores is the sampling floor, their standard deviation the standard error. A solver is `exact` on a problem if
each of its scores lies within LIMIT standard errors of the floor, so that its samples cannot be told from exact, independent
ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from invdiff.exactness.problems import ExactProblem
from invdiff.machine.random import generator

LIMIT = 5.0
REPEATS = 24
LEVEL = 0.9
SLICES = 100
# The least standard error: a smaller difference is rounding, even where exact samples agree in all digits.
_ROUNDING = 1e-9

MEASURES: dict[str, str] = {
    "mean": "error of the mean: root mean square over the coordinates, in posterior standard deviations",
    "measured": "variance of the samples over the exact variance, in the directions that y tells more of than the prior",
    "unmeasured": "the same in all other directions",
    "covariance": "error of the covariance: Frobenius norm of the difference over that of the exact one",
    "wasserstein": f"sliced Wasserstein-1 distance to exact samples, mean of {SLICES} directions",
    "coverage": f"share of the exact posterior inside the samples' central {LEVEL:.0%} intervals, mean over the coordinates",
}
"""Name -> what it is. Of an exact sampler: 0, 1, 1, 0, 0 and 0.9, but for the sampling floor."""
TWO_SIDED = ("measured", "unmeasured", "coverage")


@dataclass(frozen=True)
class Score:
    """A measure, averaged over the problems of a case. floor, error: mean and standard deviation of exact samples' scores."""

    value: float
    floor: float
    error: float
    two_sided: bool = False

    @property
    def deviation(self) -> float:
        """The distance of the value from the floor in standard errors; only measures of `TWO_SIDED` can be too small."""
        if not math.isfinite(self.value):
            return math.inf
        off = self.value - self.floor
        return (abs(off) if self.two_sided else max(0.0, off)) / max(self.error, _ROUNDING)

    @property
    def exact(self) -> bool:
        return self.deviation <= LIMIT


def average(parts: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """The mean over several problems of each measure that all of them have."""
    shared = [name for name in MEASURES if all(name in part for part in parts)]
    found = {}
    for name in shared:
        scores = [part[name] for part in parts]
        error = math.sqrt(sum(score.error**2 for score in scores)) / len(scores)
        mean = [sum(getattr(score, key) for score in scores) / len(scores) for key in ("value", "floor")]
        found[name] = Score(mean[0], mean[1], error, name in TWO_SIDED)
    return found


class Yardstick:
    """The measures for one problem and a number of samples, with the scores of exact samples.

    problem: its posterior is the truth. count: how many samples are compared. seed: of the exact samples.
    """

    count: int
    problem: ExactProblem
    seed: int
    slices: torch.Tensor

    def __init__(self, problem: ExactProblem, count: int, seed: int, repeats: int = REPEATS) -> None:
        posterior = problem.posterior
        self.problem, self.count, self.seed = problem, count, seed
        self.mean: torch.Tensor = posterior.mean().flatten()
        self.covariance: torch.Tensor = posterior.covariance()
        self.std: torch.Tensor = self.covariance.diagonal().sqrt()
        self.directions: dict[str, torch.Tensor] = problem.directions()
        self.slices = torch.randn(problem.size, SLICES, generator=self._generator("slices"), dtype=torch.float64)
        self.reference: torch.Tensor = self.exact("reference")
        null = [self.values(self.exact(f"floor {k}")) for k in range(repeats)]
        self.floor: dict[str, float] = {name: sum(scores[name] for scores in null) / repeats for name in null[0]}
        self.error: dict[str, float] = {
            name: math.sqrt(sum((scores[name] - self.floor[name]) ** 2 for scores in null) / (repeats - 1))
            for name in null[0]
        }

    def _generator(self, purpose: str) -> torch.Generator:
        return generator(self.seed, f"validate/{self.problem.name}/{purpose}", 0)

    def exact(self, purpose: str) -> torch.Tensor:
        """(count, n) exact samples; `purpose` names their random numbers."""
        return self.problem.posterior.sample(self.count, self._generator(purpose)).flatten(1)

    def values(self, samples: torch.Tensor) -> dict[str, float]:
        """Every measure of samples (count, n), float64."""
        centred = samples - samples.mean(0)
        covariance = centred.mT @ centred / (len(samples) - 1)
        found = {"mean": float(((samples.mean(0) - self.mean) / self.std).square().mean().sqrt())}
        for name, basis in self.directions.items():
            if basis.shape[1]:
                # tr(V^T S V) / tr(V^T C V)
                found[name] = float((basis * (covariance @ basis)).sum() / (basis * (self.covariance @ basis)).sum())
        found["covariance"] = float((covariance - self.covariance).norm() / self.covariance.norm())
        found["wasserstein"] = self.problem.unit * sliced_wasserstein(self.reference, samples, self.slices)
        tail = (1 - LEVEL) / 2
        low, high = torch.quantile(samples, torch.tensor([tail, 1 - tail], dtype=samples.dtype), dim=0)
        found["coverage"] = float(((self.reference >= low) & (self.reference <= high)).double().mean())
        return found

    def scores(self, samples: torch.Tensor) -> dict[str, Score]:
        """The measures of samples (count, *shape) beside those of exact samples."""
        values = self.values(samples.reshape(len(samples), -1).double())
        return {name: Score(values[name], self.floor[name], self.error[name], name in TWO_SIDED) for name in values}


def sliced_wasserstein(a: torch.Tensor, b: torch.Tensor, directions: torch.Tensor) -> float:
    """Mean over directions (d, S), of any length, of the Wasserstein-1 distance of samples a, b (count, d)."""
    directions = directions / directions.norm(dim=0)
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


def verdict(scores: Mapping[str, Score]) -> str:
    """ "exact", or the measure that lies the most standard errors off, with its value."""
    worst = max(scores, key=lambda name: scores[name].deviation)
    return "exact" if scores[worst].exact else f"{worst} {significant(scores[worst].value)}"


def significant(value: float) -> str:
    """A number with three significant digits and at most four decimals: 0.0123, 1.04, 12.3, 1234; 2e-06 if it is smaller."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    size = abs(value)
    if size >= 1e5 or size < 5e-5:
        return f"{value:.0e}"
    digits = 4 if size < 0.1 else 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:.{digits}f}"
