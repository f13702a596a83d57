"""From a suite to tasks that can run: data sets found, priors loaded, operators and solvers built and checked."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from invdiff import solvers
from invdiff.errors import UsageError
from invdiff.evaluation.datasets import DataSet, Source, file_hash
from invdiff.evaluation.store import FORMAT, KIND
from invdiff.evaluation.suite import Cell, Suite
from invdiff.machine.device import PRECISION_NAMES
from invdiff.machine.versions import package_versions
from invdiff.noise import noise_model
from invdiff.operator.contract import Operator, files_of
from invdiff.operators import resolve_operator
from invdiff.priors.prior import Prior
from invdiff.restoration.api import resolve_prior
from invdiff.solvers.solver import Solver


@dataclass(frozen=True, eq=False)
class Task:
    """A cell that can run. id: hash of everything but the code that decides its results; measurement: the same for what
    decides its measurements alone."""

    cell: Cell
    id: str
    measurement: str
    operator: Operator
    solver: Solver | str
    prior: Prior
    data: DataSet
    sources: list[Source]


@dataclass(frozen=True, eq=False)
class Plan:
    """The tasks of a suite. skipped: the cells and data sets that cannot run, with the reason."""

    suite: Suite
    tasks: list[Task]
    priors: dict[str, Prior]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def record(self, command: str) -> dict[str, Any]:
        """The content of run.json. Its `hash` changes with everything that decides results."""
        suite = self.suite
        data = {
            task.data.name: {
                "path": task.data.path,
                "images": len(task.sources),
                "crop": task.data.crop,
                "limit": task.data.limit,
                "fingerprint": task.data.fingerprint(task.sources),
            }
            for task in self.tasks
        }
        versions = package_versions()
        priors = {name: prior.describe() for name, prior in self.priors.items()}
        deciding = {
            "format": FORMAT,
            "invdiff": versions["invdiff"],
            "cells": sorted(task.id for task in self.tasks),
            "protocol": suite.protocol.settings(),
            "data": {name: value["fingerprint"] for name, value in data.items()},
            "priors": priors,
        }
        whole = {
            "kind": KIND,
            "format": FORMAT,
            "name": suite.name,
            "about": suite.about,
            "command": command,
            "hash": digest(deciding),
            "protocol": suite.protocol.settings(),
            "protocol_text": suite.protocol.lines(),
            "cells": [self._cell(task) for task in self.tasks],
            "skipped": [{"what": what, "reason": reason} for what, reason in self.skipped],
            "data": data,
            "priors": priors,
            "versions": versions,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        return dict(json.loads(json.dumps(whole, default=str)))  # as it will be read back and compared

    def _cell(self, task: Task) -> dict[str, Any]:
        return {
            "id": task.id,
            "measurement": task.measurement,
            "label": task.cell.label,
            **asdict(task.cell),
            "command": self.command(task),
        }

    def command(self, task: Task) -> str:
        """The command that repeats one row of the table."""
        cell, protocol = task.cell, self.suite.protocol
        words = ["invdiff", "evaluate", "--data", task.data.path, "--operator", self.suite.spelled_out(cell.operator)]
        words += ["--noise", cell.noise, "--solver", cell.solver]
        words += ["--steps", str(cell.steps)] if cell.steps is not None else []
        words += ["--prior", cell.prior, "--samples", str(cell.samples), "--seed", str(cell.seed)]
        words += ["--calibration"] if cell.calibration else []
        words += ["--simulations", str(cell.simulations)] if cell.simulations else []
        for option, value in (("--crop", task.data.crop), ("--limit", task.data.limit)):
            words += [option, str(value)] if value is not None else []
        words += [] if protocol.eight_bit else ["--float-metrics"]
        words += ["--y-channel"] if protocol.y_channel else []
        words += ["--border", str(protocol.border)] if protocol.border else []
        words += [word for name in protocol.perceptual for word in ("--perceptual", name)]
        words += ["--precision", _precision(task.prior)] if _precision(task.prior) else []
        return shlex.join([*words, "--out", f"row-{task.id}"])


def make_plan(
    suite: Suite,
    device: str = "auto",
    precision: str = "auto",
    objects: Mapping[str, Any] | None = None,
) -> Plan:
    """Find, load and check everything that a suite names.

    objects: text in the cells -> the operator, solver or prior that it stands for.
    Raises UsageError for what cannot be used in any cell: unknown names, missing folders, a solver that can use no operator,
    and for noise of size 0, for which no solver works.
    """
    suite, lost = suite.present()
    given = dict(objects or {})
    skipped = [(name, "its folder is not there") for name in lost]
    sources = {item.name: item.sources() for item in suite.data}
    data = {item.name: item for item in suite.data}
    priors = {
        name: resolve_prior(given[name]) if name in given else resolve_prior(name, device, precision)
        for name in dict.fromkeys(cell.prior for cell in suite.cells)
    }
    tasks = []
    for cell in suite.cells:
        noise_model(cell.noise)
        operator = resolve_operator(given.get(cell.operator) or suite.spelled_out(cell.operator))
        solver = _solver(cell, given)
        if isinstance(solver, Solver) and (unmet := solver.unmet(operator)):
            skipped.append((cell.label, f"{solver.name} needs an operator that is {' and '.join(unmet)}"))
            continue
        where = {"crop": data[cell.data].crop, "files": [file_hash(path) for path in files_of(operator)]}
        measured = digest(
            {"data": cell.data, "operator": cell.operator, "noise": cell.noise, "seed": cell.seed, **where}
        )
        everything = {
            **asdict(cell),
            **where,
            "prior": priors[cell.prior].describe(),
            "protocol": suite.protocol.settings(),
        }
        tasks.append(
            Task(
                cell, digest(everything), measured, operator, solver, priors[cell.prior], data[cell.data],
                sources[cell.data],
            )
        )  # fmt: skip
    if not tasks:
        raise UsageError(f"suite {suite.name}: nothing can run; {skipped[0][0]}: {skipped[0][1]}")
    return Plan(suite, tasks, priors, skipped)


def _solver(cell: Cell, given: Mapping[str, Any]) -> Solver | str:
    if cell.solver in given:
        return given[cell.solver] if cell.steps is None else solvers.get(given[cell.solver], steps=cell.steps)
    if cell.solver == "auto":
        return "auto"
    return solvers.get(cell.solver, **({} if cell.steps is None else {"steps": cell.steps}))


def _precision(prior: Prior) -> str:
    return PRECISION_NAMES.get(str(prior.describe().get("precision", "")), "")


def digest(value: Any) -> str:
    """Hash of plain data, ten hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]
