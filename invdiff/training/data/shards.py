"""Tar files of images: plain ones and WebDataset shards, listed without being unpacked.

WebDataset's naming: the members of one sample share their path up to the first dot, and what follows tells them apart
(0001.jpg, 0001.json, 0001.cls). https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from invdiff.errors import ImageError
from invdiff.training.data.entry import Entry, is_image

log: logging.Logger = logging.getLogger(__name__)

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def expand(source: str) -> list[str]:
    """The paths that one --data names: itself, or those of a pattern such as train-{000000..000009}.tar or train-*.tar.

    Braces hold a range of numbers (with the zeros of its start) or a list of words with commas. Raises ImageError for a
    glob that matches nothing, and for braces of which some path does not exist.
    """
    if os.path.lexists(source):  # also a file whose name holds such signs
        return [source]
    paths = list(_braced(source))
    matches = [sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path] for path in paths]
    missing = [path for path, found in zip(paths, matches, strict=True) if not found or not os.path.exists(found[0])]
    if missing == [source]:
        raise ImageError(
            f"{source}: no {'match for this pattern' if glob.has_magic(source) else 'such file or folder'}"
        )
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ImageError(f"{source}: {len(missing)} of {len(paths)} do not exist: {names}")
    return list(itertools.chain.from_iterable(matches))


def _braced(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    start, stop, words = match.groups()
    if words is None:
        step = 1 if int(start) <= int(stop) else -1
        choices = [f"{number:0{len(start)}d}" for number in range(int(start), int(stop) + step, step)]
    else:
        choices = words.split(",")
    for choice in choices:
        yield from _braced(pattern[: match.start()] + choice + pattern[match.end() :])


def tar_entries(path: Path) -> list[Entry]:
    """The images in an uncompressed tar, in its order; other members are left out in silence.

    The group is the first folder inside; for members beside folders the name of the tar, without the number of a shard.
    Of a WebDataset sample with 0001.jpg and 0001.mask.png only the plain one is taken. A tar that ends too early gives
    what it has, with a warning. Raises ImageError for what is no tar, or compressed.
    """
    real = os.path.realpath(path)
    stem, group = path.stem, re.sub(r"[-_.]\d+$", "", path.stem) or path.stem
    members: list[tuple[PurePosixPath, int, int]] = []
    try:
        with tarfile.open(path, "r:") as tar:  # only without compression can single members be read
            try:
                for member in tar:
                    inner = PurePosixPath(member.name.lstrip("/"))  # "./a/b.png" becomes a/b.png
                    if member.isreg() and not member.issparse() and is_image(str(inner)):
                        members.append((inner, member.offset_data, member.size))
            except tarfile.ReadError as error:
                if not members:
                    raise
                log.warning("%s is damaged (%s): only the %d images listed before that", path, error, len(members))
    except tarfile.TarError as error:
        compressed = path.is_file() and tarfile.is_tarfile(path)
        reason = "it is compressed: unpack it, or make it a plain .tar" if compressed else str(error)
        raise ImageError(f"{path}: cannot be read as a tar of images ({reason})") from error
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    plain = {name.with_suffix("") for name, _, _ in members if name.name.count(".") == 1}
    entries = []
    for name, offset, size in members:
        if name.name.count(".") > 1 and name.with_name(name.name.partition(".")[0]) in plain:
            continue
        inside = len(name.parts) > 1
        # Shards number their samples alike, so their own name has to tell 0001.jpg of two of them apart.
        full = str(name) if inside or group == stem else f"{stem}/{name}"
        read = partial(_read_part, real, offset, size)
        entries.append(Entry(full, name.parts[0] if inside else group, read, f"{real}:{offset}"))
    return entries


def _read_part(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
