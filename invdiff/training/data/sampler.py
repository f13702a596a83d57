"""Which images are learned from, and batches of random crops of them: pure functions of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from invdiff.errors import ImageError, UsageError, unknown
from invdiff.training.config import TrainingConfig
from invdiff.training.data.crops import TURNS, cut, stack, to_network, uniforms
from invdiff.training.data.decoding import load_stored
from invdiff.training.data.entry import Entry
from invdiff.training.data.photographs import Photographs, Skipped

__all__ = ["CropSampler", "Usable", "check_weights", "split", "split_by_key", "to_network"]

ENOUGH = 1000
"""Images that are tried before a whole set counts as unusable: a million wrong ones need not all be decoded to say so."""


class Usable:
    """Whether an entry can be decoded for these settings; remembers why not."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.skipped: Skipped = Skipped(config.channels)

    def __call__(self, entry: Entry) -> bool:
        try:
            load_stored(entry, self.config.channels, self.config.value_range)
        except ImageError as error:
            self.skipped.add(entry, error)
            return False
        return True


def split(
    entries: Sequence[Entry], holdout: int, seed: int, usable: Callable[[Entry], bool] = lambda entry: True
) -> tuple[list[Entry], list[Entry]]:
    """(to learn from, held back): `holdout` usable images drawn from all, at most a fifth of them and at least one.

    Raises UsageError if there are fewer than two different images, ImageError if none is usable; with an instance of
    `Usable`, that says why.
    """
    order = np.random.default_rng([seed, len(entries)]).permutation(len(entries))
    count = min(holdout, max(1, len(entries) // 5))
    held: list[int] = []
    tried = 0
    for index in order.tolist():
        if len(held) == count or (tried >= ENOUGH and not held):
            break
        tried += 1
        if usable(entries[index]):
            held.append(index)
    if len(entries) > 1 and not held:
        why = f": {usable.skipped.explain()}" if isinstance(usable, Usable) else ""
        which = f"the {tried} images tried (of {len(entries)})" if tried < len(entries) else f"the {tried} images"
        raise ImageError(f"none of {which} can be used{why}")
    return split_by_key(entries, [entries[index].key for index in held])


def split_by_key(entries: Sequence[Entry], keys: Sequence[str]) -> tuple[list[Entry], list[Entry]]:
    """(to learn from, held back), where the keys of the second are given: an image held back is never learned from,
    even if it comes twice. Raises UsageError if one of the two is empty."""
    wanted = set(keys)
    held = {entry.key: entry for entry in reversed(entries) if entry.key in wanted}
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


class Plan(NamedTuple):
    """What a batch is cut from: `first`, the number of its first crop among those of the step, and for each crop the
    numbers of its folder and of its image, and its row of `invdiff.training.data.crops.uniforms`."""

    side: int
    first: int
    groups: np.ndarray
    chosen: np.ndarray
    draws: np.ndarray


class CropSampler:
    """Batches of random crops; crop number i of a step is a pure function of (seed, step, i), so that a resumed run sees
    what an unbroken one would, and several processes see what one would.

    That includes the images that cannot be used: the draw that replaces one does not depend on when it was noticed.
    """

    def __init__(self, photographs: Photographs, config: TrainingConfig) -> None:
        if (photographs.channels, photographs.value_range) != (config.channels, config.value_range):
            raise UsageError(
                f"photographs with channels={photographs.channels}, value_range={photographs.value_range} for settings "
                f"with channels={config.channels}, value_range={config.value_range}; build both from the same ones"
            )
        self.photographs = photographs
        self.config = config
        names = sorted({entry.group for entry in photographs.entries})
        self.weights: np.ndarray = np.array([config.weights.get(name, 1.0) for name in names], dtype=np.float64)
        if self.weights.sum() <= 0:
            raise UsageError("training setting weights: every folder has weight zero")
        number = {name: k for k, name in enumerate(names)}
        groups = np.array([number[entry.group] for entry in photographs.entries])
        self._order = np.argsort(groups, kind="stable")
        self._sizes = np.bincount(groups, minlength=len(names))
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._edges = np.cumsum(self.weights) / self.weights.sum()
        self._barren: set[tuple[int, int]] = set()  # (group, side) without a single usable image

    def members(self, group: int) -> np.ndarray:
        """The numbers of a group's images."""
        return self._order[self._starts[group] : self._starts[group] + self._sizes[group]]

    def side(self, step: int) -> int:
        """Side in pixels of the crops of a step."""
        return int(np.random.default_rng([self.config.seed, 1, step]).choice(self.config.crops))

    def count(self, step: int) -> int:
        """Crops in one part of the batch of a step."""
        return max(1, round(self.config.pixels / self.side(step) ** 2))

    def check(self) -> None:
        """Raises ImageError if some crop side has no image to be taken from: now, and not after an hour."""
        for side in sorted(set(self.config.crops)):
            if not self._possible(side):
                raise self._none(side)

    def _possible(self, side: int) -> bool:
        rng, left = np.random.default_rng(self.config.seed), 10 * ENOUGH
        for group in np.argsort(-self.weights, kind="stable").tolist():
            if self.weights[group] > 0:
                for index in rng.permutation(self.members(group))[: min(ENOUGH, left)].tolist():
                    if self.photographs.get(index, side) is not None:
                        return True
                    left -= 1
        return False

    def plan(self, step: int, part: int = 0, parts: int = 1) -> Plan:
        """Crops part * count to (part + 1) * count - 1 of this step's batch of parts * count. The images are those drawn,
        whether or not they can be used."""
        if not 0 <= part < parts:
            raise UsageError(f"part={part} of parts={parts}: must be at least 0 and below parts")
        side, count = self.side(step), self.count(step)
        draws = uniforms(self.config.seed, step, part * count, count)
        groups = np.minimum(np.searchsorted(self._edges, draws[:, 0], side="right"), len(self.weights) - 1)
        chosen = self._order[self._starts[groups] + (draws[:, 1] * self._sizes[groups]).astype(np.int64)]
        return Plan(side, part * count, groups, chosen, draws)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> np.ndarray:
        """Crops part * count to (part + 1) * count - 1 of this step's batch of parts * count, (count, C, side, side).

        uint8 for 8-bit images, uint16 for 16-bit ones, float32 in [0, 1] for floats and where the kinds mix. Raises
        ImageError if no image is usable.
        """
        side, first, groups, chosen, draws = self.plan(step, part, parts)
        crops: list[np.ndarray] = [np.empty(0)] * len(chosen)
        rows, turns = draws.tolist(), TURNS[self.config.orientations]

        def fill(numbers: list[int]) -> None:
            """The crops of these numbers, all of one image; copied, so that an image that is not kept can go."""
            image = self.photographs.get(chosen[numbers[0]], side)
            for k in numbers:
                pixels = self.replacement(step, first + k, int(groups[k]), side)[1] if image is None else image
                crops[k] = cut(pixels, side, rows[k], self.config.downscale, turns).copy()

        waiting: dict[int, list[int]] = {}
        for k, index in enumerate(chosen.tolist()):
            kept = self.photographs.kept(index, side)
            if kept is None:
                waiting.setdefault(index, []).append(k)
            else:
                crops[k] = cut(kept, side, rows[k], self.config.downscale, turns)
        self.photographs.each(fill, waiting.values())
        return stack(crops, self.config.channels)

    def replacement(self, step: int, crop: int, group: int, side: int) -> tuple[int, np.ndarray]:
        """(number, image) for a crop whose first one cannot be used: a uniformly drawn usable one of the same group, or if it
        has none, of a group drawn by weight from the others."""
        rng = np.random.default_rng([self.config.seed, 6, step, crop])
        weights = self.weights.copy()
        while True:
            # A generator of its own: however many members it takes, `rng` goes on from the same place.
            inner = np.random.default_rng(int(rng.integers(2**63)))
            if (group, side) not in self._barren:
                for index in _candidates(self.members(group), inner):
                    pixels = self.photographs.get(index, side)
                    if pixels is not None:
                        return index, pixels
                self._barren.add((group, side))
            weights[group] = 0
            if weights.sum() <= 0:
                raise self._none(side)
            group = int(rng.choice(len(weights), p=weights / weights.sum()))

    def _none(self, side: int) -> ImageError:
        photographs = self.photographs
        reasons = photographs.skipped.explain()
        others = f"the others tried have a side below {side}" if len(photographs.broken) < len(photographs) else ""
        why = ", ".join(filter(None, (reasons, others)))
        return ImageError(
            f"none of the {len(photographs)} training images (in folders of weight above 0) can be used for crops of "
            f"{side} x {side} pixels: {why}; use smaller crops (--crop) or other data"
        )


def _candidates(members: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """Members at random; only where many are refused is the whole group shuffled."""
    for _ in range(32):
        yield int(members[rng.integers(len(members))])
    yield from map(int, rng.permutation(members))
