"""The places and weights of an image's tiles, and the windows from which statistics of a whole image are taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

Place = tuple[Any, slice, slice]
"""Index of a tile in an image: (..., rows, columns)."""


class Tiles:
    """Overlapping tiles of an image (H, W), of one size, and their weights, which sum to 1 at every pixel.

    side: the largest side of a tile; overlap: the smallest overlap of neighbours, at most side / 2; both in pixels. Starts
    and sizes are multiples of `multiple`; H, W and the overlap have to be.
    """

    def __init__(self, image: Sequence[int], side: int, overlap: int, multiple: int) -> None:
        (rows, height), (columns, width) = (starts(length, side, overlap, multiple) for length in image)
        self.size: tuple[int, int] = (height, width)
        self.places: list[Place] = [(..., slice(r, r + height), slice(c, c + width)) for r in rows for c in columns]
        self._rows = dict(zip(rows, ramps(image[0], rows, height, overlap), strict=True))
        self._columns = dict(zip(columns, ramps(image[1], columns, width, overlap), strict=True))

    def weight(self, place: Place, like: torch.Tensor) -> torch.Tensor:
        """(height, width) of the tile at one of `places`."""
        _, rows, columns = place
        return self._rows[rows.start].to(like)[:, None] * self._columns[columns.start].to(like)


def starts(length: int, side: int, overlap: int, multiple: int) -> tuple[list[int], int]:
    """The first pixel of each tile along one dimension, and the length of all of them: as few tiles as `side` allows,
    spread evenly."""
    side -= side % multiple
    if length <= side:
        return [0], length
    count = -(-(length - overlap) // (side - overlap))
    size = -(-(length + (count - 1) * overlap) // count)
    size += -size % multiple
    return [k * (length - size) // (count - 1) // multiple * multiple for k in range(count)], size


def ramps(length: int, begins: Sequence[int], size: int, overlap: int) -> list[torch.Tensor]:
    """Weights (size,) of each tile along one dimension, float64, with sum 1 at every pixel.

    At an edge inside the image they are 0 up to a quarter of the overlap, 1 from three quarters of it, and sin^2 in between;
    then they are divided by their sum over the tiles, which differs from 1 where tiles overlap by more.
    """
    place = torch.arange(size, dtype=torch.float64) + 0.5
    rise = torch.sin(math.pi / 2 * ((place - overlap / 4) / (overlap / 2)).clamp(0, 1)) ** 2
    weights = [
        (torch.ones_like(rise) if begin == 0 else rise)
        * (torch.ones_like(rise) if begin + size == length else rise.flip(0))
        for begin in begins
    ]
    total = torch.zeros(length, dtype=torch.float64)
    for begin, weight in zip(begins, weights, strict=True):
        total[begin : begin + size] += weight
    return [weight / total[begin : begin + size] for begin, weight in zip(begins, weights, strict=True)]


def windows(x: torch.Tensor, count: int, side: int, multiple: int) -> torch.Tensor:
    """At most count^2 windows (n, C, side, side) of an image x (1, C, H, W), in the middle of the cells of a grid and at
    multiples of `multiple`; x itself if it has no more pixels than they. The grid follows the shape of a narrow image."""
    height, width = x.shape[-2:]
    if height * width <= (count * side) ** 2:
        return x
    across = max(1, min(count, min(height, width) // side))
    along = min(count**2 // across, max(height, width) // side)
    spans = [
        [slice(first, first + size) for first in middles(length, size, number, multiple)]
        for length, size, number in zip(
            (height, width),
            (min(height, side), min(width, side)),
            (across, along) if height <= width else (along, across),
            strict=True,
        )
    ]
    return torch.cat([x[..., rows, columns] for rows in spans[0] for columns in spans[1]])


def middles(length: int, size: int, number: int, multiple: int) -> list[int]:
    """The starts of pieces of `size` pixels, each in the middle of one of `number` equal parts of a length."""
    return [int((k + 0.5) * length / number - size / 2) // multiple * multiple for k in range(number)]
