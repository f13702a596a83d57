"""What an evaluation runs: data sets x operators x noises x solvers x steps x priors x seeds, from a file or from options.

A suite is a file (YAML, TOML or JSON); those in invdiff/suites are known by name. Its keys:

    about, protocol (of `invdiff.evaluation.protocol.Protocol`), data: name -> path, or {path, crop, limit, optional}
    operators, noises, solvers, steps, priors, seeds: a value or a list each; every combination is a cell
    samples, calibration, simulations: the same for every cell
    grids: a list of sets of these keys, each replacing those outside, where one set of combinations does not suffice

A path in `data` is looked for below --data and beside the suite; "{data}" in an operator stands for the folder --data.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invdiff.errors import UsageError, unknown
from invdiff.evaluation.datasets import DataSet
from invdiff.evaluation.protocol import Protocol
from invdiff.specs.settings import read_settings

FOLDER = Path(__file__).parents[1] / "suites"
DATA = "{data}"
AXES = {
    "operators": "operator",
    "noises": "noise",
    "solvers": "solver",
    "steps": "steps",
    "priors": "prior",
    "seeds": "seed",
}
DEFAULTS: dict[str, Any] = {
    "solvers": ["auto"],
    "steps": [None],
    "priors": ["natural"],
    "seeds": [0],
    "samples": 1,
    "calibration": False,
    "simulations": 0,
}
_GRID = (*AXES, "samples", "calibration", "simulations", "data")


@dataclass(frozen=True)
class Cell:
    """One row of the table, as plain text and numbers: a solver on every image of a data set under one operator and noise.

    operator: may hold "{data}"; noise: text as `--noise` takes it; steps: None for the solver's own; samples: for each
    image; simulations: images of the prior itself whose ranks among their samples are tested (`invdiff.exactness.sbc`).
    """

    data: str
    operator: str
    noise: str
    solver: str = "auto"
    steps: int | None = None
    prior: str = "natural"
    seed: int = 0
    samples: int = 1
    calibration: bool = False
    simulations: int = 0

    def __post_init__(self) -> None:
        for option, least in (("steps", 1), ("samples", 1), ("seed", 0), ("simulations", 0)):
            value = getattr(self, option)
            if (option, value) != ("steps", None) and (
                isinstance(value, bool) or not isinstance(value, int) or value < least
            ):
                raise UsageError(f"{option}={value!r} must be a whole number of at least {least}")
        if self.calibration and self.samples < 2:
            raise UsageError("calibration needs several samples of each image, say samples=16 (--samples 16)")
        if self.simulations and (self.simulations < 10 or self.samples < 2):
            raise UsageError(
                f"simulations={self.simulations} needs at least 10 of them and several samples of each (--samples 16)"
            )

    @property
    def label(self) -> str:
        """One line for people: cbsd68, gaussian_blur:sigma=2, 0.05, diffpir, 20 calls."""
        parts = [self.data, self.operator, self.noise, self.solver]
        parts += [] if self.steps is None else [f"{self.steps} calls"]
        parts += [] if self.prior == "natural" else [self.prior]
        parts += [] if self.seed == 0 else [f"seed {self.seed}"]
        return ", ".join(parts)


@dataclass(frozen=True)
class Suite:
    """Data sets, cells and a protocol. roots: folders in which data sets are looked for; the first is {data}."""

    name: str
    data: tuple[DataSet, ...]
    cells: tuple[Cell, ...]
    protocol: Protocol = field(default_factory=Protocol)
    about: str = ""
    roots: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.cells:
            raise UsageError(f"suite {self.name}: nothing to run; it needs data, operators and noises")
        if len(set(self.cells)) != len(self.cells):
            twice = next(cell for cell in self.cells if self.cells.count(cell) > 1)
            raise UsageError(f"suite {self.name}: the cell {twice.label} is there twice")

    def spelled_out(self, text: str) -> str:
        """An operator's text with the folder of --data in the place of {data}."""
        if DATA not in text:
            return text
        if not self.roots:
            raise UsageError(f"suite {self.name}: {text} needs the folder of the data; give --data DIR")
        return text.replace(DATA, str(self.roots[0]))

    def present(self) -> tuple[Suite, list[str]]:
        """Without the optional data sets that are not there, and the names of those.

        Raises UsageError for others, and if none is left.
        """
        data = [data_set.located(self.roots) for data_set in self.data]
        lost = [item.name for item in data if item.missing]
        needed = [item for item in data if item.missing and not item.optional]
        if needed or len(lost) == len(data):
            wanted = needed or data
            where = " or ".join(map(str, self.roots)) or "the working folder"
            raise UsageError(
                f"suite {self.name}: no {', '.join(item.path for item in wanted)} in {where}; "
                "give the folder that holds the data sets, --data DIR"
            )
        kept = tuple(item for item in data if item.name not in lost)
        cells = tuple(cell for cell in self.cells if cell.data not in lost)
        return dataclasses.replace(self, data=kept, cells=cells), lost


