"""Mixtures of Gaussians: a prior whose denoiser and whose posterior under a linear operator are known exactly.

p(x_0) = sum_k w_k N(x_0; mu_k, C_k). With x = x_0 + sigma n each component stays Gaussian, N(mu_k, C_k + sigma^2 I), so

    E[x_0 | x]  = sum_k r_k(x) ( mu_k + C_k (C_k + sigma^2 I)^-1 (x - mu_k) )
    r_k(x)      = w_k N(x; mu_k, C_k + sigma^2 I) / sum_j w_j N(x; mu_j, C_j + sigma^2 I)

and conditioning on y = A x_0 + sigma_y z gives a mixture again (Bishop 2006, "Pattern Recognition and Machine
Learning", eq. 2.113-2.117 for one component; each weight is multiplied by the evidence of its component).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from invdiff.errors import UsageError
from invdiff.priors.prior import Prior, Sigma, per_sample
from invdiff.priors.spectrum import Spectrum, finite_tensor

Self = TypeVar("Self", bound="GaussianMixturePrior")


class GaussianMixturePrior(Prior):
    """p(x_0) = sum_k w_k N(x_0; mu_k, C_k), exactly.

    means: (K, n) vectors or (K, C, H, W) images. Matrices act on the flattened image of n numbers.
    covariances: one each as (K, n, n) matrices, (K, n) diagonals or (K,) variances; or one for all as (n, n), (n,) or
        a number. Where K = n these can look alike, and an error says how to write it; a leading 1 always means
        "for all". The structure is kept: a number never becomes a matrix.
    weights: (K,) positive, divided by their sum; default equal.
    dtype: of all arithmetic inside, and of what `sample`, `mean` and `covariance` return. `denoise` and `log_prob`
        return x's dtype, on x's device.

    sigma_max is 50 times the largest root mean square of a projection of x_0, so x_0 cannot be seen there; sigma_min is
    1/100 of the smallest non-zero standard deviation, at most 1e-3 and at least 1e-6.
    Raises UsageError for wrong shapes, NaN, asymmetric matrices and negative eigenvalues.
    """

    can_sample = True

    def __init__(
        self, means: Any, covariances: Any, weights: Any = None, *, dtype: torch.dtype = torch.float64
    ) -> None:
        means = finite_tensor("means", means, dtype)
        if means.ndim not in (2, 4) or means.numel() == 0:
            raise UsageError(f"means must be (K, n) vectors or (K, C, H, W) images, got shape {tuple(means.shape)}")
        flat = means.flatten(1)
        if weights is None:
            weights = torch.ones(len(flat), dtype=dtype)
        weights = finite_tensor("weights", weights, dtype)
        if weights.shape != (len(flat),) or not (weights > 0).all():
            raise UsageError(f"weights must be {len(flat)} positive numbers, one per component, got {weights.tolist()}")
        spectrum = Spectrum.of(covariances, len(flat), flat.shape[1], dtype)
        self._set(tuple(means.shape[1:]), flat, spectrum, weights.log())

    def _set(self, shape: tuple[int, ...], means: torch.Tensor, spectrum: Spectrum, log_weights: torch.Tensor) -> None:
        """Store image shape, means (K, n), covariances and log w (K,) up to a constant, and derive the noise levels."""
        self.shape = shape
        self.channels: int | None = shape[0] if len(shape) == 3 else None
        self._means, self._spectrum = means, spectrum
        self._log_weights = log_weights - log_weights.logsumexp(0)
        self._moved: dict[torch.device, tuple[Spectrum, torch.Tensor, torch.Tensor]] = {}
        largest = float((spectrum.values.amax(1) + means.square().sum(1)).max())
        positive = spectrum.values[spectrum.values > 0]
        self.sigma_max: float = 50 * math.sqrt(largest) if largest > 0 else 1.0
        smallest = math.sqrt(float(positive.min())) if positive.numel() else 0.1
        self.sigma_min: float = min(max(0.01 * smallest, 1e-6), 1e-3, self.sigma_max / 10)

    @classmethod
    def _from_parts(
        cls: type[Self], shape: tuple[int, ...], means: torch.Tensor, spectrum: Spectrum, log_weights: torch.Tensor
    ) -> Self:
        prior = cls.__new__(cls)
        prior._set(shape, means, spectrum, log_weights)
        return prior

    @property
    def dtype(self) -> torch.dtype:
        return self._means.dtype

    @property
    def size(self) -> int:
        """n, the numbers in one image."""
        return self._means.shape[1]

    @property
    def weights(self) -> torch.Tensor:
        """w, (K,), summing to one."""
        return self._log_weights.exp()

    @property
    def means(self) -> torch.Tensor:
        """mu, (K, n) or (K, C, H, W)."""
        return self._means.reshape(-1, *self.shape)

    def component_covariance(self, k: int) -> torch.Tensor:
        """C_k, (n, n), on flattened images."""
        return self._spectrum.matrix(k, self.size)

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """E[x_0 | x_0 + sigma n = x] for x (B, *shape); sigma > 0, a float or (B,). Differentiable in x."""
        z, levels = self._inside(x, sigma)
        spectrum, rotated, log_weights = self._parts(z.device)
        if len(spectrum.values) == 1 and (spectrum.basis is None or len(spectrum.basis) == 1):
            centre = rotated.mean(0)
            means, smallest = rotated - centre, float((spectrum.values + levels**2).min())
            if torch.finfo(z.dtype).eps * float(means.square().sum(1).max()) < _LOST * smallest:
                shifted = spectrum.rotate(z)[:, 0] - centre
                clean = centre + _denoise_shared(shifted, levels, spectrum.values, means, log_weights)
                return spectrum.unrotate_sum(clean[:, None]).reshape(x.shape).to(x.device, x.dtype)
        offset = spectrum.rotate(z) - rotated  # Q_k^T (x - mu_k): [batch, comp, n]
        total = spectrum.values + levels[:, :, None] ** 2  # eigenvalues of C_k + sigma^2 I: [batch, comp or 1, n or 1]
        responsibility = (log_weights + _log_normal(offset, total)).softmax(1)
        clean = rotated + spectrum.values / total * offset  # Q_k^T E_k[x_0 | x]: [batch, comp, n]
        return spectrum.unrotate_sum(responsibility[:, :, None] * clean).reshape(x.shape).to(x.device, x.dtype)

    def log_prob(self, x: torch.Tensor, sigma: Sigma = 0.0) -> torch.Tensor:
        """log p_sigma(x), (B,), of the density of x_0 + sigma n; sigma = 0 is the prior itself. Differentiable in x.

        Raises UsageError for sigma = 0 if a covariance is singular: that prior has no density.
        """
        clean = not isinstance(sigma, torch.Tensor) and sigma == 0
        if clean and not (self._spectrum.values > 0).all():
            raise UsageError(
                "a covariance is singular, so the prior has no density; ask for log_prob(x, sigma) with sigma > 0"
            )
        z, levels = self._inside(x, 1.0 if clean else sigma)
        spectrum, rotated, log_weights = self._parts(z.device)
        total = spectrum.values + levels[:, :, None] ** 2 * (0.0 if clean else 1.0)
        log_p = (log_weights + _log_normal(spectrum.rotate(z) - rotated, total)).logsumexp(1)
        return log_p.to(x.device, x.dtype)

    def posterior_covariance(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        """Cov[x_0 | x_0 + sigma n = x], (B, n, n), on flattened images: within components plus between means."""
        z, levels = self._inside(x, sigma)
        spectrum, rotated, log_weights = self._parts(z.device)
        offset = spectrum.rotate(z) - rotated
        total = spectrum.values + levels[:, :, None] ** 2
        responsibility = (log_weights + _log_normal(offset, total)).softmax(1)
        clean = rotated + spectrum.values / total * offset
        within = (spectrum.values * levels[:, :, None] ** 2 / total).expand(len(z), -1, self.size)
        covariances = []
        for b in range(len(z)):
            result = z.new_zeros(self.size, self.size)
            centre = spectrum.unrotate_sum((responsibility[:, :, None] * clean)[b : b + 1])
            for k in range(len(rotated)):
                mean = spectrum.unrotate(clean[b, k : k + 1], torch.tensor([k], device=z.device))
                inner = spectrum.matrix(k, self.size, within[b, min(k, within.shape[1] - 1)])
                result = result + responsibility[b, k] * (inner + (mean - centre).mT @ (mean - centre))
            covariances.append(result)
        return torch.stack(covariances).to(x.device, x.dtype)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """count draws from the prior, (count, *shape), on the CPU in `dtype`. generator: a CPU torch.Generator."""
        if int(count) != count or count < 1:
            raise UsageError(f"count must be a whole number of at least 1, got {count}")
        if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
            raise UsageError("generator must be a CPU torch.Generator, for example torch.Generator().manual_seed(0)")
        which = torch.multinomial(self.weights, int(count), replacement=True, generator=generator)
        noise = torch.randn(int(count), self.size, generator=generator, dtype=self.dtype)
        values = self._spectrum.values.expand(len(self._means), -1)[which]
        return (self._means[which] + self._spectrum.unrotate(values.sqrt() * noise, which)).reshape(-1, *self.shape)

    def mean(self) -> torch.Tensor:
        """E[x_0], of the image's shape."""
        return (self.weights @ self._means).reshape(self.shape)

    def covariance(self) -> torch.Tensor:
        """Cov[x_0], (n, n), on flattened images: sum_k w_k (C_k + (mu_k - mu)(mu_k - mu)^T)."""
        weights, spectrum = self.weights, self._spectrum
        offset = self._means - weights @ self._means
        between = (weights[:, None] * offset).mT @ offset
        if spectrum.basis is None or len(spectrum.basis) == 1:
            shared = weights @ spectrum.values.expand(len(weights), self.size)
            return between + spectrum.matrix(0, self.size, shared)
        return between + sum(w * spectrum.matrix(k, self.size) for k, w in enumerate(weights))

    def posterior(self: Self, matrix: Any, y: Any, sigma_y: float) -> Self:
        """p(x_0 | y) for y = A x_0 + sigma_y z, z ~ N(0, I), in closed form.

        matrix: A, (m, n), on flattened images, of any rank; y: m numbers; sigma_y > 0.
        Computed from the singular values of A C_k^(1/2), not from A C_k A^T, so a tiny sigma_y loses no digits.
        """
        matrix, y = finite_tensor("matrix", matrix, self.dtype), finite_tensor("y", y, self.dtype).reshape(-1)
        if matrix.ndim != 2 or matrix.shape[1] != self.size or matrix.shape[0] < 1:
            raise UsageError(
                f"matrix must be (m, {self.size}) for images of shape {self.shape}, got {tuple(matrix.shape)}"
            )
        if len(y) != len(matrix):
            raise UsageError(f"y must have one number for each of the {len(matrix)} rows of matrix, got {len(y)}")
        if not (isinstance(sigma_y, int | float | torch.Tensor) and 0 < float(sigma_y) < math.inf):
            raise UsageError(
                f"sigma_y must be a positive number, got {sigma_y}; for noiseless data use a small one, as 1e-6"
            )
        residuals = y - self._means @ matrix.mT  # y - A mu_k: [comp, m]
        update = _scaled_identity_update if self._spectrum.is_scalar else _general_update
        shifts, spectrum, evidence = update(self._spectrum, matrix, residuals, float(sigma_y))
        return self._from_parts(self.shape, self._means + shifts, spectrum, self._log_weights + evidence)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "shape": list(self.shape), "components": len(self._means)}

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise UsageError unless this is the one shape that the means have."""
        if tuple(shape) != self.shape:
            raise UsageError(f"this prior is for images of shape {self.shape}, got {tuple(shape)}")

    def _inside(self, x: torch.Tensor, sigma: Sigma) -> tuple[torch.Tensor, torch.Tensor]:
        """x flattened (B, n) and sigma (B or 1, 1), in the inner dtype and on a device that has it."""
        if x.ndim == 0 or not x.is_floating_point():
            raise UsageError(
                f"x must be a floating-point batch (B, *{self.shape}), got {x.dtype} of shape {tuple(x.shape)}"
            )
        self.check_shape(x.shape[1:])
        device = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
        z = x.to(device, self.dtype).flatten(1)
        levels = per_sample(sigma, z)
        if not (torch.isfinite(levels) & (levels > 0)).all():
            raise UsageError(f"sigma must be positive and finite, got {sigma}")
        return z, levels

    def _parts(self, device: torch.device) -> tuple[Spectrum, torch.Tensor, torch.Tensor]:
        """Covariances, Q_k^T mu_k (K, n) and log w (K,) on a device, moved there once."""
        if device not in self._moved:
            # The first call may come from inference mode, a later one may need gradients: keep ordinary tensors.
            with torch.inference_mode(False):
                values, basis = self._spectrum.values, self._spectrum.basis
                spectrum = Spectrum(_ordinary(values), None if basis is None else _ordinary(basis)).to(device)
                means, log_weights = _ordinary(self._means).to(device), _ordinary(self._log_weights).to(device)
                if spectrum.basis is not None:
                    means = torch.einsum("ki,kij->kj", means, spectrum.basis.expand(len(means), -1, -1))
                self._moved[device] = spectrum, means, log_weights
        return self._moved[device]


# `_denoise_shared` computes products in place of differences, which is wrong by eps |mu|^2 / (L + sigma^2) in the exponent.
# It is used while that error is below _LOST.
_LOST = 1e-10


def _denoise_shared(
    z: torch.Tensor, levels: torch.Tensor, values: torch.Tensor, means: torch.Tensor, log_weights: torch.Tensor
) -> torch.Tensor:
    """E[x_0 | x_0 + sigma n = z] in the eigenvectors of one covariance L for all components, from matrix products alone.

    z (B, n), levels (B or 1, 1), values L (1, n or 1), means (K, n): nothing of size B K n is made, because in
    |z - mu_k|^2 = |z|^2 - 2 z^T mu_k + |mu_k|^2 the first term is the same for all k (norms weighted by 1 / (L + sigma^2)).
    """
    precision = (1 / (values + levels**2)).expand(-1, z.shape[1])  # [batch or 1, n]
    logits = log_weights + (z * precision) @ means.mT - 0.5 * precision @ means.mT.square()
    return precision * (values * z + levels**2 * (logits.softmax(1) @ means))


def _ordinary(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _log_normal(offset: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """log N(offset; 0, diag variance): [batch, comp, n], [batch or 1, comp or 1, n or 1] -> [batch, comp]."""
    size = offset.shape[-1]
    spread = (2 * math.pi * variance).log().sum(-1) * (size // variance.shape[-1])
    return -0.5 * ((offset.square() / variance).sum(-1) + spread)


def _thin_svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (m, min(m, n)), S (n,) padded with zeros, V (n, n) orthogonal."""
    rows, columns = matrix.shape
    left, values, right = torch.linalg.svd(matrix, full_matrices=rows < columns)
    return left, torch.nn.functional.pad(values, (0, columns - len(values))), right.mT


