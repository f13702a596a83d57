"""Reading the folder of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invdiff.errors import UsageError

KIND, FORMAT = "invdiff evaluate", 1

Line = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """What a folder holds. results, timings: the last line of each (cell, image), of the cells in run.json."""

    folder: Path
    record: Line
    results: list[Line]
    timings: dict[tuple[str, str], Line] = field(default_factory=dict)

    @property
    def cells(self) -> list[Line]:
        return list(self.record["cells"])


def load(folder: str | Path) -> Run:
    """The run in a folder. Raises UsageError for a folder that holds none, and for one of another format."""
    folder = Path(folder)
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kind, form = record["kind"], record["format"]
    except FileNotFoundError:
        raise UsageError(
            f"{folder} holds no evaluation (no run.json); give the --out folder of `invdiff evaluate`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no record of an evaluation ({type(error).__name__}); choose another folder"
        ) from error
    if kind != KIND or form != FORMAT:
        raise UsageError(
            f"{path} is of format {form!r} of {kind!r}, and this version reads {FORMAT}; use the version that made it"
        )
    known = {cell["id"] for cell in record["cells"]}
    last = {(line["cell"], line["image"]): line for line in _lines(folder / "results.jsonl") if line["cell"] in known}
    timings = {(line["cell"], line["image"]): line for line in _lines(folder / "timings.jsonl")}
    return Run(folder, record, list(last.values()), timings)


def _lines(path: Path) -> Iterator[Line]:
    """The whole lines of a file: one without its end is still being written."""
    text = path.read_bytes() if path.is_file() else b""
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            yield dict(json.loads(line))
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not a line of results ({error}); remove it") from error
