"""The decoders behind `invdiff.files.images.read_image`, one for each family of image formats.

Each takes a path and returns (pixels, description, notes): (H, W, C) float32 with integers divided by their full scale,
the file's content in words ("8-bit RGB"), and what was done to it. They raise ImageError with the reason and the fix;
`reading` puts the file's name in front, and turns any other error of a decoder, on damaged data, into an ImageError.

PNG specification (chunks, filters): https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.errors import ImageError, UsageError

if TYPE_CHECKING:
    import numpy as np

    Decoded = tuple[np.ndarray, str, list[str]]

MAX_PIXELS = 89_478_485  # Pillow's own limit: one gigabyte as float32 RGB
LIMIT_VARIABLE = "INVDIFF_MAX_PIXELS"
"""The environment variable that replaces MAX_PIXELS."""

_COLOURS = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGB with alpha"}
# Pillow mode -> (description, mode to convert to); a grey mode stays grey.
_PILLOW_MODES = {
    "1": ("1-bit grey", "L"),
    "L": ("8-bit grey", "L"),
    "LA": ("8-bit grey with alpha", "LA"),
    "P": ("palette", "RGB"),
    "PA": ("palette with alpha", "RGBA"),
    "RGB": ("8-bit RGB", "RGB"),
    "RGBA": ("8-bit RGB with alpha", "RGBA"),
    "CMYK": ("8-bit CMYK", "RGB"),
    "YCbCr": ("8-bit YCbCr", "RGB"),
}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Every error in this block, but a UsageError, becomes an ImageError that names the file, the reason and the fix."""
    try:
        yield
    except UsageError:
        raise
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error}") from error
    except FileNotFoundError:
        raise ImageError(f"cannot read {path}: no such file. Check the path.") from None
    except MemoryError as error:
        raise ImageError(f"cannot read {path}: it does not fit in memory. Crop or downscale it first.") from error
    except PermissionError as error:
        raise ImageError(f"cannot read {path}: permission denied. Make it readable (chmod u+r).") from error
    except Exception as error:  # decoders raise almost any type on a damaged file; --debug shows the chained original
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            raise ImageError(
                f"cannot read {path}: it holds Python objects, not numbers. Save numeric arrays."
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        fix = "It may be damaged or truncated: copy or export it again."
        raise ImageError(f"cannot read {path} as {path.suffix[1:].upper()}: {reason.rstrip('.')}. {fix}") from error


def pixel_limit() -> int:
    """The largest number of pixels that a picture may have, because small files can claim to be huge: INVDIFF_MAX_PIXELS
    if it is set, else MAX_PIXELS. Raises ImageError for a value that is no whole number above 0."""
    text = os.environ.get(LIMIT_VARIABLE, str(MAX_PIXELS))
    if not (text.isdecimal() and text.isascii() and int(text) > 0):
        raise ImageError(
            f"{LIMIT_VARIABLE}={text!r} must be a whole number of pixels above 0; unset it for {MAX_PIXELS}."
        )
    return int(text)


def too_large(size: str, limit: int) -> ImageError:
    """The error for a picture of `size`, which says in words how large it is."""
    return ImageError(
        f"{size}, more than {limit} pixels. Crop or downscale it first, or, if you trust the file, set the environment "
        f"variable {LIMIT_VARIABLE} to more; a restoration takes about 150 bytes for each."
    )


def read_picture(path: Path) -> Decoded:
    """Everything Pillow decodes, and the 16-bit colour PNG that Pillow would silently reduce to 8 bits."""
    from PIL import Image, UnidentifiedImageError

    limit = pixel_limit()
    if limit > (Image.MAX_IMAGE_PIXELS or limit):
        Image.MAX_IMAGE_PIXELS = limit  # Pillow has no other way to raise it
    data = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(data))
        except UnidentifiedImageError as error:
            raise ImageError(
                f"its content is not a readable picture (it starts with {data[:12]!r}). Export it again."
            ) from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise too_large("it claims to be huge", limit) from error
    with picture:
        if picture.width * picture.height > limit:
            raise too_large(f"{picture.width} x {picture.height}", limit)
        notes = [f"only the first of {frames} frames"] if (frames := getattr(picture, "n_frames", 1)) > 1 else []
        pixels, description = stored_pixels(picture, data, notes)
    return flatten(_to_unit(pixels)[0], notes), description, notes


