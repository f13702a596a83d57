"""What the commands do, run in this process with a tiny random prior: files, records, prints, repeatability."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from invdiff.cli.main import COMMANDS, main
from invdiff.images import read_image, write_image

BLUR = ["--operator", "gaussian_blur:sigma=1", "--noise", "0.05"]
FAST = ["--steps", "2", "--precision", "fp32", "--device", "cpu"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def tiny_prior(folder: Path, channels: int = 3) -> Path:
    from invdiff.training.checkpoint import export_pipeline
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network, build_scheduler

    config = TrainingConfig(channels=channels, widths=(8, 16), groups=4, crops=(16,), pixels=256)
    folder.mkdir()
    return export_pipeline(build_network(config), build_scheduler(config), config, folder)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with clean/{a,b}.png of 24 x 32 pixels and clean/more/c.png."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a.png", "b.png", "more/c.png")):
        picture(tmp_path / "clean" / name, index)
    return tmp_path


def picture(path: Path, index: int = 0, shape: tuple[int, int, int] = (3, 24, 32)) -> Path:
    rows, columns = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    planes = [0.5 + 0.3 * torch.sin(rows / (3 + index + c) + columns / 4.0) for c in range(shape[0])]
    write_image(path, torch.stack(planes))
    return path


def load(path: str | Path) -> torch.Tensor:
    return read_image(path).tensor


@pytest.mark.parametrize(
    "command", [*COMMANDS, "operators list", "operators show", "solvers list", "solvers show", "prior info"]
)
def test_help_has_examples_that_keep_their_lines(command: str) -> None:
    text = succeed(*command.split(), "--help").output
    examples = text.partition("Examples:\n")[2]
    lines = [line for line in examples.splitlines() if line.strip()]
    assert any(line.startswith(f"  invdiff {command.split()[0]}") for line in lines), text
    assert all(line.startswith(("  invdiff ", "  #", "      ")) for line in lines)


def test_the_commands_in_the_help_are_valid() -> None:
    """Every example parses: options exist and have values of the right type. Nothing is run."""
    import click

    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        text = (command.epilog or "").replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith("invdiff "):
                _, first, *rest = shlex.split(line, comments=True)
                chosen = main.get_command(click.Context(main), first)
                assert chosen is not None
                chosen.make_context(first, rest)


def test_degrade_then_restore_one_file(folder: Path, prior: Path) -> None:
    result = succeed("degrade", "clean/a.png", "-o", "y.png", *BLUR)
    assert "24 x 32" in result.stdout
    record = json.loads(Path("y.png.json").read_text())
    assert record["operator"]["name"] == "gaussian_blur" and record["noise"]["sigma_y"] == 0.05
    result = succeed("restore", "y.png", "-o", "x.png", *BLUR, *FAST, "--prior", prior, "--reference", "clean/a.png")
    assert load("x.png").shape == (3, 24, 32)
    first, second = result.stdout.splitlines()
    assert first.startswith("x.png") and "diffpir, 2 network calls" in first and "residual" in first
    assert "PSNR" in second and "->" in second and "SSIM" in second


def test_the_record_repeats_the_result(folder: Path, prior: Path) -> None:
    import hashlib

    succeed("restore", "clean/a.png", "-o", "x.png", *BLUR, *FAST, "--prior", prior, "--set", "zeta=0.123456789")
    record = json.loads(Path("x.png.json").read_text())
    assert record["input"]["sha256"] == hashlib.sha256(Path("clean/a.png").read_bytes()).hexdigest()
    assert record["solver"]["zeta"] == 0.123456789 and record["seed"] == 0 and record["nfe"] == 2
    assert record["prior"]["sha256"] and record["versions"]["torch"]
    before = load("x.png")
    Path("x.png").unlink()
    words = shlex.split(record["command"])
    assert words[0] == "invdiff" and "zeta=0.123456789" in record["command"]
    succeed(*words[1:])
    assert torch.equal(load("x.png"), before)


def test_results_depend_on_seed_and_name_not_on_batch_or_order(folder: Path, prior: Path) -> None:
    options = [*BLUR, *FAST, "--prior", prior, "--format", "npy"]
    succeed("restore", "clean", "-o", "one", *options)
    succeed("restore", "clean/more", "clean/b.png", "clean/a.png", "-o", "many", *options, "--batch-size", 3)
    succeed("restore", "clean/a.png", "-o", "other.npy", *options[:-2], "--seed", 1)
    for single, batched in (("one/a.npy", "many/a.npy"), ("one/b.npy", "many/b.npy"), ("one/more/c.npy", "many/c.npy")):
        assert torch.allclose(load(single), load(batched), atol=1e-4), single
    assert not torch.allclose(load("one/a.npy"), load("other.npy"), atol=1e-2)


def test_patterns_folders_and_skip_existing(folder: Path, prior: Path) -> None:
    options = [*BLUR, *FAST, "--prior", prior]
    succeed("restore", "clean/*.png", "-o", "out", *options)
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "a.png.json", "b.png", "b.png.json"]
    stamp = Path("out/a.png").stat().st_mtime_ns
    result = succeed("restore", "clean", "-o", "out", *options, "--skip-existing")
    assert Path("out/more/c.png").exists() and Path("out/a.png").stat().st_mtime_ns == stamp
    assert "a.png" not in result.stdout
    assert "nothing to do" in succeed("restore", "clean", "-o", "out", *options, "--skip-existing").stderr


def test_an_output_folder_inside_the_input_folder_is_not_read(folder: Path, prior: Path) -> None:
    options = [*BLUR, "--seed", 3]
    succeed("degrade", "clean", "-o", "clean/out", *options)
    result = succeed("degrade", "clean", "-o", "clean/out", *options)
    assert "not taken as inputs" in result.stderr and not Path("clean/out/out").exists()


def test_samples_mean_and_std(folder: Path, prior: Path) -> None:
    succeed("restore", "clean/a.png", "-o", "x.npy", *BLUR, *FAST, "--prior", prior, "--samples", 3)
    samples = torch.stack([load(f"x-sample-{k}.npy") for k in (1, 2, 3)])
    assert torch.allclose(load("x.npy"), samples.mean(0), atol=1e-6)
    assert torch.allclose(load("x-std.npy"), samples.std(0), atol=1e-6)
    succeed("restore", "clean/a.png", "-o", "x.png", *BLUR, *FAST, "--prior", prior, "--samples", 3, "--bits", 16)
    record = json.loads(Path("x.png.json").read_text())
    white = record["output"]["std"]["white"]
    assert torch.allclose(load("x-std.png") * white, samples.std(0), atol=white / 30000)
    assert len(record["residual"]) == 3 and len(record["output"]["samples"]) == 3


def test_a_grey_measurement_with_a_colour_prior(folder: Path, prior: Path) -> None:
    grey = picture(folder / "grey.png", shape=(1, 24, 32))
    result = succeed("restore", grey, "-o", "x.png", *BLUR, *FAST, "--prior", prior, "--reference", "clean/a.png")
    assert load("x.png").shape == (1, 24, 32)
    assert "turned back to grey" in result.stderr and "reference was converted" in result.stderr
    colour = succeed("degrade", "clean/a.png", "-o", "y.png", "--operator", "grayscale", "--noise", "0.05")
    assert "24 x 32" in colour.stdout
    command = ["restore", "y.png", "-o", "c.png", "--operator", "grayscale", "--noise", "0.05"]
    result = succeed(*command, *FAST, "--prior", prior, "--reference", "clean/a.png")
    assert load("c.png").shape == (3, 24, 32) and "->" in result.stdout


def test_super_resolution_crops_and_compares_with_bicubic(folder: Path, prior: Path) -> None:
    picture(folder / "odd.png", shape=(3, 27, 33))
    sr = ["--operator", "downsample:factor=4", "--noise", "0.05"]
    result = succeed("degrade", "odd.png", "-o", "y.tiff", *sr)
    assert "cropped from 27 x 33 to 24 x 32" in result.stderr and load("y.tiff").shape == (3, 6, 8)
    result = succeed("restore", "y.tiff", "-o", "x.png", *sr, *FAST, "--prior", prior, "--reference", "odd.png")
    assert "cropped from 27 x 33 to 24 x 32" in result.stderr
    metrics = json.loads(Path("x.png.json").read_text())["metrics"]
    from invdiff.evaluation.metrics import psnr

    bicubic = torch.nn.functional.interpolate(load("y.tiff")[None], size=(24, 32), mode="bicubic")
    expected = float(psnr(bicubic, load("odd.png")[None, :, :24, :32]))
    assert metrics["degraded"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_degrade_warns_about_clipping_and_takes_zero_noise(folder: Path) -> None:
    noisy = ["--operator", "identity", "--noise", "0.5"]
    result = succeed("degrade", "clean/a.png", "-o", "y.png", *noisy)
    assert "% of the values were clipped to [0, 1]; write .tiff or .npy" in result.stderr
    assert not succeed("degrade", "clean/a.png", "-o", "y.npy", *noisy).stderr
    assert float(load("y.npy").std()) == pytest.approx((0.5**2 + float(load("clean/a.png").std()) ** 2) ** 0.5, rel=0.1)
    succeed("degrade", "clean/a.png", "-o", "same.png", "--operator", "identity", "--noise", "0")
    assert torch.equal(load("same.png"), load("clean/a.png"))


def test_every_kind_of_picture_is_taken_with_a_note(folder: Path, prior: Path) -> None:
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    source = Image.fromarray(colours)
    (folder / "in").mkdir()
    source.convert("RGBA").save("in/rgba.png")
    source.convert("P").save("in/palette.png")
    source.convert("CMYK").save("in/cmyk.jpg")
    source.convert("L").save("in/grey.png")
    write_image("in/deep.png", torch.from_numpy(colours.transpose(2, 0, 1)).float() / 255, bits=16)
    result = succeed("restore", "in", "-o", "out", *BLUR, *FAST, "--prior", prior, "--batch-size", 5)
    for note in ("rgba.png: opaque alpha channel dropped", "cmyk.jpg: CMYK converted", "grey.png: grey repeated"):
        assert f"note: {note}" in result.stderr
    assert len(list(Path("out").glob("*.png"))) == 5


def test_one_bad_image_does_not_stop_the_others(folder: Path, prior: Path) -> None:
    Path("clean/bad.png").write_text("hello")
    result = invoke("restore", "clean", "-o", "out", *BLUR, *FAST, "--prior", prior, "--batch-size", 4)
    assert result.exit_code == 1
    assert "restored 3 of 4 images; failed: bad.png" in result.stderr and "not a" in result.stderr
    assert sorted(p.name for p in Path("out").rglob("*.png")) == ["a.png", "b.png", "c.png"]


def test_demo_and_sample(folder: Path, prior: Path) -> None:
    command = ["demo", "--prior", prior, "--size", 32, *FAST]
    result = succeed(*command)
    assert [line.split()[0] for line in result.stdout.splitlines()[2:5]] == [
        "deblurring",
        "super-resolution",
        "inpainting",
    ]
    assert {p.name for p in Path("invdiff-demo").iterdir()} >= {"demo.png", "demo.json", "inpainting-restored.png"}
    before = load("invdiff-demo/deblurring-restored.png")
    succeed(*command)
    assert torch.equal(load("invdiff-demo/deblurring-restored.png"), before)
    assert invoke(*command, "--out", "clean").exit_code == 2

    result = succeed("sample", "--prior", prior, "-o", "s.png", "--count", 2, "--size", "16x24", *FAST)
    assert load("s-2.png").shape == (3, 16, 24) and load("s.png").shape[2] > 48
    succeed("sample", "--prior", prior, "-o", "one.png", "--size", "16x24", *FAST)
    assert torch.equal(load("one.png"), load("s-1.png"))


def test_lists_and_details_come_from_the_declarations(prior: Path) -> None:
    from invdiff import operators, solvers
    from invdiff.parameters import declarations

    listing = succeed("operators", "list").stdout
    assert all(name in listing for name in operators.names())
    listing = succeed("solvers", "list").stdout
    assert all(name in listing for name in solvers.names()) and "svd" in listing
    for group, registry in (("operators", operators.REGISTRY), ("solvers", solvers.REGISTRY)):
        for name, cls in registry.items():
            shown = succeed(group, "show", name).stdout
            assert all(declaration.name in shown for declaration in declarations(cls)), (group, name)
    assert "arxiv.org/abs/2305.08995" in succeed("solvers", "show", "diffpir").stdout
    assert "channels" in succeed("prior", "info", prior).stdout
    assert json.loads(succeed("prior", "info", prior, "--json").stdout)["recipe"]["widths"] == [8, 16]
    succeed("prior", "list")


def test_the_solvers_named_for_an_operator_are_those_that_run() -> None:
    from invdiff import operators, solvers
    from invdiff.cli.operators import solvers_for

    for name in ("gaussian_blur", "motion_blur", "downsample", "inpaint"):
        operator = operators.get(name)
        able = [solver for solver in solvers.names() if not solvers.get(solver).missing(operator)]
        assert solvers_for(operators.REGISTRY[name]) == (able, False), name


def test_train_resume_and_use(folder: Path) -> None:
    for index in range(4):
        picture(folder / "photos" / "set" / f"{index}.png", index)
    train = ["train", "--data", "photos", "--out", "mine", "--device", "cpu", "--precision", "fp32"]
    settings = ["--widths", "8,16", "--crop", 16, "--batch-pixels", 512, "--holdout", 1, "--weight", "set=2"]
    result = succeed(*train, *settings, "--steps", 2)
    assert "2 steps" in result.stdout and "psnr" in result.stderr
    recipe = json.loads(Path("mine/recipe.json").read_text())
    assert recipe["widths"] == [8, 16] and recipe["weights"] == {"set": 2.0} and recipe["steps"] == 2
    again = invoke(*train, *settings)
    assert again.exit_code == 2 and "--resume" in again.stderr
    assert "3 steps" in succeed(*train, "--resume", "--steps", 3).stdout
    assert "used up" in succeed(*train, "--resume").stderr
    assert json.loads(Path("mine/recipe.json").read_text())["widths"] == [8, 16]
    succeed("restore", "clean/a.png", "-o", "x.png", *BLUR, *FAST, "--prior", "./mine")


@pytest.mark.slow
def test_a_large_photograph(folder: Path, prior: Path) -> None:
    write_image("large.png", torch.rand(3, 3000, 4000, generator=torch.Generator().manual_seed(0)))
    options = ["--operator", "identity", "--noise", "0.05", "--prior", prior, *FAST, "--steps", 1]
    succeed("restore", "large.png", "-o", "x.jpg", *options)
    assert load("x.jpg").shape == (3, 3000, 4000)
