"""SiLU(GroupNorm(x + b)) on a CUDA device by Triton, forward and backward: one pass for the sums, one for the result.

It is for channels-last activations in half precision between the convolutions of a U-Net, for which torch makes three to
five slow passes. b is a shift for each (image, channel): a time embedding, the bias of the
convolution before. Of a group of n numbers, with m and v its mean and variance and r = 1 / sqrt(v + eps),

    u = w (x + b - m) r + beta = a (x - mu) + beta,    a = w r,  mu = m - b,    y = u s,  s = 1 / (1 + exp(-u))

The sums are of x - x[first pixel], channel by channel: a large mean costs no digits. b enters the group's mean and variance
through the means of its channels, never through x. Backward, with g' = g s (1 + u (1 - s)) and sums over an image's pixels,

    S_c = sum g',  T_c = sum g' (x - mu)
    dx  = a g' + k2 x + k3,    k2 = -r^2 (sum of the group's a T) / n,    k3 = -c1 - k2 mu,  c1 = (sum of the group's a S) / n
    dw  = r T,  dbeta = S,  db = sum dx = a S + pixels (k2 (mean x - mu) - c1),  the mean over the channel

No operation is atomic, so equal inputs give equal bits. Nothing waits for the device, so a CUDA graph can record it once a
first call has compiled the kernels.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from invdiff.machine.memory import is_out_of_memory
from invdiff.priors.gpu.fused_kernels import kernels

log: logging.Logger = logging.getLogger(__name__)

MAX_CHANNELS = 1024
HALF = (torch.bfloat16, torch.float16)
SUMMED, MAPPED = 2048, 4096
"""Numbers in a tile of the kernels that sum (two accumulators each), and of those that map; a tile has four warps."""
PROGRAMS = 2048
"""How many programs sum at least, where there is enough work: about sixteen for each multiprocessor of an H100."""


def available(x: Tensor) -> bool:
    """Whether the kernels take x: (B, C, H, W), half precision, channels last, C a multiple of 8 up to 1024, on CUDA."""
    return (
        (_interpreted() or (x.is_cuda and x.dtype in HALF))
        and x.ndim == 4
        and x.shape[1] % 8 == 0
        and x.shape[1] <= MAX_CHANNELS
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and _works(x.device)
    )


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None = None
) -> Tensor:
    """silu(group_norm(x + shift)), in x's dtype, computed in float32. Differentiable in all four tensors.

    x: (B, C, H, W) for which `available` holds. weight, bias: (C,). shift: (B, C), (1, C), (C,) or None; any real dtype.
    """
    if shift is not None and shift.ndim == 2 and shift.shape[0] != x.shape[0]:
        shift = shift.expand(x.shape[0], -1)
    tensors = (x, weight, bias) if shift is None else (x, weight, bias, shift)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        output: Tensor = _NormSilu.apply(x, weight, bias, groups, eps, shift)
        return output
    return _forward(x, weight, bias, groups, eps, shift)[0]


def add_bias(x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
    """x + h + bias in one pass and one rounding. x, h: (B, C, H, W), for which `available` holds. bias: (C,)."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, h, bias)):
        output: Tensor = _AddBias.apply(x, h, bias)
        return output
    return _added(x, h, bias)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None
    ) -> Tensor:
        y, affine = _forward(x, weight, bias, groups, eps, shift)
        ctx.save_for_backward(x, weight, bias, shift, affine)
        ctx.groups, ctx.eps = groups, eps
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, shift, affine = ctx.saved_tensors
        needs = (*ctx.needs_input_grad[:3], ctx.needs_input_grad[5])
        if torch.is_grad_enabled():  # gradients of the gradients are wanted
            answers = _plain_backward(gradients[0], (x, weight, bias, shift), needs, ctx)
        else:
            dx, sums = _backward(gradients[0], x, affine, ctx.groups, needs[0])
            total = sums.sum(1) if x.shape[0] > 1 and any(needs[1:]) else sums[:, 0]
            dshift = None if shift is None else (total if shift.ndim == 1 else sums)[2].to(shift.dtype)
            answers = [dx, total[0].to(weight.dtype), total[1].to(bias.dtype), dshift]
        dx, dweight, dbias, dshift = (a if need else None for a, need in zip(answers, needs, strict=True))
        return dx, dweight, dbias, None, None, dshift


