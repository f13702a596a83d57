"""Reading image files into tensors and writing them, with the same convention for every format.

An image is a float32 tensor (C, H, W) in [0, 1]: the stored number divided by the format's full scale (255 or 65535).
Colour profiles and gamma are ignored. Grey stays one channel. Transparency is composited over white. An .npy is data
rather than a picture: its channels are never read as alpha and its floats are not scaled, because a measurement may lie
outside [0, 1]. Torch is imported only inside functions, so that `--help` stays fast.
"""

from __future__ import annotations

import difflib
import glob
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.errors import ImageError, NumericalError, UsageError
from invdiff.files.atomic import atomic_path
from invdiff.files.decoding import read_array, read_npy, read_picture, read_tiff, reading
from invdiff.files.encoding import encode, rounded

if TYPE_CHECKING:
    import numpy as np
    import torch

    from invdiff.files.decoding import Decoded

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".npy")
# What each format can store, its default first; 32 means float32, neither clipped nor rounded.
WRITABLE_BITS: dict[str, tuple[int, ...]] = {".png": (8, 16), ".jpg": (8,), ".jpeg": (8,), ".webp": (8,)}
WRITABLE_BITS |= {".tif": (32, 8, 16), ".tiff": (32, 8, 16), ".npy": (32,)}
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A picture as read: `tensor` (C, H, W) float32 in [0, 1] (an .npy or float TIFF may lie outside).

    `description` says what the file held, such as "8-bit RGB"; `notes` what was done to it, such as "opaque alpha
    channel dropped", for the user to see.
    """

    tensor: torch.Tensor
    description: str
    notes: tuple[str, ...] = ()


def read_image(path: str | os.PathLike[str]) -> ImageFile:
    """Read one image file: PNG, JPEG, WebP, BMP, TIFF (8, 16 bit or float) or .npy ((C, H, W), (H, W, C), (H, W)).

    The EXIF orientation is applied. Raises ImageError, with the file and the fix, for anything that is not such a file,
    is truncated or empty, has more than MAX_PIXELS pixels (or INVDIFF_MAX_PIXELS), or holds NaN or infinity.
    """
    import numpy as np
    import torch

    pixels, description, notes = _decoded(Path(path), {".npy": read_npy, ".tif": read_tiff, ".tiff": read_tiff})
    return ImageFile(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), description, tuple(notes))


def read_measurement(path: str | os.PathLike[str], fits: Callable[[tuple[int, ...]], object]) -> ImageFile:
    """As read_image; but an .npy that is no image, or whose image `fits` refuses, is read in the shape it has.

    fits(shape) raises UsageError for a shape that cannot be used. Where both readings fail, the first error is raised.
    """
    import torch

    path = Path(path)
    try:
        image = read_image(path)
        fits(tuple(image.tensor.shape))
        return image
    except (ImageError, UsageError):
        if path.suffix.lower() != ".npy" or not path.is_file():
            raise
        try:
            array, description, notes = _decoded(path, {".npy": read_array})
            fits(array.shape)
        except (ImageError, UsageError):
            pass  # the error as an image says more
        else:
            return ImageFile(torch.from_numpy(array.copy()), description, tuple(notes))
        raise


def _decoded(path: Path, readers: Mapping[str, Callable[[Path], Decoded]]) -> Decoded:
    """What the reader for the file's extension returns (default: read_picture), checked to be finite."""
    import numpy as np

    _require_file(path)
    with reading(path):
        pixels, description, notes = readers.get(path.suffix.lower(), read_picture)(path)
    bad = int(pixels.size - np.isfinite(pixels).sum())
    if bad:
        fix = "Repair them first, for instance with numpy.nan_to_num."
        raise ImageError(f"cannot read {path}: {bad} of {pixels.size} values are NaN or infinite. {fix}")
    return pixels, description, notes


def _require_file(path: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> None:
    """Refuse what no decoder could read, with the likely fix."""
    if path.is_dir():
        raise ImageError(f"cannot read {path}: it is a folder, not an image. Name a file inside it.")
    if not path.exists():
        raise ImageError(f"cannot read {path}: {_why_missing(path)}")
    if path.suffix.lower() not in suffixes:
        fix = f"Convert it to one of {', '.join(suffixes)}."
        raise ImageError(f"cannot read {path}: unsupported extension {path.suffix!r}. {fix}")
    if path.stat().st_size == 0:
        raise ImageError(f"cannot read {path}: the file is empty (0 bytes). Copy or export it again.")


def _why_missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}. Check the path."
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"no such file. {f'Did you mean {path.parent / close[0]}?' if close else 'Check the path.'}"


