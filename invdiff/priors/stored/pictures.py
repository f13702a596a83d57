"""Pictures on which a prior is verified: photographs that come with scikit-image, or those of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.files.images import centre, fit_channels, list_images, read_image

SMALLEST = 300
"""Every built-in picture has at least so many pixels on each side."""


def builtin_pictures(channels: int, side: int) -> torch.Tensor:
    """Two windows each of four photographs that come with scikit-image, (8, C, side, side) in [0, 1].

    Raises UsageError for channels other than 1 and 3, which no photograph has, and for a side larger than theirs.
    """
    import skimage.data

    if side > SMALLEST:
        raise UsageError(
            f"the built-in pictures have {SMALLEST} pixels or more a side, not {side}; give some with --data"
        )
    if channels not in (1, 3):
        raise UsageError(f"there are no built-in pictures of {channels} channels; give some with --data")
    windows = []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        pixels = getattr(skimage.data, name)().transpose(2, 0, 1) / np.float32(255)
        height, width = pixels.shape[1:]
        for left in ((width - side) // 3, 2 * (width - side) // 3):
            top = (height - side) // 2
            windows.append(torch.from_numpy(pixels[:, top : top + side, left : left + side]))
    return torch.stack([fit_channels(window, channels) for window in windows])


def read_pictures(data: str | Path, channels: int, side: int, multiple: int, count: int) -> torch.Tensor:
    """The central parts of `count` pictures spread evenly over a folder (or pattern): (B, C, side, side) in [0, 1].

    The side is reduced to that of the smallest picture, and to a multiple of `multiple`. Raises ImageError and UsageError,
    with the file, for pictures that are too small, of other channels, or far outside [0, 1].
    """
    paths = list_images(data)
    chosen = [paths[k * len(paths) // min(count, len(paths))] for k in range(min(count, len(paths)))]
    tensors = []
    for path in chosen:
        tensor = read_image(path).tensor
        try:
            tensor = fit_channels(tensor, channels)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
        if float(tensor.min()) < -0.5 or float(tensor.max()) > 1.5:
            low, high = float(tensor.min()), float(tensor.max())
            raise UsageError(f"{path}: its values go from {low:.4g} to {high:.4g}; scale them to [0, 1]")
        if min(tensor.shape[1:]) < multiple:
            raise UsageError(
                f"{path}: {tensor.shape[1]} x {tensor.shape[2]} pixels; the network needs {multiple} or more"
            )
        tensors.append(tensor)
    side = min(side, *(min(tensor.shape[1:]) for tensor in tensors))
    return torch.stack([centre(tensor, side - side % multiple) for tensor in tensors])
