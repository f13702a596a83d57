"""Weights w(t) of the noise levels in a training loss: factors on the squared error of x_0, averaged over pixels.

With SNR_t = abar_t / (1 - abar_t) and images in [-1, 1], the errors of one answer in its several forms differ by a known
factor, so that a weight on the error of x_0 is one on each of the others:

    |eps error|^2 = SNR_t |x_0 error|^2,    |v error|^2 = (SNR_t + 1) |x_0 error|^2,    |mu error|^2 = a_t^2 |x_0 error|^2

(a_t: `Schedule.posterior_coefficients`). The weights of the literature differ in size by many orders of magnitude: the
terms of the variational bound are about 1 / t each, the weights of the noise error reach 1e4. `normalisation` takes that
out, so that changing the weighting changes which levels count and leaves the size of loss and gradient alone.
This module does not import torch, so that settings are checked and help is printed without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from invdiff.errors import UsageError, unknown

if TYPE_CHECKING:
    import numpy as np

    from invdiff.diffusion.schedule import Schedule


def _mean(schedule: Schedule) -> np.ndarray:
    """a_t^2: the plain squared error of mu, the mean of q(x_{t-1} | x_t, x_0)  (Ho et al. 2020, eq. 7 and 8)."""
    a, _ = schedule.posterior_coefficients
    return a**2


def _vlb(schedule: Schedule) -> np.ndarray:
    """a_t^2 / (2 sigma_q^2(t)) = (SNR_{t-1} - SNR_t) / 2, sigma_q^2(t) = beta~_t: the terms of the variational bound
    in nats (Ho et al. 2020, eq. 8 and 12; Kingma et al. 2021, https://arxiv.org/abs/2107.00630, eq. 13).

    The last step, t = 0, has beta~_0 = 0 and SNR_{-1} infinite. It is L_0, the likelihood of a decoder, and not a
    divergence. With the Gaussian density N(x_0; D(x_t), beta_0 I) as the decoder, which is the model's own step with
    Ho et al.'s sigma_t^2 = beta_t, L_0 is w |x_0 error|^2 plus a constant, and w = 1 / (2 beta_0) = (SNR_0 + 1) / 2.
    So t = 0 uses sigma_q^2(0) = beta_0.
    """
    variance = schedule.posterior_variances.copy()
    variance[0] = schedule.betas[0]
    return _mean(schedule) / (2 * variance)


# name -> w(schedule, gamma, sigma_data), (T,).
_WEIGHTS: dict[str, Callable[[Schedule, float, float], np.ndarray]] = {
    # The plain squared error of the noise (Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 14).
    "simple": lambda schedule, gamma, sigma_data: schedule.snr,
    # The plain squared error of x_0; beside `simple` it weighs high noise more.
    "sample": lambda schedule, gamma, sigma_data: 0 * schedule.snr + 1,
    # The plain squared error of v (Salimans & Ho 2022, https://arxiv.org/abs/2202.00512, sec. 4).
    "velocity": lambda schedule, gamma, sigma_data: schedule.snr + 1,
    "mean": lambda schedule, gamma, sigma_data: _mean(schedule),
    "vlb": lambda schedule, gamma, sigma_data: _vlb(schedule),
    # "Truncated SNR": the larger of the errors of x_0 and of the noise (Salimans & Ho 2022, sec. 4).
    "snr": lambda schedule, gamma, sigma_data: schedule.snr.clip(min=1.0),
    # min(SNR_t, gamma) on the error of x_0, whatever the network predicts, is min(1, gamma / SNR_t) on that of the noise
    # (Hang et al. 2023, https://arxiv.org/abs/2303.09556, sec. 3.4; gamma = 5).
    "min_snr": lambda schedule, gamma, sigma_data: schedule.snr.clip(max=gamma),
    "edm": lambda schedule, gamma, sigma_data: 1 / reference_error(schedule, sigma_data),
    # EDM2 divides by a learned e^u, which the objective adds (Karras et al. 2024, https://arxiv.org/abs/2312.02696, eq. 14).
    "uncertainty": lambda schedule, gamma, sigma_data: 1 / reference_error(schedule, sigma_data),
}
WEIGHTINGS = tuple(_WEIGHTS)


def weights(name: str, schedule: Schedule, *, gamma: float = 5.0, sigma_data: float = 0.5) -> np.ndarray:
    """w(t) on the mean squared error of x_0 on [-1, 1], (T,), as published; not normalised.

    Raises UsageError for an unknown name, and for gamma or sigma_data that are not positive.
    """
    if name not in _WEIGHTS:
        raise unknown("weighting", name, WEIGHTINGS)
    for argument, value in (("gamma", gamma), ("sigma_data", sigma_data)):
        if not 0 < value < float("inf"):
            raise UsageError(f"{argument} must be a positive number, got {value}")
    return _WEIGHTS[name](schedule, gamma, sigma_data)


def reference_error(schedule: Schedule, sigma_data: float = 0.5) -> np.ndarray:
    """r(t) = 1 / (SNR_t + 1 / sigma_data^2), (T,): the squared error of the best denoiser for pixels that are independent
    with deviation sigma_data on [-1, 1]. A network that has learned anything about images is below it.

    Its inverse is the weight of EDM, (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 with sigma^2 = 1 / SNR_t, under which
    the error is one at every level for a network that knows no more than sigma_data (Karras et al. 2022,
    https://arxiv.org/abs/2206.00364, table 1 and appendix B.6; sigma_data = 0.5 on [-1, 1]). sigma_data = 1: `velocity`.
    """
    return 1 / (schedule.snr + sigma_data**-2)


def normalisation(
    name: str, schedule: Schedule, probabilities: np.ndarray, *, gamma: float = 5.0, sigma_data: float = 0.5
) -> float:
    """The factor c that gives c w(t) the expected loss of `simple` at the reference error r(t), t being drawn with these
    probabilities p(t), (T,):

        c = sum_t p(t) SNR_t r(t) / sum_t p(t) w(t) r(t)

    So c = 1 for `simple`, whose loss is the plain error of the noise, and the losses and gradients of all other weightings
    have about the same size: one learning rate and one gradient clip serve them all.
    """
    error = probabilities * reference_error(schedule, sigma_data)
    weight = weights(name, schedule, gamma=gamma, sigma_data=sigma_data)
    return float((error * schedule.snr).sum() / (error * weight).sum())
