"""`solver="auto"`: the documented default for an operator and a noise level.

    operator                                  solver                              why
    not linear                                dps, 100 steps                      needs a gradient only
    linear, SVD, fewer measurements than      ddnm                                takes what is measured as it is, and
    pixels (masks, super-resolution)                                              the rest from the prior
    other linear                              diffpir                             exact data step with or without SVD

benchmarks/restoration.py compares them; docs/benchmarks.md holds its table.
"""

from __future__ import annotations

import math

from invdiff.operator import Operator, Shape
from invdiff.solvers.base import Solver


def choose(operator: Operator, image_shape: Shape) -> Solver:
    """The solver that `solver="auto"` stands for. image_shape: (C, H, W) of x."""
    from invdiff import solvers

    if not operator.linear:
        return solvers.get("dps", steps=100)
    if operator.has_svd and operator.measured_count(image_shape) < math.prod(image_shape):
        return solvers.get("ddnm")
    return solvers.get("diffpir")
