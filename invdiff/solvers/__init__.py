"""Solvers: posterior sampling methods. `get(name, **hyperparameters)`, `names()`, `load_preset(path)`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from invdiff.parameters import build, parse_spec
from invdiff.registry import Registry

if TYPE_CHECKING:
    from invdiff.solvers.base import Solver
    from invdiff.solvers.presets import Preset

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


def load_preset(path: str | os.PathLike[str]) -> Preset:
    """The preset in a YAML file that `invdiff tune` wrote; its `solver` is ready for `restore`. Raises UsageError."""
    from invdiff.solvers.presets import load_preset

    return load_preset(path)


def _values(solver: Solver) -> dict[str, Any]:
    return {key: value for key, value in solver.settings().items() if key != "name"}
