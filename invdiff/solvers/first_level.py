"""The noise level below which a point estimate need not start: what the operator leaves to fill in.

Above that level the network is asked about images much noisier than the estimate that is there already, and its answers
add nothing that the measurement has not told; below it, what is missing is never filled in. Two things decide, for
every linear operator alike and before the first network call:

- the error of the measurement's own estimate on a picture drawn from a Gaussian field with the power law of natural images
  (`GaussianImages`), which the operator measures with noise sigma_y;
- what the network would take for known because it is smooth, a hole or a colour that is not measured. A constant over a
  square of s x s pixels is one direction of length s; y tells it up to sigma_y / g, with g^2 the share of its square that A
  keeps, and pictures vary by s / 4 in it. The lesser of the two must drown in noise, for s = 2, 4, 8, ... and every
  square of a grid of them.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch

from invdiff.machine.random import generator
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.weighted import Weighted
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.problem.problem import Problem

SMALLEST = 8
"""Sides from which a picture has a power law to speak of."""
DRAWN = 256
"""Largest side that is drawn; a larger picture repeats it, mirrored, as the field is mirrored at its edges anyway."""
CELL = 4
"""Side of the cells whose error counts where it differs from place to place, as under a mask."""
WORST = 0.9
"""Quantile of the cells that stands for the worst."""


FINE = 4
"""Squares up to this side are many and small: one in a hundred may be worse than the level."""
RARE = 0.99


def natural(channels: int) -> GaussianImages:
    """Mean and deviation about those of photographs, and their power law."""
    diagonal = tuple(tuple(0.0625 * (i == j) for j in range(channels)) for i in range(channels))
    return GaussianImages((0.5,) * channels, diagonal, 0.0024, 2.2, 0.1)


@dataclass(frozen=True)
class FirstLevel:
    """In [0, 1] units. error: root mean square over all pixels of argmin ||A x - y||^2 / sigma_y^2 + ||x - 1/2||^2 / (1/2)^2;
    worst: the same in the worst places; hidden: the largest deviation of a direction that is smooth in a square."""

    error: float
    worst: float
    hidden: float


def first_level(problem: Problem) -> FirstLevel | None:
    """None where A is not linear, or x no image (C, H, W) of 8 pixels a side."""
    operator, shape = problem.operator, tuple(problem.image_shape)
    if not operator.linear or len(shape) != 3 or min(shape[1:]) < SMALLEST:
        return None
    if isinstance(operator, Weighted) and len(operator.weights) > 1:  # weighs each image by its own noise
        different = [k for k, y in enumerate(problem.y) if not any(torch.equal(y, other) for other in problem.y[:k])]
        each = [first_level(problem.rows([k])) for k in different]
        return FirstLevel(*(max(values) for values in zip(*(astuple(one) for one in each if one), strict=True)))
    key = ("first level", (shape, problem.sigma_y, problem.y.dtype, problem.y.device))

    def measure() -> FirstLevel:
        with torch.no_grad():
            return FirstLevel(*_errors(problem, shape), hidden(operator, shape, problem.sigma_y, problem.y))

    level: FirstLevel = operator.cached(key, measure)
    return level


def _errors(problem: Problem, shape: Shape) -> tuple[float, float]:
    operator, y, draws = problem.operator, problem.y, generator(0, "first level", 0)
    height, width = (min(side, DRAWN) for side in shape[1:])
    x = natural(shape[0]).colour(torch.randn(1, shape[0], height, width, generator=draws).to(y))
    for dim, side in ((-2, shape[1]), (-1, shape[2])):
        if side > DRAWN:
            there = torch.arange(side, device=y.device) % (2 * DRAWN)
            x = x.index_select(dim, torch.where(there < DRAWN, there, 2 * DRAWN - 1 - there))
    measured = operator.A(x)
    measured = measured + problem.sigma_y * torch.randn(measured.shape, generator=draws).to(y)
    drawn = Problem(operator, measured, problem.sigma_y, shape)  # leaves out what is not measured
    centre = operator.prox_l2(torch.full_like(x, 0.5), drawn.y, (0.5 / problem.sigma_y) ** 2)
    square = (centre - x).square_().mean(1, keepdim=True)
    worst = quantile(torch.nn.functional.avg_pool2d(square, CELL), WORST)
    return float(square.mean().sqrt()), worst**0.5


def hidden(operator: Operator, shape: Shape, sigma_y: float, like: torch.Tensor) -> float:
    """max over s and squares of min(s / 4, sigma_y / g), computed in the dtype and on the device of `like`."""
    rows, channels = [], shape[0]
    for c in range(channels):
        ones = like.new_zeros(1, *shape)
        ones[:, c] = 1
        # Squares share what A mixes across their edges: g^2 of each is what A^T A of the whole has in it.
        rows.append(torch.nn.functional.avg_pool2d(operator.A_adjoint_A(ones), 2)[0])
    kept, side, found = torch.stack(rows), 2, 0.0  # (C, C, H / 2, W / 2)
    mixed = (kept - kept * torch.eye(channels).to(kept)[:, :, None, None]).abs().max() > 1e-6
    while True:
        matrices = kept.permute(2, 3, 0, 1)
        least = torch.linalg.eigvalsh(matrices)[..., 0] if mixed else matrices.diagonal(0, -2, -1).amin(-1)
        told = sigma_y / least.clamp(min=1e-12).sqrt()
        found = max(found, quantile(told, RARE if side <= FINE else 1.0, side / 4))
        if min(kept.shape[-2:]) < 2:
            return found
        kept, side = torch.nn.functional.avg_pool2d(kept, 2), 2 * side


def quantile(values: torch.Tensor, share: float, most: float = math.inf) -> float:
    """The quantile of all values at this share, at most `most`."""
    flat = values.flatten()
    return min(most, float(flat.kthvalue(max(1, round(share * flat.numel()))).values))
