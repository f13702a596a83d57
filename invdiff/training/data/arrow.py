"""Hugging Face `datasets` on disk, as `save_to_disk` writes them, read through the optional package `datasets`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.errors import ImageError, UsageError
from invdiff.training.data.entry import Entry

_SPLITS = "dataset_dict.json"


def is_dataset(folder: str | Path) -> bool:
    """Whether `save_to_disk` wrote this folder: one dataset, or several splits of one."""
    return os.path.isfile(os.path.join(folder, _SPLITS)) or all(
        os.path.isfile(os.path.join(folder, name)) for name in ("dataset_info.json", "state.json")
    )


def dataset_entries(folder: Path) -> list[Entry]:
    """The rows of a dataset as images, undecoded; of several splits, `train`.

    The column is the one of type Image, or the one named image: encoded bytes, paths, or arrays. The group is the name
    of the folder. Raises UsageError for splits without `train`, and where no column or several could be meant;
    ImageError without the package, or for files that it cannot read.
    """
    folder = _split(folder)
    data = _load(folder)
    column, kind = _column(data, folder)
    real = folder.resolve()
    split = (real.parent / _SPLITS).is_file()
    group, prefix = (real.parent.name, f"{real.name}/") if split else (real.name, "")
    read = _reader(data.select_columns([column]), column, kind, folder)
    digits = len(str(len(data)))
    return [Entry(f"{prefix}{i:0{digits}d}", group, partial(read, i), f"{real}#{i}") for i in range(len(data))]


def _split(folder: Path) -> Path:
    if not (folder / _SPLITS).is_file():
        return folder
    try:
        splits = list(json.loads((folder / _SPLITS).read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageError(f"{folder / _SPLITS}: cannot be read ({error}); save the dataset again") from error
    chosen = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
    if chosen is None:
        choices = ", ".join(str(folder / split) for split in splits)
        raise UsageError(f"{folder}: a dataset of several splits without one named train; give one of {choices}")
    return folder / chosen


def _load(folder: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImageError(
            f"{folder}: a Hugging Face dataset, and the package that reads it is not installed: pip install datasets"
        ) from error
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # pyarrow, json and datasets raise their own kinds for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{folder}: cannot be read as a Hugging Face dataset ({reason})") from error


def _column(data: Any, folder: Path) -> tuple[str, Any]:
    """(name, feature) of the column that holds the images."""
    import datasets

    typed = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if "image" in data.features:
        return "image", data.features["image"]
    if len(typed) == 1:
        return typed[0], data.features[typed[0]]
    found = f"the columns {', '.join(typed)} hold images" if typed else "no column holds images"
    names = ", ".join(data.features) or "none"
    raise UsageError(f"{folder}: {found} (it has {names}); rename the one to learn from to 'image'")


def _reader(data: Any, column: str, kind: Any, folder: Path) -> Callable[[int], bytes | np.ndarray]:
    import datasets

    dtype = _element_type(kind)
    if isinstance(kind, datasets.Image):
        data = data.cast_column(column, datasets.Image(decode=False))
    elif dtype is not None:
        data = data.with_format("numpy")

    def read(row: int) -> bytes | np.ndarray:
        try:
            value = data[row][column]
            if isinstance(value, dict):
                value = value.get("bytes") or value.get("path")
            if isinstance(value, str):
                return (folder / value).read_bytes()  # an absolute path stays as it is
            if value is None:
                raise ImageError("the row has no image")
            return value if isinstance(value, bytes) else np.asarray(value).astype(dtype)
        except (ImageError, OSError):
            raise
        except Exception as error:
            raise ImageError(" ".join(str(error).split()) or type(error).__name__) from error

    return read


def _element_type(kind: Any) -> str | None:
    """dtype of the numbers in a column of arrays or nested lists; None for other columns. The numpy format of
    `datasets` turns every whole number into int64, which would lose the full scale."""
    while (inner := getattr(kind, "feature", kind[0] if isinstance(kind, list) else None)) is not None:
        kind = inner
    dtype = getattr(kind, "dtype", None)
    try:
        return None if dtype in (None, "string", "binary", "large_binary") else np.dtype(dtype).name
    except TypeError:
        return None
