"""The contract of a solver: a correction (what the measurement says about x_0) and a transition (how to move on).

All solvers work in one noise coordinate, x = x_0 + sigma n, in [0, 1] units, and share what no paper agrees on: the levels
are spread evenly in log sigma and start at the prior's sigma_start, where the measurement's own estimate plus noise takes
the place of pure noise (`Solver.levels`, `Solver.start`). `spacing=timestep,sigma_max=78` is a DDPM's own grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.errors import UsageError
from invdiff.operator import Operator
from invdiff.parameters import Method, parameter, whole
from invdiff.priors.base import Prior
from invdiff.problem import Problem
from invdiff.sampling import SPACINGS, Noise, noise_levels


@dataclass(frozen=True, eq=False)
class Estimate:
    """clean: E[x_0 | x]; estimate: E[x_0 | x, y] as the method sees it; shift: added after the transition, if any."""

    clean: torch.Tensor
    estimate: torch.Tensor
    shift: torch.Tensor | None = None


Correction = Callable[[torch.Tensor, float, float], Estimate]
Transition = Callable[[torch.Tensor, Estimate, float, float, Noise], torch.Tensor]


@dataclass(frozen=True)
class Solver(Method):
    """Hyperparameters of a method. Subclasses add theirs and write `correction` and `transition`."""

    name: ClassVar[str] = "solver"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    """What the operator must offer: "linear", "svd", "differentiable"."""

    steps: int = parameter(20, kind=whole, low=1, help="number of noise levels, one network call each", unit="calls")
    sigma_max: float | None = parameter(
        None, above=0, help="first noise level, in [0, 1] units; default: the prior's sigma_start", unit="[0,1]"
    )
    sigma_min: float | None = parameter(
        None, above=0, help="last noise level, in [0, 1] units; default: the smallest the prior knows", unit="[0,1]"
    )
    spacing: str = parameter("log", kind=str, choices=SPACINGS, help="how the noise levels are spread")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_max is not None and self.sigma_min is not None and self.sigma_min > self.sigma_max:
            raise UsageError(f"{self.name}: sigma_min={self.sigma_min} is above sigma_max={self.sigma_max}")

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        """The function (x, sigma, next_sigma) -> Estimate for this problem; prepares what does not change in the loop."""
        raise NotImplementedError

    def transition(self, problem: Problem) -> Transition:
        """The function (x, estimate, sigma, next_sigma, noise) -> x at next_sigma."""
        raise NotImplementedError

    def levels(self, problem: Problem, prior: Prior) -> list[float]:
        """The noise levels to visit, decreasing, without the final zero."""
        first = self.sigma_max or prior.sigma_start or prior.sigma_max
        if self.sigma_min is not None and self.sigma_min > first:
            raise UsageError(f"{self.name}: sigma_min={self.sigma_min:g} is above the first level, {first:g}; lower it")
        return noise_levels(
            self.steps,
            first,
            min(self.sigma_min or prior.sigma_min, first),
            self.spacing,
            getattr(prior, "schedule", None),
        )

    def start(self, problem: Problem, sigma: float, z: torch.Tensor) -> torch.Tensor:
        """x at the first level: sigma z around what the measurement says of an image of mean and deviation 1/2,
        argmin ||A x - y||^2 / sigma_y^2 + ||x - 1/2||^2 / (1/2)^2 (mid-grey, if A is not linear)."""
        middle = torch.full_like(z, 0.5)
        if problem.operator.linear:
            middle = problem.operator.prox_l2(middle, problem.y, (0.5 / problem.sigma_y) ** 2)
        return middle + sigma * z

    def missing(self, operator: Operator) -> list[str]:
        """The needs that an operator does not meet."""
        offers = {"linear": operator.linear, "svd": operator.has_svd, "differentiable": operator.differentiable}
        return sorted(need for need in self.needs if not offers[need])

    def check(self, operator: Operator) -> None:
        """Raise UsageError, naming the solvers that would work, if this one cannot use the operator."""
        missing = self.missing(operator)
        if missing:
            from invdiff import solvers

            able = [name for name in solvers.names() if not solvers.get(name).missing(operator)]
            words = {
                "linear": "a linear operator",
                "svd": "a singular value decomposition",
                "differentiable": "a differentiable operator",
            }
            raise UsageError(
                f"{self.name} needs {' and '.join(words[m] for m in missing)}, which {operator} does not offer; "
                f"solvers that work: {', '.join(able) or 'none'}"
            )


def denoise_with_vjp(
    prior: Prior, x: torch.Tensor, sigma: float
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """(D(x), v -> J(x)^T v) with J the Jacobian of D(., sigma) at x: one network call, one backward pass to x alone."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        clean = prior.denoise(leaf, sigma)

    def pull_back(v: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(clean, leaf, v)[0]

    return clean.detach(), pull_back


def root_abar(sigma: float) -> float:
    """sqrt(abar) of DDPM at the level sigma on [0, 1], which is 2 sigma on [-1, 1]: for papers that scale x by it."""
    return float(1 / (1 + (2 * sigma) ** 2) ** 0.5)


def spectral_measurement(problem: Problem, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y_bar, tau, measured) in the singular coordinates of A: y_bar = U^T y / s, its noise tau = sigma_y / s, and where
    s > 0. Elsewhere y_bar is 0 and tau is 1. In the dtype and on the device of `like`."""
    svd = problem.operator.svd(problem.image_shape)
    inverse = svd.inverse_singular_values.to(like)
    measured = inverse > 0
    tau = torch.where(measured, problem.sigma_y * inverse, torch.ones_like(inverse))
    return svd.U_adjoint(problem.y) * inverse, tau, measured
