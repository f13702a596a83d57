"""Training images from folders and tar files: decoded once into memory, cropped and augmented at random."""

from __future__ import annotations

import io
import logging
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from invdiff.errors import ImageError, UsageError
from invdiff.training.config import TrainingConfig

log = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Entry:
    """One image: its name, the group (sub-folder) that its sampling weight belongs to, and where its bytes are."""

    name: str
    group: str
    read: Callable[[], bytes]


def find_entries(sources: Sequence[str | Path]) -> list[Entry]:
    """All images in folders (recursively) and tar files. Raises ImageError where there are none."""
    entries: list[Entry] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = [path for path in sorted(source.rglob("*")) if path.is_file()]
            images = [_file_entry(path, source) for path in inside if path.suffix.lower() in SUFFIXES]
            tars = [entry for path in inside if path.suffix == ".tar" for entry in _tar_entries(path)]
            found = images + tars
        elif tarfile_like(source):
            found = _tar_entries(source)
        else:
            raise ImageError(f"{source}: not a folder or a .tar of images; --data takes either")
        if not found:
            raise ImageError(f"{source}: no images in it (looked for {', '.join(sorted(SUFFIXES))} and .tar)")
        entries += found
    return entries


def tarfile_like(path: Path) -> bool:
    """True if path is a file that tarfile can open."""
    return path.is_file() and tarfile.is_tarfile(path)


def _file_entry(path: Path, root: Path) -> Entry:
    relative = path.relative_to(root)
    return Entry(str(relative), relative.parts[0] if len(relative.parts) > 1 else root.name, path.read_bytes)


def _tar_entries(path: Path) -> list[Entry]:
    def reader(offset: int, size: int) -> Callable[[], bytes]:
        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)

        return read

    with tarfile.open(path, "r:") as tar:
        return [
            Entry(m.name, Path(m.name).parts[0] if "/" in m.name else path.stem, reader(m.offset_data, m.size))
            for m in tar
            if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES
        ]


class Photographs:
    """Random access to decoded images (H, W, C) uint8, kept in memory up to `cache_gib`; unreadable ones are dropped
    with a warning. Thread-safe."""

    def __init__(self, entries: Sequence[Entry], channels: int, smallest: int, cache_gib: float = 6.0) -> None:
        self.entries = list(entries)
        self.channels = channels
        self.smallest = smallest
        self.broken: set[int] = set()
        self._room = int(cache_gib * 2**30)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.entries)

    def get(self, index: int) -> np.ndarray | None:
        """The image, or None if it cannot be decoded or is smaller than the smallest crop (warned about once)."""
        with self._lock:
            if index in self.broken:
                return None
            if index in self._cache:
                return self._cache[index]
        try:
            with Image.open(io.BytesIO(self.entries[index].read())) as image:
                pixels = np.asarray(image.convert(MODES[self.channels]))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return self._drop(index, str(error))
        if min(pixels.shape[:2]) < self.smallest:
            return self._drop(index, f"{pixels.shape[1]}x{pixels.shape[0]} is smaller than the crop {self.smallest}")
        pixels = pixels.reshape(*pixels.shape[:2], self.channels)
        with self._lock:
            if pixels.nbytes <= self._room:
                self._room -= pixels.nbytes
                self._cache[index] = pixels
        return pixels

    def _drop(self, index: int, reason: str) -> None:
        with self._lock:
            self.broken.add(index)
        log.warning("skipped %s: %s (%d skipped so far)", self.entries[index].name, reason, len(self.broken))


def split(entries: Sequence[Entry], holdout: int, seed: int) -> tuple[list[Entry], list[Entry]]:
    """(training, held back): at most a fifth is held back, spread over the groups in proportion to their size."""
    if len(entries) < 2:
        raise UsageError("training needs at least two images: one to learn from and one to hold back for validation")
    order = np.random.default_rng([seed, len(entries)]).permutation(len(entries))
    count = min(holdout, max(1, len(entries) // 5))
    held = set(order[:count].tolist())
    return [e for i, e in enumerate(entries) if i not in held], [entries[i] for i in sorted(held)]


class CropSampler:
    """Batches of random crops as a pure function of (seed, step): a resumed run sees what an unbroken one would."""

    def __init__(self, photographs: Photographs, config: TrainingConfig) -> None:
        self.photographs = photographs
        self.config = config
        names = sorted({entry.group for entry in photographs.entries})
        for name in config.weights:
            if name not in names:
                raise UsageError(f"training setting weights: no folder {name!r}; the data has {', '.join(names)}")
        weights = np.array([config.weights.get(name, 1.0) for name in names], dtype=np.float64)
        if weights.sum() <= 0:
            raise UsageError("training setting weights: every folder has weight zero")
        self.probabilities = weights / weights.sum()
        self.members = [np.array([i for i, e in enumerate(photographs.entries) if e.group == n]) for n in names]

    def batch(self, step: int) -> np.ndarray:
        """uint8 (B, C, side, side) for this step."""
        rng = np.random.default_rng([self.config.seed, 1, step])
        side = int(rng.choice(self.config.crops))
        count = max(1, round(self.config.pixels / side**2))
        crops = [self._crop(rng, side) for _ in range(count)]
        return np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2))

    def _crop(self, rng: np.random.Generator, side: int) -> np.ndarray:
        pixels = self._image(rng, side)
        largest = min(min(pixels.shape[:2]), 3 * side)
        window = int(rng.integers(side, largest + 1)) if rng.random() < self.config.downscale else side
        top, left = (int(rng.integers(0, extent - window + 1)) for extent in pixels.shape[:2])
        crop = pixels[top : top + window, left : left + window]
        if window != side:
            image = Image.fromarray(crop.squeeze(-1) if self.config.channels == 1 else crop)
            crop = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)).reshape(side, side, -1)
        crop = np.rot90(crop, int(rng.integers(4)))
        return crop[:, ::-1] if rng.random() < 0.5 else crop

    def _image(self, rng: np.random.Generator, side: int) -> np.ndarray:
        for _ in range(1000):
            group = rng.choice(len(self.members), p=self.probabilities)
            pixels = self.photographs.get(int(rng.choice(self.members[group])))
            if pixels is not None and min(pixels.shape[:2]) >= side:
                return pixels
        raise ImageError(
            f"no readable image of at least {side} x {side} pixels found in 1000 draws; "
            "use smaller crops (--crop) or other data"
        )
