"""The training objective: what is drawn for each crop, what the network is asked, and how its error is weighed.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,    loss = c w(t) mean over pixels of (x_0 - D(x_t))^2

with x_0 in [-1, 1], D what the network's output means for x_0, w one of `invdiff.diffusion.weighting` and c its
normalisation. The error is measured on what the network puts out, where it is of order one at every level, and the factor
between that and the error of x_0 is taken from the table: nothing is divided by a small abar_t, so half precision is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from invdiff.diffusion.parameterization import PREDICTIONS, check_prediction
from invdiff.diffusion.schedule import Schedule
from invdiff.diffusion.weighting import WEIGHTINGS, normalisation, weights
from invdiff.errors import UsageError

__all__ = ["PREDICTIONS", "WEIGHTINGS", "Draws", "Objective", "draw", "level_probabilities", "levels"]


class Draws(NamedTuple):
    """t (n,) int64, noise (n, C, h, w) float32 standard normal, a tensor where it was drawn on the device."""

    t: np.ndarray
    noise: np.ndarray | torch.Tensor


def levels(position: np.ndarray, steps: int, low_noise: float) -> np.ndarray:
    """Whole timesteps of positions in [0, 1): the first share `low_noise` becomes floor(T u^3), the rest floor(T u),
    u running through [0, 1) in each. Uniform positions give t the probabilities of `level_probabilities`."""
    low = position < low_noise
    start, share = np.where(low, 0.0, low_noise), np.where(low, low_noise, 1 - low_noise)
    u = (position - start) / share
    return np.minimum((steps * u ** np.where(low, 3.0, 1.0)).astype(np.int64), steps - 1)


def level_probabilities(steps: int, low_noise: float) -> np.ndarray:
    """P(t), (T,), summing to one: P(t < k) = low_noise (k / T)^(1/3) + (1 - low_noise) k / T."""
    edge = np.arange(steps + 1) / steps
    return np.diff(low_noise * np.cbrt(edge) + (1 - low_noise) * edge)


def draw(
    seed: int,
    step: int,
    indices: Sequence[int],
    total: int,
    shape: tuple[int, int, int],
    schedule: Schedule,
    low_noise: float,
) -> Draws:
    """Timesteps and noise (C, h, w) of the crops `indices` among the `total` of a step's whole batch.

    They depend on (seed, step, index, total) alone, so processes and micro-batches that share a batch draw what one would.
    The positions u + pi(i) / total (mod 1), with one u and one permutation pi a step, are spread evenly over the levels:
    each t keeps its probability, and the loss of a batch varies less (Kingma et al. 2021, "Variational diffusion models",
    https://arxiv.org/abs/2107.00630, appendix I.1).
    Raises UsageError for an index outside the batch.
    """
    t = timesteps(seed, step, indices, total, len(schedule), low_noise)
    noise = np.empty((len(t), *shape), dtype=np.float32)
    for row, index in zip(noise, indices, strict=True):
        np.random.default_rng([seed, 2, step, index]).standard_normal(dtype=np.float32, out=row)
    return Draws(t, noise)


def timesteps(seed: int, step: int, indices: Sequence[int], total: int, count: int, low_noise: float) -> np.ndarray:
    """The t of `draw`, among `count` timesteps. Raises UsageError for an index outside the batch."""
    chosen = np.asarray(indices, dtype=np.int64)
    if ((chosen < 0) | (chosen >= total)).any():
        raise UsageError(f"a batch of {total} crops has no crop {chosen.min() if chosen.min() < 0 else chosen.max()}")
    rng = np.random.default_rng([seed, 3, step])
    position = (rng.random() + rng.permutation(total)[chosen] / total) % 1.0
    return levels(position, count, low_noise)


class LevelUncertainty(torch.nn.Module):
    """u(t), the log of the loss that a level still has, learned beside the network (Karras et al. 2024, EDM2,
    https://arxiv.org/abs/2312.02696, eq. 14 and 15): minimising L / e^u + u over u gives e^u = E[L | t].

    u(t) = sum_k c_k cos(pi k s_t), s_t the place of log sigma_t between its ends, in [0, 1]. Differs from the paper, whose
    u is a layer on random Fourier features: a cosine series needs no random numbers and is as flexible. Starts at zero.
    """

    terms: int = 16
    speed: float = 32.0
    """How many times faster than the network's weights the c_k move: u has to follow the loss down by a factor of a
    hundred in the first few hundred steps, and Adam moves a parameter by at most its learning rate a step."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        log_sigma = np.log(schedule.sigmas)
        place = (log_sigma - log_sigma[0]) / max(log_sigma[-1] - log_sigma[0], 1e-12)
        basis = torch.from_numpy(np.cos(np.pi * np.arange(self.terms) * place[:, None])).float()
        self.register_buffer("basis", basis, persistent=False)
        self.coefficients: torch.nn.Parameter = torch.nn.Parameter(torch.zeros(self.terms))

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """u(t), float32, for whole t (B,)."""
        basis: torch.Tensor = self.basis  # type: ignore[assignment]
        # The value is speed * c, the gradient that of c: Adam does not see its size, but a clip of the norm would.
        fast = self.coefficients + (self.speed - 1) * self.coefficients.detach()
        return (basis[t] * fast).sum(-1)  # not a matrix product: autocast would round it to 16 bits


class Objective(torch.nn.Module):
    """The weighted squared error of a network's output.

    prediction: what the network puts out, one of PREDICTIONS. weighting: one of WEIGHTINGS; gamma belongs to "min_snr",
    sigma_data (on [-1, 1]) to "edm" and "uncertainty". low_noise: how t is drawn (`level_probabilities`), for the
    normalisation. Images are in [-1, 1] here, noise is standard normal, t (B,) whole, all (B, C, H, W) otherwise.
    Has trainable parameters for "uncertainty" alone: train them with the network's.
    Raises UsageError for unknown names and for settings out of range.
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction: str,
        weighting: str,
        *,
        gamma: float = 5.0,
        sigma_data: float = 0.5,
        low_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.prediction: str = check_prediction(prediction)
        self.weighting = weighting
        weight = weights(weighting, schedule, gamma=gamma, sigma_data=sigma_data)
        probabilities = level_probabilities(len(schedule), low_noise)
        self.scale: float = normalisation(weighting, schedule, probabilities, gamma=gamma, sigma_data=sigma_data)
        """c, the normalisation."""
        snr, abar = schedule.snr, schedule.alphas_bar
        native = {"epsilon": snr, "sample": np.ones_like(snr), "v_prediction": snr + 1}[prediction]
        rows = [np.sqrt(abar), np.sqrt(1 - abar), self.scale * weight / native, snr / native]
        self._exact = torch.from_numpy(np.stack(rows))  # float64, which not every device has: moved when asked for
        self._tables: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self.uncertainty: LevelUncertainty | None = LevelUncertainty(schedule) if weighting == "uncertainty" else None

    def _rows(self, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """sqrt(abar_t), sqrt(1 - abar_t), and the factors from the output's error to the loss and to the noise's: (4, B)."""
        key = (t.device, dtype)
        if key not in self._tables:
            self._tables[key] = self._exact.to(dtype).to(t.device)
        return self._tables[key][:, t]

    def noisy(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        signal, spread, _, _ = _broadcast(self._rows(t, clean.dtype), clean)
        return signal * clean + spread * noise

    def losses(self, output: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """c w(t) times the mean squared error of x_0, for each image: (B,), in float32 or better; average them.

        "uncertainty": L / e^u(t) + u(t) of that, which may be negative.
        """
        error = self._error(output, clean, noise, t)
        loss = self._rows(t, error.dtype)[2] * error
        if self.uncertainty is None:
            return loss
        u = self.uncertainty(t).to(loss.dtype)
        return loss * (-u).exp() + u

    @torch.no_grad()
    def epsilon_errors(
        self, output: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> torch.Tensor:
        """The unweighted mean squared error of the noise that the output means, for each image: (B,). No gradient."""
        error = self._error(output, clean, noise, t)
        return self._rows(t, error.dtype)[3] * error

    def _error(self, output: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the output itself, (B,)."""
        exact = torch.promote_types(output.dtype, torch.float32)
        output, clean, noise = output.to(exact), clean.to(exact), noise.to(exact)
        if self.prediction == "v_prediction":
            signal, spread, _, _ = _broadcast(self._rows(t, exact), clean)
            target = signal * noise - spread * clean
        else:
            target = noise if self.prediction == "epsilon" else clean
        return (output - target).square().flatten(1).mean(1)


def _broadcast(rows: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """(4, B) as (4, B, 1, .., 1)."""
    return rows.reshape(*rows.shape, *([1] * (images.ndim - 1)))
