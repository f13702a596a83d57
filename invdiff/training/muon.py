"""Muon's step with all matrices at once, for a GPU.

torch's takes one matrix after the other, some thirty small kernels each: for a network of sixty matrices these two thousand
launches take as long as the network itself. Here matrices are laid into a few batches, the smaller ones padded with zeros,
which changes nothing: the rows and columns of zeros stay zero in each of the iterations, and the norm is the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch

Packs = dict[tuple[int, ...], torch.Tensor]


class BatchedStep:
    """The step of a `torch.optim.Muon` with Nesterov momentum and adjust_lr_fn="match_rms_adamw", which keeps its state."""

    def __init__(self, muon: torch.optim.Optimizer) -> None:
        self.muon = muon
        self._packs: Packs = {}

    @torch.no_grad()
    def __call__(self) -> None:
        for group in self.muon.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._move(group, parameters)

    def _move(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            state = self.muon.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.muon.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        batches: dict[int, list[int]] = defaultdict(list)
        for index, direction in enumerate(directions):
            batches[_rounded(max(direction.shape))].append(index)
        for columns, indices in sorted(batches.items()):
            wide = [d.mT if d.shape[0] > d.shape[1] else d for d in (directions[k] for k in indices)]
            pack = self._pack(wide, columns)
            pack = orthogonalise(pack, group["ns_coefficients"], group["ns_steps"], group["eps"])
            for place, index in zip(pack, indices, strict=True):
                parameter = parameters[index]
                rows, length = sorted(parameter.shape)
                update = place[:rows, :length]
                update = update.mT if parameter.shape[0] > parameter.shape[1] else update
                parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(length))

    def _pack(self, matrices: list[torch.Tensor], columns: int) -> torch.Tensor:
        """The matrices in the corners of (n, rows, columns) in bfloat16, zeros around them."""
        shape = (len(matrices), max(m.shape[0] for m in matrices), columns)
        key = (*shape, *(side for matrix in matrices for side in matrix.shape))
        if key not in self._packs:
            self._packs = {k: v for k, v in self._packs.items() if k[2] != columns}
            self._packs[key] = torch.zeros(shape, dtype=torch.bfloat16, device=matrices[0].device)
        pack = self._packs[key]
        for place, matrix in zip(pack, matrices, strict=True):
            place[: matrix.shape[0], : matrix.shape[1]].copy_(matrix)
        return pack


def orthogonalise(x: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> torch.Tensor:
    """(n, rows, columns), rows at most columns: the Newton-Schulz iteration of Muon (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/) on each matrix, X <- a X + (b G + c G^2) X with G = X X^T."""
    a, b, c = coefficients
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32).clamp(min=eps)
    x = x / norm.to(x.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _rounded(length: int) -> int:
    """The next power of two, at least 128: few batches, and little padding."""
    return max(128, 1 << (length - 1).bit_length())
