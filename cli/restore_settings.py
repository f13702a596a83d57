"""What the options of `invdiff restore` say, resolved, and the command that repeats one result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from invdiff.machine.device import PRECISION_NAMES

from . import options
from .files import Job

if TYPE_CHECKING:
    from invdiff.files.raw import Layout
    from invdiff.noise import NoiseModel
    from invdiff.operator.contract import Operator
    from invdiff.priors.prior import Prior
    from invdiff.restoration.presets import Preset
    from invdiff.solvers.solver import Solver


@dataclass(frozen=True)
class Settings:
    """The options that decide a result, resolved.

    context: the command as it was given; noise: None if it is a measurement file's own, or estimated from each input.
    """

    context: click.Context
    operator: Operator | None
    noise: NoiseModel | None
    estimated: bool
    layout: Layout
    prior: Prior
    solver: Solver | str
    hyperparameters: dict[str, Any]
    preset: Preset | None
    samples: int | str
    tolerance: float
    quantiles: tuple[float, ...]
    seed: int
    bits: int | None
    batch_size: int
    quiet: bool
    references: dict[Path, Path]

    def command(self, job: Job, record: dict[str, Any]) -> str:
        """The command that makes this one output again, with everything spelled out, as the record says it was resolved."""
        from invdiff.operator.from_file import absolute

        given, prior = self.context.params, self.prior.describe()
        resolved = {
            "operator": absolute(given["operator"]) if given["operator"] else None,
            "solver": spell_out(record["solver"]),
            "tolerance": self.tolerance if self.samples == "auto" else None,
            "device": self.prior.device.type if given["device"] == "auto" else given["device"],
            "precision": PRECISION_NAMES.get(prior.get("precision", ""), given["precision"]),
            "compile": prior.get("compiled"),
            "tile": record["prior"].get("tile", given["tile"]),
            "reference": self.references.get(job.source),
        }
        if self.estimated:
            resolved["noise"] = record["noise"]["model"]
        included = dict.fromkeys(("preset_file", "steps", "hyperparameters", "extension", "batch_size"))
        return options.repeat_command(self.context, inputs=[job.source], out=job.target, **included, **resolved)


def spell_out(solver: dict[str, Any]) -> str:
    """A solver's settings, those that are not None, in full precision: a spec that builds exactly this one."""
    settings = {key: value for key, value in solver.items() if key != "name" and value is not None}
    return f"{solver['name']}:{','.join(f'{key}={value}' for key, value in settings.items())}"
