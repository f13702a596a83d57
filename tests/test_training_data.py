"""Training data: what is found, what is decoded and kept, what is drawn; and what happens where data cannot be used."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import logging
import math
import os
import signal
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.errors import ImageError, InvdiffError, UsageError
from invdiff.machine.memory import left_by_cgroups
from invdiff.training.config import TrainingConfig
from invdiff.training.data.cache import Cache
from invdiff.training.data.crops import reduce, uniforms
from invdiff.training.data.decoding import decode, load, to_unit
from invdiff.training.data.entries import Entry, find_entries
from invdiff.training.data.photographs import Photographs
from invdiff.training.data.sampler import CropSampler, Usable, check_weights, split, split_by_key, to_network

TINY = {"widths": (8, 16), "groups": 4, "crops": (16,), "pixels": 512, "holdout": 1, "warmup": 0, "steps": 6}


def tiny(**changes):
    return TrainingConfig(**TINY | changes)


def must_fail(check, *arguments):
    """The mutation twin: the same check has to notice a wrong value."""
    with pytest.raises(AssertionError):
        check(*arguments)


def png(path, colour=(10, 20, 30), size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def npy(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def pack(path, folder, mode="w"):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=".")
    return path


def shard(path, **members):
    """A tar of members given as name=bytes, "/" in names written as "__" and "." as "_dot_"."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name.replace("__", "/").replace("_dot_", "."))
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tiff(array, **options):
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


# What is found


def test_folders_and_tars(tmp_path):
    root = tmp_path / "photos"
    for name in ("b/1.png", "b/deep/2.PNG", "3.jpg", ".hidden/4.png", "b/._5.png"):
        png(root / name)
    (root / "notes.txt").write_text("not an image")
    groups = {"b/1.png": "b", "b/deep/2.PNG": "b", "3.jpg": "photos"}
    entries = find_entries([root])
    assert {e.name: e.group for e in entries} == groups
    assert [e.key for e in entries] == ["photos/3.jpg", "b/1.png", "b/deep/2.PNG"]
    tar = pack(tmp_path / "packed.tar", root)
    packed = find_entries([tar])
    assert {e.name: e.group for e in packed} == groups | {"3.jpg": "packed"}
    assert {e.name: e.read() for e in packed} == {name: (root / name).read_bytes() for name in groups}
    both = tmp_path / "both"
    png(both / "c" / "6.png")
    tar.rename(both / "packed.tar")
    assert len(find_entries([both])) == 4 and len(find_entries([both, str(root)])) == 7
    same = find_entries([root / "b"])[0]
    assert same.name == "1.png" and same.key == "b/1.png"  # as when its folder is given
    only = find_entries([root / "b" / "1.png"])
    assert [(e.key, e.read()) for e in only] == [("b/1.png", (root / "b" / "1.png").read_bytes())]


def test_a_source_given_twice_counts_once(tmp_path, caplog):
    root = tmp_path / "photos"
    png(root / "a" / "1.png"), png(root / "b" / "2.png")
    tar = pack(tmp_path / "packed.tar", root)
    once = find_entries([root, tar])
    assert len(once) == 4 and not caplog.records
    (tmp_path / "link").symlink_to(root)
    again = find_entries([root, tar, root / "a", tmp_path / "link", tar, f"{root}/../photos"])
    assert [e.key for e in again] == [e.key for e in once]
    assert [r.getMessage() for r in caplog.records] == ["7 images are given twice; each is used once"]


