"""Which solver for which problem: what was measured, not what was guessed.

`recommendations.json` holds the scores of every solver on photographs for each family of operators, noise level and number of
network calls. `benchmarks/recommend.py` makes it, on photographs held back from the training of the shipped prior, and
`benchmarks/nonlinear.py` what concerns operators that are not linear. Three aims:

    psnr      the largest gain in PSNR of the mean over a few samples: the estimate of least squared error
    single    the largest gain in PSNR of one sample: an estimate at the cost of one run
    sample    the least CRPS of several samples: the most truthful spread (`invdiff.scores.metrics.crps`)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from invdiff import solvers
from invdiff.errors import UsageError, unknown
from invdiff.operator.contract import Operator, Shape
from invdiff.solvers.first_level import SMALLEST, hidden
from invdiff.solvers.solver import Solver

AIMS = ("psnr", "single", "sample")
OTHER, CURVED = "other", "nonlinear"
PIXELWISE = ("colour", "mixing")
HOLES = "holes"
HOLE = 2.0
"""`first_level.hidden` at almost no noise from which on inpainting has to fill holes: 2 where a square of 8 x 8 pixels is
lost as a whole, as in every hole of 15 x 15."""
NONLINEAR = ("tone", "saturation", "compression", "phase")


@dataclass(frozen=True)
class Score:
    """One line of the table: a solver's spec on a family of operators at a noise level (sigma_y in [0, 1] units) with a
    budget of network calls for one sample. gain: of PSNR over the measurement, by the mean of the samples, dB; single: by
    one sample; crps: [0, 1] units; calls: used, at most budget.

    For operators that are not linear (`benchmarks/nonlinear.py`) single is the gain over the first guess, and only that was
    measured: gain and crps are None."""

    family: str
    noise: float
    budget: int
    solver: str
    calls: int
    gain: float | None
    single: float
    crps: float | None

    def rank(self, aim: str) -> float:
        """Higher is better. One sample stands for a mean that was not measured; nothing does for a CRPS: minus infinity."""
        mean = self.single if self.gain is None else self.gain
        return {"psnr": mean, "single": self.single, "sample": -math.inf if self.crps is None else -self.crps}[aim]


@cache
def scores() -> tuple[Score, ...]:
    """All rows of `recommendations.json`."""
    text = files("invdiff.restoration").joinpath("recommendations.json").read_text()
    return tuple(Score(**line) for line in json.loads(text)["scores"])


def family(operator: Operator, image_shape: Shape) -> str:
    """The family of operators that this one is measured with: its own `family`, but "denoising" if A is an orthogonal map
    times a number, so that every direction is measured with the same noise, and "holes" where inpainting has to fill squares
    rather than pixels among others. image_shape: (C, H, W) of x."""
    if operator.linear and operator.has_svd and operator.measured_count(image_shape) == math.prod(image_shape):
        s = operator.svd(image_shape).singular_values
        if float(s.min()) > 0.999 * float(s.max()):
            return "denoising"
    if operator.linear:
        return HOLES if operator.family == "inpainting" and _has_holes(operator, image_shape) else operator.family
    return operator.family if operator.family in NONLINEAR else CURVED


def _has_holes(operator: Operator, image_shape: Shape) -> bool:
    def find() -> bool:
        image = len(image_shape) == 3 and min(image_shape[1:]) >= SMALLEST
        return image and hidden(operator, image_shape, 1e-3, torch.zeros(1)) >= HOLE

    found: bool = operator.cached(("holes", tuple(image_shape)), find)
    return found


def recommend(
    operator: Operator, image_shape: Shape, noise: float, budget: int = 20, aim: str = "psnr"
) -> list[tuple[Score, Solver]]:
    """The solvers that can use the operator, best first, each with its score and ready to run as it was measured, with at
    most `budget` network passes for one sample: calls, and backward passes, which take as long or longer.

    The scores are those of the nearest noise level that was measured (in ratio), and each solver's best among the runs
    that the budget pays for: more calls are not always better, and a run may take fewer than it is allowed. Where it pays
    for none that was measured, the shortest are cut. An operator of no measured family gets the mean over all.
    Empty if nothing was measured that the operator allows.
    Raises UsageError for an unknown aim, and a budget or noise that is not positive.
    """
    if aim not in AIMS:
        raise unknown("aim", aim, AIMS)
    if budget < 1:
        raise UsageError(f"budget must be at least one network call, got {budget}")
    if not noise > 0:
        raise UsageError(f"noise must be more than 0, got {noise}")
    kind = family(operator, image_shape)
    table = [score for score in scores() if score.family == kind] or _averaged(kind)
    runs = [(score, within(score.solver, score.budget)) for score in _nearest(table, noise)]
    able = [(s, run) for s, run in runs if run and not run.unmet(operator) and s.rank(aim) > -math.inf]
    paid = [(score, run) for score, run in able if run.passes <= budget] or _cut(able, budget)
    best: dict[str, tuple[Score, Solver]] = {}
    for score, run in sorted(paid, key=lambda one: -one[0].rank(aim)):
        best.setdefault(score.solver, (score, run))
    return list(best.values())


def _cut(runs: Iterable[tuple[Score, Solver]], budget: int) -> list[tuple[Score, Solver]]:
    """The scores measured with the smallest budget, each with as many fewer steps as the budget asked for pays."""
    runs = list(runs)
    least = min((score.budget for score, _ in runs), default=0)
    cut = [(score, within(score.solver, budget, passes=True)) for score, _ in runs if score.budget == least]
    return [(score, run) for score, run in cut if run is not None]


def within(spec: str | Solver, budget: int, *, passes: bool = False) -> Solver | None:
    """The solver with as many steps as `budget` network calls pay for, or with `passes` calls and backward passes; None if
    they do not pay for one."""

    def cost(steps: int) -> int:
        solver = solvers.get(spec, steps=steps)
        return solver.passes if passes else solver.nfe

    if cost(1) > budget:
        return None
    low, high = 1, budget
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle - 1)
    return solvers.get(spec, steps=low)


def _nearest(table: Iterable[Score], noise: float) -> list[Score]:
    table = list(table)
    level = min({score.noise for score in table}, key=lambda value: abs(math.log(value / noise)), default=0.0)
    return [score for score in table if score.noise == level]


def _averaged(kind: str) -> list[Score]:
    """For an operator of no measured family: the mean over the families, of the solvers measured in all of them; over those
    that are not linear for one that is not.

    Those that mix channels, pixel by pixel, and holes are left out: what is open there says nothing of the others."""
    kin = [s for s in scores() if (s.family in NONLINEAR) == (kind == CURVED) and s.family not in (*PIXELWISE, HOLES)]
    cells: dict[tuple[float, int, str], list[Score]] = {}
    for score in kin:
        cells.setdefault((score.noise, score.budget, score.solver), []).append(score)
    most = max(map(len, cells.values()), default=0)

    def mean(name: str, lines: Iterable[Score]) -> Any:
        values = [getattr(line, name) for line in lines]
        return None if None in values else sum(values) / most

    return [
        Score(
            CURVED if kind == CURVED else OTHER, noise, budget, solver, lines[0].calls,
            mean("gain", lines), mean("single", lines), mean("crps", lines),
        )
        for (noise, budget, solver), lines in cells.items()
        if len(lines) == most
    ]  # fmt: skip
