"""Which images are learned from, and random crops of them: pure functions of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from invdiff.errors import ImageError, UsageError, unknown
from invdiff.training.config import TrainingConfig
from invdiff.training.entries import Entry
from invdiff.training.photographs import Photographs


def split(
    entries: Sequence[Entry], holdout: int, seed: int, usable: Callable[[Entry], bool] = lambda entry: True
) -> tuple[list[Entry], list[Entry]]:
    """(to learn from, held back): `holdout` usable images drawn from all, at most a fifth of them and at least one.

    Raises UsageError if there are fewer than two different images, ImageError if none is usable.
    """
    order = np.random.default_rng([seed, len(entries)]).permutation(len(entries))
    count = min(holdout, max(1, len(entries) // 5))
    held: list[int] = []
    for index in order.tolist():
        if len(held) < count and usable(entries[index]):
            held.append(index)
    if len(entries) > 1 and not held:
        raise ImageError(f"none of the {len(entries)} images can be read")
    return split_by_key(entries, [entries[index].key for index in held])


def split_by_key(entries: Sequence[Entry], keys: Sequence[str]) -> tuple[list[Entry], list[Entry]]:
    """(to learn from, held back), where the keys of the second are given: an image held back is never learned from,
    even if it comes twice. Raises UsageError if one of the two is empty."""
    held = {entry.key: entry for entry in reversed(entries) if entry.key in set(keys)}
    learning = [entry for entry in entries if entry.key not in held]
    if not learning or (not held and len(entries) < 2):
        raise UsageError("training needs at least two images: one to learn from and one to hold back for validation")
    if not held:
        raise UsageError("none of the images held back for validation so far is in the data; give the same --data")
    return learning, [held[entry.key] for entry in entries if held.get(entry.key) is entry]


def check_weights(config: TrainingConfig, entries: Sequence[Entry]) -> None:
    """Raises UsageError for a weight of a folder that is not there."""
    groups = {entry.group for entry in entries}
    for name in config.weights:
        if name not in groups:
            raise unknown("folder in the training setting weights", name, groups)


class CropSampler:
    """Batches of random crops as a pure function of (seed, step): a resumed run sees what an unbroken one would.

    That includes the images that cannot be used: the draw that replaces one does not depend on when it was noticed.
    """

    def __init__(self, photographs: Photographs, config: TrainingConfig) -> None:
        self.photographs = photographs
        self.config = config
        names = sorted({entry.group for entry in photographs.entries})
        self.weights = np.array([config.weights.get(name, 1.0) for name in names], dtype=np.float64)
        if self.weights.sum() <= 0:
            raise UsageError("training setting weights: every folder has weight zero")
        self.members = [np.array([i for i, e in enumerate(photographs.entries) if e.group == n]) for n in names]
        self._barren: set[tuple[int, int]] = set()  # (group, side) without a single usable image

    def check(self) -> None:
        """Raises ImageError if some crop side has no image to be taken from: now, and not after an hour."""
        for side in sorted(set(self.config.crops)):
            self._image(np.random.default_rng(self.config.seed), side)

    def batch(self, step: int) -> np.ndarray:
        """uint8 (B, C, side, side) for this step. Raises ImageError if no image is usable."""
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
        weights = self.weights.copy()
        while weights.sum() > 0:
            group = int(rng.choice(len(weights), p=weights / weights.sum()))
            # A generator of its own: however many members it takes, `rng` goes on from the same place.
            pixels = self._member(group, side, np.random.default_rng(int(rng.integers(2**63))))
            if pixels is not None:
                return pixels
            weights[group] = 0
        broken = len(self.photographs.broken)
        raise ImageError(
            f"none of the {len(self.photographs)} training images (in folders of weight above 0) can be used: {broken} "
            f"cannot be read or are too small, the others have a side below {side}; use smaller crops (--crop) or other data"
        )

    def _member(self, group: int, side: int, rng: np.random.Generator) -> np.ndarray | None:
        """A uniformly drawn image of the group among those of at least side x side pixels, None if it has none."""
        if (group, side) not in self._barren:
            for index in _draws(self.members[group], rng):
                pixels = self.photographs.get(index, side)
                if pixels is not None:
                    return pixels
            self._barren.add((group, side))
        return None


def _draws(members: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """One member at random; only where more are asked for is the whole group shuffled."""
    yield int(rng.choice(members))
    yield from map(int, rng.permutation(members))