def test_links_to_folders_are_followed_once(tmp_path):
    png(tmp_path / "elsewhere" / "1.png")
    root = tmp_path / "photos"
    png(root / "2.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "round").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert [e.key for e in find_entries([root])] == ["photos/2.png", "linked/1.png"]


def test_compressed_archives_are_refused(tmp_path, caplog):
    png(tmp_path / "photos" / "1.png")
    packed = pack(tmp_path / "packed.tar.gz", tmp_path / "photos", "w:gz")
    with pytest.raises(InvdiffError, match=r"packed\.tar\.gz.*unpack it"):
        find_entries([packed])
    packed.rename(tmp_path / "photos" / "packed.tar.gz")
    assert len(find_entries([tmp_path / "photos"])) == 1
    assert "packed.tar.gz: unpack it" in caplog.text


def test_webdataset_shards(tmp_path, caplog):
    picture = encoded(Image.new("RGB", (8, 8)))
    for number in range(12):
        shard(
            tmp_path / f"train-{number:06d}.tar",
            **{
                "0001_dot_jpg": picture,
                "0001_dot_json": b"{}",
                "0001_dot_cls": b"3",
                "0001_dot_txt": b"a cat",
                "0001_dot_mask_dot_png": picture,  # another picture of the sample that has a plain one
                "0002_dot_input_dot_npy": array_bytes(np.zeros((8, 8))),  # no plain one
                "__MACOSX__._0001_dot_jpg": b"",
            },
        )
    found = find_entries([str(tmp_path / "train-{000002..000010}.tar")])
    assert [e.key for e in found[:3]] == [
        "train/train-000002/0001.jpg",
        "train/train-000002/0002.input.npy",
        "train/train-000003/0001.jpg",
    ]
    assert len(found) == 18 == len({e.key for e in found}) and {e.group for e in found} == {"train"}
    assert found[2].read() == picture and not caplog.records
    keys = [e.key for e in find_entries([tmp_path])]
    assert len(keys) == 24 and keys[4:6] == [e.key for e in found[:2]]
    assert [e.key for e in find_entries([str(tmp_path / "train-00000*.tar")])] == keys[:20]
    assert len(find_entries([str(tmp_path / "{train-000000,train-000011}.tar")])) == 4
    with pytest.raises(ImageError, match=r"\{000010\.\.000014\}\.tar: 3 of 5 do not exist: .*train-000012\.tar"):
        find_entries([str(tmp_path / "train-{000010..000014}.tar")])
    with pytest.raises(ImageError, match=r"test-\*\.tar: no match for this pattern"):
        find_entries([str(tmp_path / "test-*.tar")])
    png(tmp_path / "odd-{1..3}" / "1.png")  # a name that only looks like a pattern
    assert len(find_entries([tmp_path / "odd-{1..3}"])) == 1


def test_a_damaged_shard_gives_what_it_has(tmp_path, caplog):
    for number in range(3):
        png(tmp_path / "photos" / f"{number}.png")
    tar = pack(tmp_path / "set.tar", tmp_path / "photos")
    whole = bytearray(tar.read_bytes())
    third = whole.index(b"2.png")
    whole[third : third + 150] = b"\xff" * 150  # the header of the last member
    tar.write_bytes(whole)
    assert [e.name for e in find_entries([tar])] == ["0.png", "1.png"]
    assert "set.tar is damaged" in caplog.text and "only the 2 images" in caplog.text


def test_sources_that_cannot_be_used(tmp_path):
    def refused(words, source):
        with pytest.raises(InvdiffError, match=words) as caught:
            find_entries([source])
        assert "\n" not in str(caught.value)

    refused("nowhere: no such file", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused(r"empty: no images in it \(looked for \.png", tmp_path / "empty")
    (tmp_path / "empty" / "data.parquet").touch()
    refused("save_to_disk", tmp_path / "empty")
    (tmp_path / "list.txt").write_text("a.png")
    refused("list.txt: not a folder", tmp_path / "list.txt")
    (tmp_path / "text.tar").write_text("this is no archive " * 100)
    refused("text.tar", tmp_path / "text.tar")
    shard(tmp_path / "labels.tar", a_dot_cls=b"1")
    refused("labels.tar: no images", tmp_path / "labels.tar")


# Hugging Face datasets on disk


@pytest.fixture(scope="module")
def datasets():
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("needs the package datasets")
    import datasets

    datasets.disable_progress_bars()
    return datasets


def test_a_dataset_on_disk_gives_the_bytes_it_holds(tmp_path, datasets, caplog):
    pictures = [encoded(Image.new("RGB", (20, 16), (k, 2, 3))) for k in range(12)]
    rows = {"label": list(range(12)), "photo": [{"bytes": data, "path": None} for data in pictures]}
    features = datasets.Features(label=datasets.Value("int64"), photo=datasets.Image())
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "flowers"))
    entries = find_entries([tmp_path / "flowers"])
    assert [e.key for e in entries[:2]] == ["flowers/00", "flowers/01"]
    assert [e.read() for e in entries] == pictures
    assert load(entries[7], 3)[0, 0].tolist() == [7, 2, 3] and load(entries[7], 3).shape == (16, 20, 3)
    assert len(find_entries([tmp_path, tmp_path / "flowers"])) == 12  # found inside a folder, and given twice
    assert "12 images are given twice" in caplog.text
    parts = datasets.DatasetDict(train=table.select(range(8)), test=table.select(range(8, 12)))
    parts.save_to_disk(str(tmp_path / "split"))
    assert [e.key for e in find_entries([tmp_path / "split"])][:1] == ["split/train/0"]
    test = find_entries([tmp_path / "split" / "test"])
    assert [e.key for e in test][:1] == ["split/test/0"] and [e.read() for e in test] == pictures[8:]
    datasets.DatasetDict(a=table, b=table).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UsageError, match=r"several splits without one named train; give one of .*two/a, .*two/b"):
        find_entries([tmp_path / "two"])


def test_datasets_of_paths_and_of_arrays(tmp_path, datasets):
    picture = png(tmp_path / "1.png")
    rows = {"image": [str(picture), "../1.png", "gone.png"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "paths"))
    *there, gone = find_entries([tmp_path / "paths"])
    assert [load(entry, 3)[0, 0].tolist() for entry in there] == [[10, 20, 30]] * 2
    with pytest.raises(ImageError, match="No such file"):
        load(gone, 3)
    values = np.random.default_rng(0).integers(0, 65536, (3, 5, 8, 6)).astype(np.uint16)
    nested = datasets.Value("uint16")
    for _ in range(3):
        nested = datasets.List(nested)
    for feature in (datasets.Array3D((5, 8, 6), "uint16"), nested):
        folder = tmp_path / type(feature).__name__
        rows = {"image": list(values) if isinstance(feature, datasets.Array3D) else values.tolist()}
        datasets.Dataset.from_dict(rows, features=datasets.Features(image=feature)).save_to_disk(str(folder))
        for entry, expected in zip(find_entries([folder]), values, strict=True):
            pixels = load(entry, 5)
            assert pixels.dtype == np.uint16 and np.array_equal(pixels, expected.transpose(1, 2, 0))


def test_datasets_that_cannot_be_used(tmp_path, datasets, monkeypatch):
    datasets.Dataset.from_dict({"text": ["a"], "number": [1]}).save_to_disk(str(tmp_path / "words"))
    with pytest.raises(UsageError, match=r"no column holds images \(it has text, number\); rename"):
        find_entries([tmp_path / "words"])
    arrow = next((tmp_path / "words").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ImageError, match="words: cannot be read as a Hugging Face dataset") as caught:
        find_entries([tmp_path / "words"])
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImageError, match="pip install datasets"):
        find_entries([tmp_path / "words"])


# What is decoded


def ramp(dtype=np.uint8, scale=1):
    return (np.arange(256, dtype=np.float64).reshape(16, 16) * scale).astype(dtype)


