"""Covariances as eigenvalues and an optional basis, so that every formula holds for scalar, diagonal and dense ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from invdiff.errors import UsageError

_SYMMETRY = 1e-8  # largest |C - C^T| relative to the largest entry that passes for rounding
_NEGATIVE = 1e-10  # most negative eigenvalue, relative to the largest, that passes for rounding and becomes zero


def finite_tensor(name: str, value: Any, dtype: torch.dtype) -> torch.Tensor:
    """value as a real, finite CPU tensor of this dtype; UsageError naming the argument otherwise."""
    try:
        # By way of numpy, because torch would round Python's numbers to float32.
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} must be a tensor, an array or a number, got {type(value).__name__}") from error
    if tensor.is_complex():
        raise UsageError(f"{name} must be real, got {tensor.dtype}; stack real and imaginary parts")
    tensor = tensor.detach().to("cpu", dtype)
    if not torch.isfinite(tensor).all():
        raise UsageError(f"{name} holds NaN or infinity")
    return tensor


@dataclass(frozen=True)
class Spectrum:
    """C_k = Q_k diag(L_k) Q_k^T for k = 1 .. K.

    values: L, (K or 1, n or 1), zero or more; basis: Q, (K or 1, n, n) orthogonal, or None for the identity.
    A leading 1 is shared by all K; a trailing 1 is a multiple of the identity.
    """

    values: torch.Tensor
    basis: torch.Tensor | None = None

    @classmethod
    def of(cls, covariances: Any, count: int, size: int, dtype: torch.dtype, name: str = "covariances") -> Spectrum:
        """The spectrum of a user's covariances: of shape (), (n,) or (n, n) for one shared by all components; (K,), (K, n) or
        (K, n, n) for one each. A leading 1 also means shared.

        Raises UsageError for other shapes, asymmetric matrices and negative variances or eigenvalues.
        """
        tensor = finite_tensor(name, covariances, dtype)
        kind = _kind(tuple(tensor.shape), count, size, name)
        if kind == "dense":
            return cls._dense(tensor.reshape(-1, size, size), name)
        if (tensor < 0).any():
            raise UsageError(f"{name} holds a negative variance ({float(tensor.min()):.6g})")
        if kind == "diagonal":
            return cls(tensor.reshape(-1, size))
        return cls(tensor.reshape(-1, 1))

    @classmethod
    def _dense(cls, matrices: torch.Tensor, name: str) -> Spectrum:
        scale = matrices.abs().amax((1, 2))
        asymmetry = (matrices - matrices.mT).abs().amax((1, 2))
        for k, (error, size) in enumerate(zip(asymmetry.tolist(), scale.tolist(), strict=True)):
            if error > _SYMMETRY * size:
                raise UsageError(
                    f"{name}: matrix {k} is not symmetric (C and C^T differ by {error:.3g}); pass (C + C.mT) / 2"
                )
        values, basis = torch.linalg.eigh((matrices + matrices.mT) / 2)
        for k, (low, high) in enumerate(zip(values[:, 0].tolist(), values[:, -1].tolist(), strict=True)):
            if low < 0 and -low > _NEGATIVE * abs(high):
                raise UsageError(f"{name}: matrix {k} has a negative eigenvalue ({low:.6g}), so it is no covariance")
        return cls(values.clamp(min=0), basis)

    @property
    def is_scalar(self) -> bool:
        """True if every C_k is a multiple of the identity."""
        return self.basis is None and self.values.shape[1] == 1

    def to(self, device: torch.device) -> Spectrum:
        return Spectrum(self.values.to(device), None if self.basis is None else self.basis.to(device))

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """Q_k^T x for x (B, n): (B, K or 1, n)."""
        if self.basis is None:
            return x[:, None]
        return torch.einsum("bi,kij->bkj", x, self.basis)

    def unrotate_sum(self, z: torch.Tensor) -> torch.Tensor:
        """sum_k Q_k z_k for z (B, K, n): (B, n)."""
        if self.basis is None:
            return z.sum(1)
        if len(self.basis) == 1:
            return z.sum(1) @ self.basis[0].mT
        return torch.einsum("bkj,kij->bi", z, self.basis)

    def unrotate(self, z: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Q_k z for z (B, n) and k = which (B,): (B, n)."""
        if self.basis is None:
            return z
        if len(self.basis) == 1:
            return z @ self.basis[0].mT
        result = torch.empty_like(z)
        for k in which.unique().tolist():
            result[which == k] = z[which == k] @ self.basis[k].mT
        return result

    def matrix(self, k: int, size: int, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Q_k diag(L_k) Q_k^T as (n, n); with weights (n,) in place of L_k where given."""
        values = self.values[min(k, len(self.values) - 1)].expand(size) if weights is None else weights
        if self.basis is None:
            return torch.diag(values)
        basis = self.basis[min(k, len(self.basis) - 1)]
        return (basis * values) @ basis.mT


def _kind(shape: tuple[int, ...], count: int, size: int, name: str) -> str:
    """Which of the accepted shapes this is: "scalar", "diagonal" or "dense"; UsageError if none, or if two."""
    leading = {1, count}
    kinds = set()
    if (
        not shape
        or (len(shape) == 1 and shape[0] in leading)
        or (len(shape) == 2 and shape[0] in leading and shape[1] == 1)
    ):
        kinds.add("scalar")
    if shape == (size,) or (len(shape) == 2 and shape[0] in leading and shape[1] == size):
        kinds.add("diagonal")
    if shape == (size, size) or (len(shape) == 3 and shape[0] in leading and shape[1:] == (size, size)):
        kinds.add("dense")
    if not kinds:
        accepted = f"(), ({size},) or ({size}, {size})"
        if count > 1:
            accepted += f" shared by all; ({count},), ({count}, {size}) or ({count}, {size}, {size}) for one each"
        raise UsageError(f"{name} has shape {shape}; for images of {size} numbers it must be {accepted}")
    if size > 1 and len(kinds) > 1:
        raise UsageError(
            f"{name} of shape {shape} is ambiguous, because there are as many components as dimensions ({count}): "
            f"write variances as ({count}, 1), a shared diagonal as (1, {size}), diagonals as matrices "
            f"({count}, {size}, {size}) and a shared matrix as (1, {size}, {size})"
        )
    return "scalar" if size == 1 else kinds.pop()
