"""The folder of an evaluation run, made up: real small photographs, white errors of a chosen size as 'restorations'."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from invdiff.evaluation.pictures import file_name

SIDE = 64
LEVELS = ("0.5", "0.8", "0.9")
IMAGES = ("astronaut", "people/camera", "coffee", "chelsea", "rocket", "astronaut_2", "coffee_2", "rocket_2")


@dataclass(frozen=True)
class Method:
    """A solver whose restorations have errors of this standard deviation, and samples that spread by `spread` of it."""

    solver: str
    steps: int | None
    error: float
    samples: int = 1
    spread: float = 1.0
    seconds: float = 0.5


METHODS = (
    Method("ddrm", 20, 0.05),
    Method("ddrm", 100, 0.045, seconds=2.5),
    Method("diffpir:zeta=0.3", 20, 0.0451, seconds=0.6),
    Method("dps", 100, 0.08, samples=8, spread=0.5, seconds=5),
    Method("tds", None, 0.06, samples=8, seconds=9),
)
OPERATORS = ("gaussian_blur:sigma=2", "downsample:factor=4,kernel=bicubic")


def photograph(name: str) -> np.ndarray:
    """A crop of a photograph that ships with scikit-image: (SIDE, SIDE, C) in [0, 1], grey for camera."""
    from skimage import data

    stem, _, number = name.split("/")[-1].partition("_")
    pixels = getattr(data, stem)()
    top = 60 + 70 * int(number or 0)
    return pixels[top : top + SIDE, 120 : 120 + SIDE].reshape(SIDE, SIDE, -1) / 255


def digits(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def make_cell(data: str, operator: str, method: Method, prior: str = "natural", seed: int = 0) -> dict[str, Any]:
    measured = {"data": data, "operator": operator, "noise": "0.05", "seed": seed}
    cell = measured | {"solver": method.solver, "steps": method.steps, "prior": prior, "samples": method.samples}
    command = (
        f"invdiff evaluate --data photos --operator '{operator}' --noise 0.05 --solver {method.solver} --out again"
    )
    names = {"id": digits(cell), "measurement": digits(measured)}
    return cell | names | {"calibration": method.samples > 1, "command": command}


def write_run(
    folder: Path,
    methods: Sequence[Method] = METHODS,
    operators: Sequence[str] = OPERATORS,
    images: Sequence[str] = IMAGES,
    data: str = "photos",
    prior: str = "natural",
    failed: Sequence[str] = (),
    pictures: int = 2,
    salt: str = "",
) -> Path:
    """Write a run. `failed`: images on which the last method failed; `pictures`: of how many images they are kept;
    `salt` changes the errors."""
    cells = [make_cell(data, operator, method, prior) for operator in operators for method in methods]
    about = {
        "kind": "invdiff evaluate",
        "format": 1,
        "name": folder.name,
        "command": "invdiff evaluate suite.yaml --out run",
        "hash": digits(cells),
        "protocol": {"eight_bit": True, "y_channel": False, "border": 0, "perceptual": []},
        "protocol_text": ["Images in [0, 1], clipped and rounded to 8 bits.", "PSNR of each image, then averaged."],
        "cells": cells,
        "data": {data: {"path": "photos", "images": len(images), "crop": SIDE, "fingerprint": digits(images)}},
        "priors": {prior: {"prior": "diffusers U-Net", "sha256": digits(prior) * 6}},
        "versions": {"invdiff": "0.1.0", "torch": "2.4.0"},
        "started": "2026-01-01T00:00:00",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(about, indent=2))
    results, timings = [], []
    for number, cell in enumerate(cells):
        method = methods[number % len(methods)]
        for at, image in enumerate(images):
            if image in failed and method is methods[-1]:
                results.append({"cell": cell["id"], "image": image, "error": f"{image}: NaN at step 3, sigma 0.5"})
                continue
            result, shown = restore(image, cell["operator"], method, salt)
            results.append({"cell": cell["id"], **result})
            timings += [timing(cell, image, 99.0), timing(cell, image, method.seconds * (1 + at / 10))]
            if at < pictures:
                save(folder / "pictures", cell, image, shown)
    write_lines(folder / "results.jsonl", results)
    write_lines(folder / "timings.jsonl", timings)
    return folder


def timing(cell: dict[str, Any], image: str, seconds: float) -> dict[str, Any]:
    return {"cell": cell["id"], "image": image, "seconds": seconds, "peak_memory_mb": 512.0 + seconds} | {
        "device": "cpu",
        "batch": 1,
        "host": "laptop",
    }


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, sort_keys=True) + "\n" for record in records))


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((x - truth) ** 2)))


def restore(image: str, operator: str, method: Method, salt: str = "") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record of one image without its cell, and its pictures."""
    truth = photograph(image)
    rng = np.random.default_rng(zlib.crc32(repr((image, operator, method.solver, method.steps, salt)).encode()))
    size = method.error * (1 + 0.3 * np.sin(zlib.crc32(image.encode())))  # some images are harder, for every method
    noise = lambda: rng.standard_normal(truth.shape)  # noqa: E731
    centre = truth + size * noise()
    samples = np.stack([centre + method.spread * size * noise() for _ in range(method.samples)])
    mean = samples.mean(0) if method.samples > 1 else centre
    coarse = truth[::4, ::4] if operator.startswith("downsample") else truth
    y = coarse + 0.12 * rng.standard_normal(coarse.shape)
    before = psnr(np.kron(y, np.ones((4, 4, 1))) if coarse is not truth else y, truth)
    single = float(np.mean([psnr(sample, truth) for sample in samples])) if method.samples > 1 else psnr(mean, truth)
    record = {
        "image": image,
        "file": hashlib.sha256(truth.tobytes()).hexdigest()[:16],
        "shape": [truth.shape[2], SIDE, SIDE],
        "before": {"psnr": before, "ssim": 0.4},
        "psnr": psnr(mean, truth),
        "ssim": 1 - 4 * size,
        "single": {"psnr": single, "ssim": 1 - 5 * size},
        "residual": 1 + 2 * size,
        "nfe": method.steps or 50,
        "solver": {"name": method.solver.split(":")[0], "steps": method.steps or 50},
        "noise": 0.05,
    }
    shown = {"truth": truth, "measured": y, "restored": mean}
    if method.samples > 1:
        std = samples.std(0, ddof=1)
        record["calibration"] = calibration(samples, truth, std)
        shown["std"] = std / 0.25
    return record, shown