def list_images(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """The image files that files, folders (searched recursively) and glob patterns name, in natural order, each once.

    Natural order puts img2 before img10. Hidden files and folders are left out of folders and patterns. Raises
    UsageError for an empty sequence; ImageError for a missing file, and for a folder or pattern without an image.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not paths:
        raise UsageError("no images given. Name image files, folders or patterns such as 'photos/*.png'.")
    return sorted({image for path in paths for image in _expand(Path(path), suffixes)}, key=_natural_key)


def _expand(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """The images that one file, folder or pattern names."""
    if path.is_dir():
        files = []
        for folder, subfolders, names in os.walk(path):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            files += [Path(folder, name) for name in names if not name.startswith(".")]
    elif not path.exists() and glob.has_magic(str(path)):
        files = [match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file()]
    else:
        _require_file(path, suffixes)
        return [path]
    images = [file for file in files if file.suffix.lower() in suffixes]
    if not images:
        found = f"it has {len(files)} files, none of them" if files else "no file there"
        raise ImageError(f"no images in {path}: {found} ending in {', '.join(suffixes)}. Check the path.")
    return images


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    pieces = re.split(r"(\d+)", str(path).lower())  # text and digits alternate
    return [(int(piece), "") if index % 2 else (0, piece) for index, piece in enumerate(pieces)], str(path)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write plain data as indented JSON, whole or not at all.

    Tuples, paths, NumPy and torch scalars and arrays are converted. JSON has no infinity (the PSNR of equal images) and
    no NaN: they are written as the strings "inf", "-inf" and "nan", which float() reads back.
    """
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """The value as plain data for JSON, converted as `write_json` says."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy and torch, scalars and arrays
        return plain(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_image(path: str | os.PathLike[str], tensor: torch.Tensor, bits: int | None = None) -> float:
    """Write a float tensor (C, H, W) or (1, C, H, W), whole or not at all; the extension chooses the format.

    `bits`: PNG 8 (default) or 16; JPEG (quality 95) and WebP (lossless) 8; TIFF 32 (default, float), 8 or 16; .npy 32.
    Integer formats round to the nearest code and clip to [0, 1]; returns the fraction of values that clipping changed.
    Floats are stored as they are, and the fraction is 0. An .npy takes any number of channels, the others 1 or 3.
    Raises NumericalError for NaN or infinity, UsageError for a wrong tensor or `bits`, ImageError where the file cannot
    be written; then nothing is written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE_BITS:
        raise ImageError(f"cannot write {path}: unknown extension {suffix!r}. Use one of {', '.join(WRITABLE_BITS)}.")
    bits = WRITABLE_BITS[suffix][0] if bits is None else bits
    if bits not in WRITABLE_BITS[suffix]:
        allowed = " or ".join(map(str, WRITABLE_BITS[suffix]))
        raise UsageError(f"bits={bits} does not fit {path}: {suffix} holds {allowed}. Leave bits out, or use .png.")
    pixels = _pixels(tensor, path)
    if suffix != ".npy" and pixels.shape[2] not in (1, 3):
        raise UsageError(f"cannot write {pixels.shape[2]} channels to {path}: {suffix} takes 1 or 3. Write an .npy.")
    pixels, clipped = (pixels, 0.0) if bits == 32 else rounded(pixels, bits)
    with atomic_path(path) as temporary:
        encode(temporary, pixels)
    return clipped


def write_measurement(path: str | os.PathLike[str], y: torch.Tensor, bits: int | None = None) -> float:
    """As write_image, but an .npy takes a measurement of any shape, vectors included."""
    import numpy as np

    if Path(path).suffix.lower() != ".npy" or y.ndim == 3:
        if y.ndim != 3:
            raise UsageError(f"a measurement of shape {tuple(y.shape)} is no image, so {path} cannot hold it: use .npy")
        return write_image(path, y, bits)
    values = _finite(y, path)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.numpy())
    return 0.0


