"""One random crop of one image, and batches of crops on their way to the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from invdiff.training.data.decoding import FULL_SCALE, to_unit

if TYPE_CHECKING:
    import torch

DRAWS = 8
"""Uniform numbers that belong to a crop: its folder, image, whether it is reduced, window, row, column, orientation; one
is spare. Eight 64-bit words are two blocks of Philox."""
TURNS = {"all": 8, "flip": 2, "none": 1}


def uniforms(seed: int, step: int, first: int, count: int) -> np.ndarray:
    """(count, DRAWS) numbers in [0, 1): row k is a pure function of (seed, step, first + k).

    Philox is a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): block n
    comes from n alone, so that any crop of a step is reached at once, and all are drawn in one call.
    """
    key = np.random.SeedSequence([seed, 5, step]).generate_state(2, np.uint64)
    blocks = np.random.Philox(key=key, counter=first * DRAWS // 4)
    words = blocks.random_raw(count * DRAWS).reshape(count, DRAWS)
    return (words >> np.uint64(11)) * 2.0**-53


def cut(pixels: np.ndarray, side: int, draws: Sequence[float], downscale: float, turns: int) -> np.ndarray:
    """(C, side, side) of an image (H, W, C), in its dtype; where nothing is reduced, a view of it.

    With probability `downscale` a window of side to 3 side pixels is reduced. `turns`: 8 orientations, 2 (left and
    right) or 1.
    """
    height, width, _ = pixels.shape
    window = side
    if draws[2] < downscale:
        window += int(draws[3] * (min(height, width, 3 * side) - side + 1))
    top, left = int(draws[4] * (height - window + 1)), int(draws[5] * (width - window + 1))
    crop = pixels[top : top + window, left : left + window]
    if window != side:
        crop = reduce(crop, side)
    crop = crop.transpose(2, 0, 1)
    turn = int(draws[6] * turns)
    if turn & 1:
        crop = crop[:, :, ::-1]
    if turn & 2:
        crop = crop[:, ::-1]
    if turn & 4:
        crop = crop.swapaxes(1, 2)
    return crop


def reduce(crop: np.ndarray, side: int) -> np.ndarray:
    """(h, w, C) to (side, side, C) by the antialiased bicubic filter, in the dtype and range of the crop.

    torch's, because it reduces 8-bit pixels three times faster than Pillow and 16-bit ones without loss.
    """
    import torch
    from torch.nn.functional import interpolate

    codes = crop.dtype == np.uint16
    window = crop.astype(np.float32) if codes else crop.copy()  # a copy: the image may be read-only
    # Turned by numpy, because each such call of torch costs as much as a tenth of the filter.
    turned = torch.from_numpy(window.transpose(2, 0, 1)[None])
    pixels = interpolate(turned, (side, side), mode="bicubic", antialias=True).numpy()[0].transpose(1, 2, 0)
    if crop.dtype == np.uint8:
        return pixels  # clipped already
    pixels = np.clip(pixels, 0, FULL_SCALE[crop.dtype])  # the filter overshoots at edges
    return np.rint(pixels).astype(np.uint16) if codes else pixels


def stack(crops: Sequence[np.ndarray], channels: int) -> np.ndarray:
    """(n, channels, side, side), contiguous, in the common dtype of the crops; float32 in [0, 1] if they have several.
    Crops of one channel are repeated."""
    mixed = len({crop.dtype for crop in crops}) > 1
    dtype = np.dtype(np.float32) if mixed else crops[0].dtype
    batch = np.empty((len(crops), channels, *crops[0].shape[1:]), dtype)
    for place, crop in zip(batch, crops, strict=True):
        place[...] = to_unit(crop) if mixed else crop
    return batch


def to_network(batch: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """float32 in [-1, 1] on a device, of crops in uint8, uint16, or float32 in [0, 1]; they travel in their dtype."""
    import torch

    values = torch.from_numpy(batch).to(device, non_blocking=True).to(torch.float32)
    return values / (FULL_SCALE[batch.dtype] / 2) - 1
