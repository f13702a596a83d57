"""deepinv's methods beside ours: what is scored, what is compared, what fails."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import compare_deepinv as peers
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import invdiff
from invdiff import operators
from invdiff.errors import UsageError
from invdiff.evaluation.measured_folder import Picture, read_pictures
from invdiff.files.images import write_image
from invdiff.noise import noise_model
from invdiff.priors import GaussianPrior

SHAPE = (1, 12, 12)
HOLES = operators.get("inpaint:keep=0.5")
NOISE = noise_model(0.05)
PRIOR = GaussianPrior(torch.full(SHAPE, 0.5), 0.04 * torch.eye(144))


def pictures(operator: Any = HOLES, count: int = 3) -> list[Picture]:
    truths = PRIOR.sample(count, torch.Generator().manual_seed(1)).float()
    return [
        Picture(f"{k}.png", "", truth, invdiff.degrade(truth[None], operator, NOISE, ids=[f"{k}.png"])[0])
        for k, truth in enumerate(truths)
    ]


def rows(operator: Any = HOLES, **options: Any) -> dict[str, peers.Row]:
    options = {"calls": [4], "specs": ["ddrm"]} | options
    found = peers.compare(pictures(operator), operator, NOISE, PRIOR, **options)
    return {row.method: row for row in found}


def test_all_methods_see_the_same_and_are_scored_alike() -> None:
    found = rows()
    assert list(found) == ["measurement", "ddrm", "deepinv ddrm", "deepinv diffpir", "deepinv dps"]
    solution = invdiff.restore(
        torch.stack([p.y for p in pictures()]), HOLES, NOISE, PRIOR, "ddrm", steps=4, ids=[p.key for p in pictures()]
    )
    for index, picture in enumerate(pictures()):
        restored, truth = (
            np.rint(255 * image.clamp(0, 1).double().numpy()) / 255 for image in (solution.mean[index], picture.truth)
        )
        expected = -10 * math.log10(np.mean((restored - truth) ** 2))
        assert found["ddrm"].psnr[picture.key] == pytest.approx(expected, abs=1e-4)  # float32 images
    assert all(len(row.psnr) == len(row.ssim) == 3 and not row.failed for row in found.values())
    assert found["ddrm"].made == 4 and found["deepinv diffpir"].made == 4


def test_a_comparison_repeats_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = rows(), rows(), rows(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in ("ddrm", "deepinv ddrm", "deepinv dps"):
        assert first[name].psnr == again[name].psnr != other[name].psnr


def test_differences_are_of_the_same_pictures() -> None:
    reference = peers.Row("a", 4, 4, {"x": 20.0, "y": 30.0, "z": 25.0}, {}, {})
    row = peers.Row("b", 4, 4, {"x": 21.0, "y": 33.0}, {}, {"x": 1.0, "y": 3.0}, {"z": "why"})
    record = row.record(reference)
    assert record["psnr_difference"]["mean"] == 2.0 and record["psnr_difference"]["images"] == 2
    assert record["psnr_difference"]["better"] is None  # two pictures tell nothing
    assert record["psnr"]["mean"] == 27.0 and record["seconds"]["median"] == 2.0 and record["failed"] == {"z": "why"}
    assert "psnr_difference" not in reference.record(reference) and row.cells(reference)[5].startswith("+2.00 (")
    many = {str(k): 20.0 + k for k in range(8)}
    better = peers.Row("b", 4, 4, {key: value + 1 for key, value in many.items()}, {}, {})
    assert better.record(peers.Row("a", 4, 4, many, {}, {}))["psnr_difference"]["better"] == "b"


def test_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("no such luck")

    def infinite(denoiser: Any, physics: Any, y: torch.Tensor, calls: int, seed: int) -> torch.Tensor:
        return physics.A_adjoint(y) * float("nan")

    monkeypatch.setitem(peers.PEERS, "diffpir", broken)
    monkeypatch.setitem(peers.PEERS, "dps", infinite)
    # A blur that keeps only what needs no padding has no decomposition, which deepinv's DDRM needs.
    found = rows(operators.get("gaussian_blur:sigma=0.6,boundary=valid"), specs=["diffpir"])
    assert "mask of singular values" in found["deepinv ddrm"].failed["0.png"]
    assert found["deepinv diffpir"].failed["0.png"] == "RuntimeError: no such luck"
    assert "NaN" in found["deepinv dps"].failed["0.png"] and not found["deepinv dps"].psnr
    assert found["deepinv dps"].cells(None)[4] == "-" and found["diffpir"].psnr


@pytest.mark.parametrize(
    "options, words",
    [
        ({"peers": ["dpss"]}, "unknown peer 'dpss'. Did you mean 'dps'"),
        ({"specs": ["diffpr"]}, "unknown solver"),
        ({"operator": operators.get("gamma")}, "ddrm needs a linear operator"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rows(**options)
    with pytest.raises(UsageError, match="for Gaussian noise"):
        list(peers.compare(pictures(), HOLES, noise_model("poisson:gain=0.02"), PRIOR))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(peers.compare_deepinv, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_and_writes_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from invdiff.training.checkpoint import export_pipeline
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network, build_scheduler

    config = TrainingConfig(widths=(8, 16), groups=4, crops=(16,), pixels=256)
    (tmp_path / "prior").mkdir()
    prior = export_pipeline(build_network(config), build_scheduler(config), config, tmp_path / "prior")
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        write_image(tmp_path / "photos" / f"{k}.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(k)))
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    command = ["--data", "photos", "--operator", "inpaint:keep=0.5", "--noise", "0.05", "--calls", 3]
    command += ["--solver", "auto", "--peer", "diffpir", "--prior", prior, "--precision", "fp32", "--device", "cpu"]
    result = invoke(*command, "--json", "c.json")
    assert result.exit_code == 1 and "bad.png" in result.stderr, result.output
    assert "auto (" in result.stdout and "deepinv diffpir" in result.stdout
    record = json.loads(Path("c.json").read_text())
    assert [row["method"] for row in record["rows"]][::2] == ["measurement", "deepinv diffpir"]
    assert set(record["rows"][2]["psnr"]["images"]) == {"0.png", "1.png"} and record["data"]["images"] == 2
    assert record["rows"][2]["psnr_difference"]["to"].startswith("auto (") and record["prior"]["sha256"]
    again = [*shlex.split(record["command"])[2:], "--json", "again.json"]
    assert invoke(*again).exit_code == 1
    both = [[row["psnr"] for row in json.loads(Path(name).read_text())["rows"]] for name in ("c.json", "again.json")]
    assert both[0] == both[1]
    result = invoke(*command, "--peer", "dpss")
    assert result.exit_code == 2 and "unknown peer" in result.stderr


def test_pictures_of_a_folder_are_cropped_fitted_and_measured(tmp_path: Path) -> None:
    write_image(tmp_path / "b" / "x.png", torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0)))
    write_image(tmp_path / "a" / "x.png", torch.rand(3, 15, 17, generator=torch.Generator().manual_seed(1)))

    class Colour(GaussianPrior):
        channels = 3

        def check_shape(self, shape: Any) -> None:
            """Any size."""

    prior = Colour(torch.zeros(3, 2, 2), torch.eye(12))
    operator = operators.get("downsample:factor=4")
    found = read_pictures(tmp_path, operator, NOISE, prior, crop=16)
    assert [picture.key for picture in found.usable] == ["a/x.png", "b/x.png"]
    assert [tuple(picture.truth.shape) for picture in found.usable] == [(3, 12, 16), (3, 16, 16)]
    assert torch.equal(found.usable[1].truth[0], found.usable[1].truth[2])
    again = read_pictures(tmp_path, operator, NOISE, prior, crop=16)
    assert torch.equal(found.usable[0].y, again.usable[0].y) and found.fingerprint == again.fingerprint
    assert found.fingerprint != read_pictures(tmp_path, operator, NOISE, prior, crop=12).fingerprint
    assert len(read_pictures(tmp_path, operator, NOISE, prior, limit=1).usable) == 1
