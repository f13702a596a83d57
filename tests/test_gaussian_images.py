"""The Gaussian model of images: its denoiser against a dense covariance, its fit against draws, and where a prior uses it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import invdiff
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import CheckpointError, UsageError
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.priors.network import NetworkPrior
from invdiff.samplers.generation import sample
from invdiff.training.checkpoint import export_pipeline
from invdiff.training.config import TrainingConfig
from invdiff.training.data.photographs import Photographs
from invdiff.training.network import build_network, build_scheduler
from invdiff.training.statistics import image_statistics

COVARIANCE = ((0.05, 0.03, 0.02), (0.03, 0.06, 0.04), (0.02, 0.04, 0.07))
MODEL = GaussianImages((0.5, 0.45, 0.4), COVARIANCE, scale=0.003, exponent=2.2, corner=0.2)


def white(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(model: GaussianImages, channels: int, height: int, width: int) -> torch.Tensor:
    """Cov = C (x) S, from the response of the model to unit noises."""
    units = torch.eye(channels * height * width, dtype=torch.float64).reshape(-1, channels, height, width)
    mean = torch.tensor(model.mean, dtype=torch.float64)[:, None, None]
    root = (model.colour(units) - mean).flatten(1)
    return root.T @ root


@pytest.mark.parametrize("factor", [1.0, 2**0.5])
def test_denoiser_is_the_dense_one(factor: float) -> None:
    """mean + Cov (Cov + sigma^2)^-1 (x - mean); a level off by sqrt(2), the mutation twin, is seen."""
    covariance, x = dense(MODEL, 3, 5, 6), white(2, 3, 5, 6)
    mean = torch.tensor(MODEL.mean, dtype=torch.float64)[:, None, None].expand(3, 5, 6)
    for sigma in (0.1, 2.0, 50.0):
        gain = covariance @ torch.linalg.inv(covariance + (factor * sigma) ** 2 * torch.eye(90, dtype=torch.float64))
        expected = (mean.flatten() + (x - mean).flatten(1) @ gain.T).reshape(x.shape)
        error = float((MODEL.denoise(x, sigma) - expected).abs().max())
        assert (error < 1e-9) == (factor == 1.0), error


def test_covariance_is_what_the_formula_says() -> None:
    """On a square of one pixel only the mean varies: c S(0) with S(0) = scale corner^-exponent."""
    covariance = dense(MODEL, 3, 1, 1)
    expected = torch.tensor(COVARIANCE, dtype=torch.float64) * MODEL.scale * MODEL.corner**-MODEL.exponent
    torch.testing.assert_close(covariance, expected)


def test_each_sample_has_its_own_level() -> None:
    x = white(2, 3, 8, 8)
    together = MODEL.denoise(x, torch.tensor([3.0, 30.0], dtype=torch.float64))
    torch.testing.assert_close(together[:1], MODEL.denoise(x[:1], 3.0))
    torch.testing.assert_close(together[1:], MODEL.denoise(x[1:], 30.0))


def test_fit_finds_the_model_it_was_drawn_from() -> None:
    """From 400 draws: the mean within 5 standard errors, the power law within a few percent, the corner by the variance of
    the means, whose standard error is sqrt(2 / 1200)."""
    crops = MODEL.colour(white(400, 3, 32, 32)).numpy()
    found = GaussianImages.fit(crops)
    assert found is not None
    of_mean = crops.mean((2, 3)).std(0) / 400**0.5
    assert (np.abs(np.array(found.mean) - MODEL.mean) < 5 * of_mean).all()
    assert abs(found.exponent - MODEL.exponent) < 0.05
    # C and S share a factor: what counts is their product.
    for at in (0.0, 0.03, 0.1, 0.2):
        ratio = power(found, at) / power(MODEL, at)
        assert abs(math.log(ratio)) < (5 * (2 / 1200) ** 0.5 if at == 0 else 0.1), (at, ratio)
    wrong = dataclasses.replace(found, scale=1.4 * found.scale)
    assert abs(math.log(power(wrong, 0.1) / power(MODEL, 0.1))) > 0.1


def power(model: GaussianImages, frequency: float, side: int = 32) -> float:
    """Of the sum over the channels."""
    square = frequency**2 + (model.corner / side) ** 2
    return float(np.trace(np.array(model.covariance))) * model.scale * square ** (-model.exponent / 2)


@pytest.mark.parametrize("crops", [np.full((20, 3, 16, 16), 0.5), np.random.default_rng(0).random((20, 3, 4, 4))])
def test_nothing_is_fitted_to_pictures_without_structure(crops: np.ndarray) -> None:
    assert GaussianImages.fit(crops) is None


def test_grey_pictures_kept_as_colour() -> None:
    """Two directions of colour have no variance: x_0 has none there either."""
    grey = GaussianImages((0.5,), ((0.05,),), 0.003, 2.2, 0.2).colour(white(200, 1, 32, 32))
    found = GaussianImages.fit(grey.repeat(1, 3, 1, 1).numpy())
    assert found is not None and abs(found.exponent - 2.2) < 0.1
    clean = found.denoise(white(1, 3, 16, 16) * 3, 3.0)
    assert (clean[:, 0] - clean[:, 1]).abs().max() < 1e-3 < clean.std()


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"scale": math.nan},
        {"covariance": [[1.0]]},
        {"mean": "high"},
        {"exponent": -1.0},
        {"corner": None},
    ],
)
def test_what_is_no_model_is_refused(change: dict) -> None:
    with pytest.raises(UsageError, match="no statistics of images"):
        GaussianImages.from_dict(MODEL.to_dict() | change)


class Zero(torch.nn.Module):
    """Says that there is no noise: E[x_0 | x] = x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0 * x