class _AddBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
        ctx.dtypes = x.dtype, h.dtype, bias.dtype
        return _added(x, h, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        g, (of_x, of_h, of_bias) = gradients[0], ctx.dtypes
        total = g.sum((0, 2, 3), dtype=torch.float32).to(of_bias) if ctx.needs_input_grad[2] else None
        return g.to(of_x), g.to(of_h), total


def _plain_backward(
    g: Tensor, tensors: tuple[Tensor | None, ...], needs: tuple[bool, ...], ctx: Any
) -> list[Tensor | None]:
    """The gradients by torch's own operations. Views of the tensors, so that no gradient flows through another of them."""
    x, weight, bias, shift = (None if t is None else t.view_as(t) for t in tensors)
    assert x is not None and weight is not None and bias is not None
    sum_ = x.float() if shift is None else x.float() + shift.float().unsqueeze(-1).unsqueeze(-1)
    y = functional.silu(functional.group_norm(sum_, ctx.groups, weight.float(), bias.float(), ctx.eps)).to(x.dtype)
    asked = [t for t, need in zip((x, weight, bias, shift), needs, strict=True) if need and t is not None]
    found = iter(torch.autograd.grad(y, asked, g, create_graph=True))
    return [next(found) if need else None for need in needs]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """y, and for the backward pass (B, 5, C) in float32: a, beta - a mu, mu, r, mean x_c - mu."""
    run = kernels()
    x = x.contiguous(memory_format=torch.channels_last)
    count, channels, pixels, tile = _sizes(x)
    each, C8 = channels // groups, channels // 8
    rows, steps, splits = _shares(count, pixels, tile["BLOCK"])
    partial = x.new_empty((count, splits, 2, channels), dtype=torch.float32)
    affine = x.new_empty((count, 5, channels), dtype=torch.float32)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    given = (weight.contiguous(), bias.contiguous(), bias if shift is None else shift.contiguous())
    stride = -1 if shift is None else channels * (shift.ndim - 1)
    with torch.cuda.device_of(x):
        run.sums[(count * splits,)](x, partial, pixels, C8, steps, splits, ROWS=rows, **tile)
        run.statistics[(count * groups,)](
            x, partial, *given, affine, pixels, C8, splits, each, stride, float(eps), **_group_tile(each, splits)
        )
        rows, blocks = _tiles(pixels, tile["BLOCK"])
        run.apply[(count * blocks,)](x, affine, y, pixels, C8, blocks, ROWS=rows, **tile)
    return y, affine


def _backward(g: Tensor, x: Tensor, affine: Tensor, groups: int, wants_x: bool) -> tuple[Tensor | None, Tensor]:
    """dx, and (3, B, C) in float32: dw and dbeta of each image, and db."""
    run = kernels()
    x = x.contiguous(memory_format=torch.channels_last)
    g = g.to(x.dtype).contiguous(memory_format=torch.channels_last)
    count, channels, pixels, tile = _sizes(x)
    each, C8 = channels // groups, channels // 8
    rows, steps, splits = _shares(count, pixels, tile["BLOCK"])
    partial = x.new_empty((count, splits, 2, channels), dtype=torch.float32)
    slopes = x.new_empty((5, count, channels), dtype=torch.float32)
    dx = torch.empty_like(x, memory_format=torch.channels_last) if wants_x else None
    with torch.cuda.device_of(x):
        run.back_sums[(count * splits,)](x, g, affine, partial, pixels, C8, steps, splits, ROWS=rows, **tile)
        run.back_statistics[(count * groups,)](
            partial, affine, slopes, count, pixels, C8, splits, each, **_group_tile(each, splits)
        )
        if wants_x:
            rows, blocks = _tiles(pixels, tile["BLOCK"])
            sizes = (count, pixels, C8, blocks)
            run.back_apply[(count * blocks,)](x, g, affine, slopes, dx, *sizes, ROWS=rows, **tile)
    return dx, slopes[2:]


def _added(x: Tensor, h: Tensor, bias: Tensor) -> Tensor:
    x, h = (t.contiguous(memory_format=torch.channels_last) for t in (x, h))
    count, channels, pixels, tile = _sizes(x)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    rows, blocks = _tiles(count * pixels, tile["BLOCK"])
    with torch.cuda.device_of(x):
        kernels().add[(blocks,)](x, h, bias.contiguous(), out, count * pixels, channels // 8, ROWS=rows, **tile)
    return out


def _sizes(x: Tensor) -> tuple[int, int, int, dict[str, Any]]:
    count, channels, height, width = x.shape
    return count, channels, height * width, dict(BLOCK=1 << (channels - 1).bit_length(), num_warps=4)


def _shares(count: int, pixels: int, block: int) -> tuple[int, int, int]:
    """Rows of a tile, tiles that one program sums, and programs for an image."""
    rows = max(1, SUMMED // block)
    tiles = -(-pixels // rows)
    steps = -(-tiles // min(tiles, -(-PROGRAMS // count)))
    return rows, steps, -(-tiles // steps)


def _tiles(pixels: int, block: int) -> tuple[int, int]:
    rows = max(1, MAPPED // block)
    return rows, -(-pixels // rows)


def _group_tile(each: int, splits: int) -> dict[str, Any]:
    """The tile of the kernels of a group: its channels, rounded up to a power of two, and the splits added at a time."""
    block = 1 << (each - 1).bit_length()
    few = 8 if splits <= 8 else 128  # two shapes only, because each one is compiled
    return dict(BLOCK=block, ROWS=max(1, min(few, SUMMED // block)), num_warps=4)


def _interpreted() -> bool:
    """Whether CPU tensors of any dtype are taken. Tests in Triton's interpreter replace this function."""
    return False


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether Triton is installed, can compile (which takes a C compiler) and runs on the device."""
    x = torch.zeros((1, 8, 1, 1), dtype=torch.bfloat16, device=device)
    try:
        _added(x, x, x[0, :, 0, 0])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # After any other error torch's own operations are used.
        log.info("no fused kernels on %s (%s: %s)", device, type(error).__name__, error)
        return False
    return True
