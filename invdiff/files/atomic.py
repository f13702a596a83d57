"""Files that are written whole or not at all: one, or several together."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from invdiff.errors import ImageError

_OS_FIXES = {errno.ENOSPC: "Free some space or write to another disk.", errno.EDQUOT: "Free some of your disk quota."}
_OS_FIXES |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a folder you may write to.")
_OS_FIXES |= dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "A part of this path is a file, not a folder.")

# (temporary file, its place) of what the block of `all_or_nothing` has written; no temporary file: the place is cleared.
_pending: ContextVar[list[tuple[Path | None, Path]] | None] = ContextVar("pending", default=None)


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """Files that this block writes through `atomic_path` appear together at its end, or none does; with them goes
    what the block clears away (`discard`).

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
    assert pending is not None, "discard belongs into a block of all_or_nothing"
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
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError becomes an ImageError that says which file could not be written, and what to do."""
    try:
        yield
    except OSError as error:
        fix = _OS_FIXES.get(error.errno or 0, f"Check the space and the permissions of {Path(path).parent}.")
        raise ImageError(f"cannot write {path}: {error.strerror or error}. {fix}") from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path beside it, which becomes `path` when the block ends
    (inside `all_or_nothing`: when that block ends).

    The temporary file has the same extension and is removed upon any exception, Ctrl-C included; what stood at `path`
    stays until then. Missing folders are created, and a link is written through. An OSError becomes an ImageError that
    names the path and the fix.
    """
    target, pending = Path(os.path.realpath(path)), _pending.get()
    temporary = _beside(target)
    try:
        with explained(path):
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            if pending is not None:
                pending.append((temporary, target))
            yield temporary
            if pending is None:
                os.replace(temporary, target)
    finally:
        if pending is None:
            _remove(temporary)


def drop_torn_line(file: io.FileIO) -> int:
    """Remove a last line without an end, which a killed process left; the file's size after that, in bytes.

    file: opened to be read and appended to, without a buffer.
    """
    size = end = file.seek(0, os.SEEK_END)
    newline = -1
    while end > 0 and newline < 0:
        start = file.seek(max(0, end - 4096))
        newline = file.read(end - start).rfind(b"\n")
        end = start + newline + 1
    return end if end == size else file.truncate(end)


def holds(path: str | os.PathLike[str], mark: str) -> bool:
    """Whether a text file has `mark` near its beginning, by which a command knows the files that it wrote itself."""
    try:
        return mark in Path(path).read_text(encoding="utf-8")[:2000]
    except (OSError, UnicodeDecodeError):
        return False
