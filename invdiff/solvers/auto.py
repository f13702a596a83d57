"""`solver="auto"`: the solver that restores best, as measured, for the operator, the noise level and the number of calls.

The first line of `recommendation.recommend` for the aim single, or psnr where a mean of several samples is asked for. Where
nothing was measured it is `diffpir` for linear operators. For others it is what restored best in `benchmarks/nonlinear.py`
(docs/tables/nonlinear.md) for the operator's family, and for one of no such family `daps`, the best in none but bad in none.
"""

from __future__ import annotations

from invdiff import solvers
from invdiff.operator import Operator, Shape
from invdiff.solvers.base import Solver
from invdiff.solvers.recommendation import recommend

CALLS = 20
"""Network calls of `auto`, where the user gives no steps."""
NONLINEAR = {"tone": "dpir", "compression": "dpir", "phase": "dpir", "saturation": "fast_dips"}
"""Family of operators that are not linear -> the solver for one estimate, where that is not `daps`."""


def choose(
    operator: Operator, image_shape: Shape, noise: float, calls: int | None = None, *, several: bool = False
) -> Solver:
    """The solver that `solver="auto"` stands for. image_shape: (C, H, W) of x; noise: sigma_y in [0, 1] units; calls: the
    most network calls for one sample; several: a mean of samples is asked for."""
    aim = "psnr" if several else "single"
    found = recommend(operator, image_shape, noise, CALLS if calls is None else calls, aim)
    for _, solver in found:
        if not (several and solver.deterministic):  # several equal samples would tell nothing
            return solver
    name = "diffpir" if operator.linear else NONLINEAR.get(operator.family, "daps")
    # A point estimate has no spread: `diffpir` is its neighbour that draws.
    name = "diffpir" if several and solvers.get(name).deterministic else name
    return solvers.get(name, steps=CALLS if calls is None else calls)
