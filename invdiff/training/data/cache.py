"""Decoded images, kept: in memory up to a budget, then in a file that is mapped into memory, then not at all."""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import threading
from pathlib import Path
from typing import IO

import numpy as np
import psutil

from invdiff.machine.memory import free_memory
from invdiff.machine.threads import local_processes

log: logging.Logger = logging.getLogger(__name__)

SHARE = 0.5  # of what is free: the training, its checkpoints and other programs need the rest
SEGMENT = 2**30
_ALIGNED = 64


class Cache:
    """Keeps arrays, in memory while there is room for them and then in one temporary file without a name, which the
    system reads back as needed and removes even if the process is killed. Thread-safe."""

    in_memory: int
    on_disk: int

    def __init__(self, memory: int | None = None, disk: int | None = None, folder: str | Path | None = None) -> None:
        """Budgets in bytes (default: half of what is free, shared by the processes of a training); `folder` holds the
        file (default: the temporary folder)."""
        self.folder: Path = Path(tempfile.gettempdir() if folder is None else folder)
        share = SHARE / local_processes()
        self.memory: int = int(share * free_memory()) if memory is None else memory
        self.disk: int = int(share * free_disk(self.folder)) if disk is None else disk
        self.in_memory = self.on_disk = 0
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._segment: mmap.mmap | None = None
        self._start = self._next = self._stop = 0

    def keep(self, pixels: np.ndarray) -> np.ndarray | None:
        """The same numbers in memory or mapped, contiguous; None where there is no room for them."""
        with self._lock:
            if self.in_memory + pixels.nbytes <= self.memory:
                self.in_memory += pixels.nbytes
                place = None
            elif self.on_disk + pixels.nbytes <= self.disk:
                place = self._reserve(pixels.nbytes)
                if place is None:
                    return None
            else:
                return None
        if place is None:
            return np.ascontiguousarray(pixels)
        return self._write(pixels, *place)

    def _reserve(self, size: int) -> tuple[mmap.mmap, int, int] | None:
        """(segment, offset in it, offset in the file) for so many bytes. Segments keep the number of maps small."""
        if self._segment is None or self._next + size > self._stop:
            length = max(SEGMENT, -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
            try:
                if self._file is None:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  it lives as long as the arrays
                self._file.truncate(self._stop + length)  # sparse: only what is written takes room
                self._segment = mmap.mmap(self._file.fileno(), length, offset=self._stop, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                self._give_up(error)
                return None
            self._start, self._next, self._stop = self._stop, self._stop, self._stop + length
        offset = self._next
        self._next += -(-size // _ALIGNED) * _ALIGNED
        self.on_disk += size
        return self._segment, offset - self._start, offset

    def _write(self, pixels: np.ndarray, segment: mmap.mmap, inside: int, offset: int) -> np.ndarray | None:
        content = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data
        try:
            with self._lock:  # written as a file and not through the map: a full disk is an error, and no crash
                assert self._file is not None
                self._file.seek(offset)
                while content:
                    content = content[self._file.write(content) or 0 :]
        except OSError as error:
            with self._lock:
                self._give_up(error)
            return None
        kept = np.frombuffer(segment, pixels.dtype, pixels.size, inside)
        return kept.reshape(pixels.shape)

    def _give_up(self, error: Exception) -> None:
        self.disk = 0
        log.warning("no more decoded images are kept in %s (%s); the others are decoded each time", self.folder, error)


def free_disk(folder: Path) -> int:
    """Bytes free on the disk where a folder is, or would be; 0 where the "disk" is memory (tmpfs)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    real = Path(os.path.realpath(folder))
    try:
        mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
        kind = next((mounts[place] for place in (real, *real.parents) if place in mounts), "")
        return 0 if kind in ("tmpfs", "ramfs") else psutil.disk_usage(str(folder)).free
    except OSError:
        return 0
