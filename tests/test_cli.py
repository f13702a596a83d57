"""What the commands do, run in this process with a tiny random prior: files, records, prints, repeatability."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from tiny import picture, tiny_prior

from invdiff.cli.main import COMMANDS, main
from invdiff.files.images import read_image, write_image
from invdiff.priors import NetworkPrior
from invdiff.problem import Problem

BLUR = ["--operator", "gaussian_blur:sigma=1", "--noise", "0.05"]
FAST = ["--steps", "2", "--precision", "fp32", "--device", "cpu"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


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
    options = [*BLUR, *FAST, "--prior", prior, "--solver", "diffpir"]
    result = succeed("restore", "y.png", "-o", "x.png", *options, "--reference", "clean/a.png")
    assert load("x.png").shape == (3, 24, 32)
    first, second = result.stdout.splitlines()
    assert first.startswith("x.png") and ", 2 network calls" in first and "residual" in first
    assert "PSNR" in second and "->" in second and "SSIM" in second


def test_the_record_repeats_the_result(folder: Path, prior: Path) -> None:
    import hashlib

    succeed(
        "restore",
        "clean/a.png",
        "-o",
        "x.png",
        *BLUR,
        *FAST,
        "--prior",
        prior,
        "--solver",
        "diffpir",
        "--set",
        "zeta=0.123456789",
    )
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
    options = [*BLUR, *FAST, "--prior", prior, "--solver", "diffpir", "--format", "npy"]
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
    from invdiff.scores.metrics import psnr

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
    from invdiff.specs.parameters import declarations

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
        able = [solver for solver in solvers.names() if not solvers.get(solver).unmet(operator)]
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


def record_of(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(f"{path}.json").read_text())


def test_both_records_describe_the_operator_alike(folder: Path, prior: Path) -> None:
    succeed("degrade", "clean/a.png", "-o", "y.tiff", *BLUR)
    succeed("restore", "y.tiff", "-o", "x.png", *BLUR, *FAST, "--prior", prior)
    assert record_of("y.tiff")["operator"] == record_of("x.png")["operator"]


# Grey measurements with a colour prior.


def test_grey_is_refused_where_the_operator_tells_channels_apart(folder: Path, prior: Path) -> None:
    grey = picture(folder / "grey.png", shape=(1, 24, 32))
    mask = ["--operator", "random_subsample:keep=0.5", "--noise", "0.05"]
    succeed("degrade", grey, "-o", "y.npy", *mask)
    result = invoke("restore", "y.npy", "-o", "x.png", *mask, *FAST, "--prior", prior)
    assert result.exit_code == 2 and not Path("x.png").exists(), result.output
    assert "does not treat the channels" in result.stderr and "grey prior" in result.stderr


def test_the_solver_gets_sqrt_3_sigma_and_the_record_the_true_residual(
    folder: Path, prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import invdiff.restoration.api
    from invdiff import operators

    levels = {}

    def noting(problem: Problem, prior: Any, solver: Any, seed: int, keys: list[str], size: int) -> Any:
        levels.update(dict.fromkeys(keys, problem.sigma_y))
        return original(problem, prior, solver, seed, keys, size)

    original = invdiff.restoration.api.Runs
    monkeypatch.setattr(invdiff.restoration.api, "Runs", noting)
    picture(folder / "in" / "grey.png", shape=(1, 24, 32))
    picture(folder / "in" / "colour.png")
    out = ["-o", "out", "--format", "npy", "--batch-size", 2]
    result = succeed("restore", "in", *out, *BLUR, *FAST, "--prior", prior)
    assert levels == {"grey.png": pytest.approx(3**0.5 * 0.05), "colour.png": 0.05}
    record = record_of("out/grey.npy")
    assert record["noise"]["sigma_y"] == 0.05 and record["noise"]["solved_with"] == pytest.approx(3**0.5 * 0.05)
    assert "gaussian:sigma=0.0866025 in place of gaussian:sigma=0.05" in result.stderr
    difference = load("in/grey.png") - operators.get("gaussian_blur:sigma=1").A(load("out/grey.npy")[None])[0]
    assert record["residual"] == [pytest.approx(float(difference.square().mean().sqrt()) / 0.05, rel=1e-3)]


# Which files may be replaced.


def test_every_output_is_checked_before_anything_is_computed(folder: Path, prior: Path) -> None:
    common = ["restore", "clean/a.png", "-o", "x.png", *BLUR, *FAST, "--prior", prior, "--samples", 2]
    for name in ("x-std.png", "x-sample-2.png", "x.png.json", "x.png"):
        Path(name).write_text('{"mine": true}')
        result = invoke(*common)
        assert result.exit_code == 2 and f"{name} exists and was not written by invdiff" in result.stderr, result.output
        assert Path(name).read_text() == '{"mine": true}' and len(list(Path.cwd().glob("x*"))) == 1
        Path(name).unlink()
    succeed(*common)
    succeed(*common)
    Path("x.png.json").write_text('{"mine": true}')
    assert invoke(*common).exit_code == 2
    succeed(*common, "--overwrite")


def test_a_companion_of_somebody_else_is_not_replaced_beside_an_own_record(folder: Path, prior: Path) -> None:
    common = ["restore", "clean/a.png", "-o", "x.png", *BLUR, *FAST, "--prior", prior]
    succeed(*common)
    Path("x-std.png").write_text("mine")
    assert "x-std.png exists" in invoke(*common, "--samples", 2).stderr and Path("x-std.png").read_text() == "mine"


def test_no_output_is_an_input_or_another_jobs_output(folder: Path, prior: Path) -> None:
    options = [*BLUR, *FAST, "--prior", prior, "--overwrite"]
    picture(folder / "in" / "a.png")
    picture(folder / "in" / "a-std.png", 1)
    result = invoke("restore", "in/a.png", "in/a-std.png", "-o", "out", *options, "--samples", 2)
    assert result.exit_code == 2 and "would both be written to out/a-std.png" in result.stderr
    picture(folder / "x-std.png")
    result = invoke("restore", "x-std.png", "-o", "x.png", *options, "--samples", 2)
    assert result.exit_code == 2 and "x-std.png is an input" in result.stderr
    result = invoke("restore", "clean/a.png", "-o", "in/a.png", *options, "--reference", "in/a.png")
    assert result.exit_code == 2 and "in/a.png is an input" in result.stderr
    write_image("mask.png", torch.ones(1, 24, 32))
    masked = ["--operator", "inpaint:mask=mask.png", "--noise", "0.1", "--overwrite"]
    result = invoke("degrade", "clean/a.png", "-o", "mask.png", *masked)
    assert result.exit_code == 2 and "mask.png is an input" in result.stderr


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "sde", "ode", "heun", "dpmpp"])
def test_every_sampler_writes_a_grid_and_single_files_and_says_how_to_repeat_it(
    folder: Path, prior: Path, sampler: str
) -> None:
    command = ["sample", "--prior", prior, "-o", "s.png", "--count", 3, "--size", "16x24", "--sampler", sampler]
    result = succeed(*command, "--steps", 4, "--device", "cpu", "--precision", "fp32", "--seed", 0)
    calls = 3 if sampler == "heun" else 4
    assert f"{calls} network calls each" in result.stdout and sampler in result.stdout
    assert [load(f"s-{k}.png").shape for k in (1, 2, 3)] == [(3, 16, 24)] * 3 and load(
        "s.png"
    ).numel() > 3 * 3 * 16 * 24
    record = json.loads(Path("s.png.json").read_text())
    assert record["sampler"]["name"] == sampler and (record["sampler"]["steps"], record["calls"]) == (4, calls)
    before = {path.name: path.read_bytes() for path in Path().glob("s*.png")}
    succeed(*shlex.split(record["command"])[1:])
    assert {path.name: path.read_bytes() for path in Path().glob("s*.png")} == before and len(before) == 4


def test_sampler_settings(folder: Path, prior: Path) -> None:
    common = ["sample", "--prior", prior, "--size", "16", "--device", "cpu", "--precision", "fp32"]

    def record(*arguments: object) -> dict[str, Any]:
        succeed(*common, "-o", "x.png", *arguments)
        return json.loads(Path("x.png.json").read_text())["sampler"]

    assert record("--steps", 2, "--eta", 0.5) | {"spacing": ""} == {
        "name": "ddim", "steps": 2, "eta": 0.5, "spacing": "", "sigma_max": None,
    }  # fmt: skip
    picture = load("x.png")
    assert record("--sampler", "ddim:eta=0.5,steps=2")["eta"] == 0.5 and torch.equal(load("x.png"), picture)
    assert record("--sampler", "ddim:steps=2")["eta"] == 0 and not torch.equal(load("x.png"), picture)
    for arguments, words in [
        (["--sampler", "sde", "--eta", "0.5"], "eta is a setting of ddim, not of sde"),
        (["--sampler", "huen"], "Did you mean 'heun'"),
        (["--sampler", "ode:variance=large"], "unknown parameter of ode 'variance'"),
        (["--sampler", "ddim:steps=3", "--steps", "3"], "steps is given both"),
        (["--sampler", "ddim:eta=2"], "<= 1"),
        (["--sampler", "dpmpp:sigma_max=1e-9,steps=2"], "sigma_max"),
    ]:
        result = invoke(*common, "-o", "y.png", *arguments)
        assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1, result.output
        assert not Path("y.png").exists()


def test_the_help_of_sample_names_the_samplers_and_their_defaults() -> None:
    from invdiff import samplers

    text = " ".join(succeed("sample", "--help").stdout.split())
    assert all(name in text for name in samplers.names())
    assert f"default: {samplers.DEFAULT}, or ddim with --eta" in text and samplers.get(eta=0.5).name == "ddim"
    steps = {name: samplers.get(name).steps for name in samplers.names()}
    assert f"default: {steps.pop('dpmpp')} for dpmpp, {steps.pop('heun')} for heun, else 100" in text
    assert set(steps.values()) == {100}


def test_sample_does_not_replace_single_files_of_somebody_else(folder: Path, prior: Path) -> None:
    common = ["sample", "--prior", prior, "-o", "s.png", "--count", 2, "--size", "16", *FAST]
    Path("s-2.png").write_text("mine")
    result = invoke(*common)
    assert result.exit_code == 2 and "s-2.png exists" in result.stderr and Path("s-2.png").read_text() == "mine"
    Path("s-2.png").unlink()
    succeed(*common)
    succeed(*common)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_older_result_survives_a_failure(
    folder: Path, prior: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    import invdiff.files.images

    common = ["restore", "clean/a.png", "-o", "out/x.png", *BLUR, *FAST, "--prior", prior, "--samples", 2]
    succeed(*common)
    before = {path: path.read_bytes() for path in Path("out").iterdir()}

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(invdiff.files.images, "write_json", fail)
    assert invoke(*common, "--seed", 1).exit_code in (1, 130)
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


# Comparisons, measurements that are no images, batches, training.


def test_a_smaller_measurement_is_compared_with_the_centre_of_the_truth(folder: Path, prior: Path) -> None:
    valid = ["--operator", "gaussian_blur:sigma=0.4,boundary=valid", "--noise", "0.01"]
    succeed("degrade", "clean/a.png", "-o", "y.npy", *valid)
    succeed("restore", "y.npy", "-o", "x.png", *valid, *FAST, "--prior", prior, "--reference", "clean/a.png")
    y, truth = load("y.npy"), load("clean/a.png")
    top, left = ((truth.shape[axis] - y.shape[axis]) // 2 for axis in (1, 2))
    assert top == left > 0
    error = (y.clamp(0, 1) - truth[:, top : top + y.shape[1], left : left + y.shape[2]]).square().mean()
    found = record_of("x.png")["metrics"]["degraded"]["psnr"]
    assert found == pytest.approx(float(-10 * error.log10()), abs=1e-3) and found > 30


def test_a_batch_too_large_falls_back_to_single_samples(
    folder: Path, prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*BLUR, *FAST, "--prior", prior, "--samples", 2, "--format", "npy"]
    succeed("restore", "clean/a.png", "clean/b.png", "-o", "one", *options, "--batch-size", 1)
    sizes = []
    original = NetworkPrior.denoise

    def small_memory(self: NetworkPrior, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, x, sigma)

    monkeypatch.setattr(NetworkPrior, "denoise", small_memory)
    result = succeed("restore", "clean/a.png", "clean/b.png", "-o", "out", *options, "--batch-size", 8)
    assert sizes[:3] == [4, 2, 1] and set(sizes[2:]) == {1}, sizes  # told once, and not tried again
    assert result.stderr.count("not enough memory: going on with") == 1
    for name in ("a", "b"):
        assert torch.equal(load(f"one/{name}.npy"), load(f"out/{name}.npy"))


def test_a_measurement_may_be_a_vector(folder: Path) -> None:
    grey = tiny_prior(folder / "grey-prior", channels=1)
    matrix = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32) / 8
    np.save("M.npy", matrix)
    write_image("a.npy", torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)))
    linear = ["--operator", "linear:matrix=M.npy,shape=1x8x8", "--noise", "0.01"]
    assert "50 values" in succeed("degrade", "a.npy", "-o", "y.npy", *linear).stdout
    expected = matrix @ np.load("a.npy").ravel()
    assert np.load("y.npy").shape == (50,) and np.abs(np.load("y.npy") - expected).max() < 0.06
    result = succeed("restore", "y.npy", "-o", "x.png", *linear, *FAST, "--prior", grey, "--reference", "a.npy")
    assert load("x.png").shape == (1, 8, 8) and "PSNR" in result.stdout
    np.save("vector.npy", np.load("a.npy").ravel())
    succeed("degrade", "vector.npy", "-o", "z.npy", *linear[:1], "linear:matrix=M.npy", *linear[2:])
    refused = invoke("degrade", "a.npy", "-o", "y.png", *linear)
    assert refused.exit_code == 2 and "use .npy" in refused.stderr and not Path("y.png").exists()


def test_zero_noise_is_parsed_as_in_python(folder: Path) -> None:
    succeed("degrade", "clean/a.png", "-o", "same.png", "--operator", "identity", "--noise", "0/255")
    assert torch.equal(load("same.png"), load("clean/a.png"))
    assert record_of("same.png")["noise"]["sigma_y"] == 0


def test_ctrl_c_before_the_first_step_of_a_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    import invdiff.training.engine
    from invdiff.machine.threads import StopFlag

    def interrupted(*arguments: Any, **options: Any) -> None:
        with StopFlag() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            while not stop:
                pass

    monkeypatch.setattr(invdiff.training.engine, "train", interrupted)
    result = invoke("train", "--data", "clean", "--out", "mine", "--device", "cpu")
    assert result.exit_code == 130 and "stopped before the first step" in result.stderr, result.output
    assert "used up" not in result.stderr


@pytest.mark.slow
def test_a_large_photograph(folder: Path, prior: Path) -> None:
    write_image("large.png", torch.rand(3, 1500, 2000, generator=torch.Generator().manual_seed(0)))
    options = ["--operator", "identity", "--noise", "0.05", "--prior", prior, *FAST, "--steps", 1]
    succeed("restore", "large.png", "-o", "x.jpg", *options)
    assert load("x.jpg").shape == (3, 1500, 2000)


def test_quantiles_of_the_samples(folder: Path, prior: Path) -> None:
    options = [*BLUR, *FAST, "--prior", prior, "--samples", 5, "--quantiles", "0.05,0.5,1"]
    printed = succeed("restore", "clean/a.png", "-o", "x.npy", *options).output
    samples = torch.stack([load(f"x-sample-{k}.npy") for k in range(1, 6)])
    for name, q in (("x-q05", 0.05), ("x-q50", 0.5), ("x-q100", 1.0)):
        assert torch.allclose(load(f"{name}.npy"), samples.quantile(q, dim=0), atol=1e-6)
    record = json.loads(Path("x.npy.json").read_text())["output"]
    assert record["is"] == "posterior mean, over 5 samples" and record["quantiles"]["0.05"] == "x-q05.npy"
    assert "mean of 5 samples (best PSNR)" in printed and "x-sample-1.npy" in printed
    again = shlex.split(json.loads(Path("x.npy.json").read_text())["command"])
    succeed(*again[1:], "--overwrite")
    assert torch.allclose(load("x-q05.npy"), samples.quantile(0.05, dim=0), atol=1e-6)


def test_one_sample_is_called_that(folder: Path, prior: Path) -> None:
    succeed("restore", "clean/a.png", "-o", "x.npy", *BLUR, *FAST, "--prior", prior)
    assert json.loads(Path("x.npy.json").read_text())["output"]["is"] == "one posterior sample"


def test_automatic_number_of_samples(folder: Path, prior: Path) -> None:
    common = ["restore", "clean/a.png", "-o", "x.npy", *BLUR, *FAST, "--prior", prior, "--samples", "auto"]
    succeed(*common, "--tolerance", 10)
    assert len(list(Path().glob("x-sample-*.npy"))) == 4  # the first look is after four
    error = float((torch.stack([load(f"x-sample-{k}.npy") for k in range(1, 5)]).var(0).mean() / 4).sqrt())
    succeed(*common, "--overwrite", "--tolerance", 0.8 * error)
    count = len(list(Path().glob("x-sample-*.npy")))
    found = torch.stack([load(f"x-sample-{k}.npy") for k in range(1, count + 1)])
    assert count > 4 and float((found.var(0).mean() / count).sqrt()) <= 0.8 * error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "'0' is not a whole number of at least 1, nor auto"),
        (["--samples", "some"], "nor auto"),
        (["--samples", "4", "--quantiles", "5,95"], "between 0 and 1"),
        (["--samples", "4", "--quantiles", "0.5,0.5"], "different numbers"),
        (["--quantiles", "0.5"], "needs more than one sample"),
        (["--samples", "auto", "--tolerance", "0"], "x>0"),
        (["--samples", "2", "--tolerance", "0.1"], "--tolerance is for --samples auto"),
        (["--samples", "auto", "--solver", "tds:particles=4"], "depend on each other; give a number"),
    ],
)
def test_impossible_samples_are_refused(folder: Path, prior: Path, options: list, message: str) -> None:
    result = invoke("restore", "clean/a.png", "-o", "x.npy", *BLUR, *FAST, "--prior", prior, *options)
    assert result.exit_code != 0 and message in result.stderr and not Path("x.npy").exists()


def test_a_restoration_from_magnitudes_says_what_they_leave_open(folder: Path, prior: Path) -> None:
    succeed("degrade", "clean/a.png", "-o", "y.npz", "--operator", "phase_retrieval", "--noise", "0.05")
    told = succeed("restore", "y.npz", "-o", "x.png", "--prior", prior, "--solver", "dpir", *FAST).stderr
    assert "turned by 180 degrees" in told and "least residual" in told
    succeed("degrade", "clean/a.png", "-o", "g.npz", "--operator", "gamma", "--noise", "0.05")
    told = succeed("restore", "g.npz", "-o", "g.png", "--prior", prior, "--solver", "dpir", *FAST).stderr
    assert "180 degrees" not in told
