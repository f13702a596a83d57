"""Training images as 8-bit arrays: decoded when first asked for, kept in memory while there is room."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from invdiff.errors import ImageError
from invdiff.training.entries import Entry

log = logging.getLogger(__name__)

MODES = {1: "L", 3: "RGB"}


def decode(data: bytes, channels: int) -> np.ndarray:
    """(H, W, channels) uint8 of an image file's bytes. Raises ImageError for bytes that are none, with the reason.

    16-bit and float pictures are scaled to 8 bits, transparency is composited over white (as `invdiff.images` does),
    grey is repeated to RGB, colour becomes its luma. The EXIF orientation is left alone: crops are turned at random.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _to_bytes(image, MODES[channels]).reshape(image.height, image.width, channels)
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not a readable picture (it starts with {data[:12]!r})") from None
    except Exception as error:  # decoders raise almost any type on damaged data
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _to_bytes(image: Image.Image, mode: str) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # convert() would clip every value above 255.
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # so written that NaN fails
            raise ImageError("float values outside [0, 1]")
        image = Image.fromarray(np.rint(255 * values).astype(np.uint8))
    elif image.mode == "I":
        raise ImageError("32-bit integers have no known full scale")
    elif image.mode.upper().endswith("A") or "transparency" in image.info:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return np.asarray(image.convert(mode))


class Photographs:
    """Random access to images (H, W, C) uint8, cached up to `cache_gib`; those that cannot be decoded, or are smaller
    than `smallest` pixels on a side, are left out with a warning. Thread-safe."""

    def __init__(self, entries: Sequence[Entry], channels: int, smallest: int, cache_gib: float = 6.0) -> None:
        self.entries = list(entries)
        self.channels = channels
        self.smallest = smallest
        self.broken: set[int] = set()
        self._room = int(cache_gib * 2**30)
        self._cache: dict[int, np.ndarray] = {}
        self._sides: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, index: int, side: int = 1) -> np.ndarray | None:
        """The image, or None if it is left out (warned about once) or has fewer than `side` pixels on a side."""
        with self._lock:
            if index in self.broken or self._sides.get(index, side) < side:
                return None
            if index in self._cache:
                return self._cache[index]
        try:
            pixels = decode(self.entries[index].read(), self.channels)
        except (ImageError, OSError) as error:
            self._drop(index, str(error))
            return None
        height, width = pixels.shape[:2]
        if min(height, width) < self.smallest:
            self._drop(index, f"{width}x{height} is smaller than the crop {self.smallest}")
            return None
        with self._lock:
            self._sides[index] = min(height, width)
            if pixels.nbytes <= self._room and index not in self._cache:
                self._room -= pixels.nbytes
                self._cache[index] = pixels
        return pixels if min(height, width) >= side else None

    def _drop(self, index: int, reason: str) -> None:
        with self._lock:
            if index in self.broken:
                return
            self.broken.add(index)
            count = len(self.broken)
        log.warning("skipped %s: %s (%d skipped so far)", self.entries[index].key, reason, count)
