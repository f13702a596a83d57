"""What a diffusion network may predict, and how each prediction becomes E[x_0 | x_t].

With x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, in the network's units:

    epsilon         x_0 = (x_t - sqrt(1 - abar) eps) / sqrt(abar)
    sample          x_0
    v_prediction    v = sqrt(abar) eps - sqrt(1 - abar) x_0,   x_0 = sqrt(abar) x_t - sqrt(1 - abar) v
    score           score = grad log q(x_t) = -eps / sqrt(1 - abar)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from invdiff.errors import unknown

if TYPE_CHECKING:
    import torch

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def check_prediction(name: str) -> str:
    """The name itself, or UsageError if no network output is called that."""
    if name not in PREDICTIONS:
        raise unknown("prediction type", name, PREDICTIONS)
    return name


def to_clean(prediction: str, output: torch.Tensor, x_t: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """E[x_0 | x_t] from a network's output; abar a float or broadcastable to x_t."""
    signal, noise = abar**0.5, (1 - abar) ** 0.5
    if check_prediction(prediction) == "epsilon":
        return (x_t - noise * output) / signal
    if prediction == "v_prediction":
        return signal * x_t - noise * output
    return output


def to_epsilon(clean: torch.Tensor, x_t: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar)."""
    return (x_t - abar**0.5 * clean) / (1 - abar) ** 0.5


def to_score(epsilon: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """grad log q(x_t) = -eps / sqrt(1 - abar)."""
    return -epsilon / (1 - abar) ** 0.5


def to_velocity(clean: torch.Tensor, epsilon: torch.Tensor, abar: torch.Tensor | float) -> torch.Tensor:
    """v = sqrt(abar) eps - sqrt(1 - abar) x_0  (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512)."""
    return abar**0.5 * epsilon - (1 - abar) ** 0.5 * clean
