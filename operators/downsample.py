"""Super-resolution: y is a smaller image, averaged or filtered before every factor-th pixel is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import avg_pool2d, interpolate

from invdiff.errors import UsageError
from invdiff.operator import SVD, Shape
from invdiff.specs.parameters import parameter, whole

from .filtering import Filter
from .tools.kernels import Stencil, bicubic, gaussian, lanczos, separable
from .tools.shapes import require_batch


@dataclass(frozen=True, eq=False)
class Downsample(Filter):
    """y[i] = sum_t w[t] x[factor i + (factor - 1)/2 + t]: (C, H, W) -> (C, H / factor, W / factor).

    Every y pixel is centred on its factor x factor block (half-pixel alignment), so nothing shifts. kernel=average: the
    mean over the block. kernel=bicubic: Keys' cubic, a = -1/2, stretched by the factor (support 4 factor), which with
    boundary=reflect is MATLAB's imresize, the convention of the super-resolution literature. kernel=lanczos: three lobes,
    stretched likewise (support 6 factor), Pillow's LANCZOS but for its edges. kernel=gaussian: standard deviation sigma
    px of x, by default factor / 2, cut at 4 sigma. Always has an SVD.
    Raises UsageError unless H and W are multiples of the factor and hold the kernel.
    """

    name: ClassVar[str] = "downsample"
    family: ClassVar[str] = "downsampling"
    _smaller: ClassVar[str] = "lower factor, or use kernel=average"

    factor: int = parameter(4, kind=whole, low=2, high=16, help="how many times fewer pixels each way")
    kernel: str = parameter(
        "average", kind=str, choices=("average", "bicubic", "lanczos", "gaussian"), help="weights of one y pixel"
    )
    sigma: float | None = parameter(
        None, unit="px", above=0, help="kernel=gaussian: its width in x (factor / 2 if not given)"
    )
    boundary: str | None = parameter(
        None, kind=str, choices=("reflect", "circular"), help="outside the image, but for average (reflect)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None and self.kernel != "gaussian":
            raise UsageError(
                f"downsample: sigma={self.sigma:g} has no effect on kernel={self.kernel}; add kernel=gaussian"
            )
        if self.boundary is not None and self.kernel == "average":
            raise UsageError(
                f"downsample: boundary={self.boundary} has no effect on kernel=average, which stays inside"
            )

    @property
    def _boundary(self) -> str:
        return self.boundary or "reflect"

    @property
    def _factor(self) -> int:
        return self.factor

    def _stencil(self) -> Stencil:
        if self.kernel == "bicubic":
            return separable(*bicubic(self.factor))
        if self.kernel == "lanczos":
            return separable(*lanczos(self.factor))
        if self.kernel == "gaussian":
            return separable(*gaussian(self.sigma or self.factor / 2, offset=(self.factor - 1) / 2))
        return separable(torch.full((self.factor,), 1 / self.factor, dtype=torch.float64).numpy(), 0)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel != "average":
            return super().A(x)
        self.measurement_shape(require_batch(self.name, x))
        return avg_pool2d(x, self.factor)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        if self.kernel != "average":
            return super().A_adjoint(y)
        require_batch(self.name, y)
        return interpolate(y, scale_factor=float(self.factor), mode="nearest") / self.factor**2

    def prox_l2(self, z: torch.Tensor, y: torch.Tensor, gamma: float) -> torch.Tensor:
        if self.kernel != "average":
            return super().prox_l2(z, y, gamma)
        # A A^T = I / factor^2:  z + gamma A^T (y - A z) / (1 + gamma / factor^2)
        return z + self.A_adjoint((gamma / (1 + gamma / self.factor**2)) * (y - self.A(z)))

    @property
    def tight(self) -> float | None:
        return 1 / self.factor if self.kernel == "average" else None

    def svd(self, shape: Shape) -> SVD:
        if self.kernel != "average":
            return super().svd(shape)
        f = self.factor
        s = torch.full(self.measurement_shape(shape), 1 / f, dtype=torch.float64)
        return SVD(s, lambda c: c, lambda y: y, lambda c: f * self.A_adjoint(c), lambda x: f * self.A(x))
