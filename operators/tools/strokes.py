"""Free-form masks: brush strokes such as a hand draws over what is to go.

After the random masks of Yu et al., Free-form image inpainting with gated convolution, 2019, algorithm 1
(https://arxiv.org/abs/1806.03589). Differs: a stroke has one width, the user's; lines are drawn exactly, with round ends.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def free_form(seed: int, count: int, width: float, height: int, columns: int) -> np.ndarray:
    """(height, columns) float64: 0 under `count` strokes that are `width` px wide, else 1; given by its arguments."""
    generator = np.random.Generator(np.random.PCG64([seed, count, height, columns]))
    lost = np.zeros((height, columns), dtype=bool)
    for _ in range(count):
        points = _stroke(generator, height, columns)
        for start, end in itertools.pairwise(points):
            _draw(lost, start, end, width / 2)
    return np.where(lost, 0.0, 1.0)


def _stroke(generator: np.random.Generator, height: int, columns: int) -> np.ndarray:
    """Corners of one stroke, (n, 2) rows and columns: turns to and fro by 72 +- 24 degrees, inside the image."""
    mean = math.hypot(height, columns) / 8
    points = [generator.uniform((0, 0), (height - 1, columns - 1))]
    heading = generator.uniform(0, 2 * math.pi)
    for k in range(generator.integers(4, 13)):
        turn = 2 * math.pi / 5 + generator.uniform(-1, 1) * 2 * math.pi / 15
        heading += turn if k % 2 else -turn
        length = np.clip(generator.normal(mean, mean / 2), 0, 2 * mean)
        step = length * np.array([math.sin(heading), math.cos(heading)])
        points.append(np.clip(points[-1] + step, 0, (height - 1, columns - 1)))
    return np.array(points)


def _draw(lost: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> None:
    """Mark the pixels whose centre is at most `radius` from the segment."""
    low = np.maximum(np.floor(np.minimum(start, end) - radius).astype(int), 0)
    high = np.ceil(np.maximum(start, end) + radius).astype(int) + 1
    part = lost[low[0] : high[0], low[1] : high[1]]
    places = np.moveaxis(np.indices(part.shape), 0, -1) + low - start
    along, length2 = end - start, float((end - start) @ (end - start))
    share = np.clip(places @ along / length2, 0, 1) if length2 > 0 else np.zeros(part.shape)
    part |= ((places - share[..., None] * along) ** 2).sum(-1) <= radius**2
