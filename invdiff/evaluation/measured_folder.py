"""The images of a folder, cropped and measured, on which tuning and comparisons score solvers."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import ImageError, UsageError
from invdiff.evaluation.datasets import file_hash, fitted
from invdiff.files.images import list_images, read_image
from invdiff.noise import NoiseModel
from invdiff.operator.contract import Operator
from invdiff.priors.prior import Prior
from invdiff.problem.simulation import degrade

ENOUGH = 8
"""The least number of images of which a quarter is held back."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image. key: path below the folder; file: first 16 hex digits of the file's SHA-256; truth (C, H, W); y: its
    measurement."""

    key: str
    file: str
    truth: torch.Tensor
    y: torch.Tensor


@dataclass(frozen=True, eq=False)
class Pictures:
    """The images of a folder. failed: (path, reason) of the files that cannot be used."""

    folder: Path
    usable: tuple[Picture, ...]
    crop: int | None = None
    failed: tuple[tuple[str, str], ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any name, any file's content and the crop."""
        lines = [f"{picture.key} {picture.file}" for picture in self.usable]
        return hashlib.sha256("\n".join([*lines, f"crop {self.crop}"]).encode()).hexdigest()[:16]

    def split(self, seed: int) -> tuple[list[Picture], list[Picture]]:
        """(to search on, held back): a quarter of ENOUGH or more images, drawn by the seed, is held back."""
        keys = [picture.key for picture in self.usable]
        count = len(keys) // 4 if len(keys) >= ENOUGH else 0
        kept = set(random.Random(seed).sample(keys, count))
        return [p for p in self.usable if p.key not in kept], [p for p in self.usable if p.key in kept]


def read_pictures(
    folder: str | os.PathLike[str],
    operator: Operator,
    noise: NoiseModel,
    prior: Prior,
    *,
    crop: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    fewest: int = 1,
) -> Pictures:
    """The first `limit` images of a folder, their middle `crop` x `crop` pixels, as prior and operator can take them.

    Grey and colour are matched to the prior. A file that cannot be used is left out and listed in `failed`.
    Raises ImageError for a folder without images, UsageError if fewer than `fewest` of them can be used.
    """
    root = Path(folder)
    if root.exists() and not root.is_dir():
        raise UsageError(f"data={root}: is a file; name a folder")
    usable: list[Picture] = []
    failed: list[tuple[str, str]] = []
    for path in list_images(root)[:limit]:
        key = path.relative_to(root).as_posix()
        try:
            truth = fitted(read_image(path).tensor, operator, prior, crop)
            y = degrade(truth[None], operator, noise, seed=seed, ids=[key])[0]
        except (ImageError, UsageError) as error:
            failed.append((str(path), str(error)))
            continue
        usable.append(Picture(key, file_hash(path), truth, y))
    if len(usable) < fewest:
        why = f": {failed[0][1]}" if failed else ""
        raise UsageError(
            f"data={root}: {len(usable)} of {len(usable) + len(failed)} images can be used{why}; give at least {fewest}"
        )
    return Pictures(root, tuple(usable), crop, tuple(failed))


def batches(pictures: Sequence[Picture], size: int) -> list[list[Picture]]:
    """Groups of consecutive pictures of one shape, at most `size` each."""
    found: list[list[Picture]] = []
    for picture in pictures:
        alike = found and _shapes(found[-1][0]) == _shapes(picture)
        if alike and len(found[-1]) < size:
            found[-1].append(picture)
        else:
            found.append([picture])
    return found


def _shapes(picture: Picture) -> Any:
    return picture.truth.shape, picture.y.shape
