"""How much memory and disk this process may fill with decoded images."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be allocated without swapping: what the machine has, or what the limits of the container leave."""
    import psutil

    return min(int(psutil.virtual_memory().available), *_cgroup_rooms(proc, cgroups))


def _cgroup_rooms(proc: Path, cgroups: Path) -> list[int]:
    """Bytes left below each memory limit of this process's control groups, version 1 or 2; 2^63 where there is none."""
    rooms = [2**63]
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, limit, used, cached = cgroups, "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                root, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
                cached = "total_inactive_file"
            else:
                continue
            # Inside a container the path may be the host's: the root of the mount is then the group itself.
            below = root / path.strip("/")
            for folder in (below, *below.parents):
                rooms += _room(folder / limit, folder / used, folder / "memory.stat", cached)
                if folder == root:
                    break
    return rooms


def _room(limit: Path, used: Path, stat: Path, cached: str) -> list[int]:
    """[bytes below the limit], counting file contents that the system keeps but can drop as free; [] without a limit."""
    try:
        most = int(limit.read_text())
        taken = int(used.read_text())
        lines = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):  # not there, or "max"
        return []
    return [max(0, most - taken + int(lines.get(cached, 0)))]


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
