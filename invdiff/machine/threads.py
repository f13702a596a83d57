"""Threads and signals around a loop: stopping at a signal, preparing inputs ahead, finishing outputs behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

log: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")


class StopFlag:
    """True after the first Ctrl-C (or SIGTERM), so that the step in flight ends and the checkpoint is saved.

    The second one interrupts at once, unless `patient`: a launcher of several processes passes on the signal that its
    processes got from the terminal already, and kills them itself when they take too long.
    """

    def __init__(self, patient: bool = False) -> None:
        self.raised: bool = False
        self.patient = patient
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
def beside(task: Callable[..., object]) -> Iterator[None]:
    """Runs task(stop=...) in a thread while the block runs; stop() is true from its end on."""
    ended = threading.Event()
    thread = threading.Thread(target=task, kwargs={"stop": ended.is_set}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Prefetcher(Generic[T]):
    """Yields make(step), make(step + 1), ... with `ahead` of them prepared ahead by `workers` threads."""

    def __init__(self, make: Callable[[int], T], first: int, ahead: int = 4, workers: int = 1) -> None:
        self._make, self._next = make, first
        self._pool = ThreadPoolExecutor(workers)
        self._pending = [self._submit() for _ in range(ahead)]

    def _submit(self) -> Future[T]:
        future = self._pool.submit(self._make, self._next)
        self._next += 1
        return future

    def __enter__(self) -> Iterator[T]:
        return self._batches()

    def _batches(self) -> Iterator[T]:
        while True:
            batch = self._pending.pop(0).result()
            self._pending.append(self._submit())
            yield batch

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def ahead(make: Callable[[Item], T], items: Iterable[Item], count: int) -> Iterator[tuple[Item, Future[T]]]:
    """(item, the future of make(item)) in order, made in a thread that is at most `count` items ahead."""
    queue: deque[tuple[Item, Future[T]]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for item in items:
            queue.append((item, pool.submit(make, item)))
            if len(queue) > count:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Behind:
    """Runs tasks in their order in a thread, while the caller goes on; at most `count` wait.

    What a task raises comes out of a later `submit`, or at the end. When the block is left by an exception, what was
    submitted is finished first.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, task: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append(self._pool.submit(task, *arguments))
        while len(self._waiting) > self._count or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._waiting:
                future.result()


def local_processes() -> int:
    """Training processes on this machine, as torchrun and accelerate announce them: they share its memory and cores."""
    with contextlib.suppress(ValueError):
        return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 1


def cores() -> int:
    """Processor cores for this process: those it may run on, shared with the other training processes here."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        count = os.cpu_count() or 1
    return max(1, count // local_processes())
