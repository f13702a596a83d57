"""The folder of a run: every finished image is appended at once, so that a run that was stopped goes on from there.

run.json holds the settings; results.jsonl a line for each image of each cell, with numbers that are the same in every
run; timings.jsonl what they cost; simulations.jsonl a line for each cell that was tested with images of the prior
itself; sets.jsonl a line for the scores of all images of a cell together. Each line is written by one call under a
lock, so that several processes may share the folder. A process that is killed loses at most the images in flight: an
incomplete line is removed before the next one is appended.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invdiff.errors import ImageError, UsageError
from invdiff.files.atomic import drop_torn_line, explained

KIND, FORMAT = "invdiff evaluate", 1
RUN, RESULTS, TIMINGS = "run.json", "results.jsonl", "timings.jsonl"
SIMULATIONS, SETS = "simulations.jsonl", "sets.jsonl"

Line = dict[str, Any]
Place = tuple[str, str]  # cell id, image key


@dataclass(frozen=True, eq=False)
class Run:
    """What a folder holds. results, timings: the last line of each (cell, image), in the order of the cells and images;
    simulations: cell -> the record of `sbc.Simulation`; sets: cell -> its FID and the number of images it is of."""

    folder: Path
    record: Line
    results: list[Line]
    timings: dict[Place, Line] = field(default_factory=dict)
    simulations: dict[str, Line] = field(default_factory=dict)
    sets: dict[str, Line] = field(default_factory=dict)

    @property
    def cells(self) -> list[Line]:
        return list(self.record["cells"])

    @property
    def done(self) -> set[Place]:
        """The (cell, image) that have scores."""
        return {(line["cell"], line["image"]) for line in self.results if "error" not in line}

    @property
    def failures(self) -> dict[Place, str]:
        """(cell, image) -> the error of those that failed."""
        return {(line["cell"], line["image"]): line["error"] for line in self.results if "error" in line}

    def of(self, cell: str) -> list[Line]:
        """The results of a cell that have scores."""
        return [line for line in self.results if line["cell"] == cell and "error" not in line]


def load(folder: str | Path) -> Run:
    """The run in a folder. Raises UsageError for a folder that holds none, and for one of another format."""
    folder = Path(folder)
    record = read_record(folder)
    if record is None:
        raise UsageError(f"{folder} holds no evaluation (no {RUN}); give the --out folder of `invdiff evaluate`")
    known = {cell["id"] for cell in record["cells"]}
    last = {(line["cell"], line["image"]): line for line in _lines(folder / RESULTS) if line.get("cell") in known}
    timings = {(line["cell"], line["image"]): line for line in _lines(folder / TIMINGS)}
    done, batch = Counter(place[0] for place in last), dict[str, int]()
    for (name, _), line in timings.items():
        batch[name] = max(batch.get(name, 1), int(line.get("batch", 1)))
    for cell in record["cells"]:
        cell["command"] = _as_it_was(cell, record, done[cell["id"]], batch.get(cell["id"], 1))
    order = {cell["id"]: number for number, cell in enumerate(record["cells"])}
    results = sorted(last.values(), key=lambda line: order[line["cell"]])  # stable: images as they were appended
    simulations, sets = ({line["cell"]: line for line in _lines(folder / name)} for name in (SIMULATIONS, SETS))
    return Run(folder, record, results, timings, simulations, sets)


def _as_it_was(cell: Line, record: Line, done: int, batch: int) -> str:
    """The command that repeats a cell, with --limit where fewer images than the data set has were evaluated, and with
    --batch-size, on which the last digits depend."""
    command = str(cell.get("command", ""))
    whole = done == 0 or done >= record["data"].get(cell["data"], {}).get("images", 0)
    if (whole and batch == 1) or " --out " not in command:
        return command
    words = shlex.split(command)
    if not whole and "--limit" in words:
        del words[words.index("--limit") : words.index("--limit") + 2]
    added = [] if whole else ["--limit", str(done)]
    added += ["--batch-size", str(batch)] if batch > 1 else []
    words[words.index("--out") : words.index("--out")] = added
    return shlex.join(words)


def read_record(folder: Path) -> Line | None:
    """run.json, or None where there is none. Raises UsageError for one that this version cannot read."""
    path = folder / RUN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kind, form = record["kind"], record["format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no record of an evaluation ({type(error).__name__}); choose another folder"
        ) from error
    if kind != KIND or form != FORMAT:
        raise UsageError(
            f"{path} is of format {form!r} of {kind!r}, and this version reads {FORMAT}; use the version that made it"
        )
    return dict(record)


class Store:
    """A folder that results are appended to."""

    def __init__(self, folder: str | Path) -> None:
        self.folder: Path = Path(folder)

    def open(self, record: Line, force: bool = False) -> Run:
        """Begin a run or go on with one, and return what it holds already.

        Raises UsageError if the folder holds a run of other settings, naming them. force: replace its settings instead, and
        keep the results of the cells that both have.
        """
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            older = read_record(self.folder)
            if older is None and self._strange():
                raise UsageError(
                    f"{self.folder} holds files but no evaluation ({self._strange()[0]}, ...); choose another --out"
                )
            if older is None or older["hash"] != record["hash"]:
                if older is not None and not force:
                    raise UsageError(
                        f"{self.folder} holds results of other settings ({differences(older, record)}); choose another "
                        "--out, or --force to go on with the new settings, which keeps the cells that both have"
                    )
                from invdiff.files.images import write_json

                write_json(self.folder / RUN, record)
        return load(self.folder)

    def append(self, results: Iterable[Line], timings: Iterable[Line]) -> None:
        """Write lines to the disk. Raises ImageError where it does not take them all, and then leaves none of them."""
        with self._locked():
            # Timings first: a result without its time would count as done.
            _append(self.folder / TIMINGS, timings)
            _append(self.folder / RESULTS, results)

    def append_cell(self, name: str, cell: str, found: Line) -> None:
        """Write a line about a whole cell. name: SIMULATIONS or SETS."""
        with self._locked():
            _append(self.folder / name, [{"cell": cell, **found}])

    def _strange(self) -> list[str]:
        return sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith("."))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder for one process at a time, on this machine and, where the file system has locks, on others."""
        path = self.folder / ".lock"
        with explained(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                import fcntl

                fcntl.lockf(descriptor, fcntl.LOCK_EX)
            except (ImportError, OSError):
                pass  # without locks (Windows, some file systems) only one process may write
            yield
        finally:
            os.close(descriptor)


def differences(older: Line, newer: Line) -> str:
    """The settings that differ between two records, in words."""
    told = []
    for key in ("versions", "protocol", "data", "priors"):
        before, after = dict(older.get(key, {})), dict(newer.get(key, {}))
        names = ["invdiff"] if key == "versions" else [*dict.fromkeys([*before, *after])]
        changed = [name for name in names if before.get(name) != after.get(name)]
        told += [f"{key}: {', '.join(changed)}"] if changed else []
    cells = [{cell["id"]: cell["label"] for cell in record["cells"]} for record in (older, newer)]
    for word, mine, others in (("without", cells[0], cells[1]), ("with", cells[1], cells[0])):
        labels = [label for name, label in mine.items() if name not in others]
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        told += [f"{word} {labels[0]}{more}"] if labels else []
    return "; ".join(told) or "their hash"


def _append(path: Path, lines: Iterable[Line]) -> None:
    text = "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in lines).encode()
    if not text:
        return
    with explained(path), open(path, "ab+", buffering=0) as file:
        size = drop_torn_line(file)
        try:
            if os.write(file.fileno(), text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the disk took only a part
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def _lines(path: Path) -> Iterator[Line]:
    """The complete lines of a file; none where there is no file."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            yield dict(json.loads(line))
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not a line of results ({error}); remove it") from error
