"""What a noise model is: how a measurement y scatters around z = A x, and what a solver is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from invdiff.operator.contract import Shape
from invdiff.specs.parameters import Method


@dataclass(frozen=True)
class NoiseModel(Method):
    """p(y | z). y, z: (B, *measurement shape), in the units of y, [0, 1] for images."""

    name: ClassVar[str] = "noise model"
    signal_dependent: ClassVar[bool] = False
    """Whether the size of the noise, or which entries count, is read from y: images are then solved one by one."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters that a spec's key=value pairs stand for, where one may be told in another unit."""
        return values

    def sample(self, z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """y for each row of z from its own CPU generator. Raises UsageError for a z that cannot be."""
        raise NotImplementedError

    def variance(self, z: torch.Tensor) -> torch.Tensor:
        """Var[y | z] of every entry, more than 0."""
        raise NotImplementedError

    def log_likelihood(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """log p(y | z) of every entry, differentiable in z; the logarithm of a probability for counts. Where entries are
        correlated only the sum over all entries means anything."""
        raise NotImplementedError

    def score(self, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """The derivative of `log_likelihood` with respect to z: (y - z) / variance(z)."""
        return (y - z) / self.variance(z)

    @property
    def quantum(self) -> float:
        """The brightness of one count; 0 for noise that counts nothing."""
        return 0.0

    def trusted(self, y: torch.Tensor) -> torch.Tensor | None:
        """1 where y holds z plus noise of `variance`, 0 where it is so likely to hold anything else that a solver for
        Gaussian noise treats it as not measured; None: 1 everywhere."""
        return None

    def spectrum(self, shape: Shape) -> torch.Tensor | None:
        """Power spectrum of noise that is correlated between the pixels of a measurement of this shape, in the layout of
        torch.fft.rfft2, float64, its mean over all frequencies the variance of an entry; None: entries are independent."""
        return None

    def tempered(self, copies: int) -> NoiseModel:
        """The model for `copies` repetitions of one measurement: each has 1 / copies of its log-likelihood, or of the
        Gaussian of the same variance, where that is what solvers see of it."""
        raise NotImplementedError

    def check_measurement(self, y: torch.Tensor) -> None:
        """Raise UsageError if this noise cannot have given y."""


def normal(z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """N(0, 1) in the shape of z, each row from its own generator."""
    rows = [torch.randn(z.shape[1:], generator=g, dtype=z.dtype, device=g.device) for g in generators]
    return torch.stack(rows).to(z.device)


def uniform(z: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Uniform in [0, 1) in the shape of z, each row from its own generator."""
    rows = [torch.rand(z.shape[1:], generator=g, dtype=z.dtype, device=g.device) for g in generators]
    return torch.stack(rows).to(z.device)


def gaussian_log_density(difference: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """log N(difference; 0, variance) of every entry."""
    return -0.5 * (difference**2 / variance + (2 * torch.pi * variance).log())
