"""The residual blocks of a diffusers U-Net with the kernels of `fused_norm`, on a CUDA device in half precision.

A block is x -> skip(x) + conv2(f2(conv1(f1(x)) + temb)), f = SiLU(GroupNorm(.)). Its convolutions run without their biases:
conv1's is added to the embedding, a shift for each channel that the second norm applies; conv2's and the skip's are added
together with the two branches. So only norms, convolutions and one final sum read the activations. The answer is rounded
less often, so it differs from diffusers' in its last digits. Where the kernels cannot be used (another device, float32, a
compiled network) the block runs diffusers' own code.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from invdiff.priors.gpu import fused_norm
from invdiff.priors.gpu.fused_norm import HALF, MAX_CHANNELS, add_bias, available, group_norm_silu
from invdiff.priors.gpu.group_norm import GroupNorm

MOST = 2**31
"""The number of values from which torch's channels-last kernels overflow their index."""


def fuse(network: torch.nn.Module) -> int:
    """Give every suitable block of a network the fused forward pass; returns how many. Weights and names stay."""
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    suitable = [module for module in network.modules() if type(module) is ResnetBlock2D and _suits(module)]
    for module in suitable:
        module.__class__ = _block_class()
    for module in network.modules():
        if type(module) is Upsample2D and module.norm is None and module.interpolate and not module.use_conv_transpose:
            module.__class__ = _upsample_class()
    norm, act = (getattr(network, name, None) for name in ("conv_norm_out", "conv_act"))  # of diffusers' U-Nets
    if isinstance(norm, torch.nn.GroupNorm) and norm.affine and type(act) is torch.nn.SiLU:
        norm.__class__, act.__class__ = NormSilu, Passed
    return len(suitable)


class NormSilu(GroupNorm):
    """A GroupNorm with the SiLU that follows it."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and available(input):
            return group_norm_silu(input, self.weight, self.bias, self.num_groups, self.eps)
        return functional.silu(super().forward(input))


class Passed(torch.nn.SiLU):
    """Takes the place of a SiLU that the `NormSilu` before it has applied."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def __getattr__(name: str) -> Any:  # made when first used; a pickled block finds its class here too
    if name in (makers := {"FusedResnetBlock": _block_class, "ChannelsLastUpsample": _upsample_class}):
        return makers[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _block_class() -> type[torch.nn.Module]:
    from diffusers.models.resnet import ResnetBlock2D

    class FusedResnetBlock(ResnetBlock2D):
        def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
            x = _ready(self, input_tensor, temb)
            if x is None:
                return super().forward(input_tensor, temb, *args, **kwargs)
            return _forward(self, x, temb)

    FusedResnetBlock.__qualname__ = "FusedResnetBlock"
    return FusedResnetBlock


@functools.cache
def _upsample_class() -> type[torch.nn.Module]:
    from diffusers.models.upsampling import Upsample2D

    class ChannelsLastUpsample(Upsample2D):
        """Doubles the sides and convolves, and stays channels last where diffusers changes the layout of large batches."""

        def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
            x = hidden_states
            last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
            if output_size is not None or not last or 4 * x.numel() >= MOST or torch.compiler.is_compiling():
                return super().forward(hidden_states, output_size, *args, **kwargs)
            # Autocast would do it in single precision, but copying values needs none.
            with torch.autocast(x.device.type, enabled=False):
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            if not self.use_conv:
                return x
            return self.conv(x) if self.name == "conv" else self.Conv2d_0(x)

    ChannelsLastUpsample.__qualname__ = "ChannelsLastUpsample"
    return ChannelsLastUpsample


def _suits(block: Any) -> bool:
    convolutions = [block.conv1, block.conv2] + ([] if block.conv_shortcut is None else [block.conv_shortcut])
    return (
        block.time_embedding_norm == "default"
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, torch.nn.SiLU)
        and all(isinstance(norm, torch.nn.GroupNorm) and norm.affine for norm in (block.norm1, block.norm2))
        and all(type(conv) is torch.nn.Conv2d and conv.padding_mode == "zeros" for conv in convolutions)
        and block.conv1.bias is not None
        and block.conv2.bias is not None
        and (block.time_emb_proj is None or type(block.time_emb_proj) is torch.nn.Linear)
        and all(
            n % 8 == 0 and n <= MAX_CHANNELS for conv in convolutions for n in (conv.in_channels, conv.out_channels)
        )
    )


def _ready(block: Any, x: Tensor, temb: Tensor | None) -> Tensor | None:
    """x in the layout and dtype of the kernels, or None where they cannot be used."""
    if torch.compiler.is_compiling() or (block.training and block.dropout.p > 0):
        return None
    if (temb is None) != (block.time_emb_proj is None) or (temb is not None and temb.ndim != 2):
        return None
    anywhere = fused_norm._interpreted()
    if not (x.is_cuda or anywhere):
        return None
    kind = x.device.type
    mixed = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else x.dtype
    if not (dtype in HALF or anywhere) or not (mixed or block.conv1.weight.dtype == dtype):
        return None
    if not fused_norm._works(x.device):
        return None
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return x if available(x) else None


def _forward(block: Any, x: Tensor, temb: Tensor | None) -> Tensor:
    norm1, norm2, conv1, conv2, shortcut = block.norm1, block.norm2, block.conv1, block.conv2, block.conv_shortcut
    h = group_norm_silu(x, norm1.weight, norm1.bias, norm1.num_groups, norm1.eps)
    h = _without_bias(conv1, h)
    h = group_norm_silu(h, norm2.weight, norm2.bias, norm2.num_groups, norm2.eps, _shift(block, temb, x.device.type))
    h = _without_bias(conv2, h)
    if shortcut is None:
        return add_bias(x, h, conv2.bias)
    bias = conv2.bias if shortcut.bias is None else conv2.bias + shortcut.bias
    return add_bias(_without_bias(shortcut, x), h, bias)


def _shift(block: Any, temb: Tensor | None, kind: str) -> Tensor:
    """The shift of the second norm: (B, C), or (C,) without an embedding. It is computed in the weights' dtype (float32 under
    autocast), since it is small."""
    if temb is None:
        return block.conv1.bias
    linear = block.time_emb_proj
    with torch.autocast(kind, enabled=False):
        temb = temb.to(linear.weight.dtype)
        temb = temb if block.skip_time_act else functional.silu(temb)
        bias = block.conv1.bias if linear.bias is None else linear.bias + block.conv1.bias
        return functional.linear(temb, linear.weight, bias)


def _without_bias(conv: torch.nn.Conv2d, x: Tensor) -> Tensor:
    return functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