def test_every_kind_of_picture_as_colour_and_as_grey(tmp_path):
    from invdiff.files.images import write_image

    grey = ramp()
    alpha = Image.fromarray(np.stack([grey, np.full_like(grey, 128)], -1), "LA")
    over_white = 255 - (255.0 - grey) * 128 / 255
    palette = Image.fromarray(grey).convert("P")
    clear = Image.new("P", (16, 16), 3)
    clear.putpalette([0] * 768)
    deep, sheer = tmp_path / "deep.png", tmp_path / "sheer.npy"
    write_image(deep, torch.from_numpy(ramp(np.float32, 1 / 255)).expand(3, -1, -1), bits=16)
    write_image(sheer, torch.from_numpy(ramp(np.float32, 1 / 255)).expand(3, -1, -1))
    high = ramp(np.uint16, 257)
    deep_alpha = np.stack([high] * 3 + [np.full_like(high, 128 * 257)], -1)
    cases = {
        "grey": (encoded(Image.fromarray(grey)), grey, np.uint8),
        "colour": (encoded(Image.fromarray(np.stack([grey] * 3, -1))), grey, np.uint8),
        "colour JPEG": (encoded(Image.fromarray(np.stack([grey] * 3, -1)), "JPEG", quality=100), grey, np.uint8),
        "16-bit grey": (encoded(Image.fromarray(high)), grey, np.uint16),
        "16-bit grey TIFF": (encoded(Image.fromarray(high), "TIFF"), grey, np.uint16),
        "16-bit TIFF, white is zero": (tiff(high, photometric="miniswhite"), 255 - grey.astype(float), np.uint16),
        "16-bit colour": (deep.read_bytes(), grey, np.uint16),
        "16-bit colour TIFF with alpha": (
            tiff(deep_alpha, photometric="rgb", extrasamples=["unassalpha"]),
            over_white,
            np.uint16,
        ),
        "float TIFF": (encoded(Image.fromarray(ramp(np.float32, 1 / 255)), "TIFF"), grey, np.float32),
        "8-bit TIFF with LZW": (encoded(Image.fromarray(grey), "TIFF", compression="tiff_lzw"), grey, np.uint8),
        "float64 .npy": (array_bytes(ramp(np.float64, 1 / 255)), grey, np.float32),
        "big-endian .npy by columns": (array_bytes(np.asfortranarray(high.astype(">u2"))), grey, np.uint16),
        "colour .npy": (sheer.read_bytes(), grey, np.float32),
        "1-bit": (encoded(Image.fromarray(grey > 99)), np.where(grey > 99, 255, 0), np.uint8),
        "grey with alpha": (encoded(alpha), over_white, np.uint8),
        "colour with alpha": (encoded(alpha.convert("RGBA")), over_white, np.uint8),
        "palette": (encoded(palette), grey, np.uint8),
        "palette with a clear colour": (encoded(clear, transparency=3), np.full((16, 16), 255), np.uint8),
        "CMYK": (
            encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 155)), "JPEG", quality=100),
            np.full((16, 16), 100),
            np.uint8,
        ),
    }
    for name, (data, expected, dtype) in cases.items():
        for channels in (1, 3):
            pixels = decode(data, channels)
            assert pixels.dtype == dtype and pixels.shape == (16, 16, channels), name
            error = 255 * to_unit(pixels) - expected[..., None]
            # 8-bit decoders round (JPEG twice); the others hold these values to the last of their bits.
            allowed = 1.01 if dtype == np.uint8 else 0.5 / 257 + 1e-4 if dtype == np.uint16 else 1e-4
            assert np.abs(error).max() <= allowed, (name, channels, np.abs(error).max())
    for red, green, blue in ((200, 100, 50), (0, 255, 9)):
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        colour = Image.new("RGB", (16, 16), (red, green, blue))
        for data in (encoded(colour), encoded(colour, "JPEG", quality=100)):
            assert abs(int(decode(data, 1)[0, 0, 0]) - luma) <= 1
        deep_colour = np.full((16, 16, 3), [257 * red, 257 * green, 257 * blue], np.uint16)
        assert abs(int(decode(deep_colour, 1)[0, 0, 0]) - 257 * luma) <= 0.5 + 1e-2


def test_any_number_of_channels():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 65536, (5, 9, 12)).astype(np.uint16)
    expected = values.transpose(1, 2, 0)
    forms = {
        "(C, H, W)": array_bytes(values),
        "(H, W, C)": array_bytes(expected),
        "an array": values,
        "pages": tiff(values, photometric="minisblack"),
        "planes": tiff(values, photometric="minisblack", planarconfig="separate"),
        "bands": tiff(expected, photometric="minisblack", planarconfig="contig"),
    }
    for name, content in forms.items():
        assert np.array_equal(decode(content, 5), expected), name
        for channels in (1, 3, 4):
            with pytest.raises(ImageError, match=f"it has 5 channels, not {channels}"):
                decode(content, channels)
    rgba = rng.integers(0, 256, (9, 12, 4)).astype(np.uint8)
    assert np.array_equal(decode(encoded(Image.fromarray(rgba)), 4), rgba)  # four bands, when four are asked for
    assert np.array_equal(decode(encoded(Image.fromarray(rgba[..., :2], "LA")), 2), rgba[..., :2])
    three = rng.random((3, 3, 3)).astype(np.float32)
    assert np.array_equal(decode(three, 3), three.transpose(1, 2, 0))  # as write_image stores it
    assert decode(rng.random((7, 9, 1)), 3).shape == (7, 9, 3) and decode(rng.random((7, 9)), 1).shape == (7, 9, 1)
    with pytest.raises(ImageError, match=r"shape \(2, 3, 4, 5\) is not"):
        decode(np.zeros((2, 3, 4, 5)), 3)


def test_the_value_range_maps_to_zero_and_one():
    hounsfield = np.linspace(-3000, 3000, 60).reshape(6, 10)

    def check(value_range):
        low, high = value_range
        for dtype in (np.int16, np.float32, np.float64, np.int32, np.float16):
            stored = hounsfield.astype(dtype)
            pixels = decode(array_bytes(stored), 1, (-1000.0, 2000.0))[..., 0]
            assert pixels.dtype == (np.uint16 if dtype == np.int16 else np.float32)
            exact = np.clip((stored.astype(np.float64) - low) / (high - low), 0, 1)
            # Half a code of 16 bits; two roundings of float32.
            assert np.abs(to_unit(pixels) - exact).max() <= (0.51 / 65535 if dtype == np.int16 else 2.0**-22)

    check((-1000, 2000))
    must_fail(check, (-1000, 2001))
    twelve = np.array([[0, 1, 4095, 60000]], np.uint16)
    assert decode(tiff(twelve), 1, (0, 4095)).ravel().tolist() == [0, 16, 65535, 65535]
    assert decode(tiff(twelve), 1).ravel().tolist() == twelve.ravel().tolist()
    grey = encoded(Image.fromarray(ramp()))
    assert np.array_equal(decode(grey, 1, (0, 100)), decode(grey, 1))  # 8 bits keep their full scale
    nearly = np.array([[0.25, 1 + 5e-7]])
    assert decode(nearly, 1).max() == 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_numbers_that_are_no_image():
    cases = {
        r"float values from 0 to 255 lie outside \[0, 1\]; .*value_range": array_bytes(ramp(np.float32)),
        "float values from -1 to 0": array_bytes(ramp(np.float32, -1 / 255)),
        "float values from 0 to 255": encoded(Image.fromarray(ramp(np.float32)), "TIFF"),
        "int32 values have no known full scale.*value_range": encoded(Image.fromarray(ramp(np.int32, 9)), "TIFF"),
        "int16 values have no known full scale": array_bytes(ramp(np.int16)),
        "NaN or infinity": array_bytes(np.array([[0.5, math.nan]])),
        "holds NaN or infinity": array_bytes(np.array([[0.5, math.inf]], np.float32)),
        "complex128 values are no pixels": array_bytes(np.zeros((4, 4), complex)),
        "shape .* with pixels in it": array_bytes(np.zeros((0, 4))),
        "more than 89478485 pixels": encoded(Image.new("1", (9500, 9500))),
        "exceeds limit": encoded(Image.new("1", (13500, 13500))),
        "too early for its shape": array_bytes(np.zeros((9, 9)))[:-1],
        r"too early for its shape \(99999, 99999\)": array_bytes(np.zeros((9, 9))).replace(
            b"(9, 9), }        ", b"(99999, 99999), }"
        ),
        "not a readable picture": b"not an image",
        "the file is empty": b"",
    }
    for words, data in cases.items():
        with pytest.raises(ImageError, match=words) as caught:
            decode(data, 3)
        assert "\n" not in str(caught.value)
    for value_range in ((0, 1), None):
        with pytest.raises(ImageError, match="NaN"):
            decode(np.array([[math.nan, 0.5]]), 1, value_range)
    objects = io.BytesIO()
    np.save(objects, np.array([{}, None]), allow_pickle=True)
    with pytest.raises(ImageError, match="Python objects"):
        decode(objects.getvalue(), 1)


