"""`--noise auto`: the estimators on photographs, what they refuse, and what the command line makes of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import skimage.data
import torch

import invdiff
from invdiff import operators
from invdiff.errors import UsageError
from invdiff.noise import estimate
from invdiff.noise.estimation import CALM, MAD, calmest, lines, of_picture, patch_covariance
from invdiff.operator.contract import Operator, Shape
from invdiff.priors.gaussian import GaussianPrior

METHODS = {
    "identity": "patch covariance",
    "gaussian_blur:sigma=2": "null space",
    "motion_blur:length=9,angle=30": "patch covariance",
    "downsample:factor=2,kernel=bicubic": "patch covariance",
    "inpaint:keep=0.3": "colour differences",
    "inpaint:box=64x64": "patch covariance",
    "grayscale": "calm blocks",
    "random_subsample:keep=0.3": "colour differences",
}


def photograph(side: int = 256) -> torch.Tensor:
    """(1, 3, side, side) of the astronaut's lower left, which holds smooth and textured parts."""
    pixels = skimage.data.astronaut()[:side, :side]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("operator", METHODS)
@pytest.mark.parametrize("level", [10, 50])
def test_estimates_are_within_ten_percent(operator: str, level: int) -> None:
    """The project's bound; the mutation twin, noise a quarter larger than claimed, is outside."""
    found = estimate(invdiff.degrade(photograph(), operator, noise=level / 255), operator)
    assert found.method == METHODS[operator] and not found.notes
    assert abs(found.sigma / (level / 255) - 1) < 0.1 < abs(found.sigma / (1.25 * level / 255) - 1)
    assert str(found) == f"noise {found.sigma:.3g} (estimated by {found.method}, from y)"