def _log_evidence(
    residuals: torch.Tensor, left: torch.Tensor, squares: torch.Tensor, sigma_y: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log N(r_k; 0, U diag(squares_k) U^T + sigma_y^2 I), [comp]; and U^T r_k, [comp, p].

    residuals [comp, m], left [m, p] orthonormal columns, squares [comp or 1, p].
    """
    inside = residuals @ left
    outside = residuals - inside @ left.mT
    p, m = left.shape[1], left.shape[0]
    noise = math.log(2 * math.pi * sigma_y**2) * (m - p) + outside.square().sum(1) / sigma_y**2
    total = squares + sigma_y**2
    return -0.5 * ((inside.square() / total + (2 * math.pi * total).log()).sum(1) + noise), inside


def _scaled_identity_update(
    spectrum: Spectrum, matrix: torch.Tensor, residuals: torch.Tensor, sigma_y: float
) -> tuple[torch.Tensor, Spectrum, torch.Tensor]:
    """C_k = c_k I: one SVD A = U S V^T serves all components, and V is the basis of every posterior covariance."""
    left, values, basis = _thin_svd(matrix)
    p, variances = left.shape[1], spectrum.values  # [comp or 1, 1]
    total = variances * values**2 + sigma_y**2  # [comp or 1, n]
    evidence, inside = _log_evidence(residuals, left, variances * values[:p] ** 2, sigma_y)
    shifts = (variances * values[:p] / total[:, :p] * inside) @ basis[:, :p].mT
    return shifts, Spectrum(variances * sigma_y**2 / total, basis[None]), evidence


def _general_update(
    spectrum: Spectrum, matrix: torch.Tensor, residuals: torch.Tensor, sigma_y: float
) -> tuple[torch.Tensor, Spectrum, torch.Tensor]:
    """C_k = R_k R_k^T, R_k = Q_k diag(L_k)^(1/2), G = A R_k = U S V^T, x_0 = mu_k + R_k u with u ~ N(0, I):

    Cov[u | y] = V diag(sigma_y^2 / (S^2 + sigma_y^2)) V^T,   E[u | y] = V diag(S / (S^2 + sigma_y^2)) U^T (y - A mu_k).
    """
    size, count = matrix.shape[1], len(residuals)
    shared = len(spectrum.values) == 1
    shifts, spectra, evidences = [], [], []
    for k in range(1 if shared else count):
        root = spectrum.values[k].sqrt().expand(size)
        factor = torch.diag(root) if spectrum.basis is None else spectrum.basis[min(k, len(spectrum.basis) - 1)] * root
        left, values, right = _thin_svd(matrix @ factor)
        p = left.shape[1]
        evidence, inside = _log_evidence(
            residuals if shared else residuals[k : k + 1], left, values[None, :p] ** 2, sigma_y
        )
        total = values**2 + sigma_y**2
        shifts.append((values[:p] / total[:p] * inside) @ (factor @ right[:, :p]).mT)
        # Cov[x_0 | y] = F F^T; the SVD of F keeps eigenvalues that F F^T would round away.
        basis, roots, _ = torch.linalg.svd(factor @ right * (sigma_y / total.sqrt()))
        spectra.append(Spectrum(roots[None] ** 2, basis[None]))
        evidences.append(evidence)
    bases = torch.cat([part.basis for part in spectra if part.basis is not None])
    return torch.cat(shifts), Spectrum(torch.cat([part.values for part in spectra]), bases), torch.cat(evidences)