def calibration(samples: np.ndarray, truth: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    ranks = np.bincount((samples < truth).sum(0).ravel(), minlength=len(samples) + 1)
    shares, edges, inside = ranks / ranks.sum(), np.linspace(0, 1, len(ranks) + 1), {}
    for level in LEVELS:  # the truth is equally likely in each of the n + 1 parts between samples
        low, high = (1 - float(level)) / 2, (1 + float(level)) / 2
        parts = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        inside[level] = float(shares @ parts.clip(0)) * len(ranks)
    spread, error = float(np.sqrt((std**2).mean())), float(np.sqrt(((samples.mean(0) - truth) ** 2).mean()))
    crps = float(np.abs(samples - truth).mean() - 0.5 * np.abs(samples[:, None] - samples[None]).mean())
    scores = {"coverage": inside, "spread": spread, "error": error, "spread_over_error": spread / error}
    return scores | {"crps": crps, "ranks": ranks.tolist()}


def save(pictures: Path, cell: dict[str, Any], image: str, shown: dict[str, np.ndarray]) -> None:
    stem = file_name(image)
    folders = {"truth": cell["data"], "measured": f"measured/{cell['measurement']}"}
    for kind, pixels in shown.items():
        write_png(pictures / folders.get(kind, cell["id"]) / f"{stem}-{kind}.png", pixels)


def write_png(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    codes = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(codes[..., 0] if codes.shape[2] == 1 else codes).save(path)
