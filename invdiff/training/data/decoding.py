"""Training images as arrays (H, W, C) in the precision of their files: uint8, uint16, or float32 in [0, 1].

The decoders of `invdiff.files.decoding` turn everything into float32, which is right for one picture and four times the
memory for a hundred thousand; here the numbers stay as they are stored.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from invdiff.errors import ImageError
from invdiff.files.decoding import MAX_PIXELS, flatten, parse_npy, silenced, stored_pixels, tiff_array, turn
from invdiff.files.images import LUMA
from invdiff.training.data.entry import Entry

Range = tuple[float, float] | None
FULL_SCALE: dict[Any, int] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}


class ChannelMismatch(ImageError):
    """An image with a number of channels that the training cannot use; `found` is that number."""

    def __init__(self, found: int, channels: int) -> None:
        super().__init__(f"it has {found} channel{'s' if found > 1 else ''}, not {channels}")
        self.found = found


def load(entry: Entry, channels: int, value_range: Range = None) -> np.ndarray:
    """(H, W, channels) of an entry: `decode` of what it reads. Raises ImageError with the reason, also for an OSError."""
    return _repeated(load_stored(entry, channels, value_range), channels)


def decode(content: bytes | np.ndarray, channels: int, value_range: Range = None) -> np.ndarray:
    """(H, W, channels) of an image file's bytes or of an array; read-only where grey is repeated.

    8-bit files give uint8 and 16-bit ones uint16, with that full scale; floats give float32 and have to be in [0, 1].
    With `value_range` (low, high) the values of 16-bit, 32-bit and float files become (v - low) / (high - low), clipped
    to [0, 1]: as uint16 for 16-bit files, as float32 for the others.

    Grey is repeated to three channels and three become one by their luma (ITU-R BT.601). Transparency is composited over
    white, unless the file has exactly `channels` values a pixel. The pages of a TIFF are its channels; an array is
    (H, W), (H, W, C) or (C, H, W). EXIF orientation is applied. Raises ImageError with the reason: ChannelMismatch for
    any other number of channels.
    """
    return _repeated(decode_stored(content, channels, value_range), channels)


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] of decoded pixels or crops of any of the three kinds."""
    return pixels.astype(np.float32) / np.float32(FULL_SCALE[pixels.dtype])


