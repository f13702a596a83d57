"""Colourisation: only the brightness of a colour image is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from invdiff.files.images import LUMA
from invdiff.specs.parameters import parameter

from .mixing import Mixing

WEIGHTS = {
    "bt601": LUMA,  # as Pillow, OpenCV and JPEG
    "bt709": (0.2126, 0.7152, 0.0722),  # ITU-R BT.709, the luminance of linear sRGB
    "mean": (1 / 3, 1 / 3, 1 / 3),
}


@dataclass(frozen=True, eq=False)
class Grayscale(Mixing):
    """y = w_R R + w_G G + w_B B: (3, H, W) -> (1, H, W). A A^T = |w|^2 I, so s = |w| everywhere.

    weights: bt601 (0.299, 0.587, 0.114; |w| = 0.669), bt709 (0.2126, 0.7152, 0.0722) or mean (1/3 each).
    Raises UsageError for images that have not three channels.
    """

    name: ClassVar[str] = "grayscale"
    family: ClassVar[str] = "colour"

    weights: str = parameter("bt601", kind=str, choices=tuple(WEIGHTS), help="share of red, green and blue")

    def _weights(self) -> np.ndarray:
        return np.array([WEIGHTS[self.weights]])
