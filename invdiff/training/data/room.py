"""How much disk this process may fill with decoded images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def free_disk(folder: Path) -> int:
    """Bytes free on the disk where a folder is, or would be; 0 where the "disk" is memory (tmpfs)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return 0 if _in_memory(folder) else shutil.disk_usage(folder).free
    except OSError:
        return 0


def _in_memory(folder: Path) -> bool:
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    real = os.path.realpath(folder)
    best, kind = "", ""
    for line in lines:
        _, place, name, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        if len(place) >= len(best) and (real == place or real.startswith(place.rstrip("/") + "/")):
            best, kind = place, name
    return kind in ("tmpfs", "ramfs")
