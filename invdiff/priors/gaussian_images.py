"""Images as a Gaussian random field, a denoiser for noise so high that only brightness, colour and shading remain visible.

Above a noise level of about eight deviations of a pixel the score of an image distribution is, to a good approximation,
that of the Gaussian with the same mean and covariance (Wang & Vastola 2023, "The Hidden Linear Structure in Score-Based
Models and its Application", https://arxiv.org/abs/2311.10892). A network that predicts the noise is of little use there,
because its error enters E[x_0 | x] multiplied by sigma. The closed form has no such error.

The covariance is the product of one between channels and one between pixels; the latter depends on distance alone, with
mirrored edges, so that the cosine transform (DCT-II) diagonalises it for every image size:

    Cov = C (x) S,    S(f) = scale (f^2 + corner^2 / (H W))^(-exponent / 2),    f in cycles per pixel

The power law is that of natural images, with an exponent near 2 (Field 1987, https://doi.org/10.1364/JOSAA.4.002379; van
der Schaaf & van Hateren 1996, https://doi.org/10.1016/0042-6989(96)00002-8); the corner says how the means of whole images
vary. With C = Q diag(c) Q^T,

    E[x_0 | x] = mean + Q DCT^-1 [ c S / (c S + sigma^2) DCT Q^T (x - mean) ]        (the Wiener filter)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.priors.prior import Sigma, per_sample

# A colour direction whose variance is below this fraction of the largest one holds only rounding errors, as in grey
# pictures stored in colour.
_NO_VARIANCE = 1e-6
# The frequencies, in cycles per pixel, between which the power law is fitted: a crop holds too few waves of lower ones, and
# lenses and JPEG compression shape the higher ones.
_FITTED = (1 / 48, 1 / 4)
_STEEPEST = 4.0


@dataclass(frozen=True)
class GaussianImages:
    """A Gaussian model of images in [0, 1]. mean: (C,); covariance: (C, C), of the channels of a pixel; the others as above.

    Raises UsageError for numbers that make no covariance.
    """

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    scale: float
    exponent: float
    corner: float

    def __post_init__(self) -> None:
        matrix = np.array(self.covariance, dtype=np.float64)
        numbers = np.array([*self.mean, *matrix.flatten(), self.scale, self.exponent, self.corner])
        square = matrix.shape == (len(self.mean), len(self.mean)) and np.allclose(matrix, matrix.T)
        if not (square and np.isfinite(numbers).all() and self.scale > 0 and self.exponent >= 0 and self.corner > 0):
            raise UsageError(f"these are no statistics of images: {asdict(self)}")

    @classmethod
    def fit(cls, crops: np.ndarray) -> GaussianImages | None:
        """Fit the model to some hundred crops (n, C, side, side) in [0, 1]; None where their variance is almost zero."""
        crops = np.asarray(crops, dtype=np.float64)
        side = crops.shape[-1]
        mean = crops.mean((0, 2, 3))
        offset = crops - mean[:, None, None]
        covariance = np.einsum("nchw,ndhw->cd", offset, offset) / (len(crops) * side**2)
        variances, basis = np.linalg.eigh(covariance)
        kept = variances > _NO_VARIANCE * max(variances.max(), 1e-12)
        if variances.max() < 1e-8 or side < 8:
            return None
        dct = _dct(side).numpy()
        waves = dct @ np.einsum("dc,ndhw->nchw", basis[:, kept], offset) @ dct.T
        power = ((waves**2).mean(0) / variances[kept, None, None]).mean(0)  # S, (side, side)
        place = np.arange(side) / (2 * side)
        frequency = np.hypot(place[:, None], place[None, :])
        inside = (frequency >= _FITTED[0]) & (frequency <= _FITTED[1]) & (power > 0)
        # Each octave counts alike: without the weights the many high frequencies would decide alone.
        slope, height = np.polyfit(
            np.log(frequency[inside]), np.log(power[inside]), 1, w=1 / frequency[inside]
        )  # w multiplies the residual, so its square is the density of waves over f
        exponent = float(np.clip(-slope, 0.0, _STEEPEST))
        scale = float(np.exp(height))
        corner = side * (max(float(power[0, 0]), 1e-12) / scale) ** (-1 / exponent) if exponent > 0 else 1.0
        return cls(
            tuple(mean.round(6).tolist()),
            tuple(map(tuple, covariance.round(8).tolist())),
            round(scale, 8),
            round(exponent, 4),
            round(max(corner, 1e-6), 6),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GaussianImages:
        """The inverse of `to_dict`. Raises UsageError for any other mapping."""
        try:
            return cls(
                tuple(map(float, values["mean"])),
                tuple(tuple(map(float, row)) for row in values["covariance"]),
                *(float(values[name]) for name in ("scale", "exponent", "corner")),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"no statistics of images: {error!r}") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """E[x_0 | x_0 + sigma n = x] for x (B, C, H, W); sigma in [0, 1] units, a float or (B,)."""
        spectrum, basis, rows, columns = self._parts(x)
        mean = x.new_tensor(self.mean)[:, None, None]
        waves = rows @ torch.einsum("dc,bdhw->bchw", basis, x - mean) @ columns.T
        waves = waves * (spectrum / (spectrum + per_sample(sigma, x) ** 2))
        return mean + torch.einsum("cd,bdhw->bchw", basis, rows.T @ waves @ columns)

    def colour(self, white: torch.Tensor) -> torch.Tensor:
        """A sample of the model, (B, C, H, W), made from white noise of that shape."""
        spectrum, basis, rows, columns = self._parts(white)
        waves = rows.T @ (spectrum.sqrt() * white) @ columns
        return white.new_tensor(self.mean)[:, None, None] + torch.einsum("cd,bdhw->bchw", basis, waves)

    def _parts(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """c S (C, H, W), Q (C, C), and the DCT matrices of the two sides, in the dtype and on the device of x."""
        height, width = x.shape[-2:]
        variances, basis = np.linalg.eigh(np.array(self.covariance))
        down, right = np.arange(height) / (2 * height), np.arange(width) / (2 * width)
        square = down[:, None] ** 2 + right[None, :] ** 2 + self.corner**2 / (height * width)
        spectrum = variances.clip(min=0)[:, None, None] * self.scale * square ** (-self.exponent / 2)
        return torch.from_numpy(spectrum).to(x), torch.from_numpy(basis).to(x), _dct(height).to(x), _dct(width).to(x)


def _dct(n: int) -> torch.Tensor:
    """The orthonormal DCT-II, (n, n) float64: row k is the wave of k / 2n cycles per pixel."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * (k[None, :] + 0.5) * k[:, None] / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix
