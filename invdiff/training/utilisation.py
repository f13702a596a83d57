"""How much of what a device can compute a training makes it compute."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from invdiff.priors.stored.diffusers_folder import flop_per_pixel
from invdiff.training.config import TrainingConfig

SIDES = {"cuda": 8192, "cpu": 512}
"""Rows of the matrices whose product is timed: large enough for the device's full rate, and soon over."""


@dataclass(frozen=True)
class Utilisation:
    """flop: floating-point operations of a training step for each pixel, a multiply-add counted as two; three times those
    of a call, since the backward pass makes two products for each of the forward pass. peak: operations a second of a
    matrix product in the training's precision, measured on its device."""

    flop: float
    peak: float

    @classmethod
    def measure(cls, network: Any, config: TrainingConfig, device: torch.device, precision: torch.dtype) -> Utilisation:
        """Count the operations of a network that lies on the CPU, and time a matrix product on the device."""
        return cls(3 * flop_per_pixel(network, config.channels, config.downsampling), matrix_rate(device, precision))

    def describe(self, pixels_per_second: float) -> str:
        """The rate of one process in words."""
        rate = self.flop * pixels_per_second
        return f"{rate / 1e12:.3g} TFLOP/s ({rate / self.peak:.0%} of a matrix product's)"


def matrix_rate(device: torch.device, precision: torch.dtype, repeats: int = 5) -> float:
    """Floating-point operations a second of a square matrix product, the median of `repeats`."""
    side = SIDES.get(device.type, 2048)
    matrix = torch.ones((side, side), device=device, dtype=precision)
    matrix = matrix * torch.linspace(-1, 1, side, device=device, dtype=precision)  # zeros would be too easy
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds[1:])
