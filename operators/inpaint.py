"""Inpainting: some pixels are lost."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from invdiff.errors import InputWarning, UsageError
from invdiff.files.images import read_image
from invdiff.operator import Operator, Shape
from invdiff.operator.arrays import file_or_array, fingerprint, load
from invdiff.specs.parameters import format_spec, parameter, truth, whole

from .masking import Masking, random_mask
from .tools.strokes import free_form


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
    """y = m x with a mask m of 0 and 1: (C, H, W) -> (C, H, W), zeros where pixels are lost.

    One of four ways to say which: mask, a picture or .npy file (in Python also a tensor or array) of the image's size, of
    which values above half the largest are measured (InputWarning if there are others than 0 and that); box, the
    rectangle that is lost; strokes, so many random brush strokes, `width` px wide, that are lost (strokes.py); keep, the
    share of pixels that is MEASURED, at random places given by seed, height and width alone. Without any, keep=0.5.
    The mask is the same for all channels (those of a mask picture are averaged); with per_channel, each channel of a
    mask belongs to that channel of the image, and random pixels are drawn for each channel by itself. SVD: pixels, s = m.
    Raises UsageError for two ways at once, a mask of another size than the image, or a box that does not fit into it.
    """

    name: ClassVar[str] = "inpaint"

    mask: str | np.ndarray | None = parameter(None, kind=file_or_array, help="picture or .npy file: bright = measured")
    box: Box | None = parameter(None, kind=box, unit="px", help="lost rectangle: HxW in the middle, or HxW+TOP+LEFT")
    strokes: int | None = parameter(None, kind=whole, low=1, high=1000, help="number of lost brush strokes")
    width: float | None = parameter(None, unit="px", low=1, high=1000, help="strokes: their width (8 if not given)")
    keep: float | None = parameter(
        None, above=0, high=1, help="share of pixels measured (0.5 if nothing else is given)"
    )
    seed: int | None = parameter(None, kind=whole, low=0, help="which strokes or random pixels (0 if not given)")
    per_channel: bool = parameter(False, kind=truth, help="mask, keep: another mask for each channel")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("mask", "box", "strokes", "keep") if getattr(self, name) is not None] or ["keep"]
        if len(given) > 1:
            raise UsageError(f"inpaint: {' and '.join(given)} are given; choose one of mask, box, strokes, keep")
        (way,) = given
        if self.seed is not None and way in ("mask", "box"):
            raise UsageError(f"inpaint: seed={self.seed} has no effect on {way}; drop it, or use keep or strokes")
        if self.width is not None and way != "strokes":
            raise UsageError(f"inpaint: width={self.width:g} has no effect on {way}; drop it, or add strokes=4")
        if self.per_channel and way in ("box", "strokes"):
            raise UsageError(f"inpaint: per_channel has no effect on {way}; drop it, or use mask or keep")
        if self.mask is not None:
            # A wrong file is an error now rather than at the first measurement.
            self._given(self.mask)

    def _mask(self, shape: Shape) -> torch.Tensor:
        channels, *size = shape
        height, width = size
        if self.mask is not None:
            mask = self._given(self.mask)
            if list(mask.shape[1:]) != size:
                raise UsageError(
                    f"inpaint: mask is {mask.shape[1]}x{mask.shape[2]} but the image is {height}x{width}; "
                    "give a mask of the image's size"
                )
            if self.per_channel and len(mask) != channels:
                raise UsageError(
                    f"inpaint: mask has {len(mask)} channels but the image has {channels}; leave out per_channel"
                )
            return mask
        if self.box is not None:
            return self._outside(self.box, (height, width))[None]
        if self.strokes is not None:
            drawn = free_form(self.seed or 0, self.strokes, self.width or 8.0, height, width)
            if not drawn.any():
                raise UsageError(f"inpaint: {self} covers the whole image {height}x{width}; lower strokes or width")
            return torch.from_numpy(drawn)[None]
        keep = 0.5 if self.keep is None else self.keep
        if self.per_channel:
            return torch.stack([random_mask(self.seed or 0, keep, (height, width), c + 1) for c in range(channels)])
        return random_mask(self.seed or 0, keep, (height, width))[None]

    def _given(self, source: str | np.ndarray) -> torch.Tensor:
        mask: torch.Tensor = self.cached("given", lambda: self._read(source))
        return mask

    def _read(self, source: str | np.ndarray) -> torch.Tensor:
        """The mask as zeros and ones, (1, H, W) or with per_channel (C, H, W)."""
        if isinstance(source, str) and Path(source).suffix.lower() not in (".npy", ".npz", ""):
            picture = read_image(source).tensor.double()
        else:
            array = load(source, self.name, "mask")
            while array.ndim > 3 and array.shape[0] == 1:
                array = array[0]
            if array.ndim not in (2, 3):
                raise UsageError(f"inpaint: mask has shape {array.shape}; it must be (height, width) or (C, H, W)")
            picture = torch.from_numpy(array.reshape(-1, *array.shape[-2:]).copy())
        if picture.min() < 0:
            raise UsageError(f"inpaint: mask has negative values, down to {float(picture.min()):.3g}; 0 means lost")
        top = picture.max()
        if top <= 0:
            raise UsageError(
                "inpaint: mask is black everywhere, so nothing is measured; bright pixels are the measured ones"
            )
        if len(picture) > 1 and not self.per_channel:
            if (picture != picture[:1]).any():
                warnings.warn(
                    f"inpaint: the {len(picture)} channels of mask differ and are averaged; "
                    "add per_channel=true to take each for itself",
                    InputWarning,
                    stacklevel=2,
                )
            picture = picture.mean(0, keepdim=True)
        between = float(((picture > 0) & (picture < top)).double().mean())
        if between > 0:
            warnings.warn(
                f"inpaint: {100 * between:.2g} % of mask is neither 0 nor its largest value {float(top):.3g}; what is "
                "above half of that counts as measured, the rest as lost",
                InputWarning,
                stacklevel=2,
            )
        # Half the largest value, so that 0/1, 0/255 and a softened edge all read alike.
        observed = (picture > 0.5 * top).double()
        if not observed.any():
            raise UsageError("inpaint: no mean of the channels of mask is above half, so nothing is measured")
        return observed

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
            return f"{self.name}:mask={fingerprint(self.mask)}" + (",per_channel=True" if self.per_channel else "")
        return format_spec(self.name, self)

    __hash__ = Operator.__hash__
