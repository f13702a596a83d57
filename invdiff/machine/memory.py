"""How much memory is free, whether an error means that there was too little, and how to go on with less."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that this process can still use on a device (None: the CPU), without swapping.

    On a CPU the least of what the system has left, what the container's limit leaves (cgroups) and what `ulimit -v`
    leaves: a process that goes beyond the first two is killed, not told.
    """
    if device is not None and device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return max(0, min([psutil.virtual_memory().available, *_left_by_limits(), *left_by_cgroups()]))


def peak_memory(device: torch.device) -> float:
    """MB: of a GPU's allocator since it was reset; on other devices the most that this process has held since it began."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _left_by_limits() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms


def left_by_cgroups(proc: Path = PROC, cgroups: Path = CGROUPS) -> list[int]:
    """Bytes left below each memory limit of this process's control groups, version 1 or 2; none where there is none."""
    rooms: list[int] = []
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


# Words by which CUDA and its libraries, MPS, Triton, torch on a CPU, C++, oneDNN and the system say that memory ran out.
SAID = (
    "out of memory",
    "alloc_failed",
    "defaultcpuallocator",
    "bad_alloc",
    "could not create a memory object",
    "cannot allocate memory",
    "failed to map segment",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed: Python's, a device's or its libraries', or torch's on a CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError, ImportError)) and any(words in text for words in SAID)
    )


def for_want_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or one that caused it, is out of memory: what it interrupts may raise another."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def until_it_fits(
    attempt: Callable[[], T], take_less: Callable[[], object], possible: Callable[[], bool] | None = None
) -> T:
    """attempt(), and again after take_less() each time that it runs out of memory.

    possible: whether there is anything to give up; where not, the attempt's error is raised. take_less may raise its own.
    """
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not (possible is None or possible()):
                raise
        # Outside the except block, whose traceback would keep the failed attempt's tensors in memory.
        take_less()
