"""What the point estimates share (`dpir`, `red_diff`): noise levels that end near the measurement's own noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from invdiff.diffusion.levels import noise_levels
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import Solver
from invdiff.specs.parameters import parameter

FIRST = 2.0
"""First level, in [0, 1] units: eight deviations of a natural image, for problems that say nothing better."""


@dataclass(frozen=True)
class PointEstimate(Solver):
    """A solver that looks for one image instead of a sample, and starts without the noise of the first level."""

    end: ClassVar[float] = 1.0
    """The last level over sigma_y."""

    sigma_max: float | None = parameter(FIRST, above=0, help="first noise level, in [0, 1] units", unit="[0,1]")
    sigma_min: float | None = parameter(
        None, above=0, help="last noise level, in [0, 1] units; default: a fixed share of sigma_y", unit="[0,1]"
    )

    def levels(self, problem: Problem, prior: Prior) -> list[float]:
        """From sigma_max to end sigma_y, if that is below; all at end sigma_y otherwise."""
        last = self.sigma_min or max(self.end * problem.sigma_y, prior.sigma_min)
        first = max(self.sigma_max or last, last)
        return noise_levels(self.steps, first, last, self.spacing, getattr(prior, "schedule", None))