def test_pictures_are_turned_as_their_file_says():
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    exif = Image.Exif()
    exif[274] = 6  # the first row is the right side
    data = encoded(Image.fromarray(grey), exif=exif)
    assert np.array_equal(decode(data, 1)[..., 0], np.rot90(grey, -1))
    assert np.array_equal(decode(tiff(grey, extratags=[(274, 3, 1, 6, True)]), 1)[..., 0], np.rot90(grey, -1))


# What is kept, and what is left out


def test_broken_files_are_skipped_with_a_count(tmp_path, caplog):
    rows, columns = np.mgrid[:40, :48]
    picture = Image.fromarray((127 + 90 * np.sin(rows / 4 + columns / 6)).astype(np.uint8))
    (tmp_path / "text.png").write_text("not an image")
    picture.save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "truncated.png").write_bytes(encoded(picture)[:200])
    (tmp_path / "empty.png").touch()
    png(tmp_path / "small.png", size=(100, 15))
    npy(tmp_path / "nan.npy", np.full((20, 20), math.nan))
    npy(tmp_path / "five.npy", np.zeros((5, 20, 20), np.uint8))
    png(tmp_path / "gone.png")
    png(tmp_path / "locked.png").chmod(0)
    entries = find_entries([tmp_path])
    (tmp_path / "gone.png").unlink()
    photographs = Photographs(entries, 3, smallest=16)
    got = {entry.name: photographs.get(index) for index, entry in enumerate(photographs.entries)}
    usable = {"whole.jpg"} if os.getuid() else {"whole.jpg", "locked.png"}  # root may read all
    assert {name for name, pixels in got.items() if pixels is not None} == usable
    skipped = len(entries) - len(usable)
    assert len(photographs.broken) == photographs.skipped.total == skipped
    for index in range(len(photographs)):
        photographs.get(index)  # warned about once
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == skipped and f"({skipped} skipped so far)" in lines[-1]
    for words in (
        "small.png: 100x15 is smaller than the crop 16",
        "gone.png: cannot be read: No such file",
        "five.npy: it has 5 channels, not 3",
        "nan.npy: it holds NaN",
        "empty.png: the file is empty",
    ):
        assert any(words in line for line in lines), words
    assert f"1 with 5 channels, 1 too small, {skipped - 2} that cannot be read" in photographs.summary()


def test_permission_denied_is_one_file_skipped(tmp_path, caplog):
    def denied():
        raise PermissionError(errno.EACCES, "Permission denied")

    photographs = Photographs([Entry("1.png", "a", denied), *fake([5])[0]], 3, smallest=16)
    assert photographs.get(0) is None and photographs.get(1) is not None
    assert "1.png: cannot be read: Permission denied (1 skipped so far)" in caplog.text


def fake(colours, size=(32, 32), group="a", mode="L"):
    """Entries of one colour each, and how often each was read; None makes one that cannot be."""
    reads = dict.fromkeys(colours, 0)

    def entry(colour, index):
        def read():
            reads[colour] += 1
            return b"" if colour is None else encoded(Image.new(mode, size, colour))

        return Entry(f"{index}.png", group, read)

    return [entry(colour, index) for index, colour in enumerate(colours)], reads


def test_the_cache_keeps_to_its_budgets(tmp_path):
    size = 32 * 32  # grey stays one channel, also among colour images
    entries, reads = fake([1, 2, 3, 4, 5])
    folder = tmp_path / "made" / "when needed"
    photographs = Photographs(entries, 3, 16, cache=Cache(memory=2 * size + 9, disk=2 * size + 9, folder=folder))
    assert not folder.exists()
    for _ in range(2):
        for index in range(5):
            pixels = photographs.get(index)
            assert pixels is not None and (pixels == index + 1).all() and pixels.shape[:2] == (32, 32)
    assert reads == {1: 1, 2: 1, 3: 1, 4: 1, 5: 2}
    assert photographs.cache.in_memory == photographs.cache.on_disk == 2 * size
    assert folder.is_dir() and not any(folder.iterdir())  # the file has no name, so nothing is left behind
    assert photographs.get(0, side=33) is None and photographs.get(4, side=33) is None
    assert reads[5] == 2  # its size is known, so nobody decodes it to see
    assert "1 of 5 not kept" in photographs.summary()


