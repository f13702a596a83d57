"""Inputs and outputs of a command: which file becomes which, what may be replaced, and what their records say."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from invdiff.errors import ImageError, UsageError
from invdiff.files.images import IMAGE_SUFFIXES, WRITABLE_BITS, list_images

DEFAULT_EXTENSION = "png"
# What `degrade` writes: images, and measurement files.
MEASUREMENT_BITS: dict[str, tuple[int, ...]] = WRITABLE_BITS | {".npz": (32,), ".safetensors": (32,)}


@dataclass(frozen=True)
class Job:
    """One input and where its result goes.

    inside: the input's path below the folder it was found in; suffixes: those of the companion files, such as "-std".
    """

    source: Path
    target: Path
    inside: Path
    suffixes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What the random numbers are keyed by: the file's name, so that the same file gives the same result anywhere."""
        return self.source.name

    @property
    def record(self) -> Path:
        """The JSON file beside the output."""
        return self.target.with_name(f"{self.target.name}.json")

    def companion(self, suffix: str) -> Path:
        """The path of a companion file: out.png -> out-std.png."""
        return self.target.with_name(f"{self.target.stem}{suffix}{self.target.suffix}")

    @property
    def earlier(self) -> set[Path]:
        """The files that an earlier run wrote for this output, as the record beside it says."""
        return {self.target.with_name(name) for name in recorded(self.record)}

    @property
    def outputs(self) -> list[Path]:
        """Every file that this job writes."""
        return [self.target, self.record, *map(self.companion, self.suffixes)]


def plan(
    inputs: Sequence[str],
    out: str,
    *,
    extension: str | None = None,
    bits: int | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    suffixes: Sequence[str] = (),
    reads: Sequence[str] = IMAGE_SUFFIXES,
    skips: Callable[[Path], bool] = lambda path: False,
    writes: Mapping[str, tuple[int, ...]] = WRITABLE_BITS,
) -> list[Job]:
    """The jobs of a command, in natural order of their inputs.

    OUT is a file if it ends in a file type and there is one input; otherwise a folder, in which inputs keep their names
    and the sub-folders of an input folder. suffixes: those of the companion files. reads, writes: the file types of inputs
    and of OUT. skips: says which files in input folders are none. Raises UsageError or ImageError, before any computation,
    for an unknown file type, two inputs for one output, an output that is an input, an existing file that invdiff did not
    write for this output, and a place where nothing can be written.
    """
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other; give one of them")
    found = _find(inputs, Path(out), reads, skips)
    as_file = is_file_name(out, several=len(found) > 1, writes=writes)
    if as_file and len(found) > 1:
        raise UsageError(f"{len(found)} inputs cannot go to one file {out}; give a folder, e.g. -o {Path(out).stem}/")
    if as_file and extension is not None:
        raise UsageError(f"--format {extension} is for output folders; {out} names its file type itself")
    jobs = []
    for source, inside in found:
        name = inside.with_suffix(f".{extension or DEFAULT_EXTENSION}")
        jobs.append(Job(source, Path(out) if as_file else Path(out) / name, inside, tuple(suffixes)))
    refuse_inputs(jobs, [job.source for job in jobs])
    _refuse_shared(jobs)
    left = [job for job in jobs if not (skip_existing and job.target.exists())]
    for job in left:
        check_outputs(job, bits, overwrite, writes)
    return left


def is_file_name(out: str, several: bool = False, writes: Mapping[str, tuple[int, ...]] = WRITABLE_BITS) -> bool:
    """True if OUT means a file. Raises UsageError for a file type that cannot be written."""
    path = Path(out)
    if out.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        return False
    if path.suffix.lower() in writes:
        return True
    if several:
        return False
    types = ", ".join(writes)
    raise UsageError(f"cannot write {out}: {path.suffix!r} is none of {types}; for a folder write {out}/")


