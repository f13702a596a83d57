"""The network of a trained prior: a fully convolutional diffusers U-Net, so any image size works."""

from __future__ import annotations

from typing import Any

import torch

from invdiff.priors.environment import explain_import_failure
from invdiff.training.config import TrainingConfig


def build_network(config: TrainingConfig) -> Any:
    """A freshly initialised `diffusers.UNet2DModel` without attention. The same seed gives the same weights."""
    with explain_import_failure():
        from diffusers import UNet2DModel

    levels = len(config.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # noqa: TID251  layers draw from the global generator; fork_rng restores it
        return UNet2DModel(
            sample_size=max(config.crops),
            in_channels=config.channels,
            out_channels=config.channels,
            block_out_channels=config.widths,
            layers_per_block=config.blocks,
            norm_num_groups=config.groups,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            add_attention=False,
        )


def build_scheduler(config: TrainingConfig) -> Any:
    """The matching `diffusers.DDPMScheduler`; clipping is on, so that DDPMPipeline samples stay in range."""
    with explain_import_failure():
        from diffusers import DDPMScheduler

    names = {"linear": "linear", "scaled_linear": "scaled_linear", "quadratic": "scaled_linear"}
    return DDPMScheduler(
        num_train_timesteps=config.schedule_steps,
        beta_schedule=names.get(config.schedule, "squaredcos_cap_v2"),
        prediction_type="epsilon",
        clip_sample=True,
    )