def test_two_threads_that_decode_one_image_keep_it_once():
    both = threading.Barrier(2)

    def read():
        both.wait(30)
        return encoded(Image.new("L", (32, 32), 7))

    photographs = Photographs([Entry("1.png", "a", read)], 1, 16, cache=Cache(memory=10**6, disk=0))
    got = []
    threads = [threading.Thread(target=lambda: got.append(photographs.get(0))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((image == 7).all() for image in got) and len(got) == 2
    assert photographs.cache.in_memory == 32 * 32 and photographs.kept(0) is not None


def test_a_full_disk_ends_the_cache_and_not_the_training(tmp_path, monkeypatch, caplog):
    import tempfile

    made = tempfile.TemporaryFile

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full(made(**options)))
    entries, reads = fake([1, 2, 3])
    photographs = Photographs(entries, 1, 16, cache=Cache(memory=0, disk=10**6, folder=tmp_path))
    for _ in range(2):
        assert [int(photographs.get(index)[0, 0, 0]) for index in range(3)] == [1, 2, 3]
    assert reads == {1: 2, 2: 2, 3: 2} and not photographs.broken
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_the_disk_cache_holds_every_kind_over_several_segments(tmp_path, monkeypatch):
    from invdiff.training.data import cache as module

    monkeypatch.setattr(module, "SEGMENT", 2**16)
    rng = np.random.default_rng(0)
    shapes = [(70, 50, 3), (200, 300, 5), (33, 35, 1), (64, 64, 1), (9, 9, 2)] * 3
    kinds = [np.uint8, np.uint16, np.float32]
    arrays = [(100 * rng.random(shape)).astype(kinds[k % 3]) for k, shape in enumerate(shapes)]
    cache = Cache(memory=0, disk=10**8, folder=tmp_path)
    kept = [cache.keep(array[::-1]) for array in arrays]
    for array, mapped in zip(arrays, kept, strict=True):
        assert mapped.dtype == array.dtype and np.array_equal(mapped, array[::-1]) and not mapped.flags.writeable
    assert cache.on_disk == sum(array.nbytes for array in arrays) and cache.in_memory == 0


def test_large_arrays_are_mapped_and_not_read(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (3, 512, 400)).astype(np.uint16)
    npy(tmp_path / "planes" / "1.npy", values)
    npy(tmp_path / "floats" / "2.npy", np.full((600, 600), 0.5, np.float32))
    npy(tmp_path / "wide" / "3.npy", np.full((600, 600), 500.0))
    npy(tmp_path / "little" / "4.npy", np.full((60, 60), 0.5, np.float32))
    photographs = Photographs(find_entries([tmp_path]), 3, 16, cache=Cache(memory=2**24, disk=0))
    got = {entry.group: photographs.get(index) for index, entry in enumerate(photographs.entries)}
    assert np.array_equal(got["planes"], values.transpose(1, 2, 0)) and got["floats"].max() == 0.5
    assert photographs.cache.in_memory == got["little"].nbytes  # 3.npy is refused: float values outside [0, 1]
    assert got["wide"] is None and photographs.skipped.total == 1 and "2 mapped" in photographs.summary()
    converted = Photographs(find_entries([tmp_path / "wide"]), 1, 16, (0.0, 1000.0), Cache(memory=2**24, disk=0))
    assert (converted.get(0) == np.float32(0.5)).all() and converted.cache.in_memory == 4 * 600 * 600
    (tmp_path / "planes" / "1.npy").unlink()
    assert np.array_equal(got["planes"], values.transpose(1, 2, 0))  # a mapped file that disappears stays readable
    cut_short = npy(tmp_path / "short" / "5.npy", values)
    cut_short.write_bytes(cut_short.read_bytes()[:-1000])
    with pytest.raises(ImageError, match="ends too early"):
        load(find_entries([cut_short.parent])[0], 3)


@pytest.mark.parametrize("workers", [1, 3])
def test_preloading_decodes_each_image_once(workers, caplog):
    caplog.set_level(logging.INFO, logger="invdiff")
    entries, reads = fake([*range(1, 40), None])
    photographs = Photographs(entries, 1, 16, cache=Cache(memory=10**8, disk=0))
    assert photographs.preload(workers) == 39 and set(reads.values()) == {1}
    assert all(photographs.kept(index) is not None for index in range(39)) and set(reads.values()) == {1}
    assert "decoded 39 images" in caplog.text and "1 skipped: 1 that cannot be read" in caplog.text
    beside = fake(list(range(1, 40)))[0]
    photographs = Photographs(beside, 1, 16, cache=Cache(memory=10**8, disk=0), workers=workers)
    thread = threading.Thread(target=photographs.preload)  # beside the training
    thread.start()
    expected = sampler(beside, pixels=50 * 256).batch(0)
    assert np.array_equal(sampler(None, photographs, pixels=50 * 256).batch(0), expected)
    thread.join()
    full = Photographs(entries, 1, 16, cache=Cache(memory=10 * 32 * 32, disk=0))
    assert 10 < full.preload(workers) <= 10 + 2 * workers  # it ends where the room does
    calls = iter([False] * 5 + [True] * 100)
    stopped = Photographs(entries, 1, 16, cache=Cache(memory=10**8, disk=0))
    assert 1 <= stopped.preload(workers, stop=lambda: next(calls)) <= 5


def test_memory_is_what_the_container_leaves(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    inner = groups / "jobs" / "one"
    inner.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    assert left_by_cgroups(proc, groups) == []  # no such files: what the machine has
    (proc / "self" / "cgroup").write_text("0::/jobs/one\n")
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("700\n")
    (inner / "memory.stat").write_text("anon 1\ninactive_file 50\n")
    assert left_by_cgroups(proc, groups) == []
    (inner.parent / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.current").write_text("900000\n")
    (inner.parent / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert left_by_cgroups(proc, groups) == [150_000]
    old = groups / "memory"
    old.mkdir()
    (proc / "self" / "cgroup").write_text("3:cpu,memory:/docker/abc\n1:name=systemd:/x\n")
    (old / "memory.limit_in_bytes").write_text("5000")
    (old / "memory.usage_in_bytes").write_text("4000")
    (old / "memory.stat").write_text("total_inactive_file 500")
    assert left_by_cgroups(proc, groups) == [1500]


def test_processes_on_one_machine_share_its_room(monkeypatch, tmp_path):
    from invdiff.training.data import cache as module

    monkeypatch.setattr(module, "free_memory", lambda: 8000)
    monkeypatch.setattr(module, "free_disk", lambda folder: 16000)
    assert (Cache().memory, Cache().disk) == (4000, 8000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (Cache().memory, Cache().disk) == (1000, 2000)


# What is drawn


def sampler(entries, photographs=None, **changes):
    config = tiny(**{"channels": 1} | changes)
    photographs = photographs or Photographs(entries, config.channels, min(config.crops), config.value_range)
    return CropSampler(photographs, config)


def test_the_numbers_of_a_crop_are_uniform_and_its_own():
    table = uniforms(0, 7, 0, 20_000)
    n = table.size

    def check(values):
        assert values.min() >= 0 and values.max() < 1
        assert abs(values.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
        assert abs((values**2).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)
        correlation = np.corrcoef(values.T) - np.eye(values.shape[1])
        assert np.abs(correlation).max() < 5 / math.sqrt(len(values))

    check(table)
    must_fail(check, table**1.02)
    must_fail(check, np.column_stack([table[:, :7], table[:, :7].mean(1)]))
    assert np.array_equal(uniforms(0, 7, 12_345, 10), table[12_345:12_355])
    assert not np.array_equal(uniforms(0, 8, 0, 10), table[:10]) and not np.array_equal(
        uniforms(1, 7, 0, 10), table[:10]
    )


def test_images_are_drawn_by_the_weight_of_their_folder():
    count = 4000
    a, b, c = (
        fake([1, None, 2], group="a")[0],
        fake([3], group="b")[0],
        fake([None, None], group="0")[0],
    )
    batch = sampler(a + b + c, weights={"a": 3, "0": 1e6}, pixels=count * 256).batch(0)
    assert batch.shape == (count, 1, 16, 16) and batch.dtype == np.uint8

    def check(expected):  # "0" has nothing to draw, so a and b share: 3 to 1, and inside a evenly
        for colour, share in expected.items():
            assert abs((batch[:, 0, 0, 0] == colour).mean() - share) < 5 * math.sqrt(share * (1 - share) / count)

    check({1: 0.375, 2: 0.375, 3: 0.25})
    must_fail(check, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    must_fail(check, {1: 0.25, 2: 0.5, 3: 0.25})
    only = sampler(a + b, weights={"a": 0}).batch(0)
    assert set(np.unique(only)) == {3}
    batch = sampler(a + b, weights={"a": 3}, pixels=count * 256).batch(1)
    check({1: 0.375, 2: 0.375, 3: 0.25})
    must_fail(check, {1: 0.25, 2: 0.25, 3: 0.5})


def mixed_data(seed=0, **changes):
    entries = fake([1, None, 2, 5, None, 9])[0]
    entries += fake([None] * 5, group="b")[0] + fake([7] * 5, (20, 20), group="c")[0]
    return sampler(entries, seed=seed, **{"crops": (16, 24), "pixels": 9 * 256} | changes)


def test_crops_depend_on_the_seed_and_the_step_alone():
    worn = mixed_data()
    batches = [worn.batch(step) for step in range(8)]  # by now it knows what is broken
    assert {b.shape[-1] for b in batches} == {16, 24}
    for step in (7, 3):
        assert np.array_equal(mixed_data().batch(step), batches[step])
        assert np.array_equal(worn.batch(step), batches[step])
        assert batches[step].shape == (worn.count(step), 1, worn.side(step), worn.side(step))
        assert batches[step].flags.c_contiguous
    assert not all(np.array_equal(mixed_data(seed=1).batch(step), batches[step]) for step in range(8))
    assert all(7 not in np.unique(b) for b in batches if b.shape[-1] == 24)  # it is too small for those


def textured(count=4, size=(90, 70), dtype=np.uint8, channels=3, group="a"):
    """Entries of random pictures as arrays."""
    rng = np.random.default_rng(3)
    peak = 1 if dtype == np.float32 else np.iinfo(dtype).max
    arrays = [(peak * rng.random((*size, channels))).astype(dtype) for _ in range(count)]
    return [Entry(f"{k}.npy", group, lambda array=array: array) for k, array in enumerate(arrays)]


def test_the_parts_of_a_batch_are_the_batch_of_one_process():
    crops = (16, 16, 32)
    for step in range(6):
        half = mixed_data(crops=crops, pixels=8 * 256, channels=1)
        whole = mixed_data(crops=crops, pixels=16 * 256, channels=1)
        both = np.concatenate([half.batch(step, part, 2) for part in (0, 1)])
        assert half.count(step) * 2 == whole.count(step) == len(both) and half.side(step) == whole.side(step)
        assert np.array_equal(both, whole.batch(step))
    textures = [sampler(textured(), channels=3, pixels=p * 256, downscale=0.5) for p in (4, 12)]
    thirds = [textures[0].batch(2, part, 3) for part in range(3)]
    assert np.array_equal(np.concatenate(thirds), textures[1].batch(2))
    assert not np.array_equal(thirds[0], thirds[1])
    with pytest.raises(UsageError, match="part=2 of parts=2"):
        textures[0].batch(0, 2, 2)


def test_batches_do_not_depend_on_what_is_kept_nor_on_threads(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def fresh(memory, disk, workers):
        photographs = Photographs(textured(9), 3, 16, cache=Cache(memory, disk, tmp_path), workers=workers)
        return sampler(None, photographs, channels=3, pixels=20 * 256, crops=(16, 24))

    expected = [fresh(10**8, 0, 1).batch(step) for step in range(6)]
    size = 90 * 70 * 3
    for memory, disk, workers in ((0, 0, 1), (0, 0, 4), (4 * size, 3 * size, 2)):
        tested = fresh(memory, disk, workers)
        with ThreadPoolExecutor(3) as pool:
            for one, other in zip(expected, pool.map(tested.batch, range(6)), strict=True):
                assert np.array_equal(one, other)


def test_an_image_that_is_not_kept_is_let_go(monkeypatch):
    """Of many large images, only as many are in memory at once as there are threads."""
    import weakref

    from invdiff.training.data import photographs as module

    alive, most, lock, real = weakref.WeakSet(), [0], threading.Lock(), module.load_stored

    class Token:
        """Lives as long as the array that has it."""

    class Tracked(np.ndarray):
        token: Token

    def counted(*arguments):
        image = real(*arguments).view(Tracked)
        image.token = Token()
        with lock:
            alive.add(image.token)
            most[0] = max(most[0], len(alive))
        return image

    monkeypatch.setattr(module, "load_stored", counted)
    tested = Photographs(textured(30), 3, 16, cache=Cache(0, 0), workers=2)
    batch = sampler(None, tested, channels=3, pixels=60 * 256, downscale=0).batch(0)
    assert batch.shape[0] == 60 and len(alive) == 0 and 1 <= most[0] <= 3


def gradient():
    rows, columns = np.mgrid[:48, :48]
    data = encoded(Image.fromarray((rows * 4 + columns).astype(np.uint8)))  # steps of 4 down and of 1 across
    return [Entry("1.png", "a", lambda: data)]


def steps_of(batch):
    inner = batch[:, 0].astype(int)[:, 4:-4, 4:-4]
    down = (inner[:, -1] - inner[:, 0]).mean(1) / (inner.shape[1] - 1)
    across = (inner[:, :, -1] - inner[:, :, 0]).mean(1) / (inner.shape[2] - 1)
    return np.stack([down, across], 1)


def test_orientations_occur_as_set():
    all_eight = {(4, 1), (4, -1), (-4, 1), (-4, -1), (1, 4), (1, -4), (-1, 4), (-1, -4)}
    for name, expected in {"all": all_eight, "flip": {(4, 1), (4, -1)}, "none": {(4, 1)}}.items():
        batch = sampler(gradient(), downscale=0, pixels=4000 * 256, orientations=name).batch(0)
        pairs, counts = np.unique(np.rint(steps_of(batch)).astype(int), axis=0, return_counts=True)
        assert {tuple(pair) for pair in pairs.tolist()} == expected
        share = 1 / len(expected)
        assert np.abs(counts / 4000 - share).max() <= 5 * math.sqrt(share * (1 - share) / 4000)


def test_windows_and_their_places_are_drawn_evenly():
    def factors(downscale):
        batch = sampler(gradient(), downscale=downscale, pixels=1000 * 256).batch(0)
        return np.abs(steps_of(batch)).max(1) / 4

    reduced = factors(1)  # window / side, evenly from 1 to 3: mean 2, variance 1/3
    assert reduced.min() < 1.1 and 2.85 < reduced.max() < 3.15
    assert abs(reduced.mean() - 2) < 5 * math.sqrt(1 / 3 / 1000) + 0.02  # 0.02: steps in whole codes
    share = (factors(0.5) > 1.05).mean()  # of windows from 16 to 48, one in 33 is not reduced
    assert abs(share - 0.5 * 32 / 33) < 5 * math.sqrt(0.25 / 1000)
    batch = sampler(gradient(), downscale=0, pixels=4000 * 256, orientations="none").batch(0)
    corner = batch[:, 0, 0, 0].astype(int)  # 4 row + column, each evenly from 0 to 32
    assert abs(corner.mean() - 5 * 16) < 5 * math.sqrt(17 * (33**2 - 1) / 12 / 4000)
    assert corner.min() <= 8 and corner.max() >= 152
    # Row and column are independent, so the variances add up, here to 17 (33^2 - 1) / 12; the standard error of a
    # variance is its own size times sqrt((kurtosis - 1) / n), and the kurtosis is below 3.
    spread = 17 * (33**2 - 1) / 12

    def check(spread):
        assert abs(corner.var() - spread) < 5 * spread * math.sqrt(2 / 4000)

    check(spread)
    must_fail(check, spread * 25 / 17)  # if both were one number


def bicubic(crop, side):
    """Antialiased bicubic reduction in float64, by its formula: output j is the mean of the inputs i with weights
    k((i + 0.5 - c_j) / s), c_j = (j + 0.5) s, s = window / side, k Keys' kernel with a = -1/2 (Keys 1981, eq. 4)."""

    def k(x):
        x = np.abs(x)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    def matrix(window):
        scale = window / side
        weights = k((np.arange(window) + 0.5 - (np.arange(side)[:, None] + 0.5) * scale) / scale)
        return weights / weights.sum(1, keepdims=True)

    return np.einsum("ia,jb,abc->ijc", matrix(crop.shape[0]), matrix(crop.shape[1]), crop.astype(np.float64))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 6])
def test_reducing_keeps_the_precision(dtype, channels):
    peak = 1 if dtype == np.float32 else np.iinfo(dtype).max
    rows, columns = np.mgrid[:41, :41]
    smooth = np.stack([0.5 + 0.4 * np.sin(rows / (5 + c) + columns / 7) for c in range(channels)], -1)
    crop = (peak * smooth).astype(dtype)
    exact = bicubic(crop, 16)

    def check(pixels):
        assert pixels.dtype == dtype and pixels.shape == (16, 16, channels)
        # uint8 rounds after each of the two passes, whose weights have an absolute sum below 1.4; uint16 once, after
        # float32; float32 sums 12 terms twice.
        allowed = {np.uint8: 0.5 + 1.4 * 0.5 + 0.1, np.uint16: 0.51, np.float32: 24 * 2.0**-24}[dtype]
        assert np.abs(pixels.astype(np.float64) - exact).max() <= allowed

    check(reduce(crop, 16))
    if dtype != np.uint8:
        must_fail(check, (np.rint(reduce(crop, 16) / peak * 255) / 255 * peak).astype(dtype))  # by way of 8 bits
    must_fail(check, np.roll(reduce(crop, 16), 1, axis=0))
    edges = np.zeros((40, 40, channels), dtype)
    edges[:, 20:] = peak  # the filter overshoots on both sides
    assert bicubic(edges, 16).max() > 1.01 * peak
    sharp = reduce(edges, 16)
    assert sharp.max() == peak and sharp.min() == 0


def test_batches_keep_the_kind_of_the_images():
    for dtype, peak in ((np.uint8, 255), (np.uint16, 65535), (np.float32, 1)):
        tested = sampler(textured(dtype=dtype, channels=4), channels=4, downscale=0.5)
        batch = tested.batch(0)
        assert batch.dtype == dtype and batch.shape == (2, 4, 16, 16)
        values = to_network(batch, "cpu")
        assert values.dtype == torch.float32 and values.shape == batch.shape
        expected = 2 * batch.astype(np.float64) / peak - 1
        assert np.abs(values.numpy() - expected).max() <= 2.0**-23
    fine = np.full((40, 40), 12345, np.uint16)
    plain = sampler([Entry("1.npy", "a", lambda: fine)], downscale=0.5).batch(0)
    assert (plain == 12345).all()  # no bit is lost, reduced or not
    kinds = textured(1) + textured(1, dtype=np.uint16, group="b") + textured(1, dtype=np.float32, group="c")
    batch = sampler(kinds, channels=3, pixels=40 * 256, downscale=0).batch(0)
    assert batch.dtype == np.float32 and 0 <= batch.min() < 0.01 < 0.99 < batch.max() <= 1
    alone = sampler(textured(1), channels=3, pixels=40 * 256, downscale=0, seed=0).batch(0)
    first = next(k for k in range(40) if uniforms(0, 0, 0, 40)[k, 0] < 1 / 3)
    assert np.array_equal(batch[first], to_unit(alone[first]))  # the same crop, as float


def test_grey_images_among_colour_ones():
    entries = fake([50])[0] + fake([(10, 20, 30)], mode="RGB", group="b")[0]
    batch = sampler(entries, channels=3, pixels=20 * 256).batch(0)
    assert {tuple(colour) for colour in batch[:, :, 0, 0].tolist()} == {(50, 50, 50), (10, 20, 30)}


# What cannot be used


def test_data_without_a_usable_image(tmp_path):
    def refused(words, *sources, **changes):
        config = tiny(**changes)
        entries = find_entries(sources)
        with pytest.raises(InvdiffError, match=words) as caught:
            check_weights(config, entries)
            learning, _ = split(entries, config.holdout, config.seed, Usable(config))
            CropSampler(Photographs(learning, config.channels, min(config.crops)), config).check()
        assert "\n" not in str(caught.value)

    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / "broken" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "broken" / name).write_text("not an image")
        png(tmp_path / "small" / name, size=(32, 8))
        npy(tmp_path / "bands" / f"{name}.npy", np.zeros((5, 40, 40), np.uint8))
    refused("none of the 3 images can be used: 3 that cannot be read$", tmp_path / "broken")
    refused(
        r"none of the 3 images can be used: 3 with 5 channels \(the training has channels=3: set --channels 5\)$",
        tmp_path / "bands",
    )
    refused(
        r"none of the 2 training images .* crops of 16 x 16 pixels: 2 too small; use smaller crops \(--crop\)",
        tmp_path / "small",
    )
    one = png(tmp_path / "one" / "1.png").parent
    refused("at least two images", one)
    refused("at least two images", one, one)
    good = png(tmp_path / "good" / "1.png").parent
    refused(r"have a side below 64; use smaller crops", good, one, crops=(16, 64), pixels=64 * 64)
    png(good / "2.png")
    refused(r"'goood'.*Did you mean 'good'", good, weights={"goood": 2})
    refused("every folder has weight zero", good, weights={"good": 0})
    npy(good / "3.npy", np.zeros((5, 40, 40), np.uint8))  # one of another kind is skipped
    config = tiny()
    CropSampler(Photographs(find_entries([good]), 3, 16), config).check()


def test_a_million_wrong_images_are_not_all_tried(monkeypatch):
    from invdiff.training.data import sampler as module

    monkeypatch.setattr(module, "ENOUGH", 20)
    reads = [0]

    def read():
        reads[0] += 1
        return np.zeros((5, 40, 40), np.uint8)

    wrong = [Entry(f"{k}.npy", "a", read) for k in range(500)]
    with pytest.raises(ImageError, match=r"none of the 20 images tried \(of 500\) can be used: 20 with 5 channels"):
        split(wrong, 4, 0, Usable(tiny()))
    assert reads[0] == 20
    with pytest.raises(ImageError, match="none of the 500 training images"):
        sampler(wrong).check()
    assert reads[0] == 40
    sampler(wrong + fake([3], group="z")[0]).check()  # but a folder of wrong ones does not hide another


def test_a_sampler_refuses_photographs_of_other_settings():
    photographs = Photographs(fake([1])[0], 1, 16, (0.0, 100.0))
    with pytest.raises(
        UsageError, match=r"value_range=\(0\.0, 100\.0\) for settings with channels=1, value_range=None"
    ):
        CropSampler(photographs, tiny(channels=1))
    CropSampler(photographs, tiny(channels=1, value_range=(0, 100)))


# What is held back


def test_the_split_is_random_and_repeatable():
    entries = fake(list(range(100)))[0]
    learning, held = split(entries, 16, seed=0)
    assert len(held) == 16 and len(learning) == 84
    assert [e.key for e in split(entries, 16, seed=0)[1]] == [e.key for e in held]
    assert [e.key for e in split(entries, 16, seed=1)[1]] != [e.key for e in held]
    assert len(split(entries[:10], 16, seed=0)[1]) == 2


def test_what_is_held_back_is_never_learned_from():
    entries = fake([1, None, 2, 3, None, 4])[0]
    twice = entries + [Entry(e.name, e.group, e.read, f"copy{e.name}") for e in entries]
    learning, held = split(twice, 2, 5, Usable(tiny()))
    keys = {entry.key for entry in held}
    assert len(keys) == len(held) == 2 and not keys & {entry.key for entry in learning}
    assert not keys & {"a/1.png", "a/4.png"}  # the broken ones
    assert len(learning) == len(twice) - 4
    grown = fake([7] * 30, group="b")[0] + twice
    learning, again = split_by_key(grown, [entry.key for entry in held])
    assert {entry.key for entry in again} == keys and len(learning) == len(grown) - 4
    with pytest.raises(UsageError, match="none of the images held back"):
        split_by_key(fake([7] * 30, group="b")[0], list(keys))


def test_a_training_keeps_to_its_split(tmp_path, monkeypatch):
    from invdiff.training.engine import train

    seen = []
    check = CropSampler.check

    def spy(self):
        seen.append({entry.key for entry in self.photographs.entries})
        check(self)

    monkeypatch.setattr(CropSampler, "check", spy)
    root = tmp_path / "photos"
    rows, columns = np.mgrid[:40, :48]
    for index in range(6):
        (root / "ab"[index // 3]).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray((127 + 90 * np.sin(rows / (4 + index) + columns / 6)).astype(np.uint8))
        picture.save(root / "ab"[index // 3] / f"{index}.png")
    (root / "a" / "broken.png").write_text("never held back")
    config = tiny(holdout=8, seed=2, steps=2)  # of seven images, a fifth is one

    def stop(facts):
        if facts["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    out = train(config, [root, root / "a"], tmp_path / "out", report=stop)
    held = json.loads((out / "training" / "holdout.json").read_text())["held_back"]
    assert held and not seen[0] & set(held) and len(seen[0] | set(held)) == 7 and "a/broken.png" not in held
    for index in range(9):  # the data grows; what was held back stays so
        Image.open(root / "a" / "0.png").save(root / "a" / f"new{index}.png")
    train(config, [root], out, resume=True)
    assert json.loads((out / "training" / "holdout.json").read_text())["held_back"] == held
    assert not seen[1] & set(held) and len(seen[1] | set(held)) == 16
    for key in held:
        Path(root / key).unlink()
    with pytest.raises(UsageError, match="none of the images held back"):
        train(config, [root], out, resume=True)
