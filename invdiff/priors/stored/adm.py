"""U-Nets of guided-diffusion (ADM) as `.pt` state dicts, mapped one to one onto diffusers' UNet2DModel.

Dhariwal & Nichol 2021, "Diffusion models beat GANs on image synthesis", https://arxiv.org/abs/2105.05233, and its code
https://github.com/openai/guided-diffusion. Checkpoints with this architecture: `ffhq_10m` (Choi et al. 2021, ILVR; the
FFHQ network of DPS and DiffPIR), `256x256_diffusion_uncond` (ImageNet), the LSUN ones.

The two networks hold the same layers in the same order; four things differ, and are translated here:

    numbering   input_blocks count through all levels; one level is num_res_blocks blocks and one that halves the image
    attention   one matrix (3C, C) with rows by head, then q, k, v  ->  to_q, to_k, to_v with rows by head
                (use_new_attention_order: by q, k, v, then head)
    1x1 convolutions of the attention  ->  linear layers
    learned variance: the last C of 2C output channels, which no denoiser needs, are left out

What the shapes do not tell is given by settings with guided-diffusion's own names (`adm_settings.SETTINGS`). For the shapes
in `adm_settings.KNOWN` they are known; for others the width of an attention head has to be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from invdiff.errors import CheckpointError, UsageError
from invdiff.priors.stored.adm_settings import SCHEDULES, Config, Layout, State, complete, read_settings, text_of
from invdiff.priors.stored.diffusers_folder import Checkpoint, check_state, read_scheduler
from invdiff.priors.stored.tensor_files import load_tensors

_LAYERS = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
    "norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0", "op": "conv", "conv": "conv",
}  # fmt: skip
_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
}  # fmt: skip
# Where other programs put the state dict of the same network inside their file.
_WRAPPERS = ("ema", "model_ema", "state_dict", "model")
# Tables of the noise schedule that deepinv's DiffUNet stores beside the weights; they follow from the settings.
_TABLES = ("sqrt_1m_alphas_cumprod", "sqrt_alphas_cumprod")


def unet_config(layout: Layout, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the UNet2DModel that computes the same mean as the network."""
    head = settings["num_head_channels"]
    for width in {w for w, on in zip(layout.widths, layout.attention, strict=True) if on} | {layout.widths[-1]}:
        if head is not None and width % head:
            raise UsageError(f"num_head_channels={head} does not divide the {width} channels of an attention layer")
    plain = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if layout.resblock_updown else ("DownBlock2D", "UpBlock2D")
    )
    resampling = "resnet" if layout.resblock_updown else "conv"
    return {
        "_class_name": "UNet2DModel",
        "sample_size": settings["image_size"],
        "in_channels": layout.in_channels,
        "out_channels": layout.in_channels,
        "block_out_channels": list(layout.widths),
        "layers_per_block": layout.num_res_blocks,
        "down_block_types": ["AttnDownBlock2D" if on else plain[0] for on in layout.attention],
        "up_block_types": ["AttnUpBlock2D" if on else plain[1] for on in reversed(layout.attention)],
        "downsample_type": resampling,
        "upsample_type": resampling,
        "time_embedding_dim": layout.time_width,
        "resnet_time_scale_shift": "scale_shift" if layout.use_scale_shift_norm else "default",
        "attention_head_dim": head,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        # sin and cos of t / 10000^(i / half), cos first.
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def convert(state: State, layout: Layout, settings: Mapping[str, Any]) -> State:
    """The state dict under UNet2DModel's names. A weight without a counterpart keeps its name, so that the check of the
    weights reports it."""
    converted: State = {}
    blocks = _blocks(layout)
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        new = _ENDS.get(layer) or _rename(layer, blocks) or ""
        if new == "conv_out":
            value = value[: layout.in_channels].clone()
        if new.endswith((".to_qkv", ".to_out.0")) and leaf == "weight":
            value = value.flatten(1)
        if new.endswith(".to_qkv"):
            for part, rows in zip("qkv", _split(value, settings), strict=True):
                converted[f"{new.removesuffix('qkv')}{part}.{leaf}"] = rows
        else:
            converted[f"{new}.{leaf}" if new else name] = value
    return converted


def _split(rows: torch.Tensor, settings: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Split (3C, ...), whose rows are ordered (head, q/k/v, channel) or (q/k/v, head, channel), into q, k and v (C, ...)."""
    channels = len(rows) // 3
    width = settings["num_head_channels"] or channels
    if settings["use_new_attention_order"]:
        return tuple(part.clone() for part in rows.split(channels))
    by_head = rows.reshape(channels // width, 3, width, *rows.shape[1:])
    return tuple(by_head[:, part].reshape(channels, *rows.shape[1:]) for part in range(3))


def _rename(layer: str, blocks: Mapping[str, str]) -> str | None:
    """UNet2DModel's name for a layer inside a block of guided-diffusion; None if there is none."""
    parts = layer.split(".")
    depth = 2 if parts[0] == "middle_block" else 3
    block, inner = blocks.get(".".join(parts[:depth])), _LAYERS.get(".".join(parts[depth:]))
    return f"{block}.{inner}" if block and inner else None


def _blocks(layout: Layout) -> dict[str, str]:
    """guided-diffusion's name of every block -> UNet2DModel's: the resnets, attentions and resampler of each level."""
    middle = ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    names = {f"middle_block.{part}": name for part, name in enumerate(middle)}
    repeats = layout.num_res_blocks
    for level, (attends, attends_up) in enumerate(zip(layout.attention, reversed(layout.attention), strict=True)):
        down, up, first = f"down_blocks.{level}", f"up_blocks.{level}", level * (repeats + 1)
        for index in range(repeats):
            names[f"input_blocks.{first + 1 + index}.0"] = f"{down}.resnets.{index}"
            if attends:
                names[f"input_blocks.{first + 1 + index}.1"] = f"{down}.attentions.{index}"
        names[f"input_blocks.{first + 1 + repeats}.0"] = f"{down}.downsamplers.0"
        for index in range(repeats + 1):
            names[f"output_blocks.{first + index}.0"] = f"{up}.resnets.{index}"
            if attends_up:
                names[f"output_blocks.{first + index}.1"] = f"{up}.attentions.{index}"
            names[f"output_blocks.{first + index}.{2 if attends_up else 1}"] = f"{up}.upsamplers.0"
    return names


@dataclass(frozen=True)
class AdmFile(Checkpoint):
    """A guided-diffusion state dict as a UNet2DModel with its schedule. settings: all known flags."""

    format: ClassVar[str] = "guided-diffusion file"

    settings: dict[str, Any]
    state: State

    @classmethod
    def open(cls, path: Path, config: Config = None) -> AdmFile:
        """Read and check it. config: settings that the shapes do not tell, see `read_settings`.

        Raises CheckpointError for a file that holds no such network or one that no UNet2DModel can compute.
        """
        given = read_settings(config)
        state = _unwrap(load_tensors(path))
        check_state(path, state)
        state = {name.removeprefix("module."): value for name, value in state.items() if name not in _TABLES}
        layout = Layout.of(state, path)
        if layout.out_channels not in (layout.in_channels, 2 * layout.in_channels):
            raise CheckpointError(
                f"{path}: {layout.in_channels} channels in and {layout.out_channels} out: it must be as many, or twice "
                "as many with a learned variance"
            )
        settings = complete(layout, given, path)
        scale = 1000 / settings["diffusion_steps"]
        scheduler = {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": settings["diffusion_steps"],
            "beta_schedule": SCHEDULES[settings["noise_schedule"]],
            "beta_start": 1e-4 * scale,
            "beta_end": 0.02 * scale,
            "prediction_type": "sample" if settings["predict_xstart"] else "epsilon",
            "variance_type": "fixed_large",
            "clip_sample": True,
        }
        schedule, prediction = read_scheduler(path, scheduler)
        config_of = unet_config(layout, settings)
        converted = convert(state, layout, settings)
        return cls(path, path, config_of, (path,), scheduler, schedule, prediction, settings, converted)

    def state_dict(self) -> State:
        return self.state

    def describe(self) -> dict[str, Any]:
        settings = {key: text_of(value) if isinstance(value, tuple) else value for key, value in self.settings.items()}
        return {**super().describe(), "config": settings}


def _unwrap(content: Any) -> Any:
    """The state dict, taken out of the dictionary in which other training programs save it."""
    if isinstance(content, dict):
        for key in _WRAPPERS:
            if isinstance(content.get(key), dict):
                return content[key]
    return content
