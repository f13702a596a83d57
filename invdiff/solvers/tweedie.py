"""p(x_0 | x) as a Gaussian by its first two moments, and the measurement it predicts.

    E[x_0 | x] = D(x),    Cov[x_0 | x] = sigma^2 J(x),    J = dD/dx

(Efron 2011, "Tweedie's formula and selection bias", for the mean; the covariance is the next derivative of the same
generating function.) J is symmetric for an exact denoiser, so that products with the covariance are vector-Jacobian
products, one backward pass each; no matrix is formed. With A linearised at D(x), H = dA/dx (H = A if A is linear),

    y | x ~ N(A(D(x)), H Cov H^T + sigma_y^2 I).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from invdiff.operator.contract import Operator
from invdiff.operator.linalg import dot, over
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import denoise_with_vjp


@dataclass(frozen=True, eq=False)
class Moments:
    """What x at the level sigma says of x_0 and of y.

    clean: D(x), (B, *image shape); residual: y - A(D(x)), (B, *measurement shape); pull_back: v -> J^T v on images.
    """

    operator: Operator
    sigma: float
    clean: torch.Tensor
    residual: torch.Tensor
    pull_back: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def at(cls, problem: Problem, prior: Prior, x: torch.Tensor, sigma: float) -> Moments:
        """One network call; `covariance_adjoint` costs one backward pass each time."""
        clean, pull_back = denoise_with_vjp(prior, x, sigma, repeat=True)
        return cls(problem.operator, sigma, clean, problem.y - problem.operator.A(clean), pull_back)

    def covariance_adjoint(self, v: torch.Tensor) -> torch.Tensor:
        """Cov H^T v, an image, for v like a measurement."""
        return self.sigma**2 * self.pull_back(self.operator.A_vjp(self.clean, v))

    def predicted_covariance(self, v: torch.Tensor) -> torch.Tensor:
        """H Cov H^T v, like a measurement."""
        return self.operator.A_jvp(self.clean, self.covariance_adjoint(v))

    def conditioned(self, variance: float, iterations: int) -> torch.Tensor:
        """E[x_0 | x, y] = D + Cov H^T q with S q = y - A(D), S = H Cov H^T + variance I, (B, *image shape).

        By conjugate residuals, `iterations` at most and each one backward pass: q minimises ||y - A(D) - S q|| over span{r,
        S r, S^2 r, ..}. Their generalised form (Eisenstat, Elman, Schultz 1983) needs no symmetry, which a network's J lacks:
        conjugate gradients lose their way there. The image moves along with q, so Cov H^T q costs nothing more. A row stops
        where its residual has vanished or its span holds nothing new, to rounding, or where S seems to have no positive
        curvature.
        """
        r, estimate = self.residual, self.clean
        rounding = 100 * torch.finfo(r.dtype).eps
        limit = dot(r, r) * (0.1 * rounding) ** 2
        done = torch.zeros_like(limit, dtype=torch.bool)
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # S p with norm 1 and mutually orthogonal, and Cov H^T p
        for _ in range(iterations):
            image = self.covariance_adjoint(r)
            Sp = self.operator.A_jvp(self.clean, image) + variance * r
            done = done | (dot(r, r) <= limit) | ~(dot(r, Sp) > 0)
            if done.all():
                break
            size = dot(Sp, Sp).sqrt()
            for other, other_image in seen:
                share = dot(Sp, other)
                Sp, image = Sp - share * other, image - over(share, image) * other_image
            norm = dot(Sp, Sp).sqrt()
            done = done | ~(norm > rounding * size)
            scale = torch.where(done, 0.0, 1 / torch.where(done, 1.0, norm))
            Sp, image = scale * Sp, over(scale, image) * image
            seen.append((Sp, image))
            length = dot(r, Sp)
            r, estimate = r - length * Sp, estimate + over(length, image) * image
        return estimate