def from_unit(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The inverse of `to_unit`: numbers near [0, 1] clipped, and rounded to the codes of an integer dtype."""
    peak = FULL_SCALE[dtype]
    pixels = np.clip(pixels, 0, 1)
    return pixels.astype(dtype, copy=False) if peak == 1 else np.rint(peak * pixels).astype(dtype)


def load_stored(entry: Entry, channels: int, value_range: Range = None) -> np.ndarray:
    """As `load`, but one channel where grey is meant to be repeated: a third of the memory."""
    try:
        content = entry.read()
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise ImageError("it does not fit in memory") from error
    return decode_stored(content, channels, value_range)


def decode_stored(content: bytes | np.ndarray, channels: int, value_range: Range = None) -> np.ndarray:
    """As `decode`, but one channel where grey is meant to be repeated."""
    try:
        if isinstance(content, np.ndarray):
            pixels = _arranged(content, channels)
        elif content[:6] == b"\x93NUMPY":
            pixels = _arranged(parse_npy(content), channels)
        elif content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            pixels = _read_tiff(content, channels)
        else:
            pixels = _read_picture(content, channels)
        return _fit(_scaled(pixels, value_range), channels)
    except ImageError:
        raise
    except MemoryError as error:  # sizes that a damaged header invents
        raise ImageError("it does not fit in memory") from error
    except UnidentifiedImageError:
        start = bytes(content[:12])
        raise ImageError(
            f"not a readable picture (it starts with {start!r})" if start else "the file is empty"
        ) from None
    except Exception as error:  # decoders raise almost any type on damaged data
        raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error


def _repeated(pixels: np.ndarray, channels: int) -> np.ndarray:
    return np.broadcast_to(pixels, (*pixels.shape[:2], channels))


def _read_picture(data: bytes, channels: int) -> np.ndarray:
    """Everything that Pillow decodes, and the 16-bit colour PNG that it would reduce to 8 bits."""
    with Image.open(io.BytesIO(data)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"more than {MAX_PIXELS} pixels; cut it into smaller ones, or save it as an .npy")
        if channels == 1:
            image.draft("L", None)  # JPEG stores luma: its colour need not be decoded
        return _opaque(stored_pixels(image, data, [])[0], channels)


def _opaque(pixels: np.ndarray, channels: int, premultiplied: bool = False) -> np.ndarray:
    """(H, W, 2 or 4) integers with alpha last, composited over white; anything else, or `channels` values, as it is."""
    if pixels.shape[2] == channels or pixels.shape[2] not in (2, 4):
        return pixels
    return from_unit(flatten(to_unit(pixels), [], premultiplied), pixels.dtype)


def _read_tiff(data: bytes, channels: int) -> np.ndarray:
    """The first series of a TIFF: bands, or several pages of one size, are its channels."""
    import tifffile

    with silenced("tifffile"), tifffile.TiffFile(io.BytesIO(data)) as file:
        series, page = file.series[0], file.pages.first
        if page.imagewidth * page.imagelength > MAX_PIXELS or series.size > 16 * MAX_PIXELS:
            raise ImageError(f"more than {MAX_PIXELS} pixels; cut it into smaller ones, or save it as an .npy")
        stored = tiff_array(series, page)
        if stored is None:
            # Pillow reads these, but reduces 16-bit colour to 8 bits.
            wide = page.dtype is None or (page.dtype.itemsize > 1 and page.samplesperpixel > 1)
            if wide or len(series.pages) > 1:
                raise ImageError("a TIFF in a compression or colour space that is not read; save it uncompressed")
            return _read_picture(data, channels)
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        if stored.ndim not in (2, 3):
            raise ImageError(f"a stack of shape {stored.shape} (axes {series.axes}); save one image per file")
        if stored.ndim == 2:
            stored = stored[..., None]
        elif series.axes[-1] != "S":
            stored = stored.transpose(1, 2, 0)
        if page.photometric == 0 and stored.dtype.kind in "ub":
            stored = ~stored if stored.dtype.kind == "b" else np.iinfo(stored.dtype).max - stored
        if page.extrasamples and page.extrasamples[-1] in (1, 2) and stored.dtype in FULL_SCALE:
            stored = _opaque(stored, channels, premultiplied=page.extrasamples[-1] == 1)
        return turn(stored, page.tags.valueof(274, 1), [])


def _arranged(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W), (C, H, W) or (H, W, C) as (H, W, C): the axis that fits `channels` holds them, else the shorter one."""
    shape = array.shape
    if 0 in shape or array.ndim not in (2, 3):
        raise ImageError(f"shape {shape} is not (H, W), (C, H, W) or (H, W, C) with pixels in it")
    if array.ndim == 2:
        return array[..., None]
    for count in {1: (1, 3), 3: (3, 1)}.get(channels, (channels,)):
        if shape[0] == count:
            return array.transpose(1, 2, 0)
        if shape[2] == count:
            return array
    return array.transpose(1, 2, 0) if shape[0] < shape[2] else array


def _scaled(pixels: np.ndarray, value_range: Range) -> np.ndarray:
    """Any numbers as uint8, uint16 or float32 in [0, 1]; see `decode`. What has that form already is not copied."""
    dtype = pixels.dtype.newbyteorder("=")
    if dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    if dtype == np.uint8:
        return pixels
    if dtype.kind not in "iuf":
        raise ImageError(f"{dtype} values are no pixels; save uint8, uint16 or floats")
    if value_range is None and dtype.kind != "f" and dtype != np.uint16:
        raise ImageError(f"{dtype} values have no known full scale; say which values become 0 and 1 (value_range)")
    if value_range is not None and dtype in (np.uint16, np.int16):
        codes = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float64)
        table = np.rint(65535 * _mapped(codes, value_range)).astype(np.uint16)
        return table[pixels.astype(dtype, copy=False).view(np.uint16)]
    if dtype == np.uint16:
        return pixels.astype(dtype, copy=False)
    low, high = float(pixels.min()) + 0.0, float(pixels.max()) + 0.0  # NaN, if there is one; -0 becomes 0
    if not np.isfinite([low, high]).all():
        raise ImageError("it holds NaN or infinity")
    if value_range is not None:
        single = dtype in (np.float16, np.float32) or dtype.itemsize == 1
        return _mapped(pixels.astype(np.float32 if single else np.float64), value_range).astype(np.float32)
    if low < -1e-6 or high > 1 + 1e-6:
        raise ImageError(
            f"float values from {low:.6g} to {high:.6g} lie outside [0, 1]; say which become 0 and 1 (value_range)"
        )
    pixels = pixels.astype(np.float32, copy=False)
    return pixels if low >= 0 and high <= 1 else pixels.clip(0, 1)  # rounding, of a resize for instance


def _mapped(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    low, high = value_range
    return np.clip((values - low) / (high - low), 0, 1)


def _fit(pixels: Any, channels: int) -> np.ndarray:
    have = pixels.shape[2]
    if have == channels or (have, channels) == (1, 3):
        return pixels
    if (have, channels) != (3, 1):
        raise ChannelMismatch(have, channels)
    return from_unit((to_unit(pixels) @ np.array(LUMA, np.float32))[..., None], pixels.dtype)
