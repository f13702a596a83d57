"""Blur by a kernel that the user has: measured, published, drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from invdiff.errors import UsageError
from invdiff.images import read_image
from invdiff.operator import Operator
from invdiff.parameters import format_spec, parameter, truth

from .arrays import file_or_array, fingerprint, load
from .blur import boundary_parameter
from .filtering import Filter
from .kernels import Stencil, convolution


@dataclass(frozen=True, eq=False)
class KernelBlur(Filter):
    """y[i] = sum_j k[j] x[i + c - j]: true convolution (not correlation) by any kernel, the same for every channel.

    kernel: a .npz, .npy or picture file, or in Python a (kh, kw) tensor or array; any size, square or not. A picture's
    channels are averaged. The centre is c = (kh // 2, kw // 2): the middle, or the later of the two middles for an even
    size (scipy.ndimage.convolve's). (C, H, W) -> (C, H, W), smaller for boundary=valid. SVD only for boundary=circular,
    which wraps around and is an idealisation; otherwise inverses use conjugate gradients.
    Raises UsageError for an unreadable kernel, one that sums to zero with normalise, and one larger than the image.
    """

    name: ClassVar[str] = "kernel_blur"
    family: ClassVar[str] = "motion"

    kernel: str | np.ndarray = parameter(kind=file_or_array, help="kernel: .npz, .npy or picture file, tensor or array")
    key: str | None = parameter(None, kind=str, help="which array of an .npz file that holds several")
    normalise: bool = parameter(True, kind=truth, help="scale the kernel to sum 1")
    boundary: str = boundary_parameter()

    def __post_init__(self) -> None:
        super().__post_init__()
        # A wrong file is an error now rather than at the first measurement.
        _ = self.stencil

    def _stencil(self) -> Stencil:
        picture = isinstance(self.kernel, str) and Path(self.kernel).suffix.lower() not in (".npy", ".npz", "")
        if picture and self.key is not None:
            raise UsageError(f"kernel_blur: key={self.key!r} selects an array in an .npz file; drop key for a picture")
        if picture:
            weights = read_image(str(self.kernel)).tensor.double().mean(0).numpy()
        else:
            weights = load(self.kernel, self.name, "kernel", self.key)
        while weights.ndim > 2 and weights.shape[0] == 1:
            weights = weights[0]
        if weights.ndim != 2:
            raise UsageError(f"kernel_blur: kernel has shape {weights.shape}; it must be (height, width)")
        if self.normalise:
            total = weights.sum()
            if abs(total) <= 1e-12 * np.abs(weights).sum():
                raise UsageError(
                    "kernel_blur: kernel sums to zero, so it cannot be scaled to sum 1; add normalise=false"
                )
            weights = weights / total
        return convolution(weights)

    @property
    def spec(self) -> str:
        """Text that builds it again; for a kernel handed over in Python a text that identifies its content."""
        if isinstance(self.kernel, str):
            return format_spec(self.name, self)
        return f"{self.name}:kernel={fingerprint(self.kernel)},normalise={self.normalise},boundary={self.boundary}"

    __hash__ = Operator.__hash__
