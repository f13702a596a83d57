"""The training images, decoded once where there is room for that, with those left out that cannot be used."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from invdiff.errors import ImageError
from invdiff.machine.threads import cores
from invdiff.training.data.cache import Cache
from invdiff.training.data.decoding import ChannelMismatch, Range, decode, load, load_stored
from invdiff.training.data.entry import Entry

__all__ = ["Photographs", "decode", "load"]

log: logging.Logger = logging.getLogger(__name__)
T = TypeVar("T")

BROKEN = -1
MAPS = 16_000  # files mapped directly; Linux allows a process 65530 maps, and libraries need some


class TooSmall(ImageError):
    """An image that no crop fits into."""

    def __init__(self, shape: tuple[int, ...], smallest: int) -> None:
        super().__init__(f"{shape[1]}x{shape[0]} is smaller than the crop {smallest}")


class Skipped:
    """Counts the images that cannot be used for `channels` channels, and why. Thread-safe."""

    total: int
    small: int

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.total = self.small = 0
        self.mismatches: Counter[int] = Counter()
        self._lock = threading.Lock()

    def add(self, entry: Entry, error: ImageError) -> None:
        """Count an image; the first twenty and every hundredth are logged."""
        with self._lock:
            self.total += 1
            self.small += isinstance(error, TooSmall)
            self.mismatches.update([error.found] if isinstance(error, ChannelMismatch) else [])
            total = self.total
        if total <= 20 or total % 100 == 0:
            log.warning("skipped %s: %s (%d skipped so far)", entry.key, error, total)

    def explain(self) -> str:
        """The counts in words, and where the channels are the only reason, what to set."""
        wrong = self.mismatches.total()
        parts = [f"{count} with {found} channels" for found, count in self.mismatches.most_common(3)]
        parts += [f"{self.small} too small"] if self.small else []
        unreadable = self.total - self.small - wrong
        parts += [f"{unreadable} that cannot be read"] if unreadable else []
        text = ", ".join(parts)
        if wrong and wrong == self.total:
            choices = " or ".join(f"--channels {found}" for found, _ in self.mismatches.most_common(3))
            text += f" (the training has channels={self.channels}: set {choices})"
        return text


class Photographs:
    """Random access to images (H, W, C) in the precision of their files, kept in a `Cache`. Those that cannot be decoded,
    have other channels, or are smaller than `smallest` pixels on a side, are left out with a warning. Thread-safe.

    Large .npy files that need no conversion are mapped, not read; `workers` threads decode (default: one a core).
    """

    channels: int
    smallest: int
    value_range: Range

    def __init__(
        self,
        entries: Sequence[Entry],
        channels: int,
        smallest: int,
        value_range: Range = None,
        cache: Cache | None = None,
        workers: int | None = None,
    ) -> None:
        self.entries: list[Entry] = list(entries)
        self.channels, self.smallest, self.value_range = channels, smallest, value_range
        self.cache: Cache = Cache() if cache is None else cache
        self.workers: int = cores() if workers is None else workers
        self.broken: set[int] = set()
        self.skipped: Skipped = Skipped(channels)
        self.sides: np.ndarray = np.zeros(
            len(self.entries), np.int32
        )  # the shorter one; 0: not decoded yet, BROKEN: left out
        self._kept: dict[int, np.ndarray] = {}
        self._keeping: set[int] = set()
        self._maps = 0
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def kept(self, index: int, side: int = 1) -> np.ndarray | None:
        """The image if it need not be decoded and has at least `side` pixels on a side."""
        pixels = self._kept.get(index)
        return pixels if pixels is not None and min(pixels.shape[:2]) >= side else None

    def get(self, index: int, side: int = 1) -> np.ndarray | None:
        """The image (H, W, C), or (H, W, 1) of a grey one among colour ones; None if it is left out (warned about once)
        or has fewer than `side` pixels on a side."""
        known = self.sides[index]
        if known and known < side:
            return None
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = self._load(index)
        return pixels if pixels is not None and self.sides[index] >= side else None

    def _load(self, index: int) -> np.ndarray | None:
        entry = self.entries[index]
        try:
            pixels = load_stored(entry, self.channels, self.value_range)
            if min(pixels.shape[:2]) < self.smallest:
                raise TooSmall(pixels.shape, self.smallest)
        except ImageError as error:
            with self._lock:
                known = index in self.broken
                self.broken.add(index)
                self.sides[index] = BROKEN
            if not known:
                self.skipped.add(entry, error)
            return None
        with self._lock:
            self.sides[index] = min(pixels.shape[:2])
            if index in self._kept or index in self._keeping:  # another thread was faster
                return pixels
            self._keeping.add(index)
            direct = getattr(pixels, "_mmap", None) is not None and self._maps < MAPS
            self._maps += direct
        # As plain arrays: slices of np.memmap cost twice the time.
        kept = pixels.view(np.ndarray) if direct else self.cache.keep(pixels)
        with self._lock:
            self._keeping.discard(index)
            if kept is not None:
                self._kept[index] = kept
        return pixels if kept is None else kept

    def each(self, task: Callable[[T], object], items: Iterable[T]) -> None:
        """task(item) for all items, in the threads of this object if there are several."""
        items = list(items)
        if len(items) < 2 or self.workers < 2:
            for item in items:
                task(item)
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, "decoding")
            pool = self._pool
        for done in [pool.submit(task, item) for item in items]:
            done.result()

    def preload(self, workers: int | None = None, stop: Callable[[], object] = lambda: False) -> int:
        """Decode images in `workers` threads until all are, the room is used up, or stop() is true; how many are usable.

        Images are decoded when first drawn anyway; this does it at the full speed of the machine, and finds out early
        which ones cannot be used. It may run in a thread beside the training.
        """
        started, numbers, lock, ended = time.monotonic(), itertools.count(), threading.Lock(), threading.Event()

        def work() -> None:
            while not (ended.is_set() or stop()):
                with lock:
                    index = next(numbers)
                if index >= len(self) or (self.get(index) is not None and self.kept(index) is None):
                    return

        count = self.workers if workers is None else workers
        with ThreadPoolExecutor(count, "preloading") as pool:
            try:
                for done in [pool.submit(work) for _ in range(count)]:
                    done.result()
            finally:  # a Ctrl-C waits for the images in flight alone
                ended.set()
        seconds = time.monotonic() - started
        usable = int((self.sides > 0).sum())
        rate = usable / max(seconds, 1e-9)
        log.info("decoded %d images in %.1f s (%.0f images/s): %s", usable, seconds, rate, self.summary())
        return usable

    def summary(self) -> str:
        """What is kept where, and what is left out, in one line."""
        parts = [f"{self.cache.in_memory / 2**30:.2f} GiB in memory"]
        parts += [f"{self.cache.on_disk / 2**30:.2f} GiB on disk"] if self.cache.on_disk else []
        parts += [f"{self._maps} mapped"] if self._maps else []
        unseen = int((self.sides >= 0).sum()) - len(self._kept)
        parts += [f"{unseen} of {len(self)} not kept"] if unseen else []
        parts += [f"{len(self.broken)} skipped: {self.skipped.explain()}"] if self.broken else []
        return ", ".join(parts)
