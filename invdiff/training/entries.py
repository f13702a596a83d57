"""Where the training images are: the files of folders and of tar archives, listed without being decoded."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from invdiff.errors import ImageError

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip")


@dataclass(frozen=True)
class Entry:
    """One image: its name, the group (sub-folder) that its sampling weight belongs to, and where its bytes are."""

    name: str
    group: str
    read: Callable[[], bytes]

    @property
    def key(self) -> str:
        """Group and name: the same image keeps it when its folder is given next to, or inside, another one."""
        return self.name if self.name.startswith(f"{self.group}/") else f"{self.group}/{self.name}"


def find_entries(sources: Sequence[str | Path]) -> list[Entry]:
    """All images in folders (recursively, hidden files left out) and tar files, in the order of their names.

    The group is the first sub-folder; for images beside it, the name of the source. Raises ImageError for a source that
    does not exist, is neither folder nor uncompressed tar, or has no image.
    """
    entries: list[Entry] = []
    for source in map(Path, sources):
        if source.is_dir():
            found = _folder_entries(source)
        elif not source.exists():
            raise ImageError(f"{source}: no such file or folder")
        elif source.suffix == ".tar" or tarfile.is_tarfile(source):
            found = _tar_entries(source)
        else:
            raise ImageError(f"{source}: not a folder or a .tar of images; --data takes either")
        if not found:
            raise ImageError(f"{source}: no images in it (looked for {', '.join(sorted(SUFFIXES))} and .tar)")
        entries += found
    return entries


def _folder_entries(root: Path) -> list[Entry]:
    inside = [path for path in sorted(root.rglob("*")) if not _hidden(path.relative_to(root)) and path.is_file()]
    for path in inside:
        if path.name.lower().endswith(ARCHIVES):
            log.warning("left out %s: unpack it, or make it an uncompressed .tar", path)
    images = [_file_entry(path, root) for path in inside if path.suffix.lower() in SUFFIXES]
    return images + [entry for path in inside if path.suffix.lower() == ".tar" for entry in _tar_entries(path)]


def _hidden(path: Path | PurePosixPath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _file_entry(path: Path, root: Path) -> Entry:
    relative = path.relative_to(root)
    group = relative.parts[0] if len(relative.parts) > 1 else root.resolve().name
    return Entry(relative.as_posix(), group, path.read_bytes)


def _tar_entries(path: Path) -> list[Entry]:
    def reader(offset: int, size: int) -> Callable[[], bytes]:
        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        return read

    entries = []
    try:
        with tarfile.open(path, "r:") as tar:  # only without compression can single members be read
            for member in tar:
                name = PurePosixPath(member.name.lstrip("/"))  # "./a/b.png" becomes a/b.png
                if member.isreg() and not member.issparse() and name.suffix.lower() in SUFFIXES and not _hidden(name):
                    group = name.parts[0] if len(name.parts) > 1 else path.stem
                    entries.append(Entry(str(name), group, reader(member.offset_data, member.size)))
    except tarfile.TarError as error:
        reason = "it is compressed: unpack it, or make it a plain .tar" if tarfile.is_tarfile(path) else str(error)
        raise ImageError(f"{path}: cannot be read as a tar of images ({reason})") from error
    return entries
