"""The contract of a solver: a correction (what the measurement says about x_0) and a transition (how to move on).

All solvers work in one noise coordinate, x = x_0 + sigma n, in [0, 1] units, and share what no paper agrees on: the levels
are spread evenly in log sigma and start at the prior's sigma_start, where the measurement's own estimate plus noise takes
the place of pure noise (`Solver.levels`, `Solver.start`). `spacing=timestep,sigma_max=78` is a DDPM's own grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from invdiff.diffusion.levels import SPACINGS, noise_levels
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import UsageError
from invdiff.machine.random import Draws
from invdiff.operator.contract import Operator
from invdiff.priors.prior import Prior, Sigma, WrappedPrior
from invdiff.problem.problem import Problem
from invdiff.samplers.transitions import Estimate
from invdiff.specs.parameters import Method, parameter, whole
from invdiff.specs.registry import import_target


@dataclass(frozen=True, eq=False)
class Move:
    """From the level sigma to next_sigma (0 at the end): x there, and the estimates it came from. See `State`."""

    sigma: float
    next_sigma: float
    clean: torch.Tensor
    estimate: torch.Tensor
    x: torch.Tensor
    population: torch.Tensor | None = None
    diagnostics: Mapping[str, torch.Tensor] = field(default_factory=dict)


OWN = "own"
TRANSITIONS = (OWN, "ancestral", "ddim", "sde", "ode", "heun", "dpmpp")
INITIAL = ("measurement", "noise", "prior")

Correction = Callable[[torch.Tensor, float, float], Estimate]
Transition = Callable[[torch.Tensor, Estimate, float, float, Draws], torch.Tensor]


@dataclass(frozen=True)
class Solver(Method):
    """Hyperparameters of a method. A subclass adds its own and writes `correction` and `step`, or `walk`."""

    name: ClassVar[str] = "solver"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    """What the operator must offer: "linear", "svd", "differentiable"."""
    interchangeable: ClassVar[bool] = False
    """Whether the correction is a conditional mean E[x_0 | x, y] that any sampler's transition can use."""
    deterministic: ClassVar[bool] = False
    """Whether all seeds give the same answer: a point estimate that draws nothing."""
    consistent: ClassVar[bool] = True
    """Whether A x tends to y as sigma_y goes to 0. Where y tells more than the last noise level, the loop then ends with a
    data step (`Solver.impose`); methods that only pull towards y, with a weight of their own, do not claim it."""
    remedy: ClassVar[str] = "a smaller weight"
    """What to change where the method diverges."""
    whitens: ClassVar[bool] = True
    """Whether noise that is not Gaussian is made so, entry by entry, before the method sees it (`Problem.whitened`, whose
    operator has no decomposition); if not, it sees the average sigma_y, and `Problem.noise`."""

    steps: int = parameter(20, kind=whole, low=1, help="number of noise levels, one network call each", unit="calls")
    sigma_max: float | None = parameter(
        None, above=0, help="first noise level, in [0, 1] units; default: the prior's sigma_start", unit="[0,1]"
    )
    sigma_min: float | None = parameter(
        None, above=0, help="last noise level, in [0, 1] units; default: the smallest the prior knows", unit="[0,1]"
    )
    spacing: str = parameter("log", kind=str, choices=SPACINGS, search=False, help="how the noise levels are spread")
    initial: str = parameter(
        "measurement",
        kind=str,
        choices=INITIAL,
        search=False,
        help="where x starts: the measurement's own estimate plus noise, a DDPM's pure noise, or the noised prior "
        "itself (priors that can be sampled directly)",
    )
    transition: str = parameter(
        OWN,
        kind=str,
        choices=TRANSITIONS,
        search=False,
        help="how the next level is reached: the paper's step, or a sampler's",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transition != OWN and not self.interchangeable:
            raise UsageError(
                f"{self.name}: transition={self.transition!r} does not fit, because its step is not made from an "
                "estimate of E[x_0 | x, y]; leave it out (solvers that take any transition: "
                f"{', '.join(import_target('invdiff.solvers:interchangeable')()) or 'none'})"
            )
        if self.sigma_max is not None and self.sigma_min is not None and self.sigma_min > self.sigma_max:
            raise UsageError(f"{self.name}: sigma_min={self.sigma_min} is above sigma_max={self.sigma_max}")

    def correction(self, problem: Problem, prior: Prior) -> Correction:
        """The function (x, sigma, next_sigma) -> Estimate for this problem; prepares what does not change in the loop.

        Default: the plain denoiser, for methods that are a transition alone.
        """

        def denoised(x: torch.Tensor, sigma: float, next_sigma: float) -> Estimate:
            clean = prior.denoise(x, sigma)
            return Estimate(clean, clean)

        return denoised

    def step(self, problem: Problem) -> Transition:
        """The paper's transition: the function (x, estimate, sigma, next_sigma, noise) -> x at next_sigma."""
        raise NotImplementedError

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        """From the first level to the sample, one Move for each level: correct, then move on.

        A method that is more than that (several calls a level, particles, an optimisation) writes its own.
        """
        correction = self.correction(problem, prior)
        x = self.start(problem, prior, levels[0], noise)
        if self.transition != OWN:
            yield from self._walk_with_sampler(correction, prior, x, levels, noise)
            return
        transition = self.step(problem)
        for sigma, next_sigma in itertools.pairwise([*levels, 0.0]):
            estimate = correction(x, sigma, next_sigma)
            x = transition(x, estimate, sigma, next_sigma, noise)
            yield Move(sigma, next_sigma, estimate.clean, estimate.estimate, x)
            del estimate  # its images would lie in memory beside the next one's

    def _walk_with_sampler(
        self, correction: Correction, prior: Prior, x: torch.Tensor, levels: Sequence[float], noise: Draws
    ) -> Iterator[Move]:
        """The steps of an unconditional sampler, with E[x_0 | x, y] in the place of E[x_0 | x]."""
        from invdiff import samplers

        conditional = ConditionalPrior(prior, correction)
        for sigma, next_sigma, moved in samplers.get(self.transition).walk(conditional, x, levels, noise):
            yield Move(sigma, next_sigma, conditional.clean, conditional.mean, moved)

    def impose(self, problem: Problem, prior: Prior, sigma: float, x: torch.Tensor) -> torch.Tensor:
        """The sample x (B, *image shape), made at the last level sigma, after a data step if y tells more than the prior.

        With x_0 ~ N(x, s^2 I), E[x_0 | y] = argmin ||A x_0 - y||^2 / sigma_y^2 + ||x_0 - x||^2 / s^2. s is the lowest level
        of the prior, or sigma below it: a run that ends higher has weighed y by sigma_y there, and sigma^2 is no variance of
        its x_0. For sigma_y >= s the step would move x by less than that level left open, and x stays as it is. In float64,
        where A takes it: y may tell more digits than the conjugate gradients of single precision give.
        """
        s = min(sigma, prior.sigma_min)
        if not self.consistent or problem.sigma_y >= s:
            return x
        A, y, gamma = problem.operator, problem.y, (s / problem.sigma_y) ** 2
        try:
            return A.prox_l2(x.double(), y.double(), gamma).to(x)
        except (RuntimeError, TypeError):  # some devices know no float64, nor does an A whose tables are of float32
            return A.prox_l2(x, y, gamma)

    def moves(self, levels: Sequence[float]) -> int:
        """How many Moves `walk` yields for these levels."""
        return len(levels)

    @property
    def sees_whitened(self) -> bool:
        """Whether the method sees the whitened problem, which leaves out values that the noise has replaced."""
        return self.whitens and "svd" not in self.needs

    @property
    def population(self) -> int:
        """Samples that one run gives: 1, or the number of particles."""
        return 1

    @property
    def nfe(self) -> int:
        """The network calls for one sample that the settings ask for (for particles: of the whole population)."""
        return (self.level_count() - 1) * self._calls_a_level() + 1

    @property
    def passes(self) -> int:
        """Network calls and backward passes through the network for one sample: a backward pass to the input multiplies as
        many numbers as a call."""
        return self.nfe * (1 + self._backward_passes_a_call())

    def _backward_passes_a_call(self) -> int:
        return 0

    def level_count(self) -> int:
        """Noise levels that `steps` pays for: as many, but with a transition of several calls a level."""
        return (self.steps - 1) // self._calls_a_level() + 1

    def _calls_a_level(self) -> int:
        if self.transition == OWN:
            return 1
        from invdiff import samplers

        return samplers.get(self.transition).calls

    def levels(self, problem: Problem, prior: Prior) -> list[float]:
        """The noise levels to visit, decreasing, without the final zero."""
        first = self.sigma_max or prior.sigma_start or prior.sigma_max
        if self.sigma_min is not None and self.sigma_min > first:
            raise UsageError(f"{self.name}: sigma_min={self.sigma_min:g} is above the first level, {first:g}; lower it")
        schedule = getattr(prior, "schedule", None)
        count, most = self.level_count(), len(schedule or Schedule.named("linear"))
        if self.spacing != "log" and count > most:
            raise UsageError(
                f"{self.name}: spacing={self.spacing} takes levels from a schedule of {most}, so at most {most} steps, "
                f"got {count}; spacing=log takes any number"
            )
        return noise_levels(count, first, min(self.sigma_min or prior.sigma_min, first), self.spacing, schedule)

    def start(self, problem: Problem, prior: Prior, sigma: float, noise: Draws) -> torch.Tensor:
        """x at the first level, (B, *image shape), as `initial` says.

        measurement: sigma z around what the measurement says of an image of mean and deviation 1/2,
            argmin ||A x - y||^2 / sigma_y^2 + ||x - 1/2||^2 / (1/2)^2, or A.first_guess(y), if A is not linear.
        noise: a DDPM's start: N(0, I) in its own variable sqrt(abar) x on [-1, 1], so the deviation is
            sqrt(sigma^2 + 1/4) around mid-grey: the first level of data of mean and deviation 1/2.
        prior: x_0 + sigma z with x_0 drawn from the prior: exact, where the noise does not drown the prior's moments.
        """
        z = noise()
        if self.initial == "noise":
            return self.middle(problem) + (sigma**2 + 0.25) ** 0.5 * z
        if self.initial == "prior":
            return self.draw_prior(prior, noise).to(z) + sigma * z
        return self.middle(problem) + sigma * z

    def middle(self, problem: Problem) -> torch.Tensor:
        """The centre (B, *image shape) of the first level, where it is not drawn: see `start`."""
        grey = problem.y.new_full((len(problem.y), *problem.image_shape), 0.5)
        if self.initial != "measurement":
            return grey
        if not problem.operator.linear:
            return problem.operator.first_guess(problem.y)
        return problem.operator.prox_l2(grey, problem.y, (0.5 / problem.sigma_y) ** 2)

    def draw_prior(self, prior: Prior, noise: Draws, count: int = 1) -> torch.Tensor:
        """`count` draws of x_0 for each row, (B count, *image shape). Raises UsageError if the prior has none."""
        if not prior.can_sample:
            raise UsageError(
                f"{self.name}: initial=prior needs a prior that can be sampled directly, such as a GaussianMixturePrior; "
                "leave it out or take initial=noise"
            )
        return noise.sample(prior.sample, count)

    def unmet(self, operator: Operator) -> list[str]:
        """The needs that an operator does not meet."""
        # A linear operator is its own derivative, and its adjoint the product with it from the left.
        smooth = operator.differentiable or operator.linear
        offers = {"linear": operator.linear, "svd": operator.has_svd, "differentiable": smooth}
        return sorted(need for need in self.needs if not offers[need])


class ConditionalPrior(WrappedPrior):
    """p(x_0 | y) as a prior: its denoiser is a correction's E[x_0 | x, y]. Remembers what it answered last."""

    clean: torch.Tensor
    mean: torch.Tensor

    def __init__(self, prior: Prior, correction: Correction) -> None:
        super().__init__(prior)
        self.correction = correction
        self.clean = self.mean = torch.empty(0)

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        estimate = self.correction(x, float(sigma), float(sigma))
        self.clean, self.mean = estimate.clean, estimate.mean(float(sigma))
        return self.mean


def denoise_with_vjp(
    prior: Prior, x: torch.Tensor, sigma: float, *, repeat: bool = False
) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """(D(x), v -> J(x)^T v) with J the Jacobian of D(., sigma) at x: one network call, one backward pass to x alone.

    repeat: the product may be asked for more than once, at the price of keeping the network's activations.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        clean = prior.denoise(leaf, sigma)

    def pull_back(v: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(clean, leaf, v, retain_graph=repeat)[0]

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
