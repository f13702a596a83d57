"""Random sampling: each value of each channel is measured or lost on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator import Shape
from invdiff.specs.parameters import parameter, whole

from .masking import Masking, random_mask


@dataclass(frozen=True, eq=False)
class RandomSubsample(Masking):
    """y = m x with a mask m of 0 and 1 over all values: (C, H, W) -> (C, H, W), zeros where values are lost.

    Exactly round(keep C H W) values are measured, at places given by seed, C, H and W alone. SVD: pixels, s = m.
    """

    name: ClassVar[str] = "random_subsample"

    keep: float = parameter(0.5, above=0, high=1, help="share of values measured")
    seed: int = parameter(0, kind=whole, low=0, help="which values")

    def _mask(self, shape: Shape) -> torch.Tensor:
        return random_mask(self.seed, self.keep, shape)
