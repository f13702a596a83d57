"""Inpainting: some pixels are lost, in all channels at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from invdiff.errors import UsageError
from invdiff.images import read_image
from invdiff.operator import Operator, Shape
from invdiff.parameters import format_spec, parameter, whole

from .arrays import file_or_array, fingerprint, load
from .masking import Masking, random_mask


@dataclass(frozen=True)
class Box:
    """A rectangle of height x width px; its first row and column, or None for the middle of the image."""

    height: int
    width: int
    corner: tuple[int, int] | None = None

    def __str__(self) -> str:
        place = "" if self.corner is None else f"+{self.corner[0]}+{self.corner[1]}"
        return f"{self.height}x{self.width}{place}"


def box(value: Any) -> Box:
    """rectangle such as 16x16 (in the middle) or 16x16+TOP+LEFT"""
    if isinstance(value, Box):
        return value
    found = re.fullmatch(r"(\d+)x(\d+)(?:\+cent(?:er|re)|\+(\d+)\+(\d+))?", str(value).strip().lower())
    if not found or int(found[1]) == 0 or int(found[2]) == 0:
        raise ValueError("write HEIGHTxWIDTH, HEIGHTxWIDTH+center or HEIGHTxWIDTH+TOP+LEFT in pixels")
    return Box(int(found[1]), int(found[2]), (int(found[3]), int(found[4])) if found[3] else None)


@dataclass(frozen=True, eq=False)
class Inpaint(Masking):
    """y = m x with a mask m of 0 and 1, one for all channels: (C, H, W) -> (C, H, W), zeros where pixels are lost.

    One of three ways to say which: mask, a picture or .npy file (in Python also a tensor or array) of the image's size,
    of which values above half the largest are measured; box, the rectangle that is lost; keep, the share of pixels that
    is MEASURED, at random places given by seed, height and width alone. Without any, keep=0.5. SVD: pixels, s = m.
    Raises UsageError for two ways at once, a mask of another size than the image, or a box that does not fit into it.
    """

    name: ClassVar[str] = "inpaint"

    mask: str | np.ndarray | None = parameter(None, kind=file_or_array, help="picture or .npy file: bright = measured")
    box: Box | None = parameter(None, kind=box, unit="px", help="lost rectangle: HxW in the middle, or HxW+TOP+LEFT")
    keep: float | None = parameter(
        None, above=0, high=1, help="share of pixels measured (0.5 if nothing else is given)"
    )
    seed: int | None = parameter(None, kind=whole, low=0, help="which random pixels, for keep (0 if not given)")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("mask", "box", "keep") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"inpaint: {' and '.join(given)} are given; choose one of mask, box, keep")
        if self.seed is not None and given and given != ["keep"]:
            raise UsageError(f"inpaint: seed={self.seed} has no effect on {given[0]}; drop it, or use keep")
        if self.mask is not None:
            # A wrong file is an error now rather than at the first measurement.
            self._given(self.mask)

    def _mask(self, shape: Shape) -> torch.Tensor:
        size = (shape[-2], shape[-1])
        if self.mask is not None:
            mask = self._given(self.mask)
            if tuple(mask.shape[1:]) != size:
                raise UsageError(
                    f"inpaint: mask is {mask.shape[1]}x{mask.shape[2]} but the image is {size[0]}x{size[1]}; "
                    "give a mask of the image's size"
                )
            return mask
        if self.box is not None:
            return self._outside(self.box, size)[None]
        return random_mask(self.seed or 0, 0.5 if self.keep is None else self.keep, size)[None]

    def _given(self, source: str | np.ndarray) -> torch.Tensor:
        mask: torch.Tensor = self.cached("given", lambda: self._read(source))
        return mask

    def _read(self, source: str | np.ndarray) -> torch.Tensor:
        if isinstance(source, str) and Path(source).suffix.lower() not in (".npy", ".npz", ""):
            picture = read_image(source).tensor.double().mean(0)
        else:
            array = load(source, self.name, "mask")
            while array.ndim > 2 and array.shape[0] == 1:
                array = array[0]
            if array.ndim != 2:
                raise UsageError(f"inpaint: mask has shape {array.shape}; it must be (height, width)")
            picture = torch.from_numpy(array.copy())
        # Half the largest value, so that 0/1, 0/255 and a softened edge all read alike.
        observed = (picture > 0.5 * picture.max()).double()
        if picture.max() <= 0:
            raise UsageError(
                "inpaint: mask is black everywhere, so nothing is measured; bright pixels are the measured ones"
            )
        return observed[None]

    @staticmethod
    def _outside(box: Box, size: tuple[int, int]) -> torch.Tensor:
        top, left = box.corner or ((size[0] - box.height) // 2, (size[1] - box.width) // 2)
        if top < 0 or left < 0 or top + box.height > size[0] or left + box.width > size[1]:
            raise UsageError(
                f"inpaint: box={box} does not fit into the image {size[0]}x{size[1]}; make it smaller or move it"
            )
        if (box.height, box.width) == size:
            raise UsageError(f"inpaint: box={box} covers the whole image, so nothing is measured; make it smaller")
        mask = torch.ones(size, dtype=torch.float64)
        mask[top : top + box.height, left : left + box.width] = 0
        return mask

    @property
    def spec(self) -> str:
        """Text that builds it again; for a mask handed over in Python a text that identifies its content."""
        if isinstance(self.mask, np.ndarray):
            return f"{self.name}:mask={fingerprint(self.mask)}"
        return format_spec(self.name, self)

    __hash__ = Operator.__hash__
