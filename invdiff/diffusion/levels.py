"""The noise levels that a reverse diffusion visits."""

from __future__ import annotations

import numpy as np

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import UsageError, unknown

SPACINGS = ("timestep", "quadratic", "log")
SAMPLER_SPACINGS = (*SPACINGS, "karras")
RHO = 7.0


def noise_levels(
    steps: int, sigma_max: float, sigma_min: float, spacing: str = "timestep", schedule: Schedule | None = None
) -> list[float]:
    """`steps` decreasing noise levels from sigma_max to sigma_min, in [0, 1] units.

    timestep: uniform in the DDPM time t (schedule, default linear); quadratic: uniform in sqrt(t), denser at low noise
    (Song, Meng, Ermon 2021, appendix D.2); log: a geometric sequence; karras: even in sigma^(1/rho), rho = 7 (Karras et
    al. 2022, eq. 5). The two ends are exact even where they lie outside the schedule's table.
    Raises UsageError for an unknown spacing, or steps < 1.
    """
    if spacing not in SAMPLER_SPACINGS:
        raise unknown("spacing", spacing, SAMPLER_SPACINGS)
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    if not 0 < sigma_min <= sigma_max:
        raise UsageError(f"noise levels need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")
    if spacing == "log":
        return list(np.geomspace(sigma_max, sigma_min, steps))
    if spacing == "karras":
        if steps == 1:
            return [sigma_max]
        inner = np.linspace(sigma_max ** (1 / RHO), sigma_min ** (1 / RHO), steps)[1:-1] ** RHO
        return [sigma_max, *map(float, inner), sigma_min]
    schedule = schedule or Schedule.named("linear")
    first, last = (float(schedule.t(2 * sigma)) for sigma in (sigma_max, sigma_min))
    power = 2.0 if spacing == "quadratic" else 1.0
    times = np.linspace(first ** (1 / power), last ** (1 / power), steps) ** power
    levels = [float(schedule.sigma(min(t, len(schedule) - 1))) / 2 for t in times]
    return [sigma_max, *levels[1:-1], sigma_min] if steps > 1 else [sigma_max]
