"""How far the measurement's own estimate is from the image: the noise level below which a point estimate need not start.

Above that level the network is asked about images much noisier than the estimate that is there already, and its answers add
nothing that the measurement has not told; far below it, what is missing is never filled in. The distance is measured on a
picture drawn from a Gaussian field with the power law of natural images (`GaussianImages`), which the operator measures
with noise sigma_y: for every linear operator alike, and before the first network call.
"""

from __future__ import annotations

import numpy as np
import torch

from invdiff.operator import Shape
from invdiff.operators.boundary import source_index
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.problem import Problem
from invdiff.sampling import generator

SMALLEST = 8
"""Sides from which a picture has a power law to speak of."""
DRAWN = 256
"""Largest side that is drawn; a larger picture repeats it, mirrored, as the field is mirrored at its edges anyway."""
CELL = 4
"""Side of the cells whose error counts where it differs from place to place, as under a mask."""
WORST = 0.9
"""Quantile of the cells that stands for the worst."""


def natural(channels: int) -> GaussianImages:
    """Mean and deviation about those of photographs, and their power law."""
    diagonal = tuple(tuple(0.0625 * (i == j) for j in range(channels)) for i in range(channels))
    return GaussianImages((0.5,) * channels, diagonal, 0.0024, 2.2, 0.1)


def first_error(problem: Problem) -> tuple[float, float] | None:
    """The error of argmin ||A x - y||^2 / sigma_y^2 + ||x - 1/2||^2 / (1/2)^2, in [0, 1] units: the root mean square over
    all pixels, and in the worst places. None where A is not linear, or x no image (C, H, W) of 8 pixels a side."""
    operator, shape = problem.operator, tuple(problem.image_shape)
    if not operator.linear or len(shape) != 3 or min(shape[1:]) < SMALLEST:
        return None
    key = ("first error", (shape, problem.sigma_y, problem.y.dtype, problem.y.device))

    def measure() -> tuple[float, float]:
        with torch.no_grad():
            return _measure(problem, shape)

    errors: tuple[float, float] = operator.cached(key, measure)
    return errors


def _measure(problem: Problem, shape: Shape) -> tuple[float, float]:
    operator, y, draws = problem.operator, problem.y, generator(0, "first error", 0)
    height, width = (min(side, DRAWN) for side in shape[1:])
    x = natural(shape[0]).colour(torch.randn(1, shape[0], height, width, generator=draws).to(y))
    for dim, side in ((-2, shape[1]), (-1, shape[2])):
        if side > DRAWN:
            places = source_index(np.arange(side), DRAWN, "reflect")
            x = x.index_select(dim, torch.from_numpy(places).to(y.device))
    measured = operator.A(x)
    measured = measured + problem.sigma_y * torch.randn(measured.shape, generator=draws).to(y)
    drawn = Problem(operator, measured, problem.sigma_y, shape)  # leaves out what is not measured
    centre = operator.prox_l2(torch.full_like(x, 0.5), drawn.y, (0.5 / problem.sigma_y) ** 2)
    square = (centre - x).square_().mean(1, keepdim=True)
    cells = torch.nn.functional.avg_pool2d(square, CELL).flatten()
    worst = cells.kthvalue(max(1, round(WORST * cells.numel()))).values
    return float(square.mean().sqrt()), float(worst.sqrt())
