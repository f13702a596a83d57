"""The Triton kernels of `fused_norm`, whose docstring has their formulas. They work on (B, HW, C): channels last."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Any as constexpr

tl: Any = None  # triton.language; the kernels find it and constexpr here, once `kernels` has been called


@functools.cache
def kernels() -> SimpleNamespace:
    import triton
    from triton import language

    globals().update(tl=language, constexpr=language.constexpr)
    # Integers are not specialised, so that one compiled kernel serves a BLOCK at all sizes. C = 8 C8 tells the alignment.
    sizes = ["count", "HW", "C8", "steps", "splits", "each", "stride", "blocks"]
    functions = (_sums, _statistics, _apply, _back_sums, _back_statistics, _back_apply, _add)
    return SimpleNamespace(**{f.__name__[1:]: triton.jit(f, do_not_specialize=sizes) for f in functions})


def _sums(x, out, HW, C8, steps, splits, ROWS: constexpr, BLOCK: constexpr):
    """One program for each (image, split): out (B, splits, 2, C), the sums of x - x[first pixel] and of its square."""
    C = C8 * 8
    program = tl.program_id(0)
    image, split = (program // splits).to(tl.int64), program % splits
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    tile, inside = rows * C + cols, cols < C
    pivot = tl.load(x + image * HW * C + cols, mask=inside, other=0.0).to(tl.float32)
    first = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    second = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for step in range(steps):
        start = (split * steps + step) * ROWS
        mask = (start + rows < HW) & inside
        value = tl.load(x + (image * HW + start) * C + tile, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - pivot, 0.0)
        first += value
        second += value * value
    to = out + program.to(tl.int64) * 2 * C + cols
    tl.store(to, tl.sum(first, 0, keep_dims=True), mask=inside)
    tl.store(to + C, tl.sum(second, 0, keep_dims=True), mask=inside)


def _statistics(
    x, partial, weight, bias, shift, affine, HW, C8, splits, each, stride, eps, ROWS: constexpr, BLOCK: constexpr
):
    """One program for each (image, group): affine (B, 5, C), as `_forward` says. stride < 0: there is no shift."""
    C = C8 * 8
    program, groups = tl.program_id(0), C // each
    image = (program // groups).to(tl.int64)
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    c, inside = (program % groups) * each + cols, cols < each
    first = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    second = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(0, splits, ROWS):
        mask = (start + rows < splits) & inside
        place = partial + (image * splits + start + rows) * 2 * C + c
        first += tl.load(place, mask=mask, other=0.0)
        second += tl.load(place + C, mask=mask, other=0.0)
    mean = tl.sum(first, 0, keep_dims=True) / HW
    spread = tl.maximum(tl.sum(second, 0, keep_dims=True) / HW - mean * mean, 0.0)  # each channel's variance
    mean += tl.load(x + image * HW * C + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(shift + image * stride + c, mask=inside & (stride >= 0), other=0.0).to(tl.float32)
    m = tl.sum(mean + b, 1, keep_dims=True) / each  # zero outside
    offset = tl.where(inside, mean + b - m, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(spread + offset * offset, 1, keep_dims=True) / each + eps)
    a = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32) * r
    mu = m - b
    to = affine + image * 5 * C + c
    tl.store(to, a, mask=inside)
    tl.store(to + C, tl.load(bias + c, mask=inside, other=0.0).to(tl.float32) - a * mu, mask=inside)
    tl.store(to + 2 * C, mu, mask=inside)
    tl.store(to + 3 * C, r + tl.zeros((1, BLOCK), dtype=tl.float32), mask=inside)
    tl.store(to + 4 * C, offset, mask=inside)


def _apply(x, affine, y, HW, C8, blocks, ROWS: constexpr, BLOCK: constexpr):
    C = C8 * 8
    program = tl.program_id(0)
    image, start = (program // blocks).to(tl.int64), (program % blocks) * ROWS
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = cols < C
    mask = (start + rows < HW) & inside
    place = (image * HW + start) * C + (rows * C + cols)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(affine + image * 5 * C + cols, mask=inside, other=0.0)
    d = tl.load(affine + image * 5 * C + C + cols, mask=inside, other=0.0)
    u = value * a + d
    tl.store(y + place, (u / (1.0 + tl.exp(-u))).to(y.dtype.element_ty), mask=mask)


def _back_sums(x, g, affine, out, HW, C8, steps, splits, ROWS: constexpr, BLOCK: constexpr):
    """One program for each (image, split): out (B, splits, 2, C), the sums of g' and of g' (x - mu)."""
    C = C8 * 8
    program = tl.program_id(0)
    image, split = (program // splits).to(tl.int64), program % splits
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    tile, inside = rows * C + cols, cols < C
    a = tl.load(affine + image * 5 * C + cols, mask=inside, other=0.0)
    d = tl.load(affine + image * 5 * C + C + cols, mask=inside, other=0.0)
    mu = tl.load(affine + image * 5 * C + 2 * C + cols, mask=inside, other=0.0)
    first = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    second = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for step in range(steps):
        start = (split * steps + step) * ROWS
        mask = (start + rows < HW) & inside
        place = (image * HW + start) * C + tile
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        slope = tl.load(g + place, mask=mask, other=0.0).to(tl.float32)  # zero outside: so are both terms
        u = value * a + d
        s = 1.0 / (1.0 + tl.exp(-u))
        slope = slope * s * (1.0 + u * (1.0 - s))
        first += slope
        second += slope * (value - mu)
    to = out + program.to(tl.int64) * 2 * C + cols
    tl.store(to, tl.sum(first, 0, keep_dims=True), mask=inside)
    tl.store(to + C, tl.sum(second, 0, keep_dims=True), mask=inside)


def _back_statistics(partial, affine, out, count, HW, C8, splits, each, ROWS: constexpr, BLOCK: constexpr):
    """One program for each (image, group): out (5, B, C), k2, k3, dw, dbeta, db."""
    C = C8 * 8
    program, groups = tl.program_id(0), C // each
    image = (program // groups).to(tl.int64)
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    c, inside = (program % groups) * each + cols, cols < each
    first = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    second = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in range(0, splits, ROWS):
        mask = (start + rows < splits) & inside
        place = partial + (image * splits + start + rows) * 2 * C + c
        first += tl.load(place, mask=mask, other=0.0)
        second += tl.load(place + C, mask=mask, other=0.0)
    S = tl.sum(first, 0, keep_dims=True)
    T = tl.sum(second, 0, keep_dims=True)
    held = affine + image * 5 * C + c
    a = tl.load(held, mask=inside, other=0.0)
    mu = tl.load(held + 2 * C, mask=inside, other=0.0)
    r = tl.load(held + 3 * C, mask=inside, other=0.0)
    offset = tl.load(held + 4 * C, mask=inside, other=0.0)
    numbers = HW.to(tl.float32) * each
    c1 = tl.sum(a * S, 1, keep_dims=True) / numbers
    k2 = -r * r * (tl.sum(a * T, 1, keep_dims=True) / numbers)
    to, plane = out + image * C + c, count.to(tl.int64) * C
    tl.store(to, k2, mask=inside)
    tl.store(to + plane, -c1 - k2 * mu, mask=inside)
    tl.store(to + 2 * plane, r * T, mask=inside)
    tl.store(to + 3 * plane, S, mask=inside)
    tl.store(to + 4 * plane, a * S + HW * (k2 * offset - c1), mask=inside)


def _back_apply(x, g, affine, slopes, dx, count, HW, C8, blocks, ROWS: constexpr, BLOCK: constexpr):
    C = C8 * 8
    program = tl.program_id(0)
    image, start = (program // blocks).to(tl.int64), (program % blocks) * ROWS
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = cols < C
    mask = (start + rows < HW) & inside
    place = (image * HW + start) * C + (rows * C + cols)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    slope = tl.load(g + place, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(affine + image * 5 * C + cols, mask=inside, other=0.0)
    d = tl.load(affine + image * 5 * C + C + cols, mask=inside, other=0.0)
    k2 = tl.load(slopes + image * C + cols, mask=inside, other=0.0)
    k3 = tl.load(slopes + (image + count) * C + cols, mask=inside, other=0.0)
    u = value * a + d
    s = 1.0 / (1.0 + tl.exp(-u))
    slope = slope * s * (1.0 + u * (1.0 - s))
    tl.store(dx + place, (a * slope + k2 * value + k3).to(dx.dtype.element_ty), mask=mask)


def _add(x, h, bias, out, HW, C8, ROWS: constexpr, BLOCK: constexpr):
    C = C8 * 8
    start = tl.program_id(0) * ROWS
    rows, cols = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    mask = (start + rows < HW) & (cols < C)
    place = start.to(tl.int64) * C + (rows * C + cols)
    b = tl.load(bias + cols, mask=cols < C, other=0.0).to(tl.float32)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(h + place, mask=mask, other=0.0).to(tl.float32) + b
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)
