"""What the options of `invdiff restore` say, resolved, and the command that repeats one result."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """The options that decide a result, resolved."""

    operator: Operator | None
    operator_text: str | None
    noise: NoiseModel | None  # None: a measurement file's own, or estimated from each input
    noise_text: str | None
    layout: Layout
    prior: Prior
    prior_text: str
    solver: Solver | str
    hyperparameters: dict[str, Any]
    preset: Preset | None
    samples: int | str
    tolerance: float
    quantiles: tuple[float, ...]
    seed: int
    bits: int | None
    device: str
    precision: str
    tile: int | str
    batch_size: int
    quiet: bool
    references: dict[Path, Path]

    @property
    def arithmetic(self) -> str:
        """The precision that was chosen, as an option's value."""
        return PRECISION_NAMES.get(self.prior.describe().get("precision", ""), self.precision)

    @property
    def estimated(self) -> bool:
        """Whether sigma_y is estimated from each input."""
        return self.noise_text == "auto"

    def command(self, job: Job, record: dict[str, Any]) -> str:
        """The command that makes this one output again, with everything spelled out, as the record says it was resolved."""
        solver, noise, tile = record["solver"], record["noise"]["model"], record["prior"].get("tile", self.tile)
        words = ["invdiff", "restore", str(job.source), "-o", str(job.target)]
        words += ["--operator", self.operator_text] if self.operator_text is not None else []
        if self.noise_text is not None:
            words += ["--noise", noise if self.estimated else self.noise_text]
        for name in ("key", "axes", "scale"):
            value = getattr(self.layout, name)
            words += [f"--{name}", str(value)] if value is not None else []
        words += ["--prior", self.prior_text]
        words += ["--solver", spell_out(solver), "--samples", str(self.samples), "--seed", str(self.seed)]
        words += ["--tolerance", str(self.tolerance)] if self.samples == "auto" else []
        words += ["--quantiles", ",".join(map(str, self.quantiles))] if self.quantiles else []
        words += [
            "--device",
            self.prior.device.type if self.device == "auto" else self.device,
            "--precision",
            self.arithmetic,
            "--tile",
            str(tile),
        ]
        words += options.compile_words(self.prior.describe().get("compiled"))
        words += ["--bits", str(self.bits)] if self.bits else []
        words += ["--reference", str(self.references[job.source])] if job.source in self.references else []
        return shlex.join(words)


def spell_out(solver: dict[str, Any]) -> str:
    """A solver's settings, those that are not None, in full precision: a spec that builds exactly this one."""
    settings = {key: value for key, value in solver.items() if key != "name" and value is not None}
    return f"{solver['name']}:{','.join(f'{key}={value}' for key, value in settings.items())}"
