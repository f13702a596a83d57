"""Crops cut on a GPU, from images that lie in its memory: it then never waits for the processor.

The crops are those of `CropSampler.batch`, from the same random numbers, up to the rounding of reduced ones. The noise is
drawn on the device, from a generator that step and part seed: a training that is resumed where the images fit again sees what
an unbroken one would.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from invdiff.machine.memory import free_memory
from invdiff.training.config import TrainingConfig
from invdiff.training.data.crops import TURNS
from invdiff.training.data.photographs import Photographs
from invdiff.training.data.sampler import CropSampler, Plan
from invdiff.training.objective import Draws, timesteps

if TYPE_CHECKING:
    from invdiff.training.learner import Feeder, MicroBatch

log: logging.Logger = logging.getLogger(__name__)

SHARE = 0.25
"""Share of the device's free memory that the images may take: the network needs the rest."""
TRIED = 64
"""Images that are decoded to estimate the size of all."""


class ResidentFeeder:
    """The micro-batches of a `Feeder`, as tensors on a device: crops (n, C, side, side) float32 in [-1, 1], channels last.

    All usable images have to be kept by the feeder's photographs, in 8 bits: see `fits`.
    """

    config: TrainingConfig
    device: torch.device
    feeder: Feeder
    sampler: CropSampler
    heights: np.ndarray
    widths: np.ndarray

    def __init__(self, feeder: Feeder, device: torch.device) -> None:
        self.feeder, self.sampler, self.config, self.device = feeder, feeder.sampler, feeder.config, device
        photographs = self.sampler.photographs
        count = len(photographs)
        self.heights, self.widths = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.starts: np.ndarray = np.zeros(count, np.int64)  # of an image's first pixel
        kept = [photographs.kept(index) for index in range(count)]
        pixels = sum(image.shape[0] * image.shape[1] for image in kept if image is not None)
        self.pool: torch.Tensor = torch.empty((pixels, self.config.channels), dtype=torch.uint8, device=device)
        start = 0
        for index, image in enumerate(kept):
            if image is not None:
                height, width, _ = image.shape
                self.heights[index], self.widths[index], self.starts[index] = height, width, start
                flat = torch.from_numpy(np.array(image).reshape(height * width, -1))  # a copy: it may be read-only
                self.pool[start : start + height * width] = flat.to(device)  # grey ones are repeated
                start += height * width

    def summary(self) -> str:
        """What lies there, in a few words."""
        images, size = int((self.heights > 0).sum()), self.pool.numel() / 2**30
        return f"{images} images, {size:.2f} GiB"

    @staticmethod
    def fits(photographs: Photographs, device: torch.device, stop: Callable[[], object] = lambda: False) -> bool:
        """Decode all images, and say whether they can lie on the device: 8 bits, and within its free memory's SHARE.

        Where a sample of them is too large already, or of other bits, the others are not decoded; nor once stop() is true.
        """
        cache = photographs.cache
        room = min(SHARE * free_memory(device), cache.memory + cache.disk)

        def size(images: Sequence[np.ndarray]) -> int:
            return sum(image.shape[0] * image.shape[1] * photographs.channels for image in images)

        order = np.random.default_rng(0).permutation(len(photographs))[:TRIED].tolist()
        tried = [image for index in order if (image := photographs.get(index)) is not None]
        if not tried or size(tried) / len(tried) * len(photographs) > room or tried[0].dtype != np.uint8:
            return False
        photographs.preload(stop=stop)
        kept = [image for index in range(len(photographs)) if (image := photographs.kept(index)) is not None]
        complete = len(kept) == int((photographs.sides > 0).sum()) and bool((photographs.sides != 0).all())
        return complete and all(image.dtype == np.uint8 for image in kept) and size(kept) <= room

    def __call__(self, step: int) -> list[MicroBatch]:
        from invdiff.training.learner import MicroBatch

        feeder, each = self.feeder, self.config.accumulate
        parts = feeder.count * each
        batches = []
        for part in range(feeder.rank * each, (feeder.rank + 1) * each):
            crops = self.crops(self.sampler.plan(step, part, parts), step)
            count = len(crops)
            indices = range(part * count, (part + 1) * count)
            t = timesteps(self.config.seed, step, indices, parts * count, len(feeder.schedule), self.config.low_noise)
            words = np.random.SeedSequence([self.config.seed, 7, step, part]).generate_state(1, np.uint64)
            generator = torch.Generator(self.device).manual_seed(int(words[0] >> np.uint64(1)))
            noise = torch.empty_like(crops).normal_(generator=generator)
            batches.append(MicroBatch(crops, Draws(t, noise)))
        return batches

    def crops(self, plan: Plan, step: int) -> torch.Tensor:
        """(n, C, side, side) float32 in [-1, 1]: the crops of a plan of this step."""
        side, draws, chosen = plan.side, plan.draws, plan.chosen.copy()
        for k in np.flatnonzero(self.sampler.photographs.sides[chosen] < side).tolist():
            chosen[k], _ = self.sampler.replacement(step, plan.first + k, int(plan.groups[k]), side)
        heights, widths = self.heights[chosen], self.widths[chosen]
        spare = np.minimum(np.minimum(heights, widths), 3 * side) - side + 1
        window = side + np.where(draws[:, 2] < self.config.downscale, (draws[:, 3] * spare).astype(np.int64), 0)
        top = (draws[:, 4] * (heights - window + 1)).astype(np.int64)
        left = (draws[:, 5] * (widths - window + 1)).astype(np.int64)
        turn = (draws[:, 6] * TURNS[self.config.orientations]).astype(np.int64)
        # The reduced ones last: each kind is then one piece of the batch.
        order = np.argsort(window != side, kind="stable")
        plain = int((window == side).sum())
        start = self.starts[chosen] + top * widths + left
        numbers = np.stack([start, widths, turn, window])[:, order]
        start_, stride_, turn_, window_ = torch.from_numpy(numbers).to(self.device, non_blocking=True)
        pieces = []
        if plain:
            pieces.append(take(self.pool, start_[:plain], stride_[:plain], side, turn_[:plain]))
        if plain < len(chosen):
            most = int(window.max())
            reduced = self._reduce(start_[plain:], stride_[plain:], window_[plain:], side, most)
            count = len(chosen) - plain
            first = torch.arange(count, device=self.device) * side**2
            stride = torch.full((count,), side, device=self.device)
            pieces.append(take(reduced, first, stride, side, turn_[plain:]))
        back = torch.from_numpy(np.argsort(order)).to(self.device, non_blocking=True)
        pixels = torch.cat([piece.float() for piece in pieces])[back]
        return (pixels / 127.5 - 1).permute(0, 3, 1, 2)  # contiguous as (n, side, side, C): channels last

    def _reduce(
        self, start: torch.Tensor, stride: torch.Tensor, window: torch.Tensor, side: int, most: int
    ) -> torch.Tensor:
        """(n side^2, C) float32, whole numbers of 0 to 255: windows of up to `most` pixels a side, reduced to `side`."""
        inside = torch.arange(most, device=self.device)
        # Beyond a window its last row and column are read again, and have no weight.
        near = torch.minimum(inside, window[:, None] - 1)
        index = start[:, None, None] + near[:, :, None] * stride[:, None, None] + near[:, None, :]
        pixels = self.pool[index].float()  # (n, most, most, C)
        weights = bicubic(window, side, most)
        rows = torch.einsum("nij,njkc->nikc", weights, pixels)
        reduced = torch.einsum("nlk,nikc->nilc", weights, rows)
        return reduced.round_().clamp_(0, 255).reshape(-1, self.pool.shape[1])


