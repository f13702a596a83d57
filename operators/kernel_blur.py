"""Blur by a kernel that the user has: measured, published, drawn."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from invdiff.errors import InputWarning, UsageError
from invdiff.files.images import read_image
from invdiff.operator import Operator
from invdiff.operator.arrays import file_or_array, fingerprint, load
from invdiff.specs.parameters import format_spec, parameter, truth

from .blur import boundary_parameter
from .filtering import Filter
from .tools.kernels import Stencil, convolution

# Brightness that is off by less than this is less than half a step of 8 bits: published kernels are rounded.
TOLD_ABOVE = 1e-3


@dataclass(frozen=True, eq=False)
class KernelBlur(Filter):
    """y[i] = sum_j k[j] x[i + c - j]: true convolution (not correlation) by any kernel, the same for every channel.

    kernel: a .npz, .npy or picture file, or in Python a (kh, kw) tensor or array; any size, square or not. A picture's
    channels are averaged. The centre is c = (kh // 2, kw // 2): the middle, or the later of the two middles for an even
    size (scipy.ndimage.convolve's). (C, H, W) -> (C, H, W), smaller for boundary=valid. SVD for boundary=circular, which
    wraps around and is an idealisation, for separable kernels, and for mirror-symmetric ones with boundary=reflect;
    otherwise inverses use conjugate gradients. Warns (InputWarning) of an even size, and of a sum that is not 1.
    Raises UsageError for an unreadable kernel, one that sums to zero with normalise, and one larger than the image.
    """

    name: ClassVar[str] = "kernel_blur"
    family: ClassVar[str] = "motion"

    kernel: str | np.ndarray = parameter(kind=file_or_array, help="kernel: .npz, .npy or picture file, tensor or array")
    key: str | None = parameter(None, kind=str, help="which array of an .npz file that holds several")
    normalise: bool = parameter(False, kind=truth, help="scale the kernel to sum 1")
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
        total = weights.sum()
        if self.normalise:
            if abs(total) <= 1e-12 * np.abs(weights).sum():
                raise UsageError(
                    "kernel_blur: kernel sums to zero, so it cannot be scaled to sum 1; leave out normalise"
                )
            weights = weights / total
        elif abs(total - 1) > TOLD_ABOVE:
            told = f"kernel_blur: kernel sums to {total:.4g}, so y is {total:.4g} times as bright as x"
            warnings.warn(f"{told}; add normalise=true to scale it to sum 1", InputWarning, stacklevel=2)
        if not all(size % 2 for size in weights.shape):
            height, width = weights.shape
            warnings.warn(
                f"kernel_blur: kernel {height}x{width} has an even size and so no middle; row {height // 2}, column "
                f"{width // 2} (counted from 0) is its centre; append a row or column of zeros to move it",
                InputWarning,
                stacklevel=2,
            )
        return convolution(weights)

    @property
    def spec(self) -> str:
        """Text that builds it again; for a kernel handed over in Python a text that identifies its content."""
        if isinstance(self.kernel, str):
            return format_spec(self.name, self)
        return f"{self.name}:kernel={fingerprint(self.kernel)},normalise={self.normalise},boundary={self.boundary}"

    __hash__ = Operator.__hash__