def shipped_suites() -> dict[str, Path]:
    """Name -> file of the suites that come with this package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_suite(source: str | Path, data: str | Path | None = None) -> Suite:
    """The suite of a file or of a shipped name, checked; data: the folder that holds its data sets.

    Raises UsageError that names the file and the faulty key: one that is unknown, absent, of a wrong type or given twice.
    """
    shipped = shipped_suites()
    path = shipped.get(str(source)) or Path(source).expanduser()
    if not path.suffix and not path.exists():
        raise unknown("suite", str(source), shipped, "Or give a .yaml, .toml or .json file.")
    roots = [Path(data).expanduser()] if data is not None else []
    if roots and not roots[0].is_dir():
        raise UsageError(f"--data {roots[0]}: no such folder; give the one that holds the data sets")
    roots += [] if path.parent == FOLDER else [path.parent]
    return check_suite(read_settings(path, "a suite"), path.stem, str(path), tuple(roots))


def check_suite(content: Any, name: str, source: str, roots: tuple[Path, ...] = ()) -> Suite:
    """The suite in plain data. source: where the data are from, for the errors."""
    if not isinstance(content, Mapping):
        raise UsageError(f"{source}: a suite is a list of `key: value`, for instance `noises: [0.05]`")
    known = (*_GRID, "about", "protocol", "grids")
    for key in content:
        if key not in known:
            raise unknown(f"key in {source}:", str(key), known)
    try:
        protocol = _protocol(content.get("protocol", {}))
        data = tuple(_data_set(key, value) for key, value in _known(content.get("data", {}), "data", ()).items())
        cells = tuple(cell for grid in _grids(content) for cell in grid_cells(grid, [item.name for item in data]))
        return Suite(name, data, cells, protocol, str(content.get("about", "")).strip(), roots)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error


def _known(value: Any, key: str, known: Sequence[str]) -> Mapping[str, Any]:
    """The value of a key, which must be a mapping with known keys only."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{key}={value!r} must be a list of `name: value`")
    for name in value if known else ():
        if name not in known:
            raise unknown(f"key in {key}:", str(name), known)
    return value


def _protocol(value: Any) -> Protocol:
    given = dict(_known(value, "protocol", [item.name for item in dataclasses.fields(Protocol)]))
    if isinstance(given.get("perceptual"), list):
        given["perceptual"] = tuple(given["perceptual"])
    return Protocol(**given)


def _data_set(name: Any, value: Any) -> DataSet:
    name = str(name)
    if isinstance(value, str):
        return DataSet(name, value)
    value = _known(value, f"data.{name}", ("path", "crop", "limit", "optional"))
    if not isinstance(value.get("path", name), str) or not isinstance(value.get("optional", False), bool):
        raise UsageError(f"data.{name}: path must be text, and optional true or false")
    return DataSet(name, **{"path": name, **value})


def _grids(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    outside = {key: value for key, value in content.items() if key in _GRID and key != "data"}
    grids = content.get("grids", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, Mapping) for grid in grids):
        raise UsageError("grids must be a list, each a set of keys such as operators and noises")
    for grid in grids:
        yield {**outside, **_known(grid, "grids", _GRID)}


def grid_cells(grid: Mapping[str, Any], names: Sequence[str]) -> Iterator[Cell]:
    """A cell for every combination of the axes of a grid, on data sets of these names."""
    grid = {**DEFAULTS, **grid}
    data = listed(grid.get("data", list(names)))
    for name in data:
        if name not in names:
            raise unknown("data set", str(name), names)
    for axis in ("operators", "noises"):
        if not grid.get(axis):
            example = {"operators": "gaussian_blur:sigma=2", "noises": "0.05"}[axis]
            raise UsageError(f"{axis} is missing; give one, for instance {axis}: [{example}]")
    if not isinstance(grid["calibration"], bool):
        raise UsageError(f"calibration={grid['calibration']!r} must be true or false")
    rest = {name: grid[name] for name in ("samples", "calibration", "simulations")}
    for name, *values in itertools.product(data, *(listed(grid[axis]) for axis in AXES)):
        fields = dict(zip(AXES.values(), values, strict=True))
        for key in ("operator", "noise", "solver", "prior"):
            if fields[key] is None or isinstance(fields[key], Mapping | list | bool):
                raise UsageError(f"{key}={fields[key]!r} must be text or a number")
            fields[key] = str(fields[key])
        yield Cell(name, **fields, **rest)


def listed(value: Any) -> list[Any]:
    """A value as a list; a list or tuple as it is."""
    return list(value) if isinstance(value, list | tuple) else [value]
