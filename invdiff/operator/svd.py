"""A singular value decomposition as functions: what an operator with closed-form inverses offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SVD:
    """A = U diag(s) V^T for images of one shape, as functions on coordinates (B, *r).

    singular_values: float64, broadcastable to the coordinates, s >= 0 (zeros allowed: unmeasured directions).
    V, V_adjoint: coordinates <-> images, V^T V = I. U, U_adjoint: coordinates <-> measurements; U^T U = I where s > 0.
    The columns of V with s > 0 span the row space of A; they need not span all images.
    All maps are real and linear, so white noise stays white: V_adjoint(n) ~ N(0, I) for n ~ N(0, I).
    """

    singular_values: torch.Tensor
    U: Callable[[torch.Tensor], torch.Tensor]
    U_adjoint: Callable[[torch.Tensor], torch.Tensor]
    V: Callable[[torch.Tensor], torch.Tensor]
    V_adjoint: Callable[[torch.Tensor], torch.Tensor]

    @property
    def inverse_singular_values(self) -> torch.Tensor:
        """1 / s, and 0 where s is zero to rounding (s <= 1e-6 of the largest)."""
        s = self.singular_values
        kept = s > 1e-6 * s.max()
        return torch.where(kept, 1 / torch.where(kept, s, torch.ones_like(s)), torch.zeros_like(s))
