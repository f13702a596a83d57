"""Solvers: posterior sampling methods. `get(name, **hyperparameters)`, `names()`, `working_with(operator)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from invdiff.parameters import build, parse_spec
from invdiff.registry import Registry

if TYPE_CHECKING:
    from invdiff.solvers.base import Solver

REGISTRY = Registry(
    "solver",
    {
        "ddrm": "invdiff.solvers.ddrm:DDRM",
        "ddnm": "invdiff.solvers.ddnm:DDNM",
        "pigdm": "invdiff.solvers.pigdm:PiGDM",
        "diffpir": "invdiff.solvers.diffpir:DiffPIR",
        "dps": "invdiff.solvers.dps:DPS",
    },
)


def names() -> list[str]:
    """Names of all solvers, sorted."""
    return list(REGISTRY)


def get(solver: str | Solver, **hyperparameters: Any) -> Solver:
    """A solver from its name or spec ("diffpir:zeta=0.5"), or a Solver as it is.

    Raises UsageError for an unknown name or hyperparameter, or a value out of range.
    """
    from invdiff.solvers.base import Solver

    if isinstance(solver, Solver):
        return build(type(solver), solver.name, {**_values(solver), **hyperparameters}) if hyperparameters else solver
    name, values = parse_spec(solver)
    return build(REGISTRY[name], name, {**values, **hyperparameters})


def _values(solver: Solver) -> dict[str, Any]:
    return {key: value for key, value in solver.settings().items() if key != "name"}
