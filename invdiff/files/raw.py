"""Raw measurements with explicit axes: k-space, sinograms, counts, from .npy, .npz, .h5 / .hdf5 and TIFF files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from invdiff.errors import ImageError, UsageError
from invdiff.files.decoding import reading
from invdiff.files.images import ImageFile

if TYPE_CHECKING:
    import torch

HDF5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES, ".tif", ".tiff")
AXES = ("C", "HW", "CHW")
"""The axes that a measurement may have; where none are given, an array of 1, 2 or 3 dimensions has these."""


@dataclass(frozen=True)
class Layout:
    """How to read an array.

    key: its name in an .npz or HDF5 file, with indices into its first axes if wanted, kspace[17]; [17] alone for an .npy.
    axes: the stored axes in order, from C (first axis of the measurement, such as channels or coils), H (second), W (third),
    and 2 (real and imaginary part). scale: factor on every value; integers need one.
    """

    key: str | None = None
    axes: str | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.axes is not None and "".join(sorted(self.axes.replace("2", "", 1))) not in AXES:
            raise UsageError(
                f"--axes {self.axes} must name each stored axis once: C, H and W in any order, HW, or C; and 2 for real and "
                "imaginary part"
            )
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise UsageError(f"--scale {self.scale} must be more than 0 and finite")

    @property
    def given(self) -> bool:
        """Whether the user set any of the fields."""
        return self != Layout()


def is_raw(path: Path, layout: Layout) -> bool:
    """Whether `read_raw` reads a file: an HDF5 file always, the other formats only where a layout is given."""
    return path.suffix.lower() in (SUFFIXES if layout.given else HDF5_SUFFIXES)


def read_raw(path: Path, layout: Layout) -> ImageFile:
    """A measurement (C, H, W), or a vector (C,); (H, W) becomes (1, H, W). Complex values become two real channels each,
    real then imaginary: (C, H, W) -> (2C, H, W), [re_0, im_0, re_1, im_1, ...].

    Raises ImageError for what cannot be read, and UsageError for a layout that does not fit the array.
    """
    import torch

    name, index = _key(layout.key)
    with reading(path):
        array = _stored(path, name)
    stored = array.shape
    if len(index) > array.ndim or any(i >= n for i, n in zip(index, stored, strict=False)):
        raise UsageError(f"{path}: --key index {list(index)} is outside an array of shape {stored}")
    array = array[index]
    values = _as_float(array, path, layout.scale)
    if not np.isfinite(values).all():
        raise ImageError(
            f"cannot read {path}: {int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite."
        )
    y = _arranged(values, path, layout.axes)
    notes = (
        []
        if layout.axes
        else [f"shape {array.shape} taken as {AXES[min(array.ndim, 3) - 1]}; say otherwise with --axes"]
    )
    if np.iscomplexobj(array) or "2" in (layout.axes or ""):
        notes.append(f"complex values as two real channels each: {tuple(y.shape)}")
    tensor: torch.Tensor = torch.from_numpy(np.ascontiguousarray(y, dtype=np.float32))
    return ImageFile(tensor, f"{array.dtype} array of shape {stored}", tuple(notes))


def _key(key: str | None) -> tuple[str | None, tuple[int, ...]]:
    found = re.fullmatch(r"(.*?)(?:\[(\d+(?:,\d+)*)\])?", key or "")
    if found is None:
        raise UsageError(f"--key {key!r} is neither NAME nor NAME[i,j]")
    return found[1] or None, tuple(map(int, found[2].split(","))) if found[2] else ()


def _stored(path: Path, name: str | None) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix in HDF5_SUFFIXES:
        return _hdf5(path, name)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return np.asarray(file[_chosen(path, name, file.files)])
    if name is not None:
        raise UsageError(f"{path}: --key {name} chooses an array of an .npz or .h5 file; this file holds only one")
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    import tifffile

    return np.asarray(tifffile.imread(path))


def _hdf5(path: Path, name: str | None) -> np.ndarray:
    try:
        import h5py
    except ModuleNotFoundError:
        raise ImageError("HDF5 files need the package h5py; pip install h5py") from None
    with h5py.File(path, "r") as file:
        held: list[str] = []
        file.visititems(lambda entry, item: held.append(entry) if isinstance(item, h5py.Dataset) else None)
        return np.asarray(file[_chosen(path, name, held)])


def _chosen(path: Path, name: str | None, held: list[str]) -> str:
    if name is None and len(held) == 1:
        return held[0]
    if name is None or name.strip("/") not in held:
        wanted = "several arrays" if name is None else f"no array {name!r}"
        raise UsageError(f"{path} holds {wanted}: choose one with --key {'|'.join(sorted(held)) or '...'}")
    return name.strip("/")


def _as_float(array: np.ndarray, path: Path, scale: float | None) -> np.ndarray:
    if array.dtype.kind not in "biufc" or array.size == 0:
        raise ImageError(f"cannot read {path}: {array.dtype} values of shape {array.shape} are no measurement.")
    if array.dtype.kind in "biu" and scale is None:
        raise UsageError(
            f"{path} holds {array.dtype} values: say with --scale what one is worth in [0, 1] units (the gain of "
            "poisson:gain=1/255 is --scale 1/255)"
        )
    wide: Any = np.complex128 if array.dtype.kind == "c" else np.float64
    return array.astype(wide) * (1.0 if scale is None else scale)


def _arranged(values: np.ndarray, path: Path, axes: str | None) -> np.ndarray:
    axes = AXES[values.ndim - 1] if axes is None and 1 <= values.ndim <= 3 else axes
    if axes is None or len(axes) != values.ndim:
        wanted = f"--axes {axes} names {len(axes)}" if axes else "name them with --axes"
        raise UsageError(
            f"{path} holds an array of {values.ndim} axes, {values.shape}; {wanted}, or choose a part with --key 'NAME[0]'"
        )
    if "2" in axes:
        place = axes.index("2")
        if values.shape[place] != 2 or np.iscomplexobj(values):
            raise UsageError(f"{path}: axis 2 of --axes {axes} must hold two real numbers, not {values.shape[place]}")
        real, imaginary = np.moveaxis(values, place, 0)
        values, axes = real + 1j * imaginary, axes.replace("2", "")
    values = values.transpose([axes.index(letter) for letter in "CHW" if letter in axes])
    values = values if "C" in axes else values[None]
    if np.iscomplexobj(values):  # [re_0, im_0, re_1, im_1, ...]
        values = np.stack([values.real, values.imag], 1).reshape(2 * len(values), *values.shape[1:])
    return values
