"""The network of a trained prior: a fully convolutional diffusers U-Net, so any image size works."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import UsageError
from invdiff.priors.stored.environment import explain_import_failure
from invdiff.training.config import TrainingConfig

# What the settings call what the configuration of a UNet2DModel calls.
_NAMES = {
    "channels": "in_channels",
    "widths": "block_out_channels",
    "blocks": "layers_per_block",
    "groups": "norm_num_groups",
}


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
        prediction_type=config.prediction,
        clip_sample=True,
    )


def start_from(network: torch.nn.Module, config: TrainingConfig, source: str) -> dict[str, Any]:
    """Copy the weights of a prior into the freshly built network; returns what identifies them.

    source: what `invdiff.load_prior` takes. Raises UsageError if that prior has another network, another prediction or
    another noise schedule than these settings, and says which.
    """
    from invdiff.priors.network import NetworkPrior
    from invdiff.priors.stored.loading import load_prior

    prior = load_prior(source, device="cpu", precision="fp32")
    if not isinstance(prior, NetworkPrior) or not isinstance(prior.network, type(network)):
        raise UsageError(f"training setting init={source!r}: has no UNet2DModel to go on with")
    theirs: Any = prior.network.config
    wrong = {}
    for name, key in _NAMES.items():
        if (value := _plain(theirs[key])) != _plain(getattr(config, name)):
            wrong[name] = value
    if prior.prediction != config.prediction:
        wrong["prediction"] = prior.prediction
    if wrong:
        said = ", ".join(f"{name}={getattr(config, name)!r}" for name in wrong)
        fix = " ".join(f"--set {name}={_listed(value)}" for name, value in wrong.items())
        raise UsageError(f"training setting init={source!r} does not fit {said}; to go on with that prior: {fix}")
    ours = Schedule.named(config.schedule, config.schedule_steps)
    if len(ours) != len(prior.schedule) or not np.allclose(ours.alphas_bar, prior.schedule.alphas_bar, rtol=1e-4):
        raise UsageError(
            f"training setting init={source!r}: its noise schedule is not schedule={config.schedule!r} with "
            f"schedule_steps={config.schedule_steps}; set these two to what `invdiff prior info {source}` prints"
        )
    try:
        network.load_state_dict(prior.network.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"training setting init={source!r}: its layers are others than those that `invdiff train` builds (attention, "
            "for instance); only a prior trained by `invdiff train` can be continued"
        ) from error
    return {"source": source, **prior.identity}


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
