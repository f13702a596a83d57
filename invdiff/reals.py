"""deepinv's measurements as one tensor of reals: complex values in pairs, several tensors in a row."""

from __future__ import annotations

from typing import Any

import torch


def to_reals(y: Any) -> torch.Tensor:
    """Complex (B, C, ...) as (B, 2C, ...), [re_0, im_0, re_1, im_1, ...]; several tensors flattened. Norms are kept."""
    if isinstance(y, torch.Tensor):
        return torch.stack([y.real, y.imag], 2).flatten(1, 2) if y.is_complex() else y
    return torch.cat([to_reals(part).flatten(1) for part in y], 1)


def from_reals(values: torch.Tensor, like: Any) -> Any:
    """The y with `to_reals(y) == values`. like: any measurement of that kind, such as A(0) for a batch of one."""
    if isinstance(like, torch.Tensor):
        pairs = values.unflatten(1, (-1, 2)) if like.is_complex() else None
        return values if pairs is None else torch.complex(pairs[:, :, 0], pairs[:, :, 1])
    shapes = [to_reals(part).shape[1:] for part in like]
    pieces = values.split([shape.numel() for shape in shapes], 1)
    parts = [from_reals(p.reshape(-1, *s), part) for p, s, part in zip(pieces, shapes, like, strict=True)]
    return type(like)(parts)
