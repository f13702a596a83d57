"""The encoders behind `invdiff.files.images.write_image`, and the rounding of pixels to 8 and 16 bits.

PNG specification (chunks, filters): https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

STRIP = 256
"""How many rows are rounded at a time: the intermediate floats of a whole large image would take several times its memory."""


def rounded(pixels: np.ndarray, bits: int) -> tuple[np.ndarray, float]:
    """(H, W, C) floats in [0, 1] rounded to integers of 8 or 16 bits, and the fraction of values outside [0, 1], which
    are clipped."""
    import numpy as np

    peak, outside = 2**bits - 1, 0
    codes = np.empty(pixels.shape, np.uint8 if bits == 8 else np.uint16)
    for first in range(0, len(pixels), STRIP):
        values = np.rint(pixels[first : first + STRIP] * peak)
        outside += int(((values < 0) | (values > peak)).sum())
        codes[first : first + STRIP] = values.clip(0, peak)
    return codes, outside / codes.size


def encode(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W, C) uint8, uint16 or float32 in the format of the extension."""
    import numpy as np
    from PIL import Image

    suffix = path.suffix.lower()
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if suffix == ".npy":
        with path.open("wb") as file:  # numpy.save would add a second extension to NAME.NPY
            np.save(file, np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    elif suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(path, squeezed, photometric="minisblack" if squeezed.ndim == 2 else "rgb", metadata=None)
    elif pixels.dtype == np.uint16:
        path.write_bytes(deep_png(pixels))
    else:
        options: dict[str, Any] = {"quality": 95, "subsampling": 0} if suffix in (".jpg", ".jpeg") else {}
        options |= {"lossless": True} if suffix == ".webp" else {}
        try:
            Image.fromarray(squeezed).save(path, **options)
        except ValueError as error:  # WebP ends at 16383 pixels a side
            raise OSError(f"{' '.join(str(error).split())}, write a .png instead") from error


def deep_png(pixels: np.ndarray) -> bytes:
    """A 16-bit grey or RGB PNG of (H, W, C) uint16, which Pillow cannot write in colour.

    Every row has filter 2, the difference from the row above mod 256, which is cheap and compresses photographs well.
    """
    import numpy as np

    height, width, channels = pixels.shape
    stored = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.full((height, 1 + stored.shape[1]), 2, np.uint8)
    rows[:, 1:] = stored
    rows[1:, 1:] -= stored[:-1]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    framed = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
