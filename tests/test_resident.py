"""Crops cut on the device are those that the processor cuts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.diffusion.schedule import Schedule
from invdiff.training.config import TrainingConfig
from invdiff.training.data import resident
from invdiff.training.data.crops import reduce
from invdiff.training.data.entries import find_entries
from invdiff.training.data.photographs import Photographs
from invdiff.training.data.resident import ResidentFeeder, bicubic
from invdiff.training.data.sampler import CropSampler, to_network
from invdiff.training.learner import Feeder

CPU = torch.device("cpu")
SETTINGS = {"widths": (16, 32), "groups": 4, "crops": (16, 32), "pixels": 16 * 32 * 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for index, (height, width) in enumerate([(80, 60), (33, 100), (64, 64), (130, 50), (20, 90)]):
        rough = rng.integers(0, 255, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        (picture.convert("L") if index == 2 else picture).save(data / f"{index}.png")
    (data / "broken.png").write_bytes(b"not an image")
    return data


def feeder(folder: Path, **changes: object) -> Feeder:
    config = TrainingConfig(**(SETTINGS | changes))  # type: ignore[arg-type]
    photographs = Photographs(find_entries([folder]), config.channels, min(config.crops))
    sampler = CropSampler(photographs, config)
    return Feeder(sampler, Schedule.named("linear", 1000), config)


def resident_feeder(folder: Path, **changes: object) -> ResidentFeeder:
    host = feeder(folder, **changes)
    assert ResidentFeeder.fits(host.sampler.photographs, CPU)
    return ResidentFeeder(host, CPU)


@pytest.mark.parametrize("downscale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("orientations", ["all", "flip", "none"])
def test_crops_are_those_of_the_sampler(folder: Path, downscale: float, orientations: str) -> None:
    """Whole crops equal bit for bit; reduced ones to a level or two of 255, since torch rounds 8-bit pixels between rows and
    columns; images that are too small or broken are replaced by the same ones."""
    found = resident_feeder(folder, downscale=downscale, orientations=orientations)
    host = found.feeder
    for step in range(6):
        (one,), (other,) = host(step), found(step)
        crops, expected = other.crops, to_network(np.asarray(one.crops), CPU)
        assert isinstance(crops, torch.Tensor) and crops.is_contiguous(memory_format=torch.channels_last)
        assert crops.shape == expected.shape and (one.draws.t == other.draws.t).all()
        difference = (127.5 * (crops - expected)).abs()
        assert difference.max() < (3 if downscale else 1e-3)
        assert difference.mean() < 0.25 and (difference > 1.5).float().mean() < 1e-3


def test_parts_make_the_whole_batch(folder: Path) -> None:
    """Micro-steps and processes cut what one process cuts, and none draws the noise of another."""
    found = resident_feeder(folder, accumulate=2, downscale=0.0)
    parts, whole = found(3), found.feeder(3)
    for part, expected in zip(parts, whole, strict=True):
        assert torch.equal(torch.as_tensor(part.crops), to_network(np.asarray(expected.crops), CPU))
        assert (part.draws.t == expected.draws.t).all()
    other = ResidentFeeder(dataclasses.replace(found.feeder, rank=1, count=2), CPU)(3)
    noise = [torch.as_tensor(part.draws.noise) for part in (*parts, *other)]
    assert not any(torch.equal(a, b) for k, a in enumerate(noise) for b in noise[:k])
    assert torch.equal(torch.as_tensor(other[0].crops)[:1], to_network(found.feeder.sampler.batch(3, 2, 4)[:1], CPU))


def test_noise_is_standard_normal_and_a_function_of_seed_and_step(folder: Path) -> None:
    noise = {}
    for seed in (0, 1):
        one, again = (resident_feeder(folder, seed=seed, pixels=64 * 32 * 32) for _ in range(2))
        for step in (0, 1):
            noise[seed, step] = torch.as_tensor(one(step)[0].draws.noise)
            assert torch.equal(noise[seed, step], torch.as_tensor(again(step)[0].draws.noise))
    flat = [n.flatten()[:10_000] for n in noise.values()]
    assert all(abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.05 for a in flat for b in flat if a is not b)
    assert all(abs(n.mean()) < 0.05 and abs(n.std() - 1) < 0.05 for n in flat)


@pytest.mark.parametrize("window", [17, 24, 31, 48])
def test_weights_are_those_of_the_antialiased_filter(window: int) -> None:
    side, rng = 16, np.random.default_rng(window)
    pixels = rng.random((window, window, 3), dtype=np.float32)
    (weights,) = bicubic(torch.tensor([window]), side, 60)
    padded = np.pad(pixels, ((0, 60 - window), (0, 60 - window), (0, 0)), constant_values=7)
    found = torch.einsum("ij,lk,jkc->ilc", weights, weights, torch.from_numpy(padded)).clamp(0, 1)
    np.testing.assert_allclose(found, reduce(pixels, side), atol=1e-5)


def test_what_does_not_fit_stays_with_the_processor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = feeder(folder).sampler.photographs
    monkeypatch.setattr(resident, "free_memory", lambda device: 80_000)
    assert not ResidentFeeder.fits(photographs, CPU)
    monkeypatch.undo()
    deep = tmp_path / "deep"
    deep.mkdir()
    for index in range(3):
        Image.fromarray(np.full((40, 40), 1000 * index, dtype=np.uint16)).save(deep / f"{index}.png")
    assert not ResidentFeeder.fits(feeder(deep, channels=1).sampler.photographs, CPU)
