"""Solvers: posterior sampling methods. `get(name, **hyperparameters)`, `names()`, `load_preset(path)`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from invdiff.errors import UsageError
from invdiff.specs.parameters import build, parse_spec
from invdiff.specs.registry import Registry, import_target

if TYPE_CHECKING:
    from invdiff.operator.contract import Operator
    from invdiff.solvers.solver import Solver

REGISTRY = Registry(
    "solver",
    {
        "ddrm": "invdiff.solvers.ddrm:DDRM",
        "ddnm": "invdiff.solvers.ddnm:DDNM",
        "pigdm": "invdiff.solvers.pigdm:PiGDM",
        "diffpir": "invdiff.solvers.diffpir:DiffPIR",
        "dps": "invdiff.solvers.dps:DPS",
        "ilvr": "invdiff.solvers.ilvr:ILVR",
        "mcg": "invdiff.solvers.mcg:MCG",
        "repaint": "invdiff.solvers.repaint:RePaint",
        "score_ald": "invdiff.solvers.score_ald:ScoreALD",
        "score_sde": "invdiff.solvers.score_sde:ScoreSDE",
        "mmps": "invdiff.solvers.mmps:MMPS",
        "tmpd": "invdiff.solvers.tmpd:TMPD",
        "fast_dips": "invdiff.solvers.fast_dips:FastDIPS",
        "daps": "invdiff.solvers.daps:DAPS",
        "pnp_dm": "invdiff.solvers.pnp_dm:PnPDM",
        "red_diff": "invdiff.solvers.red_diff:REDDiff",
        "dpir": "invdiff.solvers.dpir:DPIR",
        "measurement_sde": "invdiff.solvers.measurement_sde:MeasurementSDE",
        "mcg_diff": "invdiff.solvers.mcg_diff:MCGDiff",
        "tds": "invdiff.solvers.tds:TDS",
        "fps_smc": "invdiff.solvers.fps_smc:FPSSMC",
    },
)


def interchangeable() -> list[str]:
    """Names of the solvers whose correction is a conditional mean, which any sampler's transition can use."""
    return [name for name, cls in REGISTRY.items() if cls.interchangeable]


NEEDS = {
    "linear": "a linear operator",
    "svd": "a singular value decomposition",
    "differentiable": "a differentiable operator",
}


def names() -> list[str]:
    """Names of all solvers, sorted."""
    return list(REGISTRY)


def get(solver: str | Solver, **hyperparameters: Any) -> Solver:
    """A solver from its name or spec ("diffpir:zeta=0.5"), or a Solver as it is.

    Raises UsageError for an unknown name or hyperparameter, or a value out of range.
    """
    from invdiff.solvers.solver import Solver

    if isinstance(solver, Solver):
        return build(type(solver), solver.name, {**_values(solver), **hyperparameters}) if hyperparameters else solver
    name, values = parse_spec(solver)
    return build(REGISTRY[name], name, {**values, **hyperparameters})


def check(solver: Solver, operator: Operator) -> None:
    """Raise UsageError, naming the solvers that would work, if this one cannot use the operator."""
    unmet = solver.unmet(operator)
    if unmet:
        able = [name for name in names() if not get(name).unmet(operator)]
        raise UsageError(
            f"{solver.name} needs {' and '.join(NEEDS[need] for need in unmet)}, which {operator} does not offer; "
            f"solvers that work: {', '.join(able) or 'none'}"
        )


def load_preset(path: str | os.PathLike[str]) -> Any:
    """The preset in a YAML file that `invdiff tune` wrote; its `solver` is ready for `restore`. Raises UsageError."""
    # Presets stand above the solvers, which know nothing of them.
    return import_target("invdiff.restoration.presets:load_preset")(path)


def _values(solver: Solver) -> dict[str, Any]:
    return {key: value for key, value in solver.settings().items() if key != "name"}
