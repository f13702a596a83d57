"""Wrong input: one clear line on stderr, the right exit code, no traceback and no partial output."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from invdiff.cli import errors
from invdiff.cli.main import main
from invdiff.errors import NumericalError
from invdiff.files.images import write_image

ROOT = Path(__file__).parents[1]
BLUR = ["--operator", "gaussian_blur:sigma=1", "--noise", "0.05"]
RESTORE = ["restore", "a.png", "-o", "out/x.png", "--steps", "1", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    from invdiff.training.checkpoint import export_pipeline
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network, build_scheduler

    config = TrainingConfig(widths=(8, 16), groups=4, crops=(16,), pixels=256)
    folder = tmp_path_factory.mktemp("priors")
    return str(export_pipeline(build_network(config), build_scheduler(config), config, folder))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a.png of 24 x 32 pixels and other things to stumble over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INVDIFF_DEBUG", raising=False)
    generator = torch.Generator().manual_seed(0)
    write_image("a.png", torch.rand(3, 24, 32, generator=generator))
    write_image("small.png", torch.rand(3, 6, 6, generator=generator))
    write_image("one.png", torch.rand(3, 1, 1, generator=generator))
    write_image("mask.png", torch.ones(1, 10, 10))
    Path("text.png").write_text("hello")
    Path("empty").mkdir()
    np.save("nan.npy", np.full((3, 24, 32), np.nan, dtype=np.float32))
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(code: int, *words: str, arguments: Sequence[object]) -> str:
    """Run, and check the exit code, the single line with these words in it, and that nothing was written."""
    before = sorted(Path.cwd().rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    assert "bug" not in lines[0], lines[0]
    for word in words:
        assert word in lines[0], lines[0]
    assert not result.stdout
    assert sorted(Path.cwd().rglob("*")) == before
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["restor"], "'restore'"),
        (["operators", "shw"], "'show'"),
        ([*RESTORE, *BLUR, "--sed", "3"], "--seed"),
        (["restore", "a.png", *BLUR], "--out"),
        ([*RESTORE, "--operator", "gausian_blur", "--noise", "0.05"], "'gaussian_blur'"),
        ([*RESTORE, "--operator", "gaussian_blur:sgma=1", "--noise", "0.05"], "'sigma'"),
        ([*RESTORE, "--operator", "gaussian_blur:sigma=-1", "--noise", "0.05"], "> 0"),
        ([*RESTORE, *BLUR, "--solver", "difpir"], "'diffpir'"),
        ([*RESTORE, *BLUR, "--solver", "diffpir:zta=0.1"], "'zeta'"),
        ([*RESTORE, *BLUR, "--set", "zeta"], "key=value"),
        ([*RESTORE, *BLUR, "--set", "zeta=0.1", "--set", "zeta=0.2"], "twice"),
        ([*RESTORE, *BLUR, "--set", "steps=3"], "both"),
        ([*RESTORE, "--operator", "motion_blur:angle=30", "--noise", "0.05", "--solver", "measurement_sde"], "diffpir"),
        ([*RESTORE, "--operator", "identity", "--noise", "poison:gain=0.02"], "poisson:gain=0.02"),
        ([*RESTORE, "--operator", "identity", "--noise", "poisson:gain=nan"], "> 0"),
        ([*RESTORE, "--operator", "identity", "--noise", "0"], "more than 0"),
        ([*RESTORE, "--operator", "identity", "--noise", "-0.1"], "more than 0"),
        ([*RESTORE, "--operator", "identity", "--noise", "much"], "12.75/255"),
        ([*RESTORE, *BLUR, "--samples", "0"], "--samples"),
        ([*RESTORE, *BLUR, "--batch-size", "0"], "--batch-size"),
        ([*RESTORE, *BLUR, "--seed", "-1"], "--seed"),
        ([*RESTORE, *BLUR, "--device", "tpu"], "cpu"),
        ([*RESTORE, *BLUR, "--precision", "fp8"], "fp32"),
        ([*RESTORE, *BLUR, "--overwrite", "--skip-existing"], "exclude"),
        ([*RESTORE, *BLUR, "--format", "png"], "--format"),
        (["restore", "a.png", "small.png", "-o", "x.png", *BLUR], "folder"),
        (["restore", "a.png", "-o", "x.gif", *BLUR], ".png"),
        (["restore", "a.png", "-o", "x.jpg", "--bits", "16", *BLUR], "8"),
        (["restore", "a.png", "-o", "a.png", *BLUR], "overwritten"),
        (["restore", "a.png", "-o", "small.png", *BLUR], "--overwrite"),
        (["restore", "a.png", "-o", "x.png", *BLUR, "--prior", "natrual"], "prior"),
        (["solvers", "show", "dp"], "'dps'"),
        (["operators", "show", "inpant"], "'inpaint'"),
        (["sample", "-o", "x.png", "--size", "0x3"], "256x384"),
        (["sample", "-o", "x.png", "--eta", "1.5"], "--eta"),
        (["demo", "--size", "1"], "--size"),
        (["train", "--data", ".", "--out", "t", "--lr", "0"], "--lr"),
        (["train", "--data", ".", "--out", "t", "--widths", "8;16"], "32,64,128"),
        (["train", "--data", ".", "--out", "t", "--weight", "a=b"], "not a number"),
    ],
)
def test_wrong_usage_exits_with_2(folder: Path, arguments: list[object], word: str) -> None:
    fails(2, word, arguments=arguments)


def test_a_hyperparameter_out_of_range_is_refused_for_the_solver_that_auto_chooses(folder: Path, prior: str) -> None:
    fails(2, "<= 1", arguments=[*RESTORE, *BLUR, "--steps", 4, "--prior", prior, "--set", "eta=2"])


@pytest.mark.parametrize(
    ("code", "source", "operator", "word"),
    [
        (2, "a.png", "inpaint:mask=mask.png", "10x10"),
        (2, "small.png", "gaussian_blur:sigma=5", "larger than the image"),
        (2, "one.png", "gaussian_blur:sigma=1", "larger than the image"),
        (1, "text.png", "identity", "text.png"),
        (1, "nan.npy", "identity", "NaN"),
        (1, "missing.png", "identity", "missing.png"),
        (1, "empty", "identity", "no images in empty"),
        (1, "empty/*.png", "identity", "no images"),
    ],
)
def test_unusable_inputs(folder: Path, prior: str, code: int, source: str, operator: str, word: str) -> None:
    command = ["restore", source, "-o", "out/x.png", "--operator", operator, "--noise", "0.05"]
    fails(code, word, arguments=[*command, "--prior", prior, "--steps", "1"])


def test_an_image_of_one_pixel_works_where_the_operator_does(folder: Path, prior: str) -> None:
    command = ["restore", "one.png", "-o", "x.png", "--operator", "identity", "--noise", "0.05"]
    result = invoke(*command, "--prior", prior, "--steps", "1", "--reference", "one.png")
    assert result.exit_code == 0, result.output
    assert "PSNR" in result.stdout and "SSIM" not in result.stdout


def test_outputs_that_cannot_be_written(folder: Path, prior: str) -> None:
    Path("dir.png").mkdir()
    Path("dir.png/a.png").mkdir()
    common = [*BLUR, "--prior", prior, "--steps", "1"]
    fails(1, "dir.png/a.png", "folder", arguments=["restore", "a.png", "-o", "dir.png", *common])
    fails(1, "text.png is a file", arguments=["restore", "a.png", "-o", "text.png/x.png", *common])
    fails(1, "text.png is a file", arguments=["degrade", "a.png", "-o", "text.png/y/x.png", *BLUR])
    fails(1, "text.png is a file", arguments=["sample", "-o", "text.png/x.png", "--prior", prior])
    if Path("/proc/self").exists():  # a folder whose permissions promise what it does not keep
        fails(1, "/proc is no folder", arguments=["restore", "a.png", "-o", "/proc/x.png", *common])


def test_references_that_do_not_fit(folder: Path, prior: str) -> None:
    common = [*RESTORE, *BLUR, "--prior", prior, "--reference"]
    fails(2, "6 x 6", "24 x 32", arguments=[*common, "small.png"])
    fails(1, "no image called a", arguments=[*common, "empty"])
    fails(1, "nowhere.png", arguments=[*common, "nowhere.png"])


def test_checkpoints_that_cannot_be_used(folder: Path, prior: str) -> None:
    fails(1, "model_index.json", arguments=[*RESTORE, *BLUR, "--prior", "./empty"])
    shutil.copytree(prior, "broken")
    Path("broken/unet/diffusion_pytorch_model.safetensors").unlink()
    fails(1, "diffusion_pytorch_model", arguments=[*RESTORE, *BLUR, "--prior", "./broken"])
    fails(1, "./nowhere", arguments=[*RESTORE, *BLUR, "--prior", "./nowhere"])
    fails(1, "nothing to resume", arguments=["train", "--data", ".", "--out", "t", "--resume"])


def test_failures_in_the_middle_leave_nothing(folder: Path, prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import invdiff.files.images
    import invdiff.restoration.api

    command = [*RESTORE, *BLUR, "--prior", prior, "--samples", "2"]

    def fail_with(error: BaseException) -> None:
        def raising(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(invdiff.restoration.api, "solve", raising)

    fail_with(NumericalError("diffpir: NaN at step 1, sigma 3"))
    fails(1, "NaN at step 1", arguments=command)
    fail_with(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    fails(1, "--batch-size", arguments=command)
    fail_with(MemoryError())
    fails(1, "--batch-size", arguments=command)
    fail_with(ImportError("libtorch_cpu.so: failed to map segment from shared object"))
    fails(1, "ulimit -v", arguments=command)
    within = RuntimeError("Failed to import diffusers.models (look up to see its traceback):")
    within.__cause__ = MemoryError()
    fail_with(within)
    fails(1, "ulimit -v", arguments=command)
    fail_with(OSError(errno.ENOSPC, "No space left on device"))
    fails(1, "no space left", arguments=command)
    fail_with(KeyboardInterrupt())
    result = invoke(*command)
    assert result.exit_code == 130 and result.stderr.strip() == "interrupted" and not Path("out").exists()

    monkeypatch.undo()
    os.chdir(folder)
    monkeypatch.setattr(
        invdiff.files.images, "write_json", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    result = invoke(*command)
    assert result.exit_code == 130 and not list(Path("out").iterdir())


def test_a_bug_is_called_a_bug_and_debug_shows_where(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import invdiff.operators

    def broken(*arguments: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(invdiff.operators, "resolve_operator", broken)
    result = invoke(*RESTORE, *BLUR)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "bug" in result.stderr and "--debug" in result.stderr and "Traceback" not in result.stderr
    for arguments in (["--debug", *RESTORE, *BLUR], [*RESTORE, *BLUR, "--debug"]):
        result = invoke(*arguments)
        assert result.exit_code == 1 and "Traceback" in result.stderr and "broken" in result.stderr
    monkeypatch.setenv("INVDIFF_DEBUG", "1")
    assert "Traceback" in invoke(*RESTORE, *BLUR).stderr


def test_a_torchvision_of_another_torch_is_explained() -> None:
    line = errors.explain(RuntimeError("operator torchvision::nms does not exist"))
    assert line is not None and "torch" in line and "pip install" in line and "\n" not in line
    assert errors.explain(ValueError("torchvision has nothing to do with it")) is None
    assert errors.explain(RuntimeError("shapes differ")) is None


def test_no_arguments_show_the_help() -> None:
    result = invoke()
    assert "Commands:" in result.stdout and "Error" not in result.output


def test_options_have_one_meaning() -> None:
    """No two options of a command share a name, and every option has a help text."""
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
        flags = [flag for option in options for flag in option.opts]
        assert len(flags) == len(set(flags)), name
        assert all(option.help for option in options), name


# A real process: what a shell sees.


def process(*arguments: str, cwd: Path | None = None, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments] if code else [sys.executable, "-m", "invdiff", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_help_is_fast_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
from invdiff.cli.main import main
sys.argv = ["invdiff", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "numpy", "PIL", "diffusers", "deepinv", "skimage"} & set(sys.modules)
assert not heavy, heavy
"""
    result = process(cwd=tmp_path, code=code)
    assert result.returncode == 0, result.stderr
    seconds = []
    for _ in range(3):
        before = os.times()  # of the processor: what others do must not count
        assert process("--help", cwd=tmp_path).returncode == 0
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(seconds) < 0.3, seconds


def test_a_process_fails_with_one_line(folder: Path) -> None:
    result = process("restore", "a.png", "-o", "x.png", "--operator", "gausian_blur", "--noise", "0.1", cwd=folder)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("Error: unknown operator 'gausian_blur'. Did you mean 'gaussian_blur'?")
    assert len(result.stderr.splitlines()) == 1


def test_ctrl_c_says_so_and_leaves_nothing(folder: Path, prior: str) -> None:
    write_image("big.png", torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0)))
    command = ["restore", "big.png", "-o", "out/x.png", *BLUR, "--prior", prior]
    command += ["--solver", "diffpir", "--steps", "100000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A test run that a shell started in the background ignores SIGINT, and what it starts would inherit that.
    child = subprocess.Popen(
        [sys.executable, "-m", "invdiff", *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(4)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    # Ended by the signal itself where it struck an import that runs Python code from C: a shell shows 130 for both.
    assert child.returncode in (130, -signal.SIGINT), stderr
    assert stderr.split() == ["interrupted"] or (child.returncode != 130 and not stderr)
    assert not Path("out").exists()
