"""The clean images of an evaluation: a folder, the photographs of scikit-image, or tensors in memory."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from invdiff.errors import ImageError, UsageError

if TYPE_CHECKING:
    import torch

    from invdiff.operator.contract import Operator
    from invdiff.priors.prior import Prior

BUILTIN = "skimage"
"""The path that stands for the photographs inside scikit-image."""
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


@dataclass(frozen=True)
class Source:
    """One image. key: its name in the results, which seeds its noise; read: the tensor (C, H, W) in [0, 1]; content: a hash
    of the file; size: (H, W) without decoding, None if unknown, which images of a batch share. The last two are kept, because
    every cell asks for them."""

    key: str
    read: Callable[[], torch.Tensor]
    content: Callable[[], str]
    size: Callable[[], tuple[int, int] | None]


@dataclass(frozen=True)
class DataSet:
    """Where images are and which part of them is used.

    path: a folder, a file, a pattern, or "skimage"; crop: side in pixels of the centre crop, None for whole images; limit:
    only the first images; optional: left out of a suite where its folder does not exist; images: tensors (C, H, W) instead
    of files, from a call in Python.
    """

    name: str
    path: str
    crop: int | None = None
    limit: int | None = None
    optional: bool = False
    images: tuple[torch.Tensor, ...] = ()

    def __post_init__(self) -> None:
        for option in ("crop", "limit"):
            value = getattr(self, option)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"data set {self.name}: {option}={value!r} must be a whole number of at least 1")

    def located(self, roots: Sequence[Path]) -> DataSet:
        """The data set with its folder looked up below the roots, in upper or lower case; unchanged where it is not found."""
        if self.images or self.path == BUILTIN:
            return self
        for root in roots:
            found = _below(root, self.path)
            if found is not None:
                return DataSet(self.name, str(found), self.crop, self.limit, self.optional)
        return self

    @property
    def missing(self) -> bool:
        """Whether its folder or file does not exist."""
        return not (
            self.images or self.path == BUILTIN or os.path.exists(self.path) or any(c in self.path for c in "*?[")
        )

    def sources(self) -> list[Source]:
        """The images in natural order, each with a key of its own. Raises ImageError where there are none."""
        if self.images:
            found = [_tensor(str(k), image) for k, image in enumerate(self.images)]
        elif self.path == BUILTIN:
            found = [_photograph(name) for name in PHOTOGRAPHS]
        else:
            from invdiff.files.images import list_images

            paths = list_images(self.path)
            found = [_file(key, path) for key, path in zip(_keys(paths, Path(self.path)), paths, strict=True)]
        return found[: self.limit]

    def fingerprint(self, sources: Sequence[Source]) -> str:
        """Ten hexadecimal digits that change with the crop, and with the names, the order and the number of the images."""
        text = "\n".join([str(self.crop), *(source.key for source in sources)])
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def batches(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    """Batches of at most `size` images of one size, in the order in which they become full, then the incomplete ones.

    They depend only on the list and the size, not on what was done before, and so the results do not depend on it either.
    """
    open_batches: dict[tuple[int, int] | None, list[Source]] = {}
    for source in sources:
        kind = source.size() if size > 1 else None
        batch = open_batches.setdefault(kind, [])
        batch.append(source)
        if len(batch) == size:
            yield open_batches.pop(kind)
    yield from open_batches.values()


def fitted(image: torch.Tensor, operator: Operator, prior: Prior, crop: int | None) -> torch.Tensor:
    """An image (C, H, W) in the prior's channels, cut to its middle `crop` x `crop` pixels, and at the bottom and right to a
    size that the operator takes. Raises UsageError if the prior cannot take it."""
    from invdiff.files.images import centre, fit_channels

    if prior.channels is not None:
        image = fit_channels(image, prior.channels)
    image = image if crop is None else centre(image, crop)
    _, height, width = operator.usable_shape(tuple(image.shape))
    image = image[:, :height, :width].contiguous()
    prior.check_shape(tuple(image.shape))
    return image


def file_hash(path: str | os.PathLike[str]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes. Raises ImageError if it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error


def _below(root: Path, path: str) -> Path | None:
    """root/path in any case of its letters; None if it does not exist."""
    place = root
    for part in Path(path).parts:
        if not (place / part).exists():
            try:
                alike = [entry for entry in sorted(place.iterdir()) if entry.name.lower() == part.lower()]
            except OSError:
                return None
            if not alike:
                return None
            place = alike[0]
        else:
            place = place / part
    return place


def _keys(paths: Sequence[Path], root: Path) -> list[str]:
    """For each file its path below the folder, without the suffix unless two files differ in nothing else."""
    folder = root if root.is_dir() else None
    inside = [path.relative_to(folder) if folder else Path(path.name) for path in paths]
    counts = Counter(name.with_suffix("") for name in inside)
    keys = [(name if counts[name.with_suffix("")] > 1 else name.with_suffix("")).as_posix() for name in inside]
    doubles = [key for key, count in Counter(keys).items() if count > 1]
    if doubles:  # a pattern over several folders
        keys = [path.as_posix() for path in paths]
    return keys


def _file(key: str, path: Path) -> Source:
    def read() -> torch.Tensor:
        from invdiff.files.images import read_image

        return read_image(path).tensor

    def size() -> tuple[int, int] | None:
        from PIL import Image

        try:
            with Image.open(path) as image:
                turned = image.getexif().get(0x0112, 1) >= 5
                return image.size if turned else (image.size[1], image.size[0])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None  # damaged, or a format that Pillow does not know: reading the file says more

    return Source(key, read, functools.cache(lambda: file_hash(path)), functools.cache(size))


def _photograph(name: str) -> Source:
    def read() -> torch.Tensor:
        import numpy as np
        import skimage.data
        import torch

        try:
            pixels = getattr(skimage.data, name)()
        except Exception as error:  # a photograph that an installation fetches on demand, without a network
            raise ImageError(f"scikit-image's {name} is not at hand ({type(error).__name__})") from error
        return torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))

    return Source(name, read, lambda: "scikit-image", functools.cache(lambda: _extent(read())))


def _tensor(key: str, image: torch.Tensor) -> Source:
    def content() -> str:
        return hashlib.sha256(image.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]

    return Source(key, lambda: image, functools.cache(content), lambda: _extent(image))


def _extent(image: torch.Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])
