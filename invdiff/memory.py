"""How much memory there is to be had, and when there was too little."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still use on a device.

    On a CPU the least of what the system has left, what the container's limit leaves (cgroups) and what `ulimit -v`
    leaves: a process that goes beyond the first two is killed, not told.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return max(0, min([psutil.virtual_memory().available, *_left_by_limits(), *left_by_cgroup()]))


def _left_by_limits() -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource

    import psutil

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms


def left_by_cgroup(root: Path = CGROUPS) -> Iterator[int]:
    """What a container's memory limit leaves, cgroups 2 and 1; nothing where there is none.

    File cache counts as used there, but gives way: it is added back."""
    for folder, most, used, cache in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit, current = (int((folder / name).read_text()) for name in (most, used))
            table = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such file; "max", which is no limit
            continue
        yield limit - current + int(table.get(cache, 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed: Python's, CUDA's, or torch's on a CPU."""
    text = str(error)
    told = any(words in text for words in ("DefaultCPUAllocator", "bad_alloc", "could not create a memory object"))
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or told
