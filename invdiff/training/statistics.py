"""The Gaussian model of the training images, for noise levels at which a network that predicts the noise says little."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from invdiff.priors.gaussian_images import GaussianImages
from invdiff.training.data.decoding import to_unit
from invdiff.training.data.sampler import CropSampler

if TYPE_CHECKING:
    from invdiff.training.config import TrainingConfig
    from invdiff.training.data.sampler import Photographs

CROPS = 192
_PIXELS = 1 << 22


def image_statistics(photographs: Photographs, config: TrainingConfig) -> GaussianImages | None:
    """Fitted to crops drawn as the training draws them; None for images without variance.

    Only where the network predicts the noise: x_0 and v have no error that grows with sigma.
    """
    if config.prediction != "epsilon":
        return None
    side = min(config.crops)
    count = max(16, min(CROPS, _PIXELS // side**2))
    drawing = dataclasses.replace(config, crops=(side,), pixels=count * side**2)
    return GaussianImages.fit(to_unit(CropSampler(photographs, drawing).batch(0)))
