"""What a restoration returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.errors import UsageError
from invdiff.machine.versions import package_versions

if TYPE_CHECKING:
    import torch


NOT_FITTED = 3.0
"""The residual from which on a measurement counts as not fitted. With the right model it is 1 +- 1 / sqrt(2 m) for m values,
and methods that are biased towards the prior reach 2."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Posterior samples and how they were made.

    samples: (n, B, C, H, W) in [0, 1] units, not clipped; residual: (n, B), ||y - A x|| / (sigma_y sqrt(m)), about 1
    when the noise is explained; nfe: network calls for one sample; seconds: wall time of the whole call.
    """

    samples: torch.Tensor
    residual: torch.Tensor
    nfe: int
    seconds: float
    seed: int
    sigma_y: float
    operator: dict[str, Any]
    solver: dict[str, Any]
    prior: dict[str, Any]
    diagnostics: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the method reports of its moves, (runs, B, moves) each: `ess`, the effective sample size, for particles."""
    versions: dict[str, str] = field(default_factory=lambda: package_versions())
    noise: str = ""
    """The noise model's spec; sigma_y is its average over all values and images, if it is not Gaussian."""
    noise_from: str = ""
    """How sigma_y was estimated from y, if it was."""
    solved_with: float | None = None
    """The sigma_y that the solver was given, where it is another: a grey image restored by a colour prior."""

    @cached_property
    def mean(self) -> torch.Tensor:
        """Mean over the samples, (B, C, H, W): the estimate of least squared error."""
        return self.samples.mean(0)

    @cached_property
    def std(self) -> torch.Tensor:
        """Standard deviation over the samples (n - 1 in the denominator), (B, C, H, W); zero for one sample."""
        return self.samples.std(0) if len(self.samples) > 1 else self.samples[0] * 0

    @cached_property
    def standard_error(self) -> torch.Tensor:
        """The standard error of the mean, (B,), in [0, 1] units: see `standard_error`."""
        return standard_error(self.samples)

    def quantile(self, q: float) -> torch.Tensor:
        """The q-quantile over the samples at every pixel, (B, C, H, W). Raises as `quantile`."""
        return quantile(self.samples, q)

    @property
    def misfit(self) -> str:
        """A sentence that says so where A x misses y by more than NOT_FITTED times the noise; else nothing."""
        if not float(self.residual.max()) > NOT_FITTED:
            return ""
        return (
            f"{self.solver['name']}: the measurement is not fitted, its residual is above {NOT_FITTED:g} (1 where the noise "
            "explains it): take more steps or another solver, and check the operator and the noise level"
        )

    def provenance(self, image: int = 0) -> dict[str, Any]:
        """Everything needed to repeat the restoration of one image of the batch, as plain data."""
        return {
            "operator": self.operator,
            "noise": {
                "model": self.noise or f"gaussian:sigma={self.sigma_y}",
                "sigma_y": self.sigma_y,
                "unit": "standard deviation, images in [0, 1]",
                **({"estimated_by": self.noise_from} if self.noise_from else {}),
                **({} if self.solved_with is None else {"solved_with": self.solved_with}),
            },
            "solver": self.solver,
            "prior": self.prior,
            "seed": self.seed,
            "samples": len(self.samples),
            "nfe": self.nfe,
            "seconds": round(self.seconds, 3),
            "residual": [round(float(value), 5) for value in self.residual[:, image]],
            "diagnostics": {
                name: {
                    "least": round(float(values[:, image].min()), 3),
                    "last": round(float(values[:, image, -1].min()), 3),
                }
                for name, values in self.diagnostics.items()
            },
            "versions": self.versions,
        }

    def save(self, path: str | Path) -> None:
        """Write the samples (n, B, C, H, W) to PATH.npz (or PATH, if it ends so), with mean, std, residual and the
        provenance of each image."""
        import json

        import numpy as np

        from invdiff.files.atomic import atomic_path

        records = json.dumps([self.provenance(image) for image in range(self.samples.shape[1])])
        # with_suffix would take the ".v1" of run.v1 for an extension.
        target = Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")
        with atomic_path(target) as part, open(part, "wb") as file:
            np.savez_compressed(
                file,
                samples=self.samples.cpu().numpy(),
                mean=self.mean.cpu().numpy(),
                std=self.std.cpu().numpy(),
                residual=self.residual.cpu().numpy(),
                provenance=np.array(records),
            )


def standard_error(samples: torch.Tensor) -> torch.Tensor:
    """The standard error of the mean over samples (n, B, ...), as root mean square over each image, (B,); NaN for n = 1."""
    if len(samples) == 1:
        return samples[0].flatten(1).mean(1) * float("nan")
    return (samples.var(0) / len(samples)).flatten(1).mean(1).sqrt()


def quantile(samples: torch.Tensor, q: float) -> torch.Tensor:
    """The q-quantile over samples (n, ...) at every pixel, between neighbours by linear interpolation.

    n samples cannot tell quantiles below 1 / (n + 1) or above n / (n + 1) from their extremes.
    Raises UsageError unless 0 <= q <= 1.
    """
    import torch

    if not 0 <= q <= 1:
        raise UsageError(f"a quantile lies between 0 and 1, got {q}")
    # torch.quantile refuses more than 2^24 numbers.
    ordered, place = samples.sort(dim=0).values, q * (len(samples) - 1)
    below = int(place)
    return torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below)
