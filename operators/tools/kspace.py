"""Which Fourier samples an acquisition takes: masks (H, W) of 0 and 1, zero frequency at (H // 2, W // 2)."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np

from invdiff.errors import UsageError
from invdiff.files.images import read_image
from invdiff.operator.arrays import load

PATTERNS = ("equispaced", "random", "radial")


def lines(owner: str, pattern: str, width: int, acceleration: float, center_fraction: float, seed: int) -> np.ndarray:
    """Cartesian: round(W / acceleration) whole columns, (1, W), of which round(center_fraction W) are the central ones.

    The others are chosen among the outer columns: at even steps from a random first one, or at random.
    """
    measured, centre = round(width / acceleration), round(center_fraction * width)
    if measured < 1:
        raise UsageError(
            f"{owner}: acceleration={acceleration:g} leaves no line of the {width} columns: choose at most {width}"
        )
    if centre > measured:
        raise UsageError(
            f"{owner}: center_fraction={center_fraction:g} asks for {centre} of {width} columns, but "
            f"acceleration={acceleration:g} measures only {measured}: "
            f"choose center_fraction <= {measured / width:.3g} or acceleration <= {width / centre:.3g}"
        )
    first = width // 2 - centre // 2
    outer = np.concatenate([np.arange(first), np.arange(first + centre, width)])
    draw = np.random.default_rng([seed, width])
    if pattern == "random":
        chosen = draw.permutation(outer)[: measured - centre]
    else:
        step = len(outer) / max(1, measured - centre)
        chosen = outer[np.floor((np.arange(measured - centre) + draw.random()) * step).astype(int)]
    mask = np.zeros((1, width))
    mask[0, first : first + centre] = 1
    mask[0, chosen] = 1
    return mask


def spokes(owner: str, size: tuple[int, int], acceleration: float, seed: int) -> np.ndarray:
    """Radial: diameters at even angles, turned by a random angle, as many as it takes to pass H W / acceleration samples."""
    height, width = size
    if height * width / acceleration < 1:
        raise UsageError(f"{owner}: acceleration={acceleration:g} leaves no sample of {height}x{width}: lower it")
    turn = np.random.default_rng([seed, *size]).random()

    def draw(count: int) -> np.ndarray:
        theta = np.pi * (np.arange(count) + turn) / count
        # Half a sample apart, out to the corners; in units in which k-space is a square.
        t = np.linspace(-0.5, 0.5, 2 * max(size) + 1)
        reach = 1 / np.maximum(abs(np.cos(theta)), abs(np.sin(theta)))
        rows = np.rint(height * t * (np.sin(theta) * reach)[:, None]).astype(int) + height // 2
        columns = np.rint(width * t * (np.cos(theta) * reach)[:, None]).astype(int) + width // 2
        mask = np.zeros(size)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        mask[rows[inside], columns[inside]] = 1
        return mask

    enough = height * width / acceleration
    most = 2 * (height + width)  # every sample then lies on a spoke, or nearly
    return draw(1 + bisect.bisect_left(range(1, most), enough, key=lambda count: draw(count).sum()))


def given(owner: str, source: str | np.ndarray) -> np.ndarray:
    """The mask of a picture, an .npy or .npz file or an array: (H, W), or (1, W) for whole columns."""
    if isinstance(source, str) and Path(source).suffix.lower() not in (".npy", ".npz", ""):
        mask = read_image(source).tensor.double().mean(0).numpy()
    else:
        mask = load(source, owner, "mask")
    while mask.ndim > 2 and mask.shape[0] == 1:
        mask = mask[0]
    if mask.ndim not in (1, 2):
        raise UsageError(f"{owner}: mask has shape {mask.shape}; it must be (height, width), or (width,) for columns")
    top = mask.max()
    if top <= 0:
        raise UsageError(f"{owner}: mask is zero everywhere, so nothing is measured; 1 marks the measured samples")
    between = ((mask != 0) & (mask != top)).sum()
    if between or mask.min() < 0:
        raise UsageError(
            f"{owner}: mask holds other values than 0 and {top:g} ({between} of {mask.size} entries); "
            "a sample is measured or not: write (mask > 0.5)"
        )
    return np.atleast_2d(mask > 0).astype(float)


def sampling(
    owner: str,
    size: tuple[int, int],
    pattern: str,
    acceleration: float,
    center_fraction: float | None,
    seed: int,
    mask: np.ndarray | None,
) -> np.ndarray:
    """The mask for images of one size, (H, W)."""
    if mask is not None:
        if mask.shape[1] != size[1] or mask.shape[0] not in (1, size[0]):
            raise UsageError(
                f"{owner}: mask is {mask.shape[0]}x{mask.shape[1]} but the image is {size[0]}x{size[1]}; "
                "give a mask of the image's size, or one row of its width"
            )
    elif pattern == "radial":
        mask = spokes(owner, size, acceleration, seed)
    else:
        # 8 % of the lines at acceleration 4, 4 % at 8: the fastMRI challenge's.
        share = 0.32 / acceleration if center_fraction is None else center_fraction
        mask = lines(owner, pattern, size[1], acceleration, share, seed)
    return np.broadcast_to(mask, size).copy()
