"""Files and folders that are written whole or not at all: one file, several together, or one folder."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from invdiff.errors import CheckpointError, ImageError, InvdiffError

_OS_FIXES = {errno.ENOSPC: "Free some space or write to another disk.", errno.EDQUOT: "Free some of your disk quota."}
_OS_FIXES |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder you may write to.")
_OS_FIXES |= dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "A part of this path is a file, not a folder.")

# What the running block of `all_or_nothing` has written, as (temporary file, its place), and what it clears away, as
# (None, place).
_pending: ContextVar[list[tuple[Path | None, Path]] | None] = ContextVar("pending", default=None)


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """All files that this block writes through `atomic_path` appear together when it ends, or none does; the files that it
    gives to `discard` are removed at the same time.

    Until then they are temporary files beside their places, so that older files there survive any failure, Ctrl-C
    included; should one of the final renames fail, those done before it are undone.
    """
    written: list[tuple[Path | None, Path]] = []
    token = _pending.set(written)
    try:
        yield
        _rename_all(written)
    finally:
        _pending.reset(token)
        for temporary, _ in written:
            if temporary is not None:
                _remove(temporary)


def discard(path: Path) -> None:
    """Remove a file when the block of `all_or_nothing` ends, unless the block writes it too."""
    pending = _pending.get()
    assert pending is not None, "discard is called inside a block of all_or_nothing"
    pending.append((None, path))


def _rename_all(pending: Sequence[tuple[Path | None, Path]]) -> None:
    written = {target for temporary, target in pending if temporary is not None}
    files = [item for item in pending if item[0] is not None or Path(os.path.realpath(item[1])) not in written]
    kept = [(target, _beside(target).with_suffix(".old"), target.exists()) for _, target in files]
    tried = 0
    try:
        for (temporary, target), (_, older, existed) in zip(files, kept, strict=True):
            tried += 1
            with explained(target):
                if existed:
                    os.replace(target, older)
                if temporary is not None:
                    os.replace(temporary, target)
    except BaseException:
        for target, older, existed in reversed(kept[:tried]):
            if older.exists():
                os.replace(older, target)
            elif not existed:
                _remove(target)
        raise
    for _, older, _ in kept:
        _remove(older)


def _beside(target: Path) -> Path:
    """A new hidden name in the same folder, with the same extension."""
    return target.with_name(f".{target.stem[:64]}-{secrets.token_hex(4)}{target.suffix}")


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # no such folder, for instance: another error is the one to show
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: str | os.PathLike[str], raised: type[InvdiffError] = ImageError) -> Iterator[None]:
    """A failed write, by Python, torch or safetensors, becomes an error of the class `raised` that says which file could
    not be written and what to do."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = getattr(error, "strerror", None) or str(error)
        if "inline_container" in reason or "PytorchStreamWriter" in reason:  # of torch, which hides the system's error
            number, reason = errno.ENOSPC, "the disk refused it, probably because it is full"
        elif type(error).__name__ == "SafetensorError":
            number = errno.ENOSPC if "No space left" in reason else None
        elif not isinstance(error, OSError):
            raise
        fix = _OS_FIXES.get(number or 0, f"Check the space and the permissions of {Path(path).parent}.")
        intact = " What was there before is intact." if raised is CheckpointError else ""
        raise raised(f"cannot write {path}: {reason}. {fix}{intact}") from error


@contextlib.contextmanager
def atomic_path(
    path: str | os.PathLike[str], raised: type[InvdiffError] = ImageError, durable: bool = False
) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside it, which becomes `path` when the block ends
    (inside `all_or_nothing`: when that block ends).

    The temporary file has the same extension and is removed upon any exception, Ctrl-C included; what stood at `path`
    stays until then. Missing folders are created, and a link is written through. A failed write raises `raised`, which
    names the path and the fix.
    durable: for a large file that is written again and again. It is on the disk before it is renamed, so that a power cut
    leaves one of the two whole; and its temporary name is always `path`.part, so that killed processes leave one at most.
    """
    target, pending = Path(os.path.realpath(path)), _pending.get()
    temporary = target.with_name(f"{target.name}.part") if durable else _beside(target)
    try:
        with explained(path, raised):
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            if pending is not None:
                pending.append((temporary, target))
            yield temporary
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            if pending is None:
                os.replace(temporary, target)
    finally:
        if pending is None:
            _remove(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], raised: type[InvdiffError] = CheckpointError) -> Iterator[Path]:
    """Write a folder whole or not at all: yields a new, empty folder beside it, which takes its place when the block ends.

    A folder that stands at `path` is removed only then; a link to a folder stays a link. A failed write raises `raised`.
    """
    target = Path(os.path.realpath(path))
    part, older = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
    for left in (part, older):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        with explained(path, raised):
            part.mkdir(parents=True)
            yield part
            if target.exists():
                os.replace(target, older)
            try:
                os.replace(part, target)
            except BaseException:
                if older.exists():
                    os.replace(older, target)
                raise
    finally:
        for left in (part, older):
            shutil.rmtree(left, ignore_errors=True)


def drop_torn_line(file: io.FileIO) -> int:
    """Remove a last line that has no line break, which a killed process left; returns the file's size after that, in bytes.

    file: opened for reading and appending, without a buffer.
    """
    size = end = file.seek(0, os.SEEK_END)
    newline = -1
    while end > 0 and newline < 0:
        start = file.seek(max(0, end - 4096))
        newline = file.read(end - start).rfind(b"\n")
        end = start + newline + 1
    return end if end == size else file.truncate(end)


def has_mark(path: str | os.PathLike[str], mark: str) -> bool:
    """Whether a text file has `mark` near its beginning, by which a command knows the files that it wrote itself."""
    try:
        return mark in Path(path).read_text(encoding="utf-8")[:2000]
    except (OSError, UnicodeDecodeError):
        return False
