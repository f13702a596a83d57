"""Tables computed once in float64 and cast once to each dtype and device that asks for them."""

from __future__ import annotations

import torch


def working(x: torch.Tensor) -> torch.Tensor:
    """x in a dtype that has an FFT: float16 and bfloat16 become float32, float32 and float64 stay."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class Constant:
    """A float64 or complex128 table; `like(x)` is the same table in x's precision on x's device.

    Only the latest cast is kept: a session computes in one precision on one device.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table
        self._cast: tuple[tuple[torch.dtype, torch.device], torch.Tensor] | None = None

    def like(self, x: torch.Tensor) -> torch.Tensor:
        key, latest = (x.dtype, x.device), self._cast  # read once: another thread may write to it meanwhile
        if latest is None or latest[0] != key:
            dtype = x.dtype
            if self.table.is_complex():
                dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
            # A table first cast in inference mode could not take part in autograd later.
            with torch.inference_mode(False):
                self._cast = latest = key, self.table.to(dtype).to(x.device)
        return latest[1]


def decomposed(matrix: torch.Tensor) -> tuple[torch.Tensor, Constant, Constant]:
    """(s, U, V) of a float64 matrix (m, n) = U diag(s) V^T, min(m, n) of each; singular values that are zero to rounding are
    exactly 0."""
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    rounding = max(matrix.shape) * torch.finfo(torch.float64).eps * s.max()
    return torch.where(s > rounding, s, torch.zeros_like(s)), Constant(U), Constant(Vh.T.contiguous())
