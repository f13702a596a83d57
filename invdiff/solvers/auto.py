"""`solver="auto"`: the documented default for an operator and a noise level."""

from __future__ import annotations

from invdiff.operator import Operator
from invdiff.solvers.base import Solver


def choose(operator: Operator, sigma_y: float) -> Solver:
    """The solver and hyperparameters that `solver="auto"` stands for.

    Not linear: DPS, the one that needs gradients only. Linear: DiffPIR.
    """
    from invdiff import solvers

    if not operator.linear:
        return solvers.get("dps", steps=100)
    return solvers.get("diffpir")
