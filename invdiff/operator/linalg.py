"""Conjugate gradients on batches: each sample stops on its own, so no result depends on its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch

Map = Callable[[torch.Tensor], torch.Tensor]
Enough = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Iterations between two looks at the true residual, which rounding parts from the updated one: 2 % more work.
CHECK_EVERY = 50
# A relative residual of conjugate gradients above this is told. Measured on motion blur at sigma_y = 0.3/255, the image
# is then off by 3.5 times as much (rms): one step of 8 bits. Rounding to float32 alone leaves 2e-4 there.
TOLD_ABOVE = 1e-3
# The data step in single precision is right to this, root mean square, in [0, 1] units: an eightieth of a step of 8 bits,
# which a network of half precision does not see. Least: what rounding lets the iterations reach.
ACCURACY = 5e-5
LEAST_TOLERANCE = 1e-6
# Iterations between two looks at whether all is done, on a device that would have to be waited for.
LOOK_EVERY = 4
# Share of a posterior's deviation by which a data step may miss its mean where the network is in half precision.
SHARE = 0.01
_share: ContextVar[float] = ContextVar("share", default=0.0)


@dataclass(frozen=True, eq=False)
class Solved:
    """x with M x = b; residual: ||b - M x|| / ||b|| of each sample, (B,), measured where there were iterations enough for
    rounding to part it from the recursion's own."""

    x: torch.Tensor
    residual: torch.Tensor
    iterations: int


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of each sample: (B, ...) x (B, ...) -> (B, 1, .., 1)."""
    return over((a * b).flatten(1).sum(1), a)


def over(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One value for each sample, in any shape of B numbers, as (B, 1, .., 1): broadcasts over x (B, ...)."""
    return values.reshape(-1, *([1] * (x.ndim - 1)))


def solve(
    apply: Map,
    b: torch.Tensor,
    *,
    precondition: Map | None = None,
    tolerance: float | torch.Tensor | None = None,
    iterations: int = 1000,
    energy: torch.Tensor | None = None,
    enough: Enough | None = None,
) -> Solved:
    """Solve M x = b for a symmetric positive semi-definite M (Hestenes & Stiefel 1952; preconditioned form).

    apply: x -> M x, acting on each sample (B, ...) alone; precondition: r -> P r, symmetric positive definite.
    tolerance: relative residual ||b - M x|| / ||b|| at which a sample stops, one for all or (B, 1, .., 1); default 1e-6
    (float32), 1e-12 (float64).
    A sample also stops where rounding keeps it from getting better, and at the latest after `iterations`. A finished
    sample keeps its value while others go on. float16 and bfloat16 are solved in float32.
    energy: (B, 1, .., 1), with a precondition: a sample stops when sqrt(<r, P r> / energy) reaches the tolerance, and that is
    the residual told. With P nearly M^-1, <r, P r> is nearly <e, M e> of the error e, whatever the condition of M.
    enough: from x and <x, M x>, (B, 1, .., 1), what <r, r>, or <r, P r>, may be as well: a second end beside the first.
    """
    dtype = b.dtype
    if dtype not in (torch.float32, torch.float64):
        b = b.float()
    if tolerance is None:
        tolerance = 1e-12 if b.dtype == torch.float64 else 1e-6
    x, residual = torch.zeros_like(b), b.clone()
    size = dot(b, b) if energy is None else energy.to(b)
    limit = size * tolerance**2
    z = precondition(residual) if precondition else residual
    direction = z
    rho = dot(residual, z)
    done = torch.zeros_like(rho, dtype=torch.bool)
    gained = torch.zeros_like(rho)
    look = LOOK_EVERY if b.is_cuda else 1
    count = 0
    while count < iterations:
        if count % CHECK_EVERY == 0 and count > 0:
            # At rounding the updated residual goes on shrinking alone: what it says is then mostly error.
            drift = b - apply(x) - residual
            done = done | (dot(drift, drift) > dot(residual, residual))
        left = dot(residual, residual) if energy is None else rho
        done = done | (left <= (limit if enough is None else torch.maximum(limit, enough(x, gained))))
        if count % look == 0 and done.all():
            break
        image = apply(direction)
        curvature = dot(direction, image)
        # A direction of zero curvature lies in the null space of M: that sample is done. So is one that became NaN.
        done = done | ~(curvature > 0)
        active = ~done
        step = torch.where(active, rho / torch.where(active, curvature, torch.ones_like(curvature)), 0.0)
        x, gained = x + step * direction, gained + step * rho
        residual = residual - step * image
        z = precondition(residual) if precondition else residual
        fresh = dot(residual, z)
        direction = torch.where(
            active, z + fresh / torch.where(active, rho, torch.ones_like(rho)) * direction, direction
        )
        rho = fresh
        count += 1
    with torch.no_grad():
        if count >= CHECK_EVERY:
            error = b - apply(x)
            left = dot(error, precondition(error) if precondition and energy is not None else error)
        else:
            left = dot(residual, residual) if energy is None else rho
        relative = (left / torch.where(size > 0, size, torch.ones_like(size))).sqrt().flatten()
    return Solved(x.to(dtype), relative, count)