def take(pool: torch.Tensor, start: torch.Tensor, stride: torch.Tensor, side: int, turn: torch.Tensor) -> torch.Tensor:
    """(n, side, side, C) squares of pixels (m, C): rows begin at start + i stride, turned and mirrored as `cut` does."""
    inside = torch.arange(side, device=pool.device)
    turn = turn[:, None, None]
    down, right = inside[None, :, None], inside[None, None, :]
    swapped = (turn & 4) != 0
    row, column = torch.where(swapped, right, down), torch.where(swapped, down, right)
    row = torch.where((turn & 2) != 0, side - 1 - row, row)
    column = torch.where((turn & 1) != 0, side - 1 - column, column)
    return pool[start[:, None, None] + row * stride[:, None, None] + column]


def bicubic(window: torch.Tensor, side: int, most: int) -> torch.Tensor:
    """(n, side, most) weights that reduce `window` (n,) samples to `side`: Keys' cubic with a = -1/2, stretched by
    window / side against aliasing, each row of sum one (as torch's interpolate with antialias=True)."""
    scale = (window.double() / side)[:, None, None]
    centre = scale * (torch.arange(side, device=window.device) + 0.5)[None, :, None]
    inside = torch.arange(most, device=window.device)
    x = ((inside + 0.5 - centre) / scale).abs()
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    weights = weights * (inside < window[:, None, None])
    return (weights / weights.sum(-1, keepdim=True)).float()