def check_place(path: Path, option: str = "-o") -> None:
    """Raise ImageError if no file could be written there: `option` named a folder, or a place in none that takes files."""
    if path.is_dir():
        raise ImageError(f"cannot write {path}: it is a folder; choose another {option}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:  # permissions alone do not tell: a disk may be read-only, or no disk at all
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = "is a file: it is" if folder.is_file() else "is"
        reason = f"{folder} {what} no folder that you may write to; choose another {option}"
        raise ImageError(f"cannot write {path}: {reason}") from error


def _find(
    inputs: Sequence[str], out: Path, reads: Sequence[str], skips: Callable[[Path], bool]
) -> list[tuple[Path, Path]]:
    """(path, path below the folder it was found in) of each input, each once; earlier outputs are left out."""
    found: dict[Path, tuple[Path, Path]] = {}
    ignored, outputs = 0, out.resolve() if out.is_dir() else None
    for argument in inputs:
        root = Path(argument)
        for source in list_images([argument], reads):
            path = source.resolve()
            if root.is_dir() and outputs in path.parents and outputs != root.resolve():
                ignored += 1
            elif root.is_file() or not skips(source):
                found.setdefault(path, (source, source.relative_to(root) if root.is_dir() else Path(source.name)))
    if ignored:
        click.echo(f"note: {ignored} images below the output folder {out} are not taken as inputs", err=True)
    if not found:
        raise ImageError(f"no images in {', '.join(inputs)} outside the output folder {out}; check the paths")
    return list(found.values())


def refuse_inputs(jobs: Sequence[Job], inputs: Iterable[Path]) -> None:
    """Raise UsageError if a job would write, or clear away, one of these files, which the command reads."""
    read = {path.resolve() for path in inputs}
    for job in jobs:
        for path in (*job.outputs, *job.earlier):
            if path.resolve() in read:
                raise UsageError(f"{path} is an input and would be overwritten; choose another -o")


def _refuse_shared(jobs: Sequence[Job]) -> None:
    """Raise UsageError if two jobs would write the same file."""
    taken: dict[Path, Path] = {}
    for job in jobs:
        for path in (*job.outputs, *job.earlier):
            other = taken.setdefault(path.resolve(), job.source)
            if other != job.source:
                raise UsageError(f"{other} and {job.source} would both be written to {path}; use two output folders")


def check_outputs(
    job: Job, bits: int | None, overwrite: bool, writes: Mapping[str, tuple[int, ...]] = WRITABLE_BITS
) -> None:
    """Raise ImageError if an output could not be written, UsageError if it exists and no earlier run of the job wrote it,
    or if its file type does not hold these bits."""
    allowed, own = writes[job.target.suffix.lower()], job.earlier
    if bits is not None and bits not in allowed:
        held = f"{job.target.suffix} holds {' or '.join(map(str, allowed))} bits"
        raise UsageError(f"--bits {bits} does not fit {job.target}: {held}; leave --bits out")
    check_place(job.target)
    for path in job.outputs:
        if path.is_dir():
            raise ImageError(f"cannot write {path}: it is a folder; choose another -o")
        if path.exists() and not overwrite and path not in own:
            raise UsageError(
                f"{path} exists and was not written by invdiff (no record {job.record.name} names it); choose another -o, or "
                "replace it with --overwrite"
            )


def recorded(record: Path) -> set[str]:
    """The names of a record and of the files that it lists as its outputs; none if invdiff did not write it.

    Its companions start with the output's name; one that has a record of its own belongs to that.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        versions, output = content["versions"], content["output"]
        listed = [output["path"], *output.get("samples", ()), *output.get("quantiles", {}).values()]
        listed += [output["std"]["path"]] if "std" in output else []
        names = {Path(path).name for path in listed}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    if "invdiff" not in versions:
        return set()
    own = {name for name in names if name.startswith(f"{Path(record.stem).stem}-")}
    own = {name for name in own if not record.with_name(f"{name}.json").exists()}
    return {record.name, *own, *(names & {record.stem})}


@contextmanager
def replacing(job: Job) -> Iterator[None]:
    """Write the files of a job: they appear together when the block ends, and what an earlier run wrote beside its
    record and this one does not goes. Should anything fail, everything stays as it was.
    """
    from invdiff.files.atomic import all_or_nothing, discard

    with all_or_nothing():
        yield
        for path in job.earlier:
            discard(path)


def check_results(results: Mapping[str, str | None], overwrite: bool, own: Callable[[Path], bool]) -> list[Path]:
    """The files that options such as --json ask for, checked before anything is computed.

    results: option -> file, None where it is not given; own: whether an earlier run of the command wrote a file.
    Raises ImageError for a file that cannot be written, UsageError for one that is named twice, or that is there and not
    the command's own.
    """
    targets: list[Path] = []
    for option, name in results.items():
        if name is None:
            continue
        path = Path(name)
        check_place(path, option)
        if path.resolve() in {target.resolve() for target in targets}:
            raise UsageError(f"{' and '.join(results)} both name {path}; give two files")
        if path.exists() and not overwrite and not own(path):
            raise UsageError(f"{path} exists and was not written by this command; choose another, or use --overwrite")
        targets.append(path)
    return targets


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe_input(path: Path, description: str, notes: Sequence[str]) -> dict[str, Any]:
    """What a record says about an input file."""
    return {"path": str(path), "sha256": sha256(path), "description": description, "notes": list(notes)}
