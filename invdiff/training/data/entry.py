"""One training image: its name, its group, and how its content is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from invdiff.files.images import IMAGE_SUFFIXES

# Files from this size on are mapped instead of read: below it a copy in memory is cheaper than a mapping.
MAPPED_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Entry:
    """One image: its name, the group (sub-folder) that its sampling weight belongs to, and where its content is.

    `read` returns the bytes of an image file, or an array that needs no decoding. `origin` tells whether two entries are
    the same place on disk; empty where that is not known.
    """

    name: str
    group: str
    read: Callable[[], bytes | np.ndarray]
    origin: str = ""

    @property
    def key(self) -> str:
        """Group and name: the same image keeps it when its folder is given next to, or inside, another one."""
        return self.name if self.name.startswith(f"{self.group}/") else f"{self.group}/{self.name}"


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its extension, hidden files left out."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not any(part.startswith(".") for part in PurePosixPath(name).parts)


def read_file(path: str) -> bytes | np.ndarray:
    """The bytes of a file; a large .npy instead as a read-only array that stays on the disk (np.memmap)."""
    if path.lower().endswith(".npy") and os.path.getsize(path) >= MAPPED_BYTES:
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:
            pass  # objects, or cut short: decoding the bytes gives the reason
    with open(path, "rb") as file:
        return file.read()
