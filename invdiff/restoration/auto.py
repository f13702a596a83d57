"""`solver="auto"`: the solver that restores best, as measured, for the operator, the noise level and the number of calls.

The first line of `recommendation.recommend` for the aim single, or psnr where a mean of several samples is asked for. Where
nothing was measured it is `diffpir`, which takes any operator that is linear or differentiable.
"""

from __future__ import annotations

from invdiff import solvers
from invdiff.operator.contract import Operator, Shape
from invdiff.restoration.recommendation import recommend
from invdiff.solvers.solver import Solver

CALLS = 20
"""Network calls and backward passes of `auto`, where the user gives no steps."""


def choose(
    operator: Operator,
    image_shape: Shape,
    noise: float,
    calls: int | None = None,
    *,
    several: bool = False,
    replaced: bool = False,
) -> Solver:
    """The solver that `solver="auto"` stands for. image_shape: (C, H, W) of x; noise: sigma_y in [0, 1] units; calls: the
    most network calls and backward passes for one sample; several: a mean of samples is asked for; replaced: the noise has
    put other values in the place of some, which the method must leave out."""
    aim = "psnr" if several else "single"
    found = recommend(operator, image_shape, noise, CALLS if calls is None else calls, aim)
    for _, solver in found:
        telling = not (several and solver.deterministic)  # several equal samples would tell nothing
        if telling and (solver.sees_whitened or not replaced):
            return solver
    return solvers.get("diffpir", steps=CALLS if calls is None else calls)
