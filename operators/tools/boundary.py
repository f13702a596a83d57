"""What a filter reads outside the image. For the pixels a b c d:

circular    a b c d | a b c d | a b c d     y wraps around: an idealisation, cheap in the Fourier domain
reflect     d c b a | a b c d | d c b a     half-sample symmetric, scipy.ndimage's "reflect"
replicate   a a a a | a b c d | d d d d
zero        0 0 0 0 | a b c d | 0 0 0 0
valid       nothing is read outside: y holds only the positions where the whole kernel lies inside
"""

from __future__ import annotations

import numpy as np

BOUNDARIES = ("circular", "reflect", "replicate", "zero", "valid")


def source_index(positions: np.ndarray, size: int, boundary: str) -> np.ndarray:
    """The pixel 0..size-1 that each position stands for, or -1 where it stands for 0."""
    if boundary == "circular":
        return positions % size
    if boundary == "reflect":
        folded = positions % (2 * size)
        return np.where(folded < size, folded, 2 * size - 1 - folded)
    if boundary == "replicate":
        return np.clip(positions, 0, size - 1)
    return np.where((positions >= 0) & (positions < size), positions, -1)