def test_the_null_space_is_exact() -> None:
    """More measurements than unknowns: m - n directions without signal, so within 5 standard errors 1 / sqrt(2 (m - n)),
    however large the signal; a tenth more noise is outside."""
    matrix = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = operators.Linear(matrix)
    x = 100 * torch.rand(1, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = estimate(invdiff.degrade(x, operator, noise=0.05), operator)
    assert found.method == "null space"
    bound = 5 / (2 * 1950) ** 0.5
    assert abs(found.sigma / 0.05 - 1) < bound < abs(found.sigma / 0.056 - 1)


def test_grey_pixels_that_lie_scattered() -> None:
    """Second differences: less sure, a fifth at 25/255."""
    y = invdiff.degrade(photograph()[:, :1], "inpaint:keep=0.4", noise=25 / 255)
    found = estimate(y, "inpaint:keep=0.4")
    assert found.method == "second differences" and abs(found.sigma / (25 / 255) - 1) < 0.2


@pytest.mark.parametrize(
    ("shape", "seen"), [((3, 64, 64), 1.0), ((1, 64, 64), 1.0), ((3, 64, 64), 0.5), ((1, 64, 64), 0.5)]
)
def test_white_noise_alone_is_found(shape: Shape, seen: float) -> None:
    """Every estimator, on noise without an image: within 5 standard errors of a median over CALM of at least 1500 numbers,
    1.17 / sqrt(CALM n), or for all patches 5 %; the mutation twin is off by sqrt(2)."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    mask = (torch.rand(1, *shape, generator=generator) < seen).double()
    sigma, method = of_picture(y * mask, mask)
    bound = 0.05 if method == "patch covariance" else 5 * 1.17 / (2 * max(CALM * 1500, 500)) ** 0.5
    assert abs(sigma - 1) < bound < abs(2**0.5 * sigma - 1), method


def test_values_that_were_not_measured_do_not_matter() -> None:
    operator = "inpaint:keep=0.3"
    y = invdiff.degrade(photograph(128), operator, noise=0.05)
    mask = operators.get(operator).observed((3, 128, 128))
    assert estimate(torch.where(mask > 0, y.double(), 0.7), operator) == estimate(y, operator)


def test_clipping_is_told() -> None:
    y = (invdiff.degrade(photograph(), "identity", noise=0.1).clamp(0, 1) * 255).round() / 255
    (note,) = estimate(y, "identity").notes
    assert "% of the values are 0 or 1: clipping has hidden noise" in note
    # A saturated quarter of the picture is no place without noise.
    y[..., :128, :128] = 1.0
    assert abs(estimate(y, "identity").sigma / 0.1 - 1) < 0.25


def test_differences_lie_along_lines() -> None:
    grid = torch.arange(30.0).reshape(1, 1, 5, 6)
    steps = [{float(b - a) for a, b in zip(u.flatten(), v.flatten(), strict=True)} for u, v in lines(grid, 2)]
    assert steps == [{1.0}, {6.0}, {7.0}, {5.0}]
    for first, middle, last in lines(grid, 3):
        assert torch.equal(first + last, 2 * middle) and first.numel() > 0
    values = torch.tensor([[1.0], [-1.0], [50.0]]).repeat(1000, 1)
    assert calmest(values, values.abs()[:, 0]) == pytest.approx(1 / MAD)
    assert calmest(values[:900], values.abs()[:900, 0]) is None


def test_patches_are_those_of_deepinv() -> None:
    """Same estimate as deepinv's class to 1 %, from patches of the same size."""
    from deepinv.models import PatchCovarianceNoiseEstimator

    y = invdiff.degrade(photograph(128), "identity", noise=0.05)
    theirs = float(PatchCovarianceNoiseEstimator.estimate_noise(y, patch_size=5, stride=1))
    assert patch_covariance(y.double(), torch.ones_like(y).double()) == pytest.approx(theirs, rel=0.01)


@dataclass(frozen=True, eq=False)
class Shuffled(Operator):
    """Every pixel somewhere else: a measurement that is no picture."""

    name: ClassVar[str] = "shuffled"

    def A(self, x: torch.Tensor) -> torch.Tensor:
        order = torch.randperm(math.prod(x.shape[1:]), generator=torch.Generator().manual_seed(0))
        return x.flatten(1)[:, order].reshape(x.shape)


VECTOR = torch.linspace(0, 1, 20)[None]


@pytest.mark.parametrize(
    ("y", "operator", "says"),
    [
        (torch.full((1, 3, 64, 64), 0.5), "identity", "noise of a constant measurement cannot be estimated"),
        (torch.rand(1, 3, 8, 8), "identity", r"\(3, 8, 8\) is too small to estimate its noise"),
        (torch.rand(1, 3, 24, 24), "random_subsample:keep=0.05", "too few of its values are measured side by side"),
        (torch.rand(2, 3, 64, 64), "identity", "from one measurement at a time, got 2"),
        (VECTOR, operators.Linear(torch.eye(20)), "it is no picture, and A reaches all of its directions"),
        (torch.rand(1, 3, 64, 64), Shuffled(), "it is no picture"),
        (torch.linspace(0.1, 0.9, 4096).reshape(1, 1, 64, 64), "identity", "no noise is found.*0.3/255 for an 8-bit"),
        (torch.full((1, 3, 64, 64), torch.nan), "identity", "contains NaN"),
    ],
)  # fmt: skip
def test_what_does_not_tell_is_refused_in_one_line(y: torch.Tensor, operator: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        estimate(y, operator)
    assert "\n" not in str(refusal.value)


def test_restore_with_auto() -> None:
    x = photograph(64)
    prior = GaussianPrior(torch.full((3, 64, 64), 0.5), 0.05)
    y = invdiff.degrade(x, "gaussian_blur:sigma=2", noise=0.05)
    found = estimate(y, "gaussian_blur:sigma=2")
    solution = invdiff.restore(y, "gaussian_blur:sigma=2", "auto", prior=prior, solver="diffpir", steps=2)
    assert solution.sigma_y == found.sigma and solution.provenance()["noise"]["estimated_by"] == "null space"
    given = invdiff.restore(y, "gaussian_blur:sigma=2", found.sigma, prior=prior, solver="diffpir", steps=2)
    assert torch.equal(solution.samples, given.samples) and "estimated_by" not in given.provenance()["noise"]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_command_line(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is printed and recorded, each image has its own, and the recorded command gives it as a number."""
    from click.testing import CliRunner
    from PIL import Image

    from invdiff.cli.main import main

    monkeypatch.chdir(tmp_path)
    pixels = (photograph(48)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    Path("y").mkdir()
    Image.fromarray(pixels).convert(mode).save("photo.png")

    def run(*words: str) -> str:
        result = CliRunner().invoke(main, [*words, "--operator", "gaussian_blur:sigma=2"])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    for name, sigma in (("a", "0.02"), ("b", "0.1")):
        run("degrade", "photo.png", "-o", f"y/{name}.npy", "--noise", sigma)
    said = run("restore", "y", "-o", "x", "--noise", "auto", "--steps", "2")
    for name, sigma in (("a", 0.02), ("b", 0.1)):
        record = json.loads(Path(f"x/{name}.png.json").read_text())
        own = record["noise"]["sigma_y"]
        assert own == pytest.approx(sigma, rel=0.1) and record["noise"]["estimated_by"] == "null space"
        assert f"noise {own:.3g} (estimated by null space, from y)" in said
        assert f"--noise gaussian:sigma={own!r} " in record["command"]
    with pytest.raises(AssertionError, match="neither a number nor a noise model"):
        run("degrade", "photo.png", "-o", "no.png", "--noise", "auto")
