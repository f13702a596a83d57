"""Problems whose posterior is known in closed form: Gaussian priors under every linear operator, and toys in the plane.

The posterior of a Gaussian-mixture prior under y = A x + sigma_y z is a Gaussian mixture again, for any matrix A:
`GaussianMixturePrior.posterior`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from invdiff.errors import InvdiffError, UsageError
from invdiff.exactness.dense import Preconditioned
from invdiff.machine.random import generator
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.spectral import dense_matrix
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.problem.problem import Problem

GAUSSIAN, MIXTURE, TOYS = "gaussian", "mixture", "toys"
FAMILIES = (GAUSSIAN, MIXTURE, TOYS)

SIDE = 8
SIGMA_Y = 0.05
DEVIATION = 0.25  # of a pixel, as in photographs
LENGTH = 4.0  # pixels over which the correlation falls to 1/e
CHANNEL_CORRELATION = 0.9
# Options of every solver here. A noise level of 10 drowns these priors, no direction of which deviates by more than 2.2;
# higher levels would only cost steps. A network can afford fewer particles than these.
OPTIONS: dict[str, float] = {"sigma_max": 10.0, "particles": 100}


@dataclass(frozen=True, eq=False)
class ExactProblem:
    """One measurement y (1, *measurement shape) under a mixture prior, and the posterior p(x | y).

    matrix: A on flattened images, without the rows that measure nothing. unit: factor on distances in x, for reports.
    """

    name: str
    problem: Problem
    prior: GaussianMixturePrior
    posterior: GaussianMixturePrior
    matrix: torch.Tensor
    unit: float = 1.0

    @property
    def size(self) -> int:
        """The number of values in one x."""
        return self.prior.size

    def directions(self) -> dict[str, torch.Tensor]:
        """Orthonormal columns (n, k) by name. measured: the right singular vectors v of A along which y says more than the
        prior, (sigma_y / s)^2 < v^T Cov[x] v; unmeasured: all other directions."""
        _, s, right = torch.linalg.svd(self.matrix, full_matrices=True)
        basis = right.mT
        prior_variance = (basis * (self.prior.covariance() @ basis)).sum(0)[: len(s)]
        told = torch.zeros(self.size, dtype=torch.bool)
        told[: len(s)] = prior_variance * s**2 > self.problem.sigma_y**2
        return {"measured": basis[:, told], "unmeasured": basis[:, ~told]}


@dataclass(frozen=True, eq=False)
class Case:
    """Problems that are reported as one: several draws of the same kind, or a single one.

    family: one of FAMILIES; label: its name in the tables; make: makes the problems when they are needed; steps: noise levels
    for the solver, unless its spec says otherwise; options: further hyperparameters for the solvers that have them; group:
    the column of the mixture's table.
    """

    family: str
    label: str
    make: Callable[[], list[ExactProblem]]
    operator: Operator
    steps: int
    samples: int
    options: Mapping[str, object] = field(default_factory=dict)
    group: str = ""


def exact_problem(
    name: str, operator: Operator, prior: GaussianMixturePrior, y: torch.Tensor, sigma_y: float
) -> ExactProblem:
    """The problem of an operator, a prior for its images and one y (1, *measurement shape)."""
    shape = prior.shape
    problem = Problem(operator, y, sigma_y, shape)
    matrix = dense_matrix(operator, shape)
    observed = operator.observed(shape)
    y = problem.y.flatten()
    if observed is not None:
        # An entry that is never measured would count in the evidence as a measurement 0 = 0 + noise: the same for all
        # components, and so without effect, but at the cost of a row.
        kept = observed.expand(1, *operator.measurement_shape(shape)).flatten() > 0
        matrix, y = matrix[kept], y[kept]
    return ExactProblem(name, problem, prior, prior.posterior(matrix, y, sigma_y), matrix)


# Name -> spec, or function, for images of 8 x 8 pixels, where the operator's defaults are too large; used for a name alone.
SMALL: dict[str, str | Callable[[], Operator]] = {
    "gaussian_blur": "gaussian_blur:sigma=0.8,size=5",
    "uniform_blur": "uniform_blur:size=3",
    "motion_blur": "motion_blur:length=3,angle=30,boundary=circular",
    "kernel_blur": lambda: _registered("kernel_blur", kernel=_kernel(), boundary="circular"),
    "varying_blur": "varying_blur:radius=0.3,corner=1,grid=2x2",
    "anisotropic_blur": "anisotropic_blur:sigma=0.7x0.5,angle=30",
    "spectral_mixing": lambda: _registered("spectral_mixing", matrix=np.array([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])),
    "downsample": "downsample:factor=2",
    "inpaint": "inpaint:keep=0.6,seed=1",
    "random_subsample": "random_subsample:keep=0.5,seed=2",
    "linear": lambda: _registered("linear", matrix=_matrix(), shape=(1, SIDE, SIDE)),
}


def _registered(name: str, **parameters: object) -> Operator:
    from invdiff import operators

    return operators.get(name, **parameters)


def _kernel() -> np.ndarray:
    """A 3 x 3 kernel without symmetry, so that a flipped kernel is noticed."""
    return np.array([[0.0, 0.2, 0.1], [0.1, 0.4, 0.1], [0.0, 0.05, 0.05]])


def _matrix() -> torch.Tensor:
    """20 random projections of an 8 x 8 image."""
    n = SIDE * SIDE
    draws = torch.randn(20, n, generator=generator(0, "validate/matrix", 0), dtype=torch.float64)
    return draws / n**0.5


def build_operator(spec: str) -> tuple[Operator, Shape]:
    """The operator of a name or spec and the 8 x 8 image shape it is tried on.

    Raises UsageError for an unknown name or parameter, and for an operator without a closed-form posterior (not linear)
    or that cannot take 8 x 8 images.
    """
    from invdiff import operators

    small = SMALL.get(spec, spec)
    operator = operators.get(small) if isinstance(small, str) else small()
    if not operator.linear:
        raise UsageError(f"{operator} is not linear, so its posterior has no closed form")
    problems = []
    for channels in (1, 3):
        shape = (channels, SIDE, SIDE)
        try:
            operator.A(torch.full((1, *shape), 0.5, dtype=torch.float64))
        except InvdiffError as error:
            problems.append(str(error))
        else:
            return operator if operator.has_svd else Preconditioned(operator), shape
    raise UsageError(f"{operator} cannot take {SIDE} x {SIDE} images: {problems[0]}")


def image_prior(shape: Shape) -> GaussianPrior:
    """Smooth random images (C, H, W) around mid-grey: deviation 1/4, correlation exp(-distance / 4 pixels)."""
    channels, height, width = shape
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    places = torch.stack([rows.flatten(), columns.flatten()], 1)
    spatial = torch.exp(-torch.cdist(places, places) / LENGTH)
    colours = torch.full((channels, channels), CHANNEL_CORRELATION, dtype=torch.float64)
    colours.fill_diagonal_(1.0)
    covariance = DEVIATION**2 * torch.kron(colours, spatial)
    return GaussianPrior(torch.full(shape, 0.5, dtype=torch.float64), covariance)


def gaussian_case(spec: str, seed: int, steps: int, samples: int) -> Case:
    """A Gaussian prior under the operator of a name or spec; one y of one image. Raises as `build_operator`."""
    operator, shape = build_operator(spec)

    def make() -> list[ExactProblem]:
        prior = image_prior(shape)
        draws = generator(seed, f"validate/gaussian/{spec}", 0)
        x = prior.sample(1, draws)
        noise = torch.randn(1, *operator.measurement_shape(shape), generator=draws, dtype=torch.float64)
        y = operator.degrade(x, noise, SIGMA_Y)
        return [exact_problem(f"gaussian/{spec}", operator, prior, y, SIGMA_Y)]

    return Case(GAUSSIAN, spec, make, operator, steps, samples, OPTIONS)


def toy_case(name: str, steps: int, samples: int) -> Case:
    """The case of one of TOYS_2D, seen through one noisy projection."""
    toy = TOYS_2D[name]
    matrix = torch.tensor([toy.row], dtype=torch.float64)
    from invdiff import operators

    operator = operators.get("linear", matrix=matrix, shape=(1, 1, 2))

    def make() -> list[ExactProblem]:
        means, deviation = toy.components()
        prior = GaussianMixturePrior(means.reshape(-1, 1, 1, 2), torch.tensor(deviation**2))
        y = torch.tensor([[toy.y]], dtype=torch.float64)
        return [exact_problem(f"toys/{name}", operator, prior, y, toy.sigma_y)]

    return Case(TOYS, name, make, operator, steps, samples, OPTIONS)


@dataclass(frozen=True)
class Toy:
    """A mixture of many small components in the unit square, seen through y = row . x + sigma_y z."""

    components: Callable[[], tuple[torch.Tensor, float]]
    row: tuple[float, float]
    y: float
    sigma_y: float


def _moons() -> tuple[torch.Tensor, float]:
    """Two half circles, each reaching into the other."""
    angle = torch.linspace(0, math.pi, 40, dtype=torch.float64)
    upper = torch.stack([0.38 + 0.25 * angle.cos(), 0.45 + 0.3 * angle.sin()], 1)
    lower = torch.stack([0.62 - 0.25 * angle.cos(), 0.55 - 0.3 * angle.sin()], 1)
    return torch.cat([upper, lower]), 0.02


def _rings() -> tuple[torch.Tensor, float]:
    """Two concentric circles with equally many components per unit of length."""
    circles = []
    for radius, count in ((0.16, 40), (0.4, 100)):
        angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        circles.append(torch.stack([0.5 + radius * angle.cos(), 0.5 + radius * angle.sin()], 1))
    return torch.cat(circles), 0.015


def _checkerboard() -> tuple[torch.Tensor, float]:
    """The eight dark fields of a board of 4 x 4, each 6 x 6 components."""
    inside = (torch.arange(6, dtype=torch.float64) + 0.5) / 24
    fields = [(row / 4, column / 4) for row in range(4) for column in range(4) if (row + column) % 2 == 0]
    grid = torch.cartesian_prod(inside, inside)
    return torch.cat([grid + torch.tensor(corner, dtype=torch.float64) for corner in fields]), 0.02


TOYS_2D: dict[str, Toy] = {
    "moons": Toy(_moons, (0.8, 0.6), 0.72, 0.06),
    "rings": Toy(_rings, (1.0, 0.0), 0.55, 0.05),
    "checkerboard": Toy(_checkerboard, (0.6, -0.8), -0.1, 0.1),
}