def data_step_tolerance(misfit: torch.Tensor, gamma: float, z: torch.Tensor) -> torch.Tensor | None:
    """The relative residual at which z + gamma A^T q is right to ACCURACY, (B, 1, .., 1), where (gamma A A^T + 1) q = misfit,
    y - A z; None in float64, where one goes on to rounding.

    With r what q leaves of the misfit, the error e = gamma A^T (gamma A A^T + 1)^-1 r has ||e||^2 <= gamma ||r||^2."""
    if z.dtype == torch.float64:
        return None
    aim = ACCURACY * z[0].numel() ** 0.5 / (gamma * dot(misfit, misfit)).sqrt().clamp(min=1e-30)
    return aim.clamp(LEAST_TOLERANCE, TOLD_ABOVE / 2)


@contextmanager
def stopping_early(share: float) -> Iterator[None]:
    """Inside this context data steps in single precision may stop where a further iteration would move them by no more than
    `share` of the posterior's own spread; 0: they go on until they are right to ACCURACY.

    x = argmin gamma ||A x - y||^2 + ||x - z||^2 is the mean of a Gaussian posterior with covariance t^2 M^-1, where gamma =
    t^2 / sigma_y^2 and M = gamma A^T A + I. An error e of x is sqrt(<e, M e>) / t of its deviations long. What is left of
    the data there, q = y - A x, has sigma_y or less in each of its numbers: while <e, M e> <= share^2 gamma ||q||^2, e is
    within `share` deviations for each."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def share_of(like: torch.Tensor) -> float:
    """The share that may be missed now, in the dtype of this tensor."""
    return 0.0 if like.dtype == torch.float64 else _share.get()


def largest_eigenvalue(apply: Map, start: torch.Tensor, iterations: int = 50) -> float:
    """The largest eigenvalue of a symmetric positive semi-definite M, from below, by Lanczos' method (1950).

    apply: x -> M x for one sample (1, ...); start: where from, (1, ...), with a share in the eigenvector. On the Krylov space
    of M and start, M is a tridiagonal matrix T; its largest eigenvalue converges much faster than a power iteration.
    """
    diagonal: list[float] = []
    beside: list[float] = []
    previous, v, beta = torch.zeros_like(start), start / start.norm(), 0.0
    for _ in range(iterations):
        w = apply(v) - beta * previous
        diagonal.append(float(dot(w, v)))
        w = w - diagonal[-1] * v
        beta = float(w.norm())
        if beta <= 1e-12 * max(diagonal):  # the space is complete
            break
        beside.append(beta)
        previous, v = v, w / beta
    inner = beside[: len(diagonal) - 1]
    T = np.diag(diagonal) + np.diag(inner, 1) + np.diag(inner, -1)
    return max(0.0, float(np.linalg.eigvalsh(T)[-1]))
