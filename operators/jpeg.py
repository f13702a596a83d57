"""JPEG compression: a real codec forward (Pillow, libjpeg), and the same steps in torch for derivatives.

The steps (ITU-T T.81): colours to luminance and two chrominances, these averaged over 2 x 2 pixels (subsampling=4:2:0), the
DCT-II of 8 x 8 blocks, each coefficient divided by the entry of a table and rounded; and back.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from invdiff.errors import UsageError
from invdiff.operator import Operator, Shape
from invdiff.specs.parameters import parameter, whole

from .tools.shapes import channels_and_size, require_batch
from .tools.straight_through import straight_through
from .tools.tables import Constant, working

# ITU-T T.81, tables K.1 and K.2, which libjpeg scales with the quality.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMINANCE = (
    (17, 18, 24, 47, *[99] * 4), (18, 21, 26, 66, *[99] * 4), (24, 26, 56, *[99] * 5), (47, 66, *[99] * 6),
    *[(99,) * 8] * 4,
)  # fmt: skip
# JFIF: luminance and chrominances (around 0) of red, green and blue.
YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
SUBSAMPLING = {"4:4:4": 1, "4:2:0": 2}


@dataclass(frozen=True, eq=False)
class JPEG(Operator):
    """y = x after JPEG compression: clipped to [0, 1], rounded to 8 bits, encoded and decoded by Pillow.

    (C, H, W) -> (C, H, W), grey or colour (C = 1 or 3), each image of a batch alone. Derivatives are those of the same
    steps with rounding taken as the identity: they know what clipping and subsampling lose, and no block boundaries.
    """

    name: ClassVar[str] = "jpeg"
    linear: ClassVar[bool] = False
    family: ClassVar[str] = "compression"

    quality: int = parameter(20, kind=whole, low=1, high=100, help="libjpeg's quality")
    subsampling: str = parameter("4:2:0", kind=str, choices=tuple(SUBSAMPLING), help="resolution of the colours")

    def measurement_shape(self, shape: Shape) -> Shape:
        channels, height, width = channels_and_size(self.name, shape)
        if channels not in (1, 3):
            raise UsageError(
                f"{self}: takes images of 1 or 3 channels, got {channels}; compress the channels one by one"
            )
        if max(height, width) > 65535:
            raise UsageError(f"{self}: a JPEG file has at most 65535 pixels a side, got {height} x {width}; cut it")
        return shape

    def image_shape(self, shape: Shape) -> Shape:
        return self.measurement_shape(shape)

    def first_guess(self, y: torch.Tensor) -> torch.Tensor:
        """y between 0 and 1."""
        return y.clamp(0, 1)

    def A(self, x: torch.Tensor) -> torch.Tensor:
        self.measurement_shape(require_batch(self.name, x))
        return straight_through(self._codec, x, self.model(x))

    def _codec(self, x: torch.Tensor) -> torch.Tensor:
        """Through a JPEG file in memory, one for each image."""
        levels = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
        decoded = np.stack([self._file(image) for image in levels])
        return torch.from_numpy(decoded).to(x).movedim(-1, 1) / 255

    def _file(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        grey = image.shape[-1] == 1
        file = io.BytesIO()
        picture = Image.fromarray(image[..., 0] if grey else image)
        picture.save(file, "JPEG", quality=self.quality, **({} if grey else {"subsampling": self.subsampling}))
        with Image.open(file) as decoded:
            return np.asarray(decoded).reshape(image.shape)

    def model(self, x: torch.Tensor) -> torch.Tensor:
        """The codec's steps in torch, (B, C, H, W): equal to it but for its whole numbers in between."""
        height, width = x.shape[-2:]
        factor = SUBSAMPLING[self.subsampling] if x.shape[1] == 3 else 1
        planes = 255 * working(x).clamp(0, 1)
        if x.shape[1] == 3:
            planes = torch.einsum("kc,bchw->bkhw", _matrix(YCBCR, planes), planes)
        tall, wide = (-side % (8 * factor) for side in (height, width))
        planes = functional.pad(planes, (0, wide, 0, tall), "replicate")
        luminance = _coded(planes[:, :1] - 128, self._table(LUMINANCE, planes)) + 128
        if x.shape[1] == 3:
            colours = functional.avg_pool2d(planes[:, 1:], factor) if factor > 1 else planes[:, 1:]
            colours = _coded(colours, self._table(CHROMINANCE, planes))
            if factor > 1:  # libjpeg's "fancy upsampling" has the weights 3/4 and 1/4, which bilinear ones are
                colours = functional.interpolate(colours, scale_factor=float(factor), mode="bilinear")
            planes = torch.cat([luminance, colours], 1)
            luminance = torch.einsum("kc,bchw->bkhw", torch.linalg.inv(_matrix(YCBCR, planes)), planes)
        return (luminance[..., :height, :width] / 255).clamp(0, 1).to(x.dtype)

    def _table(self, table: tuple[tuple[int, ...], ...], like: torch.Tensor) -> torch.Tensor:
        """libjpeg's rule: quality 50 is the table itself, 100 nearly all ones."""
        percent = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        return ((_matrix(table, like) * percent + 50) / 100).floor().clamp(1, 255)


def _matrix(rows: tuple[tuple[float, ...], ...], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).to(like)


def _coded(planes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Planes (B, C, H, W), sides multiples of 8, after rounding their DCT coefficients to multiples of the table."""
    D = _DCT.like(planes)
    B, C, H, W = planes.shape
    blocks = planes.reshape(B, C, H // 8, 8, W // 8, 8).transpose(3, 4)  # [B, C, H/8, W/8, 8, 8]
    scaled = D @ blocks @ D.T / table
    coded = D.T @ (straight_through(torch.round, scaled, scaled) * table) @ D
    return coded.transpose(3, 4).reshape(B, C, H, W)


def _dct() -> torch.Tensor:
    k, n = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    D = torch.cos(torch.pi * k * (2 * n + 1) / 16) / 2
    D[0] /= 2**0.5
    return D


_DCT = Constant(_dct())
