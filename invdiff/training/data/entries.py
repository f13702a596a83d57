"""Where the training images are: folders, tar files and datasets, listed without a single image being decoded."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from invdiff.errors import ImageError
from invdiff.files.images import IMAGE_SUFFIXES
from invdiff.training.data.arrow import dataset_entries, is_dataset
from invdiff.training.data.entry import Entry, is_image, read_file
from invdiff.training.data.shards import expand, tar_entries

__all__ = ["Entry", "find_entries"]

log: logging.Logger = logging.getLogger(__name__)

ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip")
TABLES = (".parquet", ".arrow")


def find_entries(sources: Sequence[str | Path]) -> list[Entry]:
    """All images of the sources, in the order of their names, each place on disk once.

    A source is a folder (searched recursively, hidden files left out, tar files and datasets inside it included), an
    uncompressed tar, one image, a pattern of these (`train-{000000..000009}.tar`, `train-*.tar`) or a Hugging Face
    dataset written by `save_to_disk`. The group is the first sub-folder; for images beside it, the name of the source
    (for the shards of one set, their common name). Raises ImageError for a source that does not exist, is none of
    these, or has no image.
    """
    entries: list[Entry] = []
    for source in map(str, sources):
        found = [entry for path in expand(source) for entry in _entries_of(Path(path))]
        if not found:
            raise ImageError(f"{source}: no images in it{_hint(source)}")
        entries += found
    unique: dict[str, Entry] = {}
    for number, entry in enumerate(entries):
        unique.setdefault(entry.origin or str(number), entry)
    if len(unique) < len(entries):
        log.warning("%d images are given twice; each is used once", len(entries) - len(unique))
    return list(unique.values())


def _entries_of(path: Path) -> list[Entry]:
    if path.is_dir():
        return _folder_entries(path)
    if path.suffix.lower() == ".tar" or (not is_image(path.name) and tarfile.is_tarfile(path)):
        return tar_entries(path)
    if is_image(path.name):
        return [_file_entry(path.resolve().parent, (path.name,), os.path.realpath(path))]
    raise ImageError(f"{path}: not a folder, a .tar or a dataset of images; --data takes one of these{_hint(path)}")


def _hint(source: str | Path) -> str:
    if str(source).lower().endswith(TABLES):
        return ": load it with the package datasets and save it with save_to_disk(FOLDER), then give the folder"
    tables = os.path.isdir(source) and any(
        name.lower().endswith(TABLES) for _, _, names in os.walk(source) for name in names
    )
    hint = "; its tables are read after save_to_disk of the package datasets" if tables else ""
    return f" (looked for {', '.join(IMAGE_SUFFIXES)} and .tar){hint}"


def _folder_entries(root: Path) -> list[Entry]:
    images, tars, tables = [], [], []
    for place, parts in _walk(os.path.realpath(root), (), set()):
        name = parts[-1] if parts else ""
        if os.path.isdir(place):
            tables.append(root.joinpath(*parts))
        elif name.lower().endswith(ARCHIVES):
            log.warning("left out %s: unpack it, or make it an uncompressed .tar", root.joinpath(*parts))
        elif name.lower().endswith(".tar"):
            tars.append(parts)
        elif is_image(name):
            images.append((parts, place))
    entries = [_file_entry(root.resolve(), parts, place) for parts, place in sorted(images)]
    entries += [entry for parts in sorted(tars) for entry in tar_entries(root.joinpath(*parts))]
    return entries + [entry for table in sorted(tables) for entry in dataset_entries(table)]


def _walk(folder: str, parts: tuple[str, ...], seen: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(real path, parts below the root) of each file, and of each folder that is a dataset. Links to folders are
    followed, each folder once; what may not be listed is left out with a warning."""
    if folder in seen:
        return
    seen.add(folder)
    if is_dataset(folder):
        yield folder, parts
        return
    try:
        with os.scandir(folder) as listing:
            inside = [item for item in listing if not item.name.startswith(".")]
            files = [item.name for item in inside if item.is_file()]
            folders = [(item.name, item.is_symlink()) for item in inside if item.is_dir()]
    except OSError as error:
        log.warning("left out %s: %s", folder, error.strerror or error)
        return
    for name in files:
        yield os.path.join(folder, name), (*parts, name)
    for name, linked in sorted(folders):
        path = os.path.join(folder, name)
        yield from _walk(os.path.realpath(path) if linked else path, (*parts, name), seen)


def _file_entry(root: Path, parts: tuple[str, ...], place: str) -> Entry:
    group = parts[0] if len(parts) > 1 else root.name
    return Entry("/".join(parts), group, partial(read_file, place), place)
