"""The physics of operators that are not linear against independent references, and what a user reads when one is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from ambiguity import best_of_ambiguities
from click.testing import CliRunner
from PIL import Image

import invdiff
from invdiff import operators, solvers
from invdiff.cli.main import main
from invdiff.errors import UsageError
from invdiff.files.images import write_image
from invdiff.operators import jpeg
from invdiff.priors.gaussian import GaussianPrior
from invdiff.scores.metrics import psnr


def smooth(channels: int = 3, height: int = 40, width: int = 52) -> torch.Tensor:
    """A picture of waves and an edge, (1, C, H, W) float64."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [
        0.5 + 0.3 * torch.sin(rows / (4 + c) + columns / 5.0) + 0.15 * (columns > width // 2) for c in range(channels)
    ]
    return torch.stack(planes)[None].double()


def random(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((1, *shape)))


# Curves


def test_curves_by_numpy() -> None:
    x = 3 * random(3, 20, 20) - 1
    n = x.numpy()
    levels = np.round(np.clip(n, 0, 1) * 7) / 7
    assert np.array_equal(operators.get("saturate:gain=1.7").A(x).numpy(), np.clip(1.7 * n, 0, 1))
    assert np.array_equal(operators.get("quantize:bits=3").A(x).numpy(), levels)
    assert len(np.unique(levels)) == 8 and not np.array_equal(operators.get("quantize:bits=2").A(x).numpy(), levels)
    inside = random(1, 20, 20)
    np.testing.assert_allclose(operators.get("gamma:exponent=2.2").A(inside).numpy(), inside.numpy() ** 2.2, rtol=1e-14)
    assert torch.equal(operators.get("gamma").A(-inside), -operators.get("gamma").A(inside))


@pytest.mark.parametrize("spec", ["saturate:gain=2", "gamma:exponent=2.2", "gamma:exponent=0.45", "quantize:bits=2"])
@pytest.mark.parametrize("gamma", [0.2, 3.0, 400.0])
def test_the_proximal_step_of_a_curve_is_the_global_minimum(spec: str, gamma: float) -> None:
    """Against a grid of 30001 points in [-1.5, 1.5], whose spacing is 1e-4: it may find no lower cost. (The twin: the
    proximal point of another gamma is beaten.)"""
    op, rng = operators.get(spec), np.random.default_rng(1)
    z, y = (torch.from_numpy(rng.uniform(-0.2, 1.2, (1, 1, 1, 300))) for _ in range(2))
    grid = torch.linspace(-1.5, 1.5, 30001, dtype=torch.float64)[:, None, None, None]

    def cost(x: torch.Tensor) -> torch.Tensor:
        return gamma * (op.A(x) - y) ** 2 + (x - z) ** 2

    least = (gamma * (op.A(grid) - y) ** 2 + (grid - z) ** 2).min(0).values
    # The edge of a level is approached up to a hair: 1e-6 of a step.
    assert float((cost(op.prox_l2(z, y, gamma))[0] - least).max()) < 1e-6
    assert float((cost(op.prox_l2(z, y, gamma / 50))[0] - least).max()) > 1e-5


def test_first_guesses() -> None:
    x = random(3, 8, 8)
    dark = x * 0.4
    for spec, image in (("saturate:gain=2", dark), ("saturate:gain=0.5", x), ("gamma", x), ("gamma:exponent=0.5", x)):
        op = operators.get(spec)
        torch.testing.assert_close(op.first_guess(op.A(image)), image)
    bright = operators.get("saturate:gain=2").first_guess(torch.ones(1, 1, 2, 2))
    assert torch.equal(bright, torch.full((1, 1, 2, 2), 0.75))  # halfway from 1/2, where it clips, to white
    blur = operators.get("gaussian_blur:sigma=0.5")
    torch.testing.assert_close(blur.first_guess(blur.A(x)), x)


# JPEG


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 20, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_is_pillows_decoding_of_its_encoding(channels: int, quality: int, subsampling: str) -> None:
    x = torch.cat([smooth(channels, 21, 19), smooth(channels, 21, 19).flip(-1)])
    ours = operators.get("jpeg", quality=quality, subsampling=subsampling).A(x)
    for row, image in zip(ours, x, strict=True):
        levels = np.round(image.numpy().transpose(1, 2, 0) * 255).astype(np.uint8).squeeze()
        file = io.BytesIO()
        Image.fromarray(levels).save(
            file, "JPEG", quality=quality, **({"subsampling": subsampling} if channels == 3 else {})
        )
        theirs = np.asarray(Image.open(file), dtype=np.float64).reshape(21, 19, channels).transpose(2, 0, 1) / 255
        assert np.array_equal(row.numpy(), theirs)
        # The twin: another quality is another picture.
        assert not np.array_equal(row.numpy(), operators.get("jpeg", quality=60).A(image[None])[0].numpy())


