"""The shipped prior and the demo: what the README promises, on photographs that come with scikit-image."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import invdiff
from invdiff.files.images import read_image
from invdiff.priors.stored.loading import CHECKPOINTS, describe_checkpoint
from invdiff.scores.metrics import psnr

FOLDER = CHECKPOINTS / "natural"
BENCH = Path(__file__).resolve().parents[2] / "shared" / "data" / "bench" / "cbsd68"


def photograph(name: str, side: int) -> torch.Tensor:
    spec = importlib.util.find_spec("skimage")
    assert spec and spec.origin
    x = read_image(Path(spec.origin).parent / "data" / name).tensor[None]
    top, left = ((extent - side) // 2 for extent in x.shape[2:])
    return x[:, :, top : top + side, left : left + side]


def test_it_is_complete_small_and_cheap() -> None:
    facts = describe_checkpoint("natural")
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) <= 20 * 2**20
    assert facts["flop_per_pixel"] <= 1.0e6
    assert facts["dtype"] in ("float16", "bfloat16") and facts["channels"] == 3 and not facts["attention"]
    card = (FOLDER / "README.md").read_text()
    for expected in ("CC0-1.0", "CC BY-SA", "MIT, (c) 2019 Marcus Klasson", "CBSD68", "recipe.json", "log.csv"):
        assert expected in card, expected
    for name in ("recipe.json", "log.csv", "model_index.json"):
        assert (FOLDER / name).is_file(), name


@pytest.mark.parametrize(("name", "least"), [("chelsea.png", 30.25), ("astronaut.png", 31.5)])
def test_it_denoises_photographs(name: str, least: float) -> None:
    """One call at 25/255 (noisy: 20.2 dB), in float32: within 0.25 dB of what the checkpoint scored when it was committed
    (30.49 and 31.75). A ruined checkpoint, or a wrong unit of sigma, fails."""
    prior = invdiff.load_prior("natural", device="cpu", precision="fp32")
    x = photograph(name, 192)
    y = invdiff.degrade(x, "identity", noise=25 / 255)
    with torch.inference_mode():
        assert float(psnr(prior.denoise(y, 25 / 255), x)) > least
        assert float(psnr(prior.denoise(y, 50 / 255), x)) < least  # twice the true sigma: blurred


def test_the_demo_restores_all_three(tmp_path: Path) -> None:
    """PSNR and SSIM of every restoration are above those of what was measured."""
    from click.testing import CliRunner

    from invdiff.cli.main import main

    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path / "demo"), "--quiet"])
    assert result.exit_code == 0, result.output
    tasks = json.loads((tmp_path / "demo" / "demo.json").read_text())["tasks"]
    assert len(tasks) == 3
    for task, record in tasks.items():
        before, after = record["metrics"]["degraded"], record["metrics"]["restored"]
        assert after["psnr"] > before["psnr"] + 1 and after["ssim"] > before["ssim"] + 0.05, (task, before, after)


@pytest.mark.slow
@pytest.mark.skipif(not BENCH.is_dir(), reason="needs ../shared/data/bench/cbsd68, which is not part of the repository")
@pytest.mark.parametrize(
    ("spec", "least"),
    [("gaussian_blur:sigma=2", 2.0), ("downsample:factor=4,kernel=bicubic", 1.0), ("inpaint:keep=0.4", 10.0)],
)
def test_auto_restores_benchmark_photographs(spec: str, least: float) -> None:
    """Gain in PSNR over the measurement (enlarged by bicubic interpolation), mean of three photographs, noise 0.05."""
    operator = invdiff.operators.get(spec)
    gains = []
    for path in sorted(BENCH.glob("*.png"))[:3]:
        x = read_image(path).tensor[None, :, 80:240, 120:280]
        y = invdiff.degrade(x, operator, noise=0.05, ids=[path.name])
        seen = torch.nn.functional.interpolate(y, size=x.shape[2:], mode="bicubic") if y.shape != x.shape else y
        solution = invdiff.restore(y, operator, 0.05, steps=20, ids=[path.name], device="cpu")
        gains.append(float(psnr(solution.mean, x) - psnr(seen, x)))
    assert sum(gains) / 3 > least, gains
