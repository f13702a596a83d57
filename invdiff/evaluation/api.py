"""`invdiff.evaluate`: an evaluation from Python, and its table."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.evaluation import cells as whole
from invdiff.evaluation.datasets import DataSet
from invdiff.evaluation.plan import make_plan
from invdiff.evaluation.protocol import Protocol
from invdiff.evaluation.runner import evaluate as run
from invdiff.evaluation.store import Run, Store, load
from invdiff.evaluation.suite import Suite, grid_cells, listed, read_suite
from invdiff.evaluation.summary import Summary, summaries
from invdiff.operator.contract import Operator
from invdiff.priors.prior import Prior
from invdiff.solvers.solver import Solver

AXES = ("data", "operator", "noise", "solver", "steps", "prior", "seed", "samples")
"""The settings of a cell that a table shows."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The results of an evaluation.

    rows: one for each combination of data set, operator, noise, solver, steps, prior and seed; images: a dict for each image
    of each row, as in results.jsonl, together with the row's settings and the seconds; simulations: cell id -> the result of
    the test with images of the prior. `invdiff report` shows a run that has a folder.
    """

    run: Run

    @property
    def rows(self) -> list[Summary]:
        return summaries(self.run)

    @property
    def simulations(self) -> dict[str, dict[str, Any]]:
        return self.run.simulations

    @property
    def images(self) -> list[dict[str, Any]]:
        cells = {cell["id"]: cell for cell in self.run.cells}
        return [
            {axis: cells[line["cell"]][axis] for axis in AXES}
            | {key: value for key, value in line.items() if key not in ("solver", "noise", "cell")}
            | {"seconds": self.run.timings.get((line["cell"], line["image"]), {}).get("seconds")}
            for line in self.run.results
        ]

    def to_pandas(self) -> Any:
        """The rows as a DataFrame, a column for each setting and each mean. Raises ImportError without pandas."""
        import pandas

        counted = [(row, {"images": row.images, "failed": row.failed}) for row in self.rows]
        rows = [{axis: row.cell[axis] for axis in AXES} | counts | dict(row.values) for row, counts in counted]
        return pandas.DataFrame(rows).dropna(axis="columns", how="all")

    def __str__(self) -> str:
        return "\n".join(
            f"{row.label}: PSNR {row.text('before_psnr', 2)} -> {row.text('psnr', 2)} dB, SSIM {row.text('ssim', 3)}, "
            f"residual {row.text('residual', 2)}, {row.text('nfe', 0)} calls, {row.text('seconds', 2)} s an image, "
            f"{row.images} images" + self._failure(row)
            for row in self.rows
        )

    def _failure(self, row: Summary) -> str:
        errors = [line["error"] for line in self.run.results if line["cell"] == row.cell["id"] and "error" in line]
        return f", {row.failed} failed: {errors[0]}" if errors else ""


def evaluate(
    data: Any,
    operator: Any = None,
    noise: Any = 0.05,
    solver: Any = "auto",
    *,
    steps: int | Sequence[int] | None = None,
    prior: Any = "natural",
    seed: int | Sequence[int] = 0,
    samples: int = 1,
    calibration: bool = False,
    simulations: int = 0,
    crop: int | None = None,
    limit: int | None = None,
    protocol: Protocol | None = None,
    out: str | Path | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    force: bool = False,
) -> Evaluation:
    """Degrade clean images, restore and score them: PSNR, SSIM, residual, network calls, seconds.

    data: a folder, file or pattern of clean images, "skimage", a tensor (B, C, H, W) in [0, 1] or a list of (C, H, W), or a
    suite (its name or file, or a Suite), which itself says everything from operator to protocol. operator, noise, solver,
    steps, prior, seed: one each, or lists, of which every combination is a row; operators, solvers and priors may be objects.
    samples: for each image; calibration: also test whether they are spread as they err; simulations: the number of images of
    the prior itself to test the solver on. out: a folder for the results, with which the same call goes on after a stop
    (default: results are kept in memory only).
    Raises as `restore`; an image that fails raises nothing and is counted: printed rows say why, `images` has its "error".
    """
    objects: dict[str, Any] = {}
    if isinstance(data, Suite) or operator is None:
        own = {
            "operator": (operator, None), "noise": (noise, 0.05), "solver": (solver, "auto"), "steps": (steps, None),
            "prior": (prior, "natural"), "seed": (seed, 0), "samples": (samples, 1), "calibration": (calibration, False),
            "simulations": (simulations, 0), "crop": (crop, None), "protocol": (protocol, None),
        }  # fmt: skip
        for name, (value, default) in own.items():
            if value is not default and value != default:
                raise UsageError(f"{name}={value!r} is told by the suite itself; change it there, or give an operator")
        suite = data if isinstance(data, Suite) else read_suite(data)
    else:
        tensors = _tensors(data)
        path = "tensor" if tensors else str(data)
        data_set = DataSet(Path(path).name or "images", path, crop, images=tensors)
        if data_set.missing:
            raise UsageError(f"data {path}: no such folder; give one of clean images, a tensor, or skimage")
        grid = {
            "operators": [_text(item, Operator, objects) for item in listed(operator)],
            "noises": [str(getattr(item, "spec", item)) for item in listed(noise)],
            "solvers": [_text(item, Solver, objects) for item in listed(solver)],
            "priors": [_text(item, Prior, objects) for item in listed(prior)],
            "steps": listed(steps),
            "seeds": listed(seed),
            "samples": samples,
            "calibration": calibration,
            "simulations": simulations,
        }
        cells = tuple(grid_cells(grid, [data_set.name]))
        suite = Suite(data_set.name, (data_set,), cells, protocol or Protocol())
    plan = make_plan(suite, device, precision, objects)
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(temporary if out is None else out)
        held = store.open(plan.record(_command(data, out)), force)
        kept = None if whole.needs_all_pictures(plan) else 0 if out is None else 4
        run(plan, store, held, batch_size=batch_size, limit=limit, pictures=kept)
        whole.finish(plan, store, batch_size=batch_size)
        return Evaluation(load(store.folder))


def _tensors(data: Any) -> tuple[torch.Tensor, ...]:
    """The images where `data` is a tensor or a list of them, else none."""
    if not isinstance(data, torch.Tensor | list | tuple):
        return ()
    for image in data:
        if not isinstance(image, torch.Tensor) or image.ndim != 3:
            found = tuple(data.shape) if isinstance(data, torch.Tensor) else type(data).__name__
            raise UsageError(f"data={found} must be a tensor (B, C, H, W), or a list of tensors (C, H, W)")
    return tuple(data)


def _text(item: Any, kind: Any, objects: dict[str, Any]) -> str:
    """The text of an item of a grid; an object, which is kept in `objects`, gets one that stands for it in the cells."""
    if isinstance(item, str):
        return item
    name = None
    if isinstance(item, kind):
        name = item.describe().get("name") if isinstance(item, Prior) else item.spec
    name = str(name or f"{type(item).__name__}-{len(objects)}")  # such as a deepinv Physics or Denoiser
    if name in objects:
        name = f"{name} ({len(objects)})"
    objects[name] = item
    return name


def _command(data: Any, out: Any) -> str:
    return f"invdiff.evaluate({shlex.quote(str(data)[:80])}, ..., out={out!r})"