def stored_pixels(picture: Any, data: bytes, notes: list[str]) -> tuple[np.ndarray, str]:
    """The pixels (H, W, C) of a Pillow image opened from the file `data`, in the precision of the file and turned by its EXIF
    orientation, C = 2 or 4 with alpha; and the file's content in words. notes: takes what was done to the pixels."""
    import numpy as np

    mode = picture.mode
    deep = picture.format == "PNG" and data[24:25] == bytes([16])
    if deep and mode not in ("I", "I;16"):
        pixels = decode_deep_png(data).astype(np.uint16)
        description = f"16-bit {_COLOURS[pixels.shape[2]]}"
    elif mode.startswith("I;16") or (mode == "I" and deep):
        pixels, description = np.asarray(picture).astype(np.uint16)[..., None], "16-bit grey"
    elif mode in ("I", "F"):
        pixels, description = np.asarray(picture)[..., None], f"32-bit {'float' if mode == 'F' else 'integer'} grey"
    elif mode in _PILLOW_MODES:
        description, target = _PILLOW_MODES[mode]
        if mode == "CMYK":
            notes.append("CMYK converted to RGB without its colour profile")
        if "transparency" in picture.info:
            target = "LA" if target == "L" else "RGBA"
        pixels = np.asarray(picture.convert(target))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
    else:
        raise ImageError(f"pixel format {mode!r} has no known full scale. Convert it to 8-bit, 16-bit or float.")
    # The tag is read after the pixels: Pillow turns a TIFF itself while it loads, and drops the tag.
    return turn(pixels, picture.getexif().get(274, 1), notes), description


