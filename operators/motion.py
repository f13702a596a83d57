"""Camera shake: the image smeared along a path during the exposure."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from invdiff.errors import UsageError
from invdiff.specs.parameters import parameter, whole

from .blur import boundary_parameter
from .filtering import Filter
from .tools.kernels import Stencil, convolution

_STEPS = 128  # straight pieces of a random path


@dataclass(frozen=True, eq=False)
class MotionBlur(Filter):
    """y = k * x (true convolution), where k holds the share of the exposure that the path spends in each pixel.

    The path has the given length and constant speed; path=straight is a segment through the centre, path=random a
    smooth shake drawn from the seed, its mean at the centre, turned by angle. Shares are exact lengths inside pixels,
    so the kernel follows length and angle below a pixel. Kernel sum 1, odd size, the same for every channel.
    (C, H, W) -> (C, H, W), smaller for boundary=valid. SVD for boundary=circular, which wraps around and is an
    idealisation, and for a horizontal or vertical segment; otherwise inverses use conjugate gradients.
    Raises UsageError if the kernel is larger than the image.
    """

    name: ClassVar[str] = "motion_blur"
    family: ClassVar[str] = "motion"
    _smaller: ClassVar[str] = "lower length"

    length: float = parameter(15.0, unit="px", above=0, high=4096, help="length of the path")
    angle: float = parameter(0.0, unit="degrees", help="direction, counter-clockwise from the horizontal")
    path: str = parameter("straight", kind=str, choices=("straight", "random"), help="shape of the path")
    seed: int | None = parameter(None, kind=whole, low=0, help="which random path (0 if not given)")
    boundary: str = boundary_parameter()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path == "straight" and self.seed is not None:
            raise UsageError(f"motion_blur: seed={self.seed} has no effect on a straight path; add path=random")

    def _stencil(self) -> Stencil:
        points = random_path(self.seed or 0) if self.path == "random" else np.array([[-0.5, 0.0], [0.5, 0.0]])
        turn = math.radians(self.angle)
        x, y = self.length * points.T
        # Rows count downwards, angles upwards.
        rows, columns = -x * math.sin(turn) - y * math.cos(turn), x * math.cos(turn) - y * math.sin(turn)
        return convolution(exposure(np.stack([rows, columns], axis=1)))


def random_path(seed: int) -> np.ndarray:
    """A smooth path of length 1: (_STEPS + 1, 2) points, of mean 0, whose direction drifts like a random walk."""
    generator = np.random.default_rng([seed, _STEPS])
    # Twice integrated noise is smooth; this scale turns the heading by about 2 radians in all, whatever _STEPS is.
    heading = 2 * math.sqrt(3 / _STEPS**3) * np.cumsum(np.cumsum(generator.normal(size=_STEPS)))
    points = np.concatenate([np.zeros((1, 2)), np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), axis=0)])
    points /= _STEPS
    return points - (points[1:] + points[:-1]).mean(axis=0) / 2


def exposure(points: np.ndarray) -> np.ndarray:
    """The share of a path's length inside each pixel: (n, 2) row and column coordinates -> odd-sized kernel of sum 1.

    Pixel (0, 0), the kernel's centre, is the square of side 1 around the origin.
    """
    # A path that ends on a pixel's edge must not open a row of empty pixels.
    reach = np.maximum(np.ceil(np.abs(points).max(axis=0) - 0.5 - 1e-9), 0).astype(int)
    kernel = np.zeros(2 * reach + 1)
    if kernel.size == 1:
        return np.ones((1, 1))
    for start, end in itertools.pairwise(points):
        cuts = [np.array([0.0, 1.0])]
        for a, b in zip(start, end, strict=True):
            low, high = sorted((a, b))
            edges = np.arange(math.ceil(low - 0.5), math.floor(high - 0.5) + 1) + 0.5
            if high - low > 1e-12:
                cuts.append((edges - a) / (b - a))
        t = np.unique(np.clip(np.concatenate(cuts), 0, 1))
        middle = start + (t[1:, None] + t[:-1, None]) / 2 * (end - start)
        cells = np.clip(np.floor(middle + 0.5).astype(int), -reach, reach) + reach
        np.add.at(kernel, (cells[:, 0], cells[:, 1]), np.diff(t) * np.linalg.norm(end - start))
    return kernel / kernel.sum()
