"""The pictures of a run for its page: truth, measurement, and each restoration with its error and spread."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.evaluation.pictures import STD_WHITE, file_name
from invdiff.evaluation.report.rows import Group, Row
from invdiff.evaluation.store import Run
from invdiff.files.pages.rendering import data_uri

SIDE = 512
"""Pixels a side to which larger pictures are shrunk."""
RESTORATIONS = 8
"""Restorations that are shown of one image: those of the rows with the highest PSNR."""
BYTES = 24_000_000
"""Size of all pictures of a page together: a much larger page opens slowly."""
BRIGHTEST = 0.125
"""The error, and the standard deviation, shown in the brightest colour: one scale, since calibrated ones look alike."""


@dataclass(frozen=True)
class Restoration:
    """One row's pictures of one image, as data URIs; None where there is none."""

    label: str
    scores: str
    restored: str
    error: str | None
    std: str | None


@dataclass(frozen=True)
class Card:
    """The pictures of one image in one group, with its size in pixels; notes: which pictures are missing."""

    group: str
    image: str
    width: int
    height: int
    truth: str | None
    measured: str | None
    restorations: Sequence[Restoration]
    notes: Sequence[str]

    @property
    def bytes(self) -> int:
        """Length of its data URIs."""
        parts = [self.truth, self.measured]
        parts += [uri for one in self.restorations for uri in (one.restored, one.error, one.std)]
        return sum(len(uri) for uri in parts if uri)


def cards(run: Run, groups: Sequence[Group]) -> tuple[list[Card], list[str]]:
    """The cards of a run, and in sentences what was left out. The first image of every group comes before any second."""
    by_group = [list(_kept(run, group)) for group in groups]
    turns = [pair for turn in zip_longest(*by_group) for pair in turn if pair is not None]
    if not turns:
        return [], ["This run kept no pictures: `invdiff evaluate --pictures N` keeps those of the first N images."]
    made: list[Card] = []
    total = 0
    for group, image in turns:
        card = _card(run, group, image)
        if made and total + card.bytes > BYTES:
            break
        made.append(card)
        total += card.bytes
    notes = []
    if len(made) < len(turns):
        notes.append(
            f"{len(made)} of {len(turns)} images are shown, to keep the page small; all pictures are in the folder "
            f"{run.folder / 'pictures'}."
        )
    order = {group.title: index for index, group in enumerate(groups)}
    return sorted(made, key=lambda card: order[card.group]), notes


def _kept(run: Run, group: Group) -> Iterator[tuple[Group, str]]:
    """The images of a group of which a restoration was kept."""
    names = {row.cell["id"]: _names(run.folder / "pictures" / str(row.cell["id"])) for row in group.rows}
    for image in group.images:
        if any(file_name(image) + "-restored.png" in found for found in names.values()):
            yield group, image


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _card(run: Run, group: Group, image: str) -> Card:
    pictures, stem = run.folder / "pictures", file_name(image)
    rows = sorted((row for row in group.rows if image in row.images), key=lambda row: -_psnr(row, image))
    truth = _read(pictures / str(group.settings["data"]) / f"{stem}-truth.png")
    measured = _read(pictures / "measured" / str(rows[0].cell.get("measurement")) / f"{stem}-measured.png")
    shown: list[Restoration] = []
    missing, pixels = [], []
    for row in rows:
        if len(shown) == RESTORATIONS:
            break
        folder = pictures / str(row.cell["id"])
        restored = _read(folder / f"{stem}-restored.png")
        if restored is None:
            missing.append(row.label)
            continue
        pixels.append(restored)
        std = _read(folder / f"{stem}-std.png")
        shown.append(
            Restoration(
                row.label,
                _said(row, image),
                _uri(restored),
                None if truth is None or truth.shape != restored.shape else _uri_of_map(_distance(restored, truth)),
                None if std is None else _uri_of_map(_distance(STD_WHITE * std, np.zeros(1))),
            )
        )
    notes = [
        f"no picture of {name}" for name, one in (("the truth", truth), ("the measurement", measured)) if one is None
    ]
    notes += [f"no picture of the restoration by {', '.join(missing)}"] if missing else []
    left = len(rows) - len(missing) - len(shown)
    notes += (
        [f"the {RESTORATIONS} rows with the highest PSNR; {left} more are in the folder of the run"] if left else []
    )
    height, width = next((one.shape[:2] for one in (*pixels, truth, measured) if one is not None), (1, 1))
    return Card(
        group.title,
        image,
        width,
        height,
        None if truth is None else _uri(truth),
        None if measured is None else _uri(_fitted(measured, truth)),
        shown,
        notes,
    )


def _psnr(row: Row, image: str) -> float:
    return row.values.get("psnr", {}).get(image, -np.inf)


def _said(row: Row, image: str) -> str:
    names = (("psnr", "{:.2f} dB"), ("ssim", "SSIM {:.3f}"))
    return ", ".join(form.format(row.values[key][image]) for key, form in names if image in row.values.get(key, {}))


def _read(path: Path) -> np.ndarray | None:
    """(H, W, C) in [0, 1]; None for a picture that is missing or damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"), np.float32) / 255
    except (OSError, ValueError, SyntaxError):
        return None
    return pixels.reshape(*pixels.shape[:2], -1)


def _fitted(measured: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
    """A measurement that shows only the centre of the truth gets a grey border, so that the two match in the slider.

    A coarser one stays as it is: the page enlarges it.
    """
    if truth is None:
        return measured
    (height, width), (rows, columns) = truth.shape[:2], measured.shape[:2]
    if not (rows <= height < 2 * rows and columns <= width < 2 * columns) or (rows, columns) == (height, width):
        return measured
    canvas = np.full((height, width, measured.shape[2]), 0.5, np.float32)
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas[top : top + rows, left : left + columns] = measured
    return canvas


def _distance(restored: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|restored - truth|, root mean square over the channels: (H, W)."""
    return np.sqrt(np.square(restored - truth).mean(-1))


def _uri(pixels: np.ndarray) -> str:
    from PIL import Image

    codes = np.rint(pixels * 255).astype(np.uint8)
    return _encoded(Image.fromarray(codes[..., 0] if codes.shape[2] == 1 else codes))


def _uri_of_map(values: np.ndarray) -> str:
    """A map (H, W) in colours that are the brighter the larger its values, up to BRIGHTEST."""
    from matplotlib import colormaps
    from PIL import Image

    image = Image.fromarray(np.rint((values / BRIGHTEST).clip(0, 1) * 255).astype(np.uint8))
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    palette = (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    image.putpalette(palette.tobytes())
    return _encoded(image)


def _encoded(image: Any) -> str:
    file = io.BytesIO()
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    image.save(file, format="PNG", optimize=True)
    return data_uri(file.getvalue(), "image/png")