def decode_deep_png(data: bytes) -> np.ndarray:
    """(H, W, C) uint16 of a 16-bit PNG, C = 2, 3 or 4.

    Written here because Pillow reduces it to 8 bits and libpng inside torchvision crashes the process on damaged data.
    """
    import numpy as np

    width, height, _, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if interlaced:
        raise ImageError("an interlaced 16-bit PNG. Save it without interlacing.")
    stream, position = bytearray(), 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        stream += data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        position += length + 12
    pixel = 2 * {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    size = height * (1 + width * pixel)
    raw = zlib.decompressobj().decompress(bytes(stream), size)
    if len(raw) < size:
        raise ImageError("the file ends too early. Copy or export it again.")
    rows = np.frombuffer(raw, np.uint8).reshape(height, 1 + width * pixel)
    if rows[:, 0].max() > 4:
        raise ImageError("its rows have an unknown filter, so the file is damaged. Copy or export it again.")
    return _unfilter(rows[:, 0], rows[:, 1:].reshape(height, width, pixel)).view(">u2")


def _unfilter(kinds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Undo PNG filters `kinds` (H,) on `rows` (H, W, bytes per pixel) uint8: byte = stored + prediction mod 256.

    A prediction needs the left, upper and upper-left pixel, so anti-diagonals are decoded whole, one after another.
    """
    import numpy as np

    height, width, pixel = rows.shape
    padded = np.zeros((height + 1, width + 1, pixel), np.uint8)
    padded[1:, 1:] = rows
    flat = padded.reshape(-1, pixel)  # one step along an anti-diagonal is `width` entries of flat
    for diagonal in range(height + width - 1):
        top, bottom = max(0, diagonal - width + 1), min(diagonal, height - 1)
        start = (top + 1) * (width + 1) + diagonal - top + 1
        stop = start + (bottom - top) * width + 1
        left, up, corner = (flat[start - s : stop - s : width].astype(np.int16) for s in (1, width + 1, width + 2))
        to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        nearest = np.where(to_up <= to_corner, up, corner)
        paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
        predictions = (np.zeros_like(up), left, up, (left + up) >> 1, paeth)
        flat[start:stop:width] += np.choose(kinds[top : bottom + 1, None], predictions).astype(np.uint8)
    return np.ascontiguousarray(padded[1:, 1:])


@contextlib.contextmanager
def silenced(name: str) -> Iterator[None]:
    """Silences a logger, so that a damaged file gives one error and not a line for each of its tags."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def read_tiff(path: Path) -> Decoded:
    """Grey or RGB TIFF of 1, 8, 16 bits or floats; Pillow takes the 8-bit ones with other colours or compressions."""
    import tifffile

    with silenced("tifffile"), tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages.first
        if len(series) > 1:
            raise ImageError(f"a stack of {len(series)} pages {series.shape}. Save one page per file, or an .npy.")
        if page.imagewidth * page.imagelength > pixel_limit():
            raise too_large(f"{page.imagewidth} x {page.imagelength}", pixel_limit())
        stored = tiff_array(page, page)
        if stored is None and page.dtype is not None and page.dtype.itemsize == 1:
            return read_picture(path)
        if stored is None:
            fix = "Save it uncompressed as grey or RGB, or pip install imagecodecs."
            kind = f"{tifffile.COMPRESSION(page.compression).name}, {tifffile.PHOTOMETRIC(page.photometric).name}"
            raise ImageError(f"a TIFF that stores {page.dtype} as {kind}. {fix}")
        notes = [f"only the first of {len(file.series)} pictures"] if len(file.series) > 1 else []
        stored = stored.transpose(1, 2, 0) if page.axes[0] == "S" else stored.reshape(*stored.shape[:2], -1)
        pixels, depth = _to_unit(stored)
        if page.photometric == 0 and "float" not in depth:
            pixels = 1 - pixels
        orientation = page.tags.valueof(274, 1)
        premultiplied = 1 in page.extrasamples
    description = f"{depth} {_COLOURS.get(pixels.shape[2], f'{pixels.shape[2]} channels')}"
    return flatten(turn(pixels, orientation, notes), notes, premultiplied), description, notes


def tiff_array(source: Any, page: Any) -> np.ndarray | None:
    """The array of a page or series of tifffile; None for colours or a compression that tifffile cannot read."""
    if page.photometric not in (0, 1, 2):  # white is zero, black is zero, RGB
        return None
    try:
        return source.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):  # the package that some compressions need
            raise
        return None


def read_npy(path: Path) -> Decoded:
    """An array (H, W), (C, H, W) or (H, W, C); no channel is read as alpha, and floats are taken as they are."""
    array, notes = _load_npy(path), []
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and shape[0] <= 4:  # first, so that what write_image wrote always comes back the same
        array = array.transpose(1, 2, 0)
        notes += [f"shape {shape} taken as (C, H, W)"] if shape[2] in (1, 3, 4) else []
    elif array.ndim != 3 or shape[2] not in (1, 3, 4):
        raise ImageError(
            f"shape {shape} is not (H, W), (C, H, W) or (H, W, C) with at most 4 channels. Save one image."
        )
    pixels, depth = _to_unit(array)
    channels = pixels.shape[2]
    return pixels, f"{depth} {_COLOURS[channels] if channels in (1, 3) else f'{channels} channels'}", notes


def read_array(path: Path) -> Decoded:
    """An .npy array in the shape it has, for a measurement that is no picture."""
    pixels, depth = _to_unit(_load_npy(path))
    return pixels, f"{depth} array of shape {pixels.shape}", []


def _load_npy(path: Path) -> np.ndarray:
    array = parse_npy(path.read_bytes())
    if 0 in array.shape:
        raise ImageError(f"it has no pixels, shape {array.shape}. Export it again.")
    return array


def parse_npy(data: bytes) -> np.ndarray:
    """The array in the bytes of an .npy file, without a copy; numpy.load would allocate whatever a damaged header claims."""
    import numpy as np
    from numpy.lib import format as npy

    file = io.BytesIO(data)
    if not data.startswith(npy.MAGIC_PREFIX):
        raise ImageError("not an .npy file. Write it with numpy.save.")
    header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, columns_first, dtype = header(file)
    if dtype.hasobject:
        raise ImageError("it holds Python objects, not numbers. Save a numeric array.")
    count = math.prod(shape)
    if count * dtype.itemsize > len(data) - file.tell():
        raise ImageError(f"damaged or truncated: the file ends too early for its shape {shape}. Copy it again.")
    array = np.frombuffer(data, dtype, count, file.tell())
    return array.reshape(shape[::-1]).T if columns_first else array.reshape(shape)


def _to_unit(array: np.ndarray) -> tuple[np.ndarray, str]:
    """A numeric array as float32, with integers divided by their full scale, and the depth in words ("16-bit")."""
    import numpy as np

    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # read_image reports the infinities
            return array.astype(np.float32), f"{8 * array.dtype.itemsize}-bit float"
    scales = {"bool": (1, "1-bit"), "uint8": (255, "8-bit"), "uint16": (65535, "16-bit")}
    if array.dtype.name not in scales:
        raise ImageError(f"{array.dtype} values have no known full scale. Save uint8, uint16 or floats in [0, 1].")
    scale, depth = scales[array.dtype.name]
    return array.astype(np.float32) / scale, depth


def turn(pixels: np.ndarray, orientation: int, notes: list[str]) -> np.ndarray:
    """Apply EXIF/TIFF orientation (tag 274, values 1 to 8) to (H, W, C)."""
    if orientation not in range(2, 9):
        return pixels
    notes.append(f"turned by its EXIF orientation {orientation}")
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def flatten(pixels: np.ndarray, notes: list[str], premultiplied: bool = False) -> np.ndarray:
    """(H, W, 2 or 4) with alpha last to (H, W, 1 or 3) over white; other channel counts pass or are refused."""
    channels = pixels.shape[2]
    if channels > 4:
        raise ImageError(f"{channels} channels; at most RGB with alpha. Save it as .npy, one image at a time.")
    if channels not in (2, 4):
        return pixels
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if (alpha == 1).all():
        notes.append("opaque alpha channel dropped")
        return colour
    notes.append("transparency composited over white")
    return (colour if premultiplied else colour * alpha) + (1 - alpha)
