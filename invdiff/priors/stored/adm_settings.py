"""The configuration of a guided-diffusion network: what the shapes of its weights tell, and the settings that they do not.

A setting has the name of guided-diffusion's flag (`scripts/image_sample.py --num_head_channels 64 ...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError, UsageError, unknown
from invdiff.specs.parameters import truth

State = dict[str, torch.Tensor]
Config = str | Iterable[str] | Mapping[str, Any] | None

# Published configurations: configs/model_config.yaml and configs/imagenet_model_config.yaml of DPS
# (https://github.com/DPS2022/diffusion-posterior-sampling), and guided-diffusion's README for the second.
_COMMON = {"image_size": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "num_head_channels": 64, "learn_sigma": True}
_COMMON |= {"use_scale_shift_norm": True, "resblock_updown": True, "noise_schedule": "linear", "diffusion_steps": 1000}
KNOWN: dict[str, dict[str, Any]] = {
    "ffhq_10m": {**_COMMON, "num_channels": 128, "num_res_blocks": 1, "attention_resolutions": (16,)},
    "imagenet256": {**_COMMON, "num_channels": 256, "num_res_blocks": 2, "attention_resolutions": (32, 16, 8)},
}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


# The flags that define a network, with their parsers. Those that the weights tell too are compared with them.
SETTINGS: dict[str, Any] = {
    "image_size": int, "num_channels": int, "num_res_blocks": int, "channel_mult": _numbers,
    "attention_resolutions": lambda text: tuple(sorted(_numbers(text), reverse=True)),
    "num_heads": int, "num_head_channels": int, "use_new_attention_order": truth, "use_scale_shift_norm": truth,
    "resblock_updown": truth, "learn_sigma": truth, "predict_xstart": truth,
    "noise_schedule": str, "diffusion_steps": int,
}  # fmt: skip
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def read_settings(config: Config) -> dict[str, Any]:
    """Settings from a name of KNOWN, from "key=value", from several of these, or from a mapping.

    Raises UsageError for anything else, with what exists.
    """
    if config is None:
        return {}
    settings: dict[str, Any] = {}
    if isinstance(config, Mapping):
        config = [f"{key}={text_of(value)}" for key, value in config.items()]
    for item in [config] if isinstance(config, str) else config:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            if key not in KNOWN:
                raise unknown("guided-diffusion configuration", key, KNOWN, "Or give key=value.")
            settings |= KNOWN[key]
            continue
        if key not in SETTINGS:
            raise unknown("guided-diffusion setting", key, SETTINGS)
        try:
            settings[key] = SETTINGS[key](text)
        except ValueError as error:
            raise UsageError(f"{key}={text}: not a value that {key} can have") from error
        if isinstance(settings[key], int) and not isinstance(settings[key], bool) and settings[key] < 1:
            raise UsageError(f"{key}={text}: it must be 1 or more; leave it out if it is not set")
    if settings.get("noise_schedule", "linear") not in SCHEDULES:
        raise unknown("noise_schedule", settings["noise_schedule"], SCHEDULES)
    return settings


@dataclass(frozen=True)
class Layout:
    """What the names and shapes of a state dict tell: the width C_l and attention of each level, and the kinds of blocks."""

    in_channels: int
    out_channels: int
    num_channels: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    num_res_blocks: int
    time_width: int
    use_scale_shift_norm: bool
    resblock_updown: bool

    @classmethod
    def of(cls, state: State, path: Path) -> Layout:
        """Read the layout. Raises CheckpointError for other networks, and for those that no UNet2DModel can hold."""
        if "label_emb.weight" in state:
            classes = len(state["label_emb.weight"])
            raise CheckpointError(
                f"{path}: conditioned on one of {classes} classes, and a prior has no class to give; "
                "use an unconditional checkpoint of the same data"
            )

        def shape(name: str, dimensions: int) -> tuple[int, ...]:
            if name not in state:
                raise CheckpointError(f"{path}: no U-Net of guided-diffusion (it has no {name})")
            if state[name].ndim != dimensions:
                raise CheckpointError(f"{path}: no U-Net for images ({name} has {state[name].ndim} dimensions)")
            return tuple(state[name].shape)

        time_width, num_channels = shape("time_embed.0.weight", 2)
        first, in_channels = shape("input_blocks.0.0.weight", 4)[:2]
        out_channels = shape("out.2.weight", 4)[0]
        shape("middle_block.1.qkv.weight", 3)
        entering, blocks = (
            {int(found[1]) for name in state if (found := re.match(rf"{group}\.(\d+)\.", name))}
            for group in ("input_blocks", "output_blocks")
        )
        count = len(blocks)
        # On the way up, the last block of each level but the final one also doubles the image.
        ups = [n for n in range(count) if any(f"output_blocks.{n}.{part}" in state for part in _UP_MARKS)]
        per_level = ups[0] + 1 if ups else count
        regular = entering == blocks == set(range(count)) and ups == list(range(per_level - 1, count - 1, per_level))
        if not (count and regular and count % per_level == 0):
            raise CheckpointError(
                f"{path}: the levels of this network cannot be told apart; networks that resize images without "
                "weights (conv_resample=False) are not supported"
            )
        starts = range(1, 1 + count, per_level)
        widths = tuple(shape(f"input_blocks.{n}.0.out_layers.3.weight", 4)[0] for n in starts)
        if first != num_channels:
            raise CheckpointError(
                f"{path}: its first level has {first} channels and its time embedding {num_channels}; "
                "a UNet2DModel has one number for both"
            )
        return cls(
            in_channels,
            out_channels,
            num_channels,
            widths,
            tuple(f"input_blocks.{n}.1.qkv.weight" in state for n in starts),
            per_level - 1,
            time_width,
            shape("input_blocks.1.0.emb_layers.1.weight", 2)[0] == 2 * widths[0],
            f"input_blocks.{per_level}.0.op.weight" not in state,
        )

    def settings(self, image_size: int) -> dict[str, Any]:
        """The flags of guided-diffusion with this layout; attention_resolutions are sides in pixels for this image_size."""
        return {
            "num_channels": self.num_channels,
            "num_res_blocks": self.num_res_blocks,
            "channel_mult": tuple(width / self.num_channels for width in self.widths),
            "attention_resolutions": tuple(image_size >> level for level, on in enumerate(self.attention) if on),
            "use_scale_shift_norm": self.use_scale_shift_norm,
            "resblock_updown": self.resblock_updown,
            "learn_sigma": self.out_channels == 2 * self.in_channels,
        }

    @property
    def usual_size(self) -> int:
        """The side of the training images, if the lowest level has 8 x 8 pixels as in guided-diffusion's networks."""
        return 8 << (len(self.widths) - 1)