def _pixels(tensor: torch.Tensor, path: str | os.PathLike[str]) -> np.ndarray:
    """The tensor as (H, W, C) float32, checked to be one finite image. The result may share the tensor's memory."""
    if not tensor.is_floating_point():
        raise UsageError(f"cannot write {tensor.dtype} to {path}: give floats in [0, 1], for instance x.float() / 255.")
    image = tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor
    if image.ndim != 3 or 0 in image.shape:
        shape = tuple(tensor.shape)
        raise UsageError(f"cannot write shape {shape} to {path}: give one image (C, H, W); to_grid joins several.")
    return _finite(image, path).permute(1, 2, 0).numpy()


def _finite(tensor: torch.Tensor, path: str | os.PathLike[str]) -> torch.Tensor:
    """The tensor in float32 on the CPU. Raises NumericalError for NaN and infinity."""
    values = tensor.detach().float().cpu()
    bad = int((~values.isfinite()).sum())
    if bad:
        raise NumericalError(f"{bad} of {values.numel()} values are NaN or infinite; {path} was not written.")
    return values


def centre(image: torch.Tensor, side: int) -> torch.Tensor:
    """The middle of images (..., H, W), at most `side` pixels a side; a view."""
    height, width = (min(side, extent) for extent in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def fit_channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    """An image (..., C, H, W) with `channels` channels: grey repeated to RGB, RGB to its luma (ITU-R BT.601).

    Raises UsageError for any other change.
    """
    have = image.shape[-3] if image.ndim >= 3 else 0
    if have == channels:
        return image
    if (have, channels) == (1, 3):
        return image.repeat_interleave(3, dim=-3)
    if (have, channels) == (3, 1):
        return (image * image.new_tensor(LUMA)[:, None, None]).sum(dim=-3, keepdim=True)
    shape = tuple(image.shape)
    raise UsageError(
        f"an image of shape {shape} cannot become {channels} channels: only 1 to 3 and 3 to 1 are defined."
    )


def to_grid(
    tensors: Sequence[torch.Tensor] | torch.Tensor, labels: Sequence[str] | None = None, columns: int | None = None
) -> torch.Tensor:
    """One picture (3, H', W') of equal-size images (C, H, W) or (1, C, H, W), in rows, each below its label.

    Grey becomes RGB; values are clipped to [0, 1]. Up to six images make one row, more make a near square, unless
    `columns` says otherwise. The font of the labels has no Greek letters. Raises UsageError for no image, unequal sizes
    or a wrong number of labels or columns.
    """
    import torch

    images = [fit_channels(image[0] if image.ndim == 4 and len(image) == 1 else image, 3) for image in tensors]
    if len({image.shape for image in images}) != 1 or images[0].ndim != 3:
        raise UsageError(f"to_grid takes images of one size; got {[tuple(image.shape) for image in images]}.")
    count = len(images)
    if labels is not None and len(labels) != count:
        raise UsageError(f"to_grid got {len(labels)} labels for {count} images: give one for each.")
    if columns is not None and columns < 1:
        raise UsageError(f"to_grid got columns={columns}: it must be at least 1.")
    columns = min(count, columns or (count if count <= 6 else math.ceil(math.sqrt(count))))
    _, height, width = images[0].shape
    strips = _label_strips(labels, width) if labels is not None else [torch.ones(0, width)] * count
    head, margin = strips[0].shape[0], 8
    rows = math.ceil(count / columns)
    canvas = torch.ones(3, margin + rows * (head + height + margin), margin + columns * (width + margin))
    for index, (image, strip) in enumerate(zip(images, strips, strict=True)):
        top = margin + index // columns * (head + height + margin)
        left = margin + index % columns * (width + margin)
        canvas[:, top : top + head, left : left + width] = strip
        canvas[:, top + head : top + head + height, left : left + width] = image.detach().float().cpu().clamp(0, 1)
    return canvas


def _label_strips(labels: Sequence[str], width: int) -> list[torch.Tensor]:
    """Each label as black text on white (h, width) in [0, 1]: one font size for all, the largest that fits."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont

    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    for size in range(max(12, min(28, width // 10)), 7, -1):
        font = ImageFont.load_default(size)
        boxes = [draw.multiline_textbbox((0, 0), label, font=font) for label in labels]
        if max(box[2] for box in boxes) <= width:
            break
    height = math.ceil(max(box[3] for box in boxes)) + 4
    strips = []
    for label in labels:
        strip = Image.new("L", (width, height), 255)
        ImageDraw.Draw(strip).multiline_text((0, 0), label, fill=0, font=font)
        strips.append(torch.from_numpy(np.array(strip, dtype=np.float32) / 255))
    return strips
