"""Threads and signals around a loop: stop at a signal, prepare inputs in advance, finish outputs in the background."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")


class StopFlag:
    """True after the first Ctrl-C (or SIGTERM), so that the running step ends and the checkpoint is saved.

    The second one interrupts at once, unless `patient` is true: a launcher of several processes repeats the signal that
    its processes have already received from the terminal, and kills them itself when they take too long.
    """

    def __init__(self, patient: bool = False) -> None:
        self.raised: bool = False
        self.patient: bool = patient
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.raised

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.raised and not self.patient:
            raise KeyboardInterrupt
        if not self.raised:
            self.raised = True
            log.warning("stopping: saving the checkpoint%s", "" if self.patient else " (once more to stop at once)")


@contextlib.contextmanager
def in_background(task: Callable[..., object]) -> Iterator[None]:
    """Runs task(stop=...) in a thread while the block runs; once the block has ended, stop() returns true."""
    ended = threading.Event()
    thread = threading.Thread(target=task, kwargs={"stop": ended.is_set}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def prepared(
    make: Callable[[Item], T], items: Iterable[Item], count: int, workers: int = 1
) -> Generator[tuple[Item, Future[T]], None, None]:
    """(item, the future of make(item)) in order; `workers` threads make the results at most `count` items in advance."""
    queue: deque[tuple[Item, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            queue.append((item, pool.submit(make, item)))
            if len(queue) > count:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Background:
    """Runs tasks one after the other in a thread while the caller goes on; `submit` waits while more than `count` are left.

    An error of a task is raised by a later `submit` or at the end of the block. Where the block is left by an exception,
    the submitted tasks are finished first.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, task: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append(self._pool.submit(task, *arguments))
        while len(self._waiting) > self._count or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._waiting:
                future.result()


def local_processes() -> int:
    """The number of training processes on this machine, which share its memory and cores, as torchrun and accelerate
    announce it."""
    with contextlib.suppress(ValueError):
        return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 1


def cores() -> int:
    """The number of processor cores for this process: those it may run on, shared among the training processes here."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        count = os.cpu_count() or 1
    return max(1, count // local_processes())
