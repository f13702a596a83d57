"""`solver="auto"`: the documented default for an operator.

    operator                                            solver            why
    not linear                                          dps, 100 steps    needs a gradient only
    all singular values equal, nothing lost (A = I)     ddnm              enters at the level of the noise: denoising
    other linear                                        diffpir           exact data step, with or without an SVD

The choice is the same for every noise level: at sigma_y = 0.01, 0.05 and 0.1 the same solver restores best (within 0.1 dB),
because the data step of each weighs the measurement by sigma_y itself. Chosen on the first three photographs of CBSD68;
docs/tables/solvers.md, noise-0.01.md and noise-0.1.md compare them on others.
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
    return solvers.get("ddnm" if _is_denoising(operator, image_shape) else "diffpir")


def _is_denoising(operator: Operator, image_shape: Shape) -> bool:
    """Whether A is an orthogonal map times a number: every direction is measured, with the same noise."""
    if not operator.has_svd or operator.measured_count(image_shape) != math.prod(image_shape):
        return False
    s = operator.svd(image_shape).singular_values
    return float(s.min()) > 0.999 * float(s.max())
