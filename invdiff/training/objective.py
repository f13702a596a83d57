"""The training objective: predict the noise (Ho et al. 2020, eq. 14)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from invdiff.schedule import Schedule
from invdiff.training.config import TrainingConfig


def draw_timesteps(count: int, schedule: Schedule, low_noise: float, rng: np.random.Generator) -> np.ndarray:
    """(count,) whole timesteps: floor(T u^3) for a share `low_noise` of them, floor(T u) for the others, u ~ U(0, 1)."""
    u = rng.random(count)
    power = np.where(rng.random(count) < low_noise, 3.0, 1.0)
    return np.minimum((len(schedule) * u**power).astype(np.int64), len(schedule) - 1)


def simple_loss(
    network: torch.nn.Module,
    batch: np.ndarray,
    schedule: Schedule,
    config: TrainingConfig,
    step: int,
    device: torch.device,
) -> torch.Tensor:
    """E || eps - eps_theta(sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t) ||^2 on uint8 crops (B, C, h, w).

    Noise and timesteps depend on (seed, step) alone, so a resumed run repeats what an unbroken one draws.
    """
    rng = np.random.default_rng([config.seed, 2, step])
    t = draw_timesteps(len(batch), schedule, config.low_noise, rng)
    noise = torch.from_numpy(rng.standard_normal(batch.shape, dtype=np.float32)).to(device)
    clean = torch.from_numpy(batch).to(device, torch.float32) / 127.5 - 1
    abar = torch.as_tensor(schedule.alphas_bar[t], dtype=torch.float32, device=device)[:, None, None, None]
    x_t = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    output = network(x_t, torch.as_tensor(t, device=device)).sample
    return functional.mse_loss(output.float(), noise)
