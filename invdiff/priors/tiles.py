"""Where the tiles of an image lie, what each of them weighs, and the windows that stand for the whole of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

Place = tuple[Any, slice, slice]
"""Index of a tile in an image: (..., rows, columns)."""


class Tiles:
    """Overlapping tiles of an image (H, W), of one size, and their weights, which sum to 1 at every pixel.

    side, overlap: at most and at least so many pixels, side >= 2 overlap; starts and sizes are multiples of `multiple`,
    as H, W and the overlap have to be.
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
    """Where tiles along one dimension begin, and how long all of them are: as few as `side` allows, spread evenly."""
    side -= side % multiple
    if length <= side:
        return [0], length
    count = -(-(length - overlap) // (side - overlap))
    size = -(-(length + (count - 1) * overlap) // count)
    size += -size % multiple
    return [k * (length - size) // (count - 1) // multiple * multiple for k in range(count)], size


def ramps(length: int, begins: Sequence[int], size: int, overlap: int) -> list[torch.Tensor]:
    """Weights (size,) of each tile along one dimension, float64, with sum 1: from an edge inside the image 0 up to a quarter
    of the overlap, 1 from three quarters of it, sin^2 in between; all of it divided by the sum, where tiles overlap more.
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
    """count^2 windows (n, C, side, side) of an image x (1, C, H, W), in the middle of the cells of a grid, at multiples of
    `multiple`; x itself, if it is no larger than all of them together. A strip is covered along its length."""
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
    """Where pieces of `size` begin in the middle of `number` equal parts of a length."""
    return [int((k + 0.5) * length / number - size / 2) // multiple * multiple for k in range(number)]
