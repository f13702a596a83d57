"""Pansharpening: a satellite takes one sharp picture over all wavelengths, and the channels at a lower resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from invdiff.errors import UsageError
from invdiff.operator import SVD, Operator, Shape
from invdiff.specs.parameters import parameter, whole

from .downsample import Downsample
from .mixing import mix
from .tools.separable import Factors, axis_matrix
from .tools.shapes import channels_and_size, require_batch
from .tools.tables import Constant


@dataclass(frozen=True, eq=False)
class Pansharpen(Operator):
    """y = (pan, D x): the mean of all channels at full resolution, and every channel downsampled by D.

    (C, H, W) -> (factor^2 + C, H / factor, W / factor). The first factor^2 channels hold pan, each factor x factor block
    of it as one pixel, so that everything has one grid: pan = torch.nn.functional.pixel_shuffle(y[:, :-C], factor);
    y[:, -C:] are the small channels. D is `downsample` with that factor and kernel, boundary reflect.
    SVD: with D's singular values d, they are sqrt(1/C + d^2) for the mean over channels (d = 0 for what D loses), and d for
    the differences of channels. Raises UsageError unless H and W are multiples.
    """

    name: ClassVar[str] = "pansharpen"
    family: ClassVar[str] = "downsampling"
    orthonormal_U: ClassVar[bool] = True

    factor: int = parameter(
        4, kind=whole, low=2, high=16, help="how many times fewer pixels each way the channels have"
    )
    kernel: str = parameter(
        "average", kind=str, choices=("average", "bicubic", "lanczos", "gaussian"), help="weights of one small pixel"
    )

    @property
    def _D(self) -> Downsample:
        return self.cached("D", lambda: Downsample(factor=self.factor, kernel=self.kernel))

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = self._D.measurement_shape(shape)
        return self.factor**2 + channels, height, width

    def image_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if channels <= self.factor**2:
            raise UsageError(
                f"pansharpen: a measurement has factor^2 = {self.factor**2} channels of pan and at least one more, "
                f"got {channels}; is the factor right?"
            )
        return self._D.image_shape((channels - self.factor**2, height, width))

    def usable_shape(self, shape: Shape) -> Shape:
        return self._D.usable_shape(shape)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(require_batch(self.name, x))
        pan = pixel_unshuffle(x.mean(1, keepdim=True), self.factor)
        return torch.cat([pan, self._D.A(x)], 1)

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        channels = self.image_shape(require_batch(self.name, y))[0]
        pan, small = y.split([self.factor**2, channels], 1)
        return pixel_shuffle(pan, self.factor) / channels + self._D.A_adjoint(small)

    @property
    def has_svd(self) -> bool:
        return True

    def svd(self, shape: Shape) -> SVD:
        """Coordinates (B, H W + (C - 1) h w), h = H / factor: of the mean over channels, in bases of rows and columns that
        diagonalise D and span everything; and of C - 1 differences of channels, in the part of these that D passes."""
        _, height, width = self.measurement_shape(shape)
        channels, *size = shape
        Q, rows, columns = self.cached(("svd", shape), lambda: self._decompose(shape))
        d = rows.s[:, None] * columns.s[None, :]
        power = torch.full(size, 1 / channels, dtype=torch.float64)
        power[:height, :width] += d**2
        s_mean = power.sqrt()
        # Shares of the two parts of a measurement in a unit vector u of the mean.
        in_pan, in_small = Constant(1 / (channels**0.5 * s_mean)), Constant(d / s_mean[:height, :width])

        def split(c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, rest = c.split([size[0] * size[1], (channels - 1) * height * width], 1)
            return mean.unflatten(1, (1, *size)), rest.unflatten(1, (channels - 1, height, width))

        def join(mean: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
            return torch.cat([mean.flatten(1), rest.flatten(1)], 1)

        def spread(mean: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
            return mix(Q.like(mean), torch.cat([mean, rest], 1))

        def V(c: torch.Tensor) -> torch.Tensor:
            mean, rest = split(c)
            passed = [axis.V.like(c)[:, :n] for axis, n in ((rows, height), (columns, width))]
            return spread(rows.V.like(c) @ mean @ columns.V.like(c).T, passed[0] @ rest @ passed[1].T)

        def V_adjoint(x: torch.Tensor) -> torch.Tensor:
            c = rows.V.like(x).T @ mix(Q.like(x).T, x) @ columns.V.like(x)
            return join(c[:, :1], c[:, 1:, :height, :width])

        def U(c: torch.Tensor) -> torch.Tensor:
            mean, rest = split(c)
            pan = rows.V.like(c) @ (in_pan.like(c) * mean) @ columns.V.like(c).T
            small = spread(in_small.like(c) * mean[..., :height, :width], rest)
            return torch.cat([pixel_unshuffle(pan, self.factor), rows.U.like(c) @ small @ columns.U.like(c).T], 1)

        def U_adjoint(y: torch.Tensor) -> torch.Tensor:
            pan, small = y.split([self.factor**2, channels], 1)
            mean = in_pan.like(y) * (rows.V.like(y).T @ pixel_shuffle(pan, self.factor) @ columns.V.like(y))
            c = mix(Q.like(y).T, rows.U.like(y).T @ small @ columns.U.like(y))
            shared = pad(in_small.like(y) * c[:, :1], (0, size[1] - width, 0, size[0] - height))
            return join(mean + shared, c[:, 1:])

        s = torch.cat([s_mean.flatten(), d.flatten().repeat(channels - 1)])
        return SVD(s, U=U, U_adjoint=U_adjoint, V=V, V_adjoint=V_adjoint)

    def _decompose(self, shape: Shape) -> tuple[Constant, Factors, Factors]:
        """An orthonormal basis of the channels that begins with their mean; D's rows and columns, with square V."""
        channels, *size = shape
        axes = self._D.stencil.axes
        assert axes is not None  # every kernel of Downsample is separable
        factors = []
        for weights, start, length in zip(axes, self._D.stencil.start, size, strict=True):
            matrix = axis_matrix(weights, start, self.factor, length, "reflect")
            U, s, Vh = torch.linalg.svd(torch.from_numpy(matrix), full_matrices=True)
            factors.append(Factors(Constant(U), s, Constant(Vh.T.contiguous())))
        begin = torch.eye(channels, dtype=torch.float64)
        begin[:, 0] = 1
        Q = torch.linalg.qr(begin).Q
        return Constant(Q * Q[0, 0].sign()), factors[0], factors[1]
