"""Conjugate gradients on batches: each sample stops on its own, so no result depends on its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import torch

Map = Callable[[torch.Tensor], torch.Tensor]


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of each sample: (B, ...) x (B, ...) -> (B, 1, .., 1)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *([1] * (a.ndim - 1)))


def conjugate_gradients(
    apply: Map,
    b: torch.Tensor,
    *,
    start: torch.Tensor | None = None,
    precondition: Map | None = None,
    tolerance: float | None = None,
    iterations: int = 200,
) -> torch.Tensor:
    """Solve M x = b for a symmetric positive semi-definite M (Hestenes & Stiefel 1952; preconditioned form).

    apply: x -> M x, acting on each sample (B, ...) alone; precondition: r -> P r, symmetric positive definite.
    tolerance: relative residual ||b - M x|| / ||b|| at which a sample stops; default 1e-6 (float32), 1e-12 (float64).
    A finished sample keeps its value while others go on.
    """
    if tolerance is None:
        tolerance = 1e-12 if b.dtype == torch.float64 else 1e-6
    x = torch.zeros_like(b) if start is None else start.clone()
    residual = b - apply(x) if start is not None else b.clone()
    limit = dot(b, b) * tolerance**2
    z = precondition(residual) if precondition else residual
    direction = z
    rho = dot(residual, z)
    for _ in range(iterations):
        active = dot(residual, residual) > limit
        if not active.any():
            break
        image = apply(direction)
        curvature = dot(direction, image)
        # A direction of zero curvature lies in the null space of M: that sample is done.
        active &= curvature > 0
        step = torch.where(active, rho / torch.where(active, curvature, torch.ones_like(curvature)), 0.0)
        x = x + step * direction
        residual = residual - step * image
        z = precondition(residual) if precondition else residual
        fresh = dot(residual, z)
        direction = torch.where(
            active, z + fresh / torch.where(active, rho, torch.ones_like(rho)) * direction, direction
        )
        rho = fresh
    return x