@pytest.mark.parametrize("spec", ["quality=100", "quality=90", "quality=50", "quality=50,subsampling=4:4:4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_codecs_steps_in_torch_are_the_codecs(spec: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for whole numbers between the steps: those of y alone are 0.29 levels (rms), colours add as much in each of two
    conversions, and a coefficient near half a step may fall on either side. A wrong table (the twin) is further off."""
    op, x = operators.get(f"jpeg:{spec}"), smooth(channels)

    def error() -> float:
        return 255 * float((op.model(x) - op.A(x)).square().mean().sqrt())

    assert error() < (1.0 if channels == 1 else 2.1)
    right = error()
    monkeypatch.setattr(jpeg.JPEG, "_table", lambda self, table, like: torch.full((8, 8), 64.0).to(like))
    assert error() > 1.5 * right


def test_jpeg_refuses_what_no_file_holds() -> None:
    with pytest.raises(UsageError, match="takes images of 1 or 3 channels, got 2"):
        operators.get("jpeg").A(random(2, 8, 8))


# Phase retrieval


@pytest.mark.parametrize("oversample", [1.0, 1.5, 2.0])
def test_phase_retrieval_is_numpys(oversample: float) -> None:
    x, op = random(3, 6, 7), operators.get("phase_retrieval", oversample=oversample)
    field = tuple(int(np.ceil(oversample * n)) for n in (6, 7))
    padded = np.zeros((3, *field))
    padded[:, :6, :7] = x[0].numpy()
    theirs = np.abs(np.fft.fft2(padded, norm="ortho"))
    np.testing.assert_allclose(op.A(x)[0].numpy(), theirs, atol=1e-14)
    assert np.abs(op.A(x)[0].numpy() - np.abs(np.fft.fft2(padded))).max() > 0.1  # the twin: not orthonormal


def test_phase_retrieval_cannot_tell() -> None:
    """What it says it cannot: turned, negative, moved inside the field; and what it can, one mirror."""
    op, x = operators.get("phase_retrieval"), random(1, 8, 9)
    x[..., :2] = 0
    for other in (x.flip((-2, -1)), -x, x.roll(-2, -1)):
        torch.testing.assert_close(op.A(other), op.A(x))
    assert float((op.A(x.flip(-1)) - op.A(x)).abs().max()) > 0.01


def test_every_field_has_one_image() -> None:
    for oversample in (1.0, 1.1, 1.37, 2.0, 3.3):
        op = operators.get("phase_retrieval", oversample=oversample)
        for side in range(1, 60):
            assert op.image_shape(op.measurement_shape((1, side, side + 1))) == (1, side, side + 1)
    with pytest.raises(UsageError, match="no image gives a spectrum of 7 x 8"):
        operators.get("phase_retrieval").image_shape((1, 7, 8))


def test_error_reduction_lowers_the_residual() -> None:
    op, x = operators.get("phase_retrieval"), smooth(1, 16, 16)
    y = op.A(x)
    grey = torch.full_like(x, 0.5)
    assert float((op.A(op.first_guess(y)) - y).norm()) < 0.3 * float((op.A(grey) - y).norm())


def test_the_best_of_the_ambiguities() -> None:
    x = random(3, 10, 12)
    for other in (x, -x, x.flip((-2, -1)), -x.flip((-2, -1)).roll((3, -2), (-2, -1))):
        assert torch.equal(best_of_ambiguities(other, x), x)
    mirrored = best_of_ambiguities(x.flip(-1), x)
    assert float(psnr(mirrored, x)) < 20  # the twin: what a measurement tells apart stays so
    both = torch.cat([-x, x.flip((-2, -1))])
    assert torch.equal(best_of_ambiguities(both, x.expand(2, -1, -1, -1)), x.expand(2, -1, -1, -1))


# Errors, solvers, command line


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jpeg:quality=0", "jpeg: quality='0' must be >= 1 and <= 100"),
        ("jpeg:quality=101", "jpeg: quality='101' must be >= 1 and <= 100"),
        ("jpeg:quality=12.5", "jpeg: quality='12.5' is not a whole number"),
        ("jpeg:subsampling=4:1:0", "unknown subsampling of jpeg '4:1:0'"),
        ("quantize:bits=0", "quantize: bits='0' must be >= 1 and <= 16"),
        ("phase_retrieval:oversample=0.9", "phase_retrieval: oversample='0.9' must be >= 1 and <= 16"),
        ("saturate:gain=0", "saturate: gain='0' must be > 0"),
        ("saturate:gain=-1", "saturate: gain='-1' must be > 0"),
        ("gamma:exponent=0", "gamma: exponent='0' must be > 0"),
    ],
)
def test_bad_parameters_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        operators.get(spec)


ABLE = [
    "daps",
    "diffpir",
    "dpir",
    "dps",
    "fast_dips",
    "mmps",
    "pnp_dm",
    "red_diff",
    "tds:particles=1,spread=0.1",
    "tmpd",
]


def test_who_can() -> None:
    able = {name for name in solvers.names() if not solvers.get(name).unmet(operators.get("jpeg"))}
    assert able == {spec.partition(":")[0] for spec in ABLE}
    with pytest.raises(UsageError, match=r"ddrm needs a linear operator.*solvers that work: daps, diffpir, dpir, dps"):
        solvers.check(solvers.get("ddrm"), operators.get("jpeg"))


@pytest.mark.parametrize("solver", [spec for spec in ABLE if not spec.startswith("tds")])
@pytest.mark.parametrize("spec", ["saturate:gain=1.2", "gamma", "quantize", "jpeg", "phase_retrieval"])
def test_every_able_solver_runs_and_rows_do_not_feel_each_other(solver: str, spec: str) -> None:
    prior = GaussianPrior(torch.full((1, 8, 8), 0.5, dtype=torch.float64), 0.05)
    op, x = operators.get(spec), torch.cat([smooth(1, 8, 8), smooth(1, 8, 8).flip(-1)])
    y = invdiff.degrade(x, op, noise=0.05)
    both = invdiff.restore(y, op, 0.05, prior=prior, solver=solver, steps=3, batch_size=2).mean
    alone = invdiff.restore(y[1:], op, 0.05, prior=prior, solver=solver, steps=3, ids=[1]).mean
    # Rounding may decide which of two levels an entry takes in the codec; nothing else may differ.
    assert float((both[1:] - alone).abs().max()) < 1e-6


@pytest.mark.parametrize("spec", ["gamma", "quantize"])
def test_auto_restores_better_than_the_first_guess(spec: str) -> None:
    """Pixels of mean 1/2 and deviation 0.15, the prior's own: auto at noise 0.1 gains half a dB at least."""
    prior = GaussianPrior(torch.full((1, 16, 16), 0.5, dtype=torch.float64), 0.15**2)
    x = 0.5 + 0.15 * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    op = operators.get(spec)
    y = invdiff.degrade(x, op, noise=0.1)
    restored = invdiff.restore(y, op, 0.1, prior=prior, samples=2).mean
    gain = psnr(restored, x) - psnr(op.first_guess(y), x)
    assert float(gain.mean()) > 0.5, gain


@pytest.mark.parametrize("spec", ["phase_retrieval", "saturate", "gamma", "quantize", "jpeg"])
def test_degrade_and_restore_from_the_command_line(spec: str, tmp_path: Path, natural_small: Path) -> None:
    photo, measured, out = tmp_path / "x.png", tmp_path / "y.npy", tmp_path / "out.png"
    write_image(photo, smooth(3, 16, 16)[0].float())
    common = ["--operator", spec, "--noise", "0.05"]
    run = CliRunner().invoke
    made = run(main, ["degrade", str(photo), "-o", str(measured), *common])
    assert made.exit_code == 0, made.output
    restore = ["restore", str(measured), "-o", str(out), *common, "--prior", str(natural_small), "--steps", "2"]
    done = run(main, [*restore, "--device", "cpu", "--reference", str(photo)])
    assert done.exit_code == 0 and out.is_file() and "PSNR" in done.output, done.output


@pytest.fixture(scope="module")
def natural_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of random weights."""
    from invdiff.training.checkpoint import export_pipeline
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network, build_scheduler

    config = TrainingConfig(channels=3, widths=(8, 16), groups=4, crops=(16,), pixels=256)
    folder = tmp_path_factory.mktemp("prior") / "tiny"
    folder.mkdir()
    return export_pipeline(build_network(config), build_scheduler(config), config, folder)
