"""Measurement files and raw arrays: what is written is all that a restoration needs; what is damaged is refused in a line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from invdiff import Problem, operators
from invdiff.cli.main import main
from invdiff.errors import ImageError, UsageError
from invdiff.files.images import write_image
from invdiff.files.raw import Layout, read_raw
from invdiff.problem import files as measurement_files

FAST = ["--steps", "2", "--precision", "fp32", "--device", "cpu"]
SHAPE = (3, 24, 32)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> str:
    from invdiff.training.checkpoint import export_pipeline
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network, build_scheduler

    config = TrainingConfig(channels=3, widths=(8, 16), groups=4, crops=(16,), pixels=256)
    folder = tmp_path_factory.mktemp("priors")
    return str(export_pipeline(build_network(config), build_scheduler(config), config, folder))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_image("a.png", image(0))
    write_image("b.png", image(1))
    write_image("mask.png", (image(2)[:1] > 0.4).float())
    np.savez("kernels.npz", first=np.eye(3), second=np.ones((3, 5)))
    return tmp_path


def image(seed: int) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


SPECS = [
    "gaussian_blur:sigma=1",
    "downsample:factor=4",
    "inpaint:mask=mask.png",
    "kernel_blur:kernel=kernels.npz,key=second,boundary=circular",
    "grayscale",
]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_problem_survives_and_needs_no_other_file(folder: Path, spec: str, suffix: str) -> None:
    problem = Problem.from_clean(torch.stack([image(0), image(1)]), spec, "poisson_gaussian:gain=0.01,sigma=0.02")
    problem.save(f"y{suffix}", seed=0)
    for path in ("mask.png", "kernels.npz"):
        Path(path).unlink()
    again = Problem.load(f"y{suffix}")
    assert torch.equal(again.y, problem.y) and again.image_shape == SHAPE
    assert again.noise == problem.noise and again.sigma_y == problem.sigma_y
    x = image(3)[None]
    assert torch.equal(again.operator.A(x), operators.get(problem.operator).A(x))
    again.save(f"z{suffix}")  # arrays are kept as they are
    assert torch.equal(Problem.load(f"z{suffix}").operator.A(x), problem.operator.A(x))


def test_restore_needs_the_file_alone_and_repeats(folder: Path, prior: str) -> None:
    options = ["--operator", "inpaint:mask=mask.png", "--noise", "0.05"]
    succeed("degrade", "a.png", "-o", "y.npz", *options)
    succeed("degrade", "a.png", "-o", "y.npy", *options)
    Path("mask.png").unlink()
    result = succeed("restore", "y.npz", "-o", "x.npy", *FAST, "--prior", prior)
    said = [line for line in result.stderr.splitlines() if "not fitted" not in line]  # by a random network
    assert not said, said
    record = json.loads(Path("x.npy.json").read_text())
    assert record["noise"]["model"] == "gaussian:sigma=0.05" and record["operator"]["name"] == "inpaint"
    words = shlex.split(record["command"])
    assert "--operator" not in words and "--noise" not in words
    before = np.load("x.npy")
    succeed(*words[1:])
    assert np.array_equal(np.load("x.npy"), before)
    assert np.array_equal(np.load("y.npz")["y"][0], np.load("y.npy"))


def test_a_folder_of_files_and_what_else_lies_there(folder: Path, prior: str) -> None:
    blur = ["--operator", "gaussian_blur:sigma=1"]
    succeed("degrade", "a.png", "b.png", "-o", "in", *blur, "--noise", "0.05", "--format", "npz")
    succeed("degrade", "a.png", "-o", "in/c.npz", "--operator", "downsample:factor=2", "--noise", "0.02")
    np.savez("in/kernel.npz", k=np.eye(3))
    succeed("restore", "in", "-o", "out", *FAST, "--prior", prior, "--batch-size", 4)
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["a.png", "b.png", "c.png"]
    assert json.loads(Path("out/c.png.json").read_text())["operator"]["name"] == "downsample"
    Path("in/bad.npz").write_bytes(Path("in/a.npz").read_bytes()[:500])
    result = invoke("restore", "in", "-o", "more", *FAST, "--prior", prior)
    assert result.exit_code == 1 and "restored 3 of 4 images; failed: bad.npz" in result.stderr


def test_given_options_stand_in_for_the_files_own(folder: Path, prior: str) -> None:
    succeed("degrade", "a.png", "-o", "y.npz", "--operator", "gaussian_blur:sigma=1", "--noise", "0")
    result = invoke("restore", "y.npz", "-o", "x.png", *FAST, "--prior", prior)
    assert result.exit_code == 1 and "noise must be more than 0" in result.stderr
    result = succeed("restore", "y.npz", "-o", "x.png", *FAST, "--prior", prior, "--noise", "0.01")
    assert "--noise gaussian:sigma=0.01 in the place of the file's gaussian:sigma=0" in result.stderr
    assert "--noise 0.01" in json.loads(Path("x.png.json").read_text())["command"]
    result = invoke(
        "restore", "y.npz", "-o", "z.png", *FAST, "--prior", prior, "--noise", "0.1", "--operator", "linear"
    )
    assert result.exit_code == 2 and not Path("z.png").exists()
    result = invoke("restore", "a.png", "-o", "z.png", "--noise", "0.1")
    assert result.exit_code == 2 and "--operator" in result.stderr


def rewrite(path: str, about: dict[str, Any] | None = None, drop: str = "", **arrays: Any) -> None:
    """Change entries of the .npz and of its JSON."""
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    text = json.loads(str(held["measurement"])) | (about or {})
    held["measurement"] = np.array(json.dumps({key: value for key, value in text.items() if key != drop}))
    held |= arrays
    held.pop(drop, None)
    np.savez(path, **held)


DAMAGE = {
    "truncated": (lambda p: Path(p).write_bytes(Path(p).read_bytes()[:900]), "damaged or truncated"),
    "empty": (lambda p: Path(p).write_bytes(b""), "empty (0 bytes)"),
    "newer": (lambda p: rewrite(p, {"version": 2}), "newer than 1"),
    "other format": (lambda p: rewrite(p, {"format": "x"}), "format is 'x'"),
    "no y": (lambda p: rewrite(p, drop="y"), "y is missing"),
    "no operator": (lambda p: rewrite(p, drop="operator"), "operator is missing"),
    "no shape": (lambda p: rewrite(p, drop="image_shape"), "image_shape is missing"),
    "no array": (lambda p: rewrite(p, drop="operator_mask"), "operator_mask is missing"),
    "other array": (lambda p: rewrite(p, operator_mask=np.ones((24, 32))), "not the array that was written"),
    "other shape": (lambda p: rewrite(p, y=np.zeros((1, 3, 5, 5), np.float32)), "inpaint"),
    "wrong image shape": (lambda p: rewrite(p, {"image_shape": [3, 8, 8]}), "24x32"),
    "NaN": (lambda p: rewrite(p, y=np.full((1, *SHAPE), np.nan, np.float32)), "NaN"),
    "whole numbers": (lambda p: rewrite(p, y=np.zeros((1, *SHAPE), np.int32)), "must be floats"),
    "pickled": (lambda p: np.savez(p, measurement=np.array([{}], object), y=np.zeros(3)), "Python objects"),
    "not installed": (lambda p: rewrite(p, {"operator": "coded:mask=1"}), "unknown operator 'coded'"),
    "a file's name": (lambda p: rewrite(p, {"operator": "inpaint:mask=mask.png"}), "no such array"),
    "code": (lambda p: rewrite(p, {"operator": "evil.py:Op"}), "no measurement may make code run"),
    "code without a class": (lambda p: rewrite(p, {"operator": "evil.py"}), "no measurement may make code run"),
    "code in a chain": (lambda p: rewrite(p, {"operator": "grayscale | ./evil.PY(a=1)"}), "no measurement may make code run"),
    "raw": (lambda p: np.savez(p, a=np.zeros(3)), "--key"),
    "no measurement": (lambda p: rewrite(p, {"noise": "posson:gain=1"}), "posson"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(folder: Path, prior: str, damage: str) -> None:
    succeed("degrade", "a.png", "-o", "y.npz", "--operator", "inpaint:mask=mask.png", "--noise", "0.05")
    change, words = DAMAGE[damage]
    change("y.npz")
    Path("evil.py").write_text("raise SystemExit('run')")
    result = invoke("restore", "y.npz", "-o", "out/x.png", *FAST, "--prior", prior)
    assert result.exit_code in (1, 2) and words in result.stderr and "y.npz" in result.stderr, result.output
    assert len(result.stderr.splitlines()) == 1 and "bug" not in result.stderr and not Path("out").exists()


def test_what_cannot_be_written_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blurred = Problem.from_clean(image(0)[None], operators.get("gaussian_blur:sigma=1").H, 0.1)
    with pytest.raises(UsageError, match="cannot be put into a measurement file"):
        blurred.save("y.npz")
    flat = Problem.from_clean(image(0)[None, :1, :4, :4], operators.Linear(np.eye(16)), 0.1)
    with pytest.raises(UsageError, match="parameter shape"):
        flat.save("y.npz")
    with pytest.raises(UsageError, match=r"\.npz or \.safetensors"):
        flat.save("y.pt")
    monkeypatch.setattr(np, "savez_compressed", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ImageError, match="No space left"):
        Problem.from_clean(image(0)[None], "identity", 0.1).save("y.npz")
    assert not list(folder.glob("*y*.npz"))


def test_three_measurements_in_one_file_are_for_python(folder: Path, prior: str) -> None:
    Problem.from_clean(torch.stack([image(0), image(1)]), "identity", 0.1).save("y.npz")
    result = invoke("restore", "y.npz", "-o", "x.png", *FAST, "--prior", prior)
    assert result.exit_code == 1 and "holds 2 measurements" in result.stderr


# Raw arrays.


def kspace() -> np.ndarray:
    g = np.random.default_rng(0)
    return g.normal(size=(2, 4, 5)) + 1j * g.normal(size=(2, 4, 5))


def test_complex_values_become_pairs_of_channels(folder: Path) -> None:
    h5py = pytest.importorskip("h5py")
    values = kspace()
    expected = np.stack([values[0].real, values[0].imag, values[1].real, values[1].imag]).astype(np.float32)
    np.save("k.npy", values.transpose(1, 2, 0))
    np.save("pairs.npy", np.stack([values.real, values.imag], -1))
    np.savez("k.npz", other=np.zeros(2), kspace=values)
    with h5py.File("k.h5", "w") as file:
        file["scans/kspace"] = np.stack([values * 0, values])
        file["noise"] = np.zeros(3)
    for path, layout in [
        ("k.npy", Layout(axes="HWC")),
        ("pairs.npy", Layout(axes="CHW2")),
        ("k.npz", Layout(key="kspace")),
        ("k.h5", Layout(key="scans/kspace[1]", axes="CHW")),
    ]:
        assert np.array_equal(read_raw(Path(path), layout).tensor.numpy(), expected), path
    swapped = np.stack(
        [values[0].real, values[1].real, values[0].imag, values[1].imag]
    )  # the twin: parts, then channels
    assert not np.allclose(swapped, expected)


def test_sinograms_counts_and_vectors(folder: Path, prior: str) -> None:
    import tifffile

    sinogram = np.arange(12.0).reshape(3, 4)
    tifffile.imwrite("s.tiff", sinogram.astype(np.float32))
    assert np.array_equal(read_raw(Path("s.tiff"), Layout(axes="WH")).tensor.numpy(), sinogram.T[None])
    np.save("v.npy", np.arange(4.0))
    assert read_raw(Path("v.npy"), Layout(axes="C", scale=2.0)).tensor.tolist() == [0, 2, 4, 6]
    counts = np.random.default_rng(0).poisson(100, size=(24, 32, 3))
    np.save("counts.npy", counts)
    raw = ["--axes", "HWC", "--scale", "1/255", "--operator", "identity", "--noise", "poisson:gain=1/255"]
    succeed("restore", "counts.npy", "-o", "x.npy", *raw, *FAST, "--prior", prior)
    before = np.load("x.npy")
    words = shlex.split(json.loads(Path("x.npy.json").read_text())["command"])
    succeed(*words[1:])
    assert before.shape == SHAPE and np.array_equal(np.load("x.npy"), before)


@pytest.mark.parametrize(
    ("array", "layout", "words"),
    [
        (np.zeros((2, 3), int), {"axes": "HW"}, "--scale"),
        (np.zeros((2, 3)), {"axes": "CHW"}, "2 axes"),
        (np.zeros((2, 3, 4, 5)), {}, "4 axes"),
        (np.zeros((2, 3)), {"key": "k"}, "only one"),
        (np.zeros((2, 3)), {"key": "[7]"}, "outside"),
        (np.zeros((2, 3)), {"axes": "H2"}, "must name each"),
        (np.zeros((2, 3)), {"axes": "HH"}, "must name each"),
        (np.zeros((2, 2, 3)), {"axes": "HW2"}, "two real numbers"),
        (np.zeros((2, 3)), {"scale": -1.0}, "more than 0"),
        (np.full((2, 3), np.inf), {"axes": "HW"}, "infinite"),
        (np.array(["a"]), {}, "no measurement"),
        (np.array([{}], object), {}, "cannot read"),
    ],
)
def test_arrays_that_do_not_fit_their_layout(folder: Path, array: Any, layout: dict[str, Any], words: str) -> None:
    np.save("y.npy", array)
    with pytest.raises((UsageError, ImageError), match=words):
        read_raw(Path("y.npy"), Layout(**layout))


def test_hdf5_without_its_package_or_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    h5py = pytest.importorskip("h5py")
    with h5py.File("y.h5", "w") as file:
        file["a"], file["b"] = np.zeros(3), np.zeros(3)
    with pytest.raises(UsageError, match=r"--key a\|b"):
        read_raw(Path("y.h5"), Layout())
    Path("bad.h5").write_text("hello")
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_raw(Path("bad.h5"), Layout())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImageError, match="pip install h5py"):
        read_raw(Path("y.h5"), Layout())


def test_an_older_file_survives_a_failed_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.from_clean(image(0)[None], "identity", 0.1)
    problem.save("y.npz")
    before = Path("y.npz").read_bytes()

    def half(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(measurement_files.np, "savez_compressed", half)
    with pytest.raises(KeyboardInterrupt):
        problem.save("y.npz")
    assert Path("y.npz").read_bytes() == before and len(list(folder.glob("*y-*"))) == 0
