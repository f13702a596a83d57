"""The Walsh-Hadamard transform of any length, in n log n operations.

For n = 2^k the orthonormal matrix is W[i, j] = (-1)^popcount(i & j) / sqrt(n), symmetric and its own inverse. For other n
no such matrix exists; two transforms of the largest power of two p <= n, over the first p entries and then over the last
p, overlap and make an orthonormal matrix in which nearly every output depends on every input.
"""

from __future__ import annotations

import math

import torch

RADIX = 16  # a product with a small matrix costs one pass over the memory, whatever it does to each entry


def hadamard_matrix(size: int, like: torch.Tensor) -> torch.Tensor:
    """The orthonormal (size, size) matrix for a power of two, by Sylvester's doubling."""
    H = like.new_ones(1, 1)
    while len(H) < size:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H / math.sqrt(size)


def power_of_two(x: torch.Tensor) -> torch.Tensor:
    """W x along the last dimension, of length 2^k."""
    shape, rest = x.shape, x.shape[-1]
    x = x.reshape(-1, shape[-1])
    while rest > 1:
        # W of 2^k is a Kronecker product: each factor takes its share from the front of the index and goes to its end.
        radix = min(RADIX, rest)
        x = (x.reshape(len(x), radix, -1).mT @ hadamard_matrix(radix, x)).reshape(len(x), -1)
        rest //= radix
    return x.reshape(shape)


def forward(x: torch.Tensor) -> torch.Tensor:
    """The transform along the last dimension."""
    n = x.shape[-1]
    p = 1 << (n.bit_length() - 1)
    first = torch.cat([power_of_two(x[..., :p]), x[..., p:]], -1)
    return first if n == p else torch.cat([first[..., : n - p], power_of_two(first[..., n - p :])], -1)


def inverse(c: torch.Tensor) -> torch.Tensor:
    """Its transpose, which undoes it."""
    n = c.shape[-1]
    p = 1 << (n.bit_length() - 1)
    last = c if n == p else torch.cat([c[..., : n - p], power_of_two(c[..., n - p :])], -1)
    return torch.cat([power_of_two(last[..., :p]), last[..., p:]], -1)