def test_a_network_prior_asks_it_above_sigma_start() -> None:
    prior = NetworkPrior(Zero(), Schedule.named("linear"), channels=3, high_noise=MODEL)
    x = white(3, 3, 8, 8).float()
    for sigma in (0.01, prior.sigma_start):
        torch.testing.assert_close(prior.denoise(x, sigma), x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prior.denoise(x, 2.01), MODEL.denoise(x, 2.01))
    mixed = prior.denoise(x, torch.tensor([0.5, 2.0, 20.0]))
    torch.testing.assert_close(mixed[:2], prior.denoise(x[:2], torch.tensor([0.5, 2.0])))
    torch.testing.assert_close(mixed[2:], MODEL.denoise(x[2:], 20.0))
    without = NetworkPrior(Zero(), Schedule.named("linear"), channels=3)
    assert (without.denoise(x, 2.01) - x).abs().max() < 1e-3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = TrainingConfig(widths=(8, 8), groups=4, crops=(16,), pixels=256)
    return export_pipeline(build_network(config), build_scheduler(config), config, tmp_path / "prior", MODEL)


def test_it_travels_with_the_folder(folder: Path, tmp_path: Path) -> None:
    from invdiff.priors.stored.export import write_folder
    from invdiff.priors.stored.loading import open_checkpoint

    prior = invdiff.load_prior(folder, device="cpu", precision="fp32")
    assert prior.high_noise == MODEL and prior.describe()["above sigma_start"] == "Gaussian images"
    checkpoint, name = open_checkpoint(folder)
    write_folder(checkpoint, tmp_path / "copy", name=name)
    assert invdiff.load_prior(tmp_path / "copy", device="cpu").high_noise == MODEL
    (folder / "image_statistics.json").unlink()
    assert invdiff.load_prior(folder, device="cpu").high_noise is None


@pytest.mark.parametrize("content", ["{", "{}", json.dumps({**MODEL.to_dict(), "scale": -1})])
def test_a_damaged_file_is_named(folder: Path, content: str) -> None:
    (folder / "image_statistics.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"image_statistics\.json"):
        invdiff.load_prior(folder, device="cpu")


def test_other_channels_are_refused(folder: Path) -> None:
    grey = GaussianImages((0.5,), ((0.05,),), 0.003, 2.2, 0.2)
    (folder / "image_statistics.json").write_text(json.dumps(grey.to_dict()))
    with pytest.raises(CheckpointError, match=r"1 channel\(s\), the network of 3"):
        invdiff.load_prior(folder, device="cpu")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_training_fits_it_where_the_noise_is_predicted(prediction: str, tmp_path: Path) -> None:
    from invdiff.files.images import write_image
    from invdiff.training.data.entries import find_entries

    for k in range(12):
        write_image(tmp_path / f"{k}.png", MODEL.colour(white(1, 3, 48, 48, seed=k))[0].clamp(0, 1))
    config = TrainingConfig(widths=(8, 8), groups=4, crops=(16, 32), pixels=1024, prediction=prediction, downscale=0.0)
    photographs = Photographs(find_entries([tmp_path]), 3, 16, None)
    found = image_statistics(photographs, config)
    assert (found is None) == (prediction != "epsilon")
    if found is not None:
        assert 1.5 < found.exponent < 2.8 and found == image_statistics(photographs, config)


def test_samples_of_the_shipped_prior_have_the_colours_of_photographs() -> None:
    """The spread of the mean colours of 16 samples is that of photographs; by the network alone it is far larger."""
    prior = invdiff.load_prior("natural", device="cpu")
    assert isinstance(prior, NetworkPrior) and prior.high_noise is not None
    spread = {}
    for kind in ("both", "network"):
        chosen = (
            prior
            if kind == "both"
            else NetworkPrior(prior.network, prior.schedule, channels=3, multiple=prior.multiple)
        )
        x = sample(chosen, (3, 32, 32), 16, "dpmpp", steps=12, batch_size=16)
        colours = x.mean((2, 3))
        spread[kind] = float((colours - colours.mean(1, keepdim=True)).std())
    expected = chroma_spread(prior.high_noise, 32)
    assert 0.5 * expected < spread["both"] < 1.6 * expected < spread["network"], (spread, expected)


def chroma_spread(model: GaussianImages, side: int) -> float:
    """Deviation of the mean colour around its own grey."""
    covariance = np.array(model.covariance) * power(model, 0.0, side) / np.trace(model.covariance) / side**2
    grey = np.eye(3) - 1 / 3
    return float((np.trace(grey @ covariance @ grey) / 3) ** 0.5)
