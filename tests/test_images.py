"""Reading, writing, listing and joining image files: every format, every way a file can be wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from PIL import Image, ImageOps

from invdiff.errors import ImageError, NumericalError, UsageError
from invdiff.files import atomic, images
from invdiff.files import decoding as image_decoding
from invdiff.files import encoding as image_encoding
from invdiff.files.atomic import atomic_path
from invdiff.files.images import (
    fit_channels,
    list_images,
    read_image,
    read_measurement,
    to_grid,
    write_image,
    write_json,
    write_measurement,
)

ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
RGB8 = RANDOM.integers(0, 256, (13, 17, 3), dtype=np.uint8)
RGB16 = RANDOM.integers(0, 65536, (13, 17, 3), dtype=np.uint16)
FLOATS = RANDOM.normal(size=(13, 17, 3)).astype(np.float32)


def as_tensor(array, scale=1):
    """What (H, W) or (H, W, C) should read as."""
    return torch.from_numpy(np.atleast_3d(array).transpose(2, 0, 1).astype(np.float32) / np.float32(scale))


def png(pixels, filters=(0,), interlaced=0, width=None, extra=b""):
    """A 16-bit PNG encoded here, one filter per row in turn: an oracle that is independent of the decoder."""
    height, columns, channels = pixels.shape
    size = 2 * channels
    rows = pixels.astype(">u2").tobytes()
    stride = columns * size
    encoded, above = b"", bytes(stride)
    for row in range(height):
        line, kind = rows[row * stride : (row + 1) * stride], filters[row % len(filters)]
        encoded += bytes([kind])
        for i, value in enumerate(line):
            left, up = (line[i - size] if i >= size else 0), above[i]
            corner = above[i - size] if i >= size else 0
            estimate = left + up - corner
            paeth = min((left, up, corner), key=lambda candidate: abs(estimate - candidate))
            predictions = (0, left, up, (left + up) // 2, paeth, 0)
            encoded += bytes([(value - predictions[kind]) % 256])
        above = line
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width or columns, height, 16, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(encoded)), (b"IEND", b"")]
    framed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


# ---- reading


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif", ".PNG"])
@pytest.mark.parametrize("colour", ["grey", "RGB"])
def test_eight_bit_pictures_read_exactly(tmp_path, suffix, colour):
    array = RGB8 if colour == "RGB" else RGB8[..., 0]
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(array).save(path, lossless=True)
    image = read_image(path)
    # WebP has no grey
    expected = as_tensor(np.repeat(array[..., None], 3, 2) if (suffix, colour) == (".webp", "grey") else array, 255)
    torch.testing.assert_close(image.tensor, expected, rtol=0, atol=1e-7)
    assert image.tensor.dtype == torch.float32 and image.tensor.is_contiguous()
    assert image.description == ("8-bit RGB" if len(expected) == 3 else "8-bit grey") and image.notes == ()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("filters", [(0,), (1,), (2,), (3,), (4,), (4, 1, 3, 2, 0)])
def test_sixteen_bit_png_keeps_sixteen_bits(tmp_path, channels, filters):
    pixels = RANDOM.integers(0, 65536, (9, 7, channels), dtype=np.uint16)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    path = tmp_path / "deep.png"
    path.write_bytes(png(pixels, filters))
    image = read_image(path)
    colours = pixels[..., : 1 if channels < 3 else 3]
    if (channels, filters) == (2, (0,)):
        assert image.notes == ("opaque alpha channel dropped",)
    torch.testing.assert_close(image.tensor, as_tensor(colours, 65535), rtol=0, atol=1e-7)
    assert image.description.startswith("16-bit grey" if channels < 3 else "16-bit RGB")


def test_sixteen_bit_png_one_pixel_wide_and_one_pixel_high(tmp_path):
    for shape in ((6, 1, 3), (1, 6, 3), (1, 1, 3)):
        pixels = RANDOM.integers(0, 65536, shape, dtype=np.uint16)
        (tmp_path / "thin.png").write_bytes(png(pixels, (4, 3)))
        torch.testing.assert_close(read_image(tmp_path / "thin.png").tensor, as_tensor(pixels, 65535))


def test_one_bit_palette_and_cmyk(tmp_path):
    mask = RGB8[..., 0] > 127
    Image.fromarray(mask).save(tmp_path / "mask.png")
    image = read_image(tmp_path / "mask.png")
    assert torch.equal(image.tensor, as_tensor(mask)) and image.description == "1-bit grey"

    palette = Image.fromarray(RGB8).quantize(16)
    palette.save(tmp_path / "palette.png")
    image = read_image(tmp_path / "palette.png")
    assert torch.equal(image.tensor, as_tensor(np.asarray(palette.convert("RGB")), 255))
    assert image.description == "palette"

    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    flat.convert("CMYK").save(tmp_path / "print.jpg", quality=100)
    image = read_image(tmp_path / "print.jpg")
    torch.testing.assert_close(image.tensor, as_tensor(np.asarray(flat), 255), rtol=0, atol=3 / 255)
    assert image.description == "8-bit CMYK" and "CMYK converted" in image.notes[0]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_alpha_is_dropped_and_transparency_goes_over_white(tmp_path, mode):
    colour = RGB8 if mode == "RGBA" else RGB8[..., :1]
    alpha = np.full((13, 17, 1), 255, np.uint8)
    path = tmp_path / "alpha.png"
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(path)
    image = read_image(path)
    assert torch.equal(image.tensor, as_tensor(colour, 255)) and image.notes == ("opaque alpha channel dropped",)

    alpha[:6] = 51
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(path)
    image = read_image(path)
    torch.testing.assert_close(image.tensor[:, :6], 0.2 * as_tensor(colour, 255)[:, :6] + 0.8)
    assert torch.equal(image.tensor[:, 6:], as_tensor(colour, 255)[:, 6:])
    assert image.notes == ("transparency composited over white",)


def test_a_transparent_palette_colour_goes_over_white(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "p.png", transparency=0)
    image = read_image(tmp_path / "p.png")
    assert image.tensor[:, 0, 0].tolist() == [1, 1, 1] and image.tensor[:, 1, 1].tolist() == [0, 0, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "deep.png", "turned.tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, name):
    smooth = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)
    picture = Image.fromarray(np.stack([smooth, smooth[::-1], smooth[:, ::-1]], axis=2))
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / name
    if name == "deep.png":
        data = png(np.asarray(picture).astype(np.uint16) * 257)
        body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        path.write_bytes(data[:33] + chunk + data[33:])
    elif name == "turned.tif":
        extratags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, np.asarray(picture), photometric="rgb", extratags=extratags)
    else:
        picture.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}))
    upright = Image.new("RGB", (1, 1))
    upright = picture.copy()
    upright.getexif()[274] = orientation
    expected = as_tensor(np.asarray(ImageOps.exif_transpose(upright)), 255)
    image = read_image(path)
    torch.testing.assert_close(image.tensor, expected, rtol=0, atol=(4 if path.suffix == ".jpg" else 0.01) / 255)
    assert bool(image.notes) == (orientation > 1)


@pytest.mark.parametrize(
    "array, scale, description",
    [
        (RGB8, 255, "8-bit RGB"),
        (RGB16, 65535, "16-bit RGB"),
        (RGB16[..., 0], 65535, "16-bit grey"),
        (FLOATS, 1, "32-bit float RGB"),
        (FLOATS[..., 0].astype(np.float16), 1, "16-bit float grey"),
        (RGB8[..., 0] > 99, 1, "1-bit grey"),
    ],
)
def test_tiff_depths(tmp_path, array, scale, description):
    path = tmp_path / "x.tiff"
    tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 else "minisblack")
    image = read_image(path)
    torch.testing.assert_close(image.tensor, as_tensor(array, scale), rtol=0, atol=1e-7)
    assert image.description == description


def test_tiff_planes_inverted_grey_and_compression(tmp_path):
    path = tmp_path / "x.tif"
    planes = FLOATS.transpose(2, 0, 1)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    assert torch.equal(read_image(path).tensor, as_tensor(FLOATS))
    tifffile.imwrite(path, RGB16[..., 0], photometric="miniswhite")
    torch.testing.assert_close(read_image(path).tensor, 1 - as_tensor(RGB16[..., 0], 65535))
    Image.fromarray(RGB8).save(path, compression="tiff_lzw")
    torch.testing.assert_close(read_image(path).tensor, as_tensor(RGB8, 255), rtol=0, atol=1e-7)
    Image.fromarray(RGB8).convert("CMYK").save(path)
    assert read_image(path).description == "8-bit CMYK"


@pytest.mark.parametrize("premultiplied", [False, True])
def test_tiff_alpha(tmp_path, premultiplied):
    path = tmp_path / "x.tif"
    alpha = np.full((13, 17, 1), 0.25, np.float32)
    colour = np.abs(FLOATS) * (alpha if premultiplied else 1)
    kind = "assocalpha" if premultiplied else "unassalpha"
    tifffile.imwrite(path, np.concatenate([colour, alpha], 2), photometric="rgb", extrasamples=[kind])
    torch.testing.assert_close(read_image(path).tensor, 0.25 * as_tensor(np.abs(FLOATS)) + 0.75)


@pytest.mark.parametrize(
    "array, expected",
    [
        (FLOATS, as_tensor(FLOATS)),
        (FLOATS.transpose(2, 0, 1), as_tensor(FLOATS)),
        (FLOATS[..., 0], as_tensor(FLOATS[..., 0])),
        (FLOATS[..., :1].astype(np.float64), as_tensor(FLOATS[..., :1])),
        (np.asfortranarray(RGB8), as_tensor(RGB8, 255)),
        (RGB16, as_tensor(RGB16, 65535)),
        (np.float32(np.concatenate([FLOATS, FLOATS[..., :1]], axis=2)), as_tensor(FLOATS[..., [0, 1, 2, 0]])),
        (FLOATS[..., :2].transpose(2, 0, 1).astype(">f4"), as_tensor(FLOATS[..., :2])),
    ],
)
def test_npy_layouts_and_types(tmp_path, array, expected):
    np.save(tmp_path / "x.npy", array)
    torch.testing.assert_close(read_image(tmp_path / "x.npy").tensor, expected, rtol=0, atol=1e-7)


def test_an_ambiguous_npy_is_read_channels_first_with_a_note(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 3), np.float32))
    image = read_image(tmp_path / "x.npy")
    assert image.tensor.shape == (3, 8, 3) and "taken as (C, H, W)" in image.notes[0]


def test_only_the_first_frame_of_an_animation_is_read_with_a_note(tmp_path):
    first, second = Image.fromarray(RGB8), Image.fromarray(255 - RGB8)
    first.save(tmp_path / "x.png", save_all=True, append_images=[second])
    image = read_image(tmp_path / "x.png")
    assert image.notes == ("only the first of 2 frames",)
    torch.testing.assert_close(image.tensor, as_tensor(RGB8, 255))


def test_a_twelve_megapixel_picture_reads(tmp_path):
    Image.new("L", (4000, 3000), 7).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").tensor.shape == (1, 3000, 4000)


def encoded(format, **options):
    buffer = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


def saved(array, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def resized_header(data, width, height):
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


DEEP = png(RGB16)
BAD_FILES = {
    "text.png": (b"hello, this is a text file", "its content is not a readable picture.*b'hello, this '"),
    "text.jpg": (b"hello", "its content is not a readable picture"),
    "text.tif": (b"hello, this is a text file", "as TIF: not a TIFF file"),
    "text.npy": (b"hello, this is a text file", "not an .npy file.*numpy.save"),
    "empty.png": (b"", r"empty \(0 bytes\)"),
    "empty.npy": (b"", r"empty \(0 bytes\)"),
    "cut.png": (encoded("PNG")[:5000], "truncated"),
    "cut.jpg": (encoded("JPEG")[:1500], "truncated"),
    "cut.webp": (encoded("WEBP", lossless=True)[:5000], "damaged or truncated"),
    "cut.bmp": (encoded("BMP")[:5000], "truncated"),
    "cut.tif": (tiff(FLOATS, photometric="rgb")[:400], "damaged or truncated"),
    "cut.npy": (saved(FLOATS)[:400], "damaged or truncated"),
    "cut deep.png": (DEEP[:300], "ends too early"),
    "flipped deep.png": (DEEP[:80] + bytes([DEEP[80] ^ 255]) + DEEP[81:], "damaged or truncated"),
    "filter.png": (png(RGB16, (5,)), "unknown filter"),
    "interlaced.png": (png(RGB16, interlaced=1), "interlaced 16-bit"),
    "wider deep.png": (png(RGB16, width=90), "ends too early"),
    "bomb.png": (resized_header(encoded("PNG"), 100_000, 100_000), "more than 89478485 pixels"),
    "big.png": (resized_header(encoded("PNG"), 10_000, 10_000), "more than 89478485 pixels"),
    "deep bomb.png": (resized_header(DEEP, 100_000, 100_000), "more than 89478485 pixels"),
    "zero.png": (resized_header(encoded("PNG"), 0, 64), "cannot read"),
    "zero.npy": (saved(np.zeros((3, 0, 8), np.float32)), r"no pixels, shape \(3, 0, 8\)"),
    "nan.npy": (saved(np.full((4, 8, 8), np.nan)), "256 of 256 values are NaN or infinite"),
    "overflow.npy": (saved(np.full((8, 8), 1e300)), "64 of 64 values are NaN or infinite"),
    "infinite.tif": (tiff(np.full((8, 8), np.inf, np.float32)), "64 of 64 values are NaN"),
    "channels.npy": (saved(np.zeros((5, 8, 8))), r"shape \(5, 8, 8\) is not .* at most 4 channels"),
    "vector.npy": (saved(np.zeros(64)), r"shape \(64,\) is not"),
    "batch.npy": (saved(np.zeros((1, 3, 8, 8))), r"shape \(1, 3, 8, 8\) is not.*Save one image"),
    "complex.npy": (saved(np.zeros((8, 8), complex)), "complex128 values have no known full scale"),
    "integers.npy": (saved(np.zeros((8, 8), np.int64)), "int64 values have no known full scale"),
    "pickled.npy": (saved(np.array([{}]), allow_pickle=True), "it holds Python objects, not numbers"),
    "damaged.tif": (b"II*\0\x08\0\0\0" + bytes(range(200)), "damaged or truncated"),
    "stack.tif": (tiff(np.zeros((5, 8, 8), np.float32)), "stack of 5 pages"),
    "many.tif": (tiff(np.zeros((8, 8, 6), np.uint8), photometric="minisblack"), "6 channels|stack"),
    "integers.tif": (tiff(np.zeros((8, 8), np.int32)), "int32 values have no known full scale"),
    "notes.txt": (b"hello", r"unsupported extension '.txt'. Convert it to one of .png"),
    "noextension": (b"hello", "unsupported extension ''"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gives_one_line_that_names_it(tmp_path, capfd, caplog, name):
    data, words = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read {path}") and "\n" not in message and message.endswith(".")
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["grey.png", "grey.tif"])
def test_the_limit_of_pixels_can_be_set(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # is put back after the test
    monkeypatch.setattr(image_decoding, "MAX_PIXELS", 100)
    path = tmp_path / name
    path.write_bytes(encoded("PNG") if name == "grey.png" else tiff(FLOATS, photometric="rgb"))
    with pytest.raises(ImageError, match=r"more than 100 pixels.*INVDIFF_MAX_PIXELS"):
        read_image(path)
    monkeypatch.setenv("INVDIFF_MAX_PIXELS", "100000")
    assert read_image(path).tensor.ndim == 3
    monkeypatch.setenv("INVDIFF_MAX_PIXELS", "200")  # below Pillow's own, which is 100000 by now
    with pytest.raises(ImageError, match="more than 200 pixels"):
        read_image(path)
    monkeypatch.setenv("INVDIFF_MAX_PIXELS", "many")
    with pytest.raises(ImageError, match="INVDIFF_MAX_PIXELS='many' must be a whole number"):
        read_image(path)


def test_a_deep_compressed_tiff_says_what_to_do(tmp_path, monkeypatch):
    def unavailable(*_, **__):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    (tmp_path / "lzw.tif").write_bytes(tiff(RGB16, photometric="rgb"))
    monkeypatch.setattr(tifffile.TiffPage, "asarray", unavailable)
    with pytest.raises(ImageError, match=r"stores uint16 as NONE, RGB. Save it uncompressed"):
        read_image(tmp_path / "lzw.tif")


def test_missing_files_and_folders_are_named_with_the_closest_match(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"phota.png: no such file. Did you mean .*photo.png\?"):
        read_image(tmp_path / "phota.png")
    with pytest.raises(ImageError, match=r"zzz.npy: no such file. Check the path."):
        read_image(tmp_path / "zzz.npy")
    with pytest.raises(ImageError, match=r"there is no folder .*nowhere"):
        read_image(tmp_path / "nowhere" / "x.png")
    with pytest.raises(ImageError, match="it is a folder, not an image"):
        read_image(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "x.png").chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        read_image(tmp_path / "x.png")


def test_running_out_of_memory_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    np.save(tmp_path / "x.npy", FLOATS)
    monkeypatch.setattr(np, "frombuffer", full)
    with pytest.raises(ImageError, match="does not fit in memory"):
        read_image(tmp_path / "x.npy")


# ---- writing


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name, bits, step",
    [
        ("x.png", None, 1 / 255),
        ("x.png", 8, 1 / 255),
        ("x.png", 16, 1 / 65535),
        ("x.webp", None, 1 / 255),
        ("x.tif", None, 0),
        ("x.tif", 8, 1 / 255),
        ("x.tiff", 16, 1 / 65535),
        ("x.npy", None, 0),
        ("X.NPY", None, 0),
    ],
)
def test_what_is_written_reads_back_to_half_a_step(tmp_path, name, bits, step, channels):
    tensor = torch.rand(channels, 12, 19, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "new" / "folder" / name
    assert write_image(path, tensor, bits) == 0
    back = read_image(path).tensor
    back = back[:channels]  # WebP has no grey
    torch.testing.assert_close(back, tensor, rtol=0, atol=step / 2 + 1e-7)
    if step:
        codes = back / step
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-2)
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_a_written_sixteen_bit_png_is_a_valid_file(tmp_path):
    photograph = torch.from_numpy(skimage.data.astronaut()[:64, :64].transpose(2, 0, 1) / 255)
    write_image(tmp_path / "x.png", photograph, bits=16)
    with Image.open(tmp_path / "x.png") as picture:
        picture.verify()
    with Image.open(tmp_path / "x.png") as picture:  # Pillow keeps the upper byte
        np.testing.assert_array_equal(np.asarray(picture), skimage.data.astronaut()[:64, :64])


def test_jpeg_is_close(tmp_path):
    photograph = torch.from_numpy(skimage.data.astronaut()[:64, :64].transpose(2, 0, 1) / 255).float()
    write_image(tmp_path / "x.jpg", photograph)
    assert (read_image(tmp_path / "x.jpg").tensor - photograph).square().mean() < 1e-3


def test_the_fraction_of_clipped_values_is_returned(tmp_path):
    tensor = torch.tensor([-0.5, 0.0, 1.0, 2.0, 1.0 + 1e-6, 0.5, 0.25, 0.75]).reshape(1, 2, 4)
    assert write_image(tmp_path / "x.png", tensor) == 2 / 8
    torch.testing.assert_close(read_image(tmp_path / "x.png").tensor, tensor.clamp(0, 1), rtol=0, atol=0.501 / 255)
    for name in ("x.npy", "x.tif"):
        assert write_image(tmp_path / name, tensor) == 0
        assert torch.equal(read_image(tmp_path / name).tensor, tensor)


def test_any_float_type_gradient_or_single_batch_is_written(tmp_path):
    tensor = torch.full((1, 3, 4, 4), 0.5)
    for given in (tensor.double(), tensor.bfloat16(), tensor.clone().requires_grad_(), tensor[0].transpose(1, 2)):
        write_image(tmp_path / "x.npy", given)
        assert torch.equal(read_image(tmp_path / "x.npy").tensor, tensor[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.npy", "x.jpg"])
def test_non_finite_values_are_never_written(tmp_path, bad, name):
    tensor = torch.zeros(3, 4, 4)
    tensor[1, 2, 3] = bad
    with pytest.raises(NumericalError, match=f"1 of 48 values are NaN or infinite; .*{name} was not written"):
        write_image(tmp_path / name, tensor)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, tensor, bits, error, words",
    [
        ("x.gif", torch.zeros(3, 4, 4), None, ImageError, "unknown extension '.gif'. Use one of .png"),
        ("x", torch.zeros(3, 4, 4), None, ImageError, "unknown extension ''"),
        ("x.jpg", torch.zeros(3, 4, 4), 16, UsageError, "bits=16 does not fit .*: .jpg holds 8"),
        ("x.png", torch.zeros(3, 4, 4), 12, UsageError, "bits=12 .* holds 8 or 16"),
        ("x.npy", torch.zeros(3, 4, 4), 8, UsageError, "bits=8 does not fit"),
        ("x.png", torch.zeros(2, 4, 4), None, UsageError, "2 channels .* takes 1 or 3. Write an .npy"),
        ("x.png", torch.zeros(4, 4), None, UsageError, r"shape \(4, 4\)"),
        ("x.png", torch.zeros(2, 3, 4, 4), None, UsageError, r"shape \(2, 3, 4, 4\) .* to_grid"),
        ("x.png", torch.zeros(3, 0, 4), None, UsageError, r"shape \(3, 0, 4\)"),
        ("x.png", torch.zeros(3, 4, 4, dtype=torch.uint8), None, UsageError, r"uint8 .* x.float\(\) / 255"),
        ("x.npy", torch.zeros(3, 4, 4, dtype=torch.complex64), None, UsageError, "complex64"),
        ("x.webp", torch.zeros(1, 1, 16384), None, ImageError, "write a .png instead"),
    ],
)
def test_unusable_write_requests_are_refused(tmp_path, name, tensor, bits, error, words):
    with pytest.raises(error, match=words):
        write_image(tmp_path / name, tensor, bits)
    assert not list(tmp_path.iterdir())


def out_of_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.npy", "x.json"])
def test_a_full_disk_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "replace", out_of_space)
    with pytest.raises(ImageError, match=f"cannot write .*{name}: No space left on device. Free some space"):
        write_json(path, [1]) if name == "x.json" else write_image(path, torch.zeros(3, 4, 4))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name, bits", [("x.png", 8), ("x.png", 16), ("x.tif", 32), ("x.npy", 32), ("x.jpg", 8)])
def test_a_disk_that_fills_during_the_write_leaves_nothing(tmp_path, monkeypatch, name, bits):
    encode = images.encode

    def partly(path, pixels):
        encode(path, pixels)
        path.write_bytes(path.read_bytes()[:10])
        out_of_space()

    monkeypatch.setattr(images, "encode", partly)
    with pytest.raises(ImageError, match="No space left"):
        write_image(tmp_path / name, torch.zeros(3, 4, 4), bits)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("name, bits", [("x.png", 8), ("x.png", 16), ("x.tif", 32), ("x.npy", 32), ("x.jpg", 8)])
def test_each_encoder_reports_a_really_full_device(tmp_path, monkeypatch, name, bits):
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda _: "full")
    (tmp_path / f".x-full{Path(name).suffix}").symlink_to("/dev/full")
    with pytest.raises(ImageError, match="cannot write"):
        write_image(tmp_path / name, torch.rand(3, 300, 300), bits)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "x.png") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_other_errors_pass_through_an_atomic_write(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x.png") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_an_atomic_write_follows_a_link_and_keeps_default_permissions(tmp_path):
    (tmp_path / "data").mkdir()
    link = tmp_path / "link.npy"
    link.symlink_to("data/real.npy")
    write_image(link, torch.zeros(1, 2, 2))
    assert link.is_symlink() and (tmp_path / "data" / "real.npy").is_file()
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "data" / "real.npy").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("failing", range(1, 5))
def test_files_written_together_appear_together_or_the_old_ones_stay(tmp_path, monkeypatch, failing):
    old = {"a.npy": b"old a", "b.npy": b"old b"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        replace(source, target)

    def write():
        with atomic.all_or_nothing():
            for name in ("a.npy", "b.npy", "c.npy"):
                write_image(tmp_path / name, torch.zeros(1, 2, 2))
            assert {name: (tmp_path / name).read_bytes() for name in old} == old

    monkeypatch.setattr(atomic.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    monkeypatch.undo()
    write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy", "c.npy"]
    assert read_image(tmp_path / "a.npy").tensor.shape == (1, 2, 2)


@pytest.mark.parametrize("shape", [(50,), (5, 8, 8), (2, 3, 4, 4), (3, 8, 8), (8, 8)])
def test_a_measurement_of_any_shape_comes_back_from_npy(tmp_path, shape):
    def fits(given):
        if given != shape:
            raise UsageError(f"not {shape}")

    y = torch.rand(shape)
    assert write_measurement(tmp_path / "y.npy", y) == 0
    assert torch.equal(read_measurement(tmp_path / "y.npy", fits).tensor, y)
    with pytest.raises((ImageError, UsageError)):
        read_measurement(tmp_path / "y.npy", lambda given: fits((0,)))
    if len(shape) != 3:
        with pytest.raises(UsageError, match=r"use \.npy"):
            write_measurement(tmp_path / "y.png", y)


def test_a_measurement_that_is_a_picture_is_read_as_one(tmp_path):
    np.save(tmp_path / "y.npy", np.zeros((8, 9, 3), np.float32))
    assert read_measurement(tmp_path / "y.npy", lambda shape: None).tensor.shape == (3, 8, 9)
    with pytest.raises(NumericalError, match="NaN"):
        write_measurement(tmp_path / "z.npy", torch.full((4,), torch.nan))
    assert not (tmp_path / "z.npy").exists()


def test_unwritable_places_are_named_with_a_fix(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageError, match=r"file/x.png: .*A part of this path is a file"):
        write_image(tmp_path / "file" / "x.png", torch.zeros(1, 2, 2))
    with pytest.raises(ImageError, match=r"folder.png: it is a folder"):
        write_image(tmp_path / "folder.png", torch.zeros(1, 2, 2))
    with pytest.raises(ImageError, match=r"name too long"):
        write_image(tmp_path / ("x" * 300 + ".png"), torch.zeros(1, 2, 2))

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(images, "encode", denied)
    with pytest.raises(ImageError, match=r"Permission denied. Choose a folder you may write to"):
        write_image(tmp_path / "x.png", torch.zeros(1, 2, 2))
    assert {file.name for file in tmp_path.iterdir()} == {"file", "folder.png"}


def test_json_is_valid_and_plain(tmp_path):
    value = {
        "path": tmp_path,
        "psnr": torch.tensor([1.5, float("inf")]),
        "nan": float("nan"),
        "count": np.int64(3),
        "tuple": (1, None, True),
        3: "σ",
    }
    write_json(tmp_path / "deep" / "x.json", value)
    back = json.loads((tmp_path / "deep" / "x.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    expected = {"path": str(tmp_path), "psnr": [1.5, "inf"], "nan": "nan", "count": 3, "tuple": [1, None, True]}
    assert back == {**expected, "3": "σ"}
    with pytest.raises(TypeError):
        write_json(tmp_path / "y.json", {"value": object()})
    assert not (tmp_path / "y.json").exists()


# ---- listing


@pytest.fixture
def album(tmp_path):
    for name in ("img10.png", "img2.png", "IMG1.JPG", "notes.txt", ".hidden.png", "sub/img3.npy", ".cache/img4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "none").mkdir()
    return tmp_path


def test_folders_are_searched_recursively_in_natural_order(album):
    names = [str(path.relative_to(album)) for path in list_images([album])]
    assert names == ["IMG1.JPG", "img2.png", "img10.png", "sub/img3.npy"]


def test_files_patterns_and_repeats(album):
    assert list_images(str(album / "img*.png")) == [album / "img2.png", album / "img10.png"]
    assert list_images([album / "**" / "*.npy"]) == [album / "sub" / "img3.npy"]
    assert list_images([album / "img2.png", album / "*", album]) == list_images([album])
    (album / "odd[1].png").write_bytes(b"x")
    assert list_images([album / "odd[1].png"]) == [album / "odd[1].png"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("none", "no images in .*none: no file there"),
        ("*.tif", r"no images in .*\*.tif: no file there"),
        ("*.txt", "it has 1 files, none of them ending in .png"),
        ("img3.png", "no such file. Did you mean .*img2.png"),
        ("notes.txt", "unsupported extension '.txt'"),
    ],
)
def test_paths_without_an_image_are_refused(album, name, words):
    with pytest.raises(ImageError, match=words):
        list_images([album / "img2.png", album / name])


def test_no_paths_at_all_is_a_usage_error():
    with pytest.raises(UsageError, match="no images given"):
        list_images([])


# ---- tensors


def test_fit_channels():
    grey, colour = torch.rand(2, 1, 4, 5), torch.rand(3, 4, 5)
    assert torch.equal(fit_channels(grey, 3), grey.expand(2, 3, 4, 5)) and fit_channels(grey, 1) is grey
    expected = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    torch.testing.assert_close(fit_channels(colour, 1), expected[None])
    torch.testing.assert_close(fit_channels(fit_channels(grey, 3), 1), grey)
    for image, channels in ((colour, 4), (torch.rand(4, 4, 5), 3), (torch.rand(4, 5), 3)):
        with pytest.raises(UsageError, match=f"cannot become {channels} channels"):
            fit_channels(image, channels)


def test_a_grid_shows_every_image_in_its_cell():
    tensors = [torch.full((1, 20, 30), value) for value in (0.1, 0.2, 0.3)] + [
        torch.rand(1, 3, 20, 30),
        torch.zeros(3, 20, 30),
    ]
    grid = to_grid(tensors, columns=2)
    assert grid.shape == (3, 8 + 3 * 28, 8 + 2 * 38) and grid[:, :8].eq(1).all() and grid[:, :, :8].eq(1).all()
    for index, tensor in enumerate(tensors):
        top, left = 8 + index // 2 * 28, 8 + index % 2 * 38
        cell = grid[:, top : top + 20, left : left + 30]
        assert torch.equal(cell, fit_channels(tensor.reshape(-1, 20, 30), 3))
    assert grid[:, 64:84, 46:76].eq(1).all()  # the sixth cell is empty


def test_a_grid_chooses_its_columns_and_clips():
    assert to_grid(torch.full((4, 1, 10, 10), 2.0)).shape == (3, 26, 8 + 4 * 18)
    assert to_grid(torch.zeros(9, 3, 10, 10)).shape == (3, 62, 62)
    assert to_grid(torch.full((1, 1, 10, 10), -3.0)).min() == 0


@pytest.mark.parametrize("width", [64, 256])
def test_grid_labels_are_readable_text_above_each_image(width):
    images_ = [torch.ones(3, 20, width)] * 2
    grid = to_grid(images_, labels=["DPS", "a label\nof two lines"])
    head = grid.shape[1] - 16 - 20
    assert 2 * 8 <= head <= 100
    assert grid[:, 8 : 8 + head, 8 : 8 + width].min() < 0.2 and grid[:, 8 + head :].eq(1).all()
    blank = to_grid(images_, labels=["", ""])
    assert blank.eq(1).all()


def test_a_label_too_long_for_its_image_shrinks_but_stays_inside():
    grid = to_grid([torch.ones(1, 16, 32)] * 2, labels=["w" * 50, ""])
    assert grid[:, :, -40:].eq(1).all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([],), "images of one size"),
        (([torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)],), r"\[\(3, 4, 4\), \(3, 4, 5\)\]"),
        (([torch.zeros(3, 4, 4)], ["a", "b"]), "2 labels for 1 images"),
        (([torch.zeros(3, 4, 4)], None, 0), "columns=0"),
        (([torch.zeros(2, 4, 4)],), "cannot become 3 channels"),
    ],
)
def test_unusable_grids_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        to_grid(*arguments)


def test_importing_the_module_loads_neither_torch_nor_numpy():
    code = "import sys, invdiff.files.images; print(*{'torch', 'numpy', 'PIL', 'tifffile'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_unfilter_notices_a_wrong_rule(monkeypatch):
    pixels = RGB16[:5, :6]
    raw = np.frombuffer(zlib.decompress(png(pixels, (4,))[41:]), np.uint8).reshape(5, -1)
    kinds, rows = raw[:, 0], raw[:, 1:].reshape(5, 6, 6)
    assert np.array_equal(image_decoding._unfilter(kinds, rows).view(">u2"), pixels)
    for wrong in (0, 1, 2, 3):
        assert not np.array_equal(image_decoding._unfilter(np.full(5, wrong, np.uint8), rows).view(">u2"), pixels)


@pytest.mark.parametrize("bits", [8, 16])
def test_codes_of_a_tall_image_are_those_of_its_strips_together(tmp_path, bits):
    x = torch.rand(3, 2 * image_encoding.STRIP + 5, 3, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    clipped = write_image(tmp_path / "x.png", x, bits)
    codes = np.rint(x.numpy() * (2**bits - 1))
    assert clipped == pytest.approx(((codes < 0) | (codes > 2**bits - 1)).mean())
    expected = codes.clip(0, 2**bits - 1) / (2**bits - 1)
    assert np.abs(read_image(tmp_path / "x.png").tensor.numpy() - expected).max() < 1e-7