_UP_MARKS = ("1.in_layers.2.weight", "2.in_layers.2.weight", "1.conv.weight", "2.conv.weight")


def complete(layout: Layout, given: dict[str, Any], path: Path) -> dict[str, Any]:
    """All settings: those that the weights tell, the given ones, and those of a KNOWN network with the same shapes.

    Raises CheckpointError where a given one contradicts the weights, or where the width of the attention heads is
    neither given nor known.
    """
    size = given.get("image_size", layout.usual_size)
    told = layout.settings(size)
    for key, value in given.items():
        if key in told and told[key] != value:
            raise CheckpointError(f"{path}: its weights say {key}={text_of(told[key])}, not {text_of(value)}")
    like = next((known for known in KNOWN.values() if all(known[key] == told[key] for key in told)), {})
    defaults = {"image_size": size, "noise_schedule": "linear", "diffusion_steps": 1000}
    defaults |= {"use_new_attention_order": False, "predict_xstart": False}
    settings = {**defaults, **like, **given, **told}
    if "num_head_channels" not in settings:
        settings["num_head_channels"] = _head_width(layout, settings.get("num_heads"), path)
    settings.pop("num_heads", None)
    return settings


def _head_width(layout: Layout, heads: int | None, path: Path) -> int | None:
    """The channels of an attention head where every layer has `heads` of them; None for one head of any width."""
    if heads is None:
        raise CheckpointError(
            f"{path}: the weights do not say how many channels an attention head has; add "
            "--config num_head_channels=64 (what guided-diffusion's published networks have) or --config num_heads=N: "
            f"invdiff prior import {path} -o DIR --config num_head_channels=64"
        )
    if heads == 1:
        return None
    attended = {width for width, on in zip(layout.widths, layout.attention, strict=True) if on} | {layout.widths[-1]}
    if len(attended) > 1 or layout.widths[-1] % heads:
        raise CheckpointError(
            f"{path}: num_heads={heads} in layers of {', '.join(map(str, sorted(attended)))} channels; "
            "a UNet2DModel has heads of one width, so it cannot hold this network"
        )
    return layout.widths[-1] // heads


def text_of(value: Any) -> str:
    """A setting as text, such as 1,2,4."""
    parts = value if isinstance(value, list | tuple) else (value,)
    return ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
