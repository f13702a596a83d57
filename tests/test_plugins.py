"""Operators of other people: in a file, in an installed package, and in a package that `operators new` wrote."""

from __future__ import annotations

import importlib
import json
import os
import pickle  # noqa: TID251 - a round trip of our own objects
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from invdiff import operators
from invdiff.cli.main import main
from invdiff.doctor import scaffold
from invdiff.errors import PluginError, UsageError
from invdiff.files.images import write_image
from invdiff.operator.from_file import absolute, check_class, is_file_spec
from invdiff.specs.registry import Registry

ROOT = Path(__file__).parents[1]
CODE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff.operator import Operator
from invdiff.specs.parameters import parameter


@dataclass(frozen=True, eq=False)
class Mirror(Operator):
    \"\"\"y = gain times x mirrored left to right. Nothing else.\"\"\"

    name: ClassVar[str] = "mirror"
    gain: float = parameter(1.0, above=0, high=9, unit="V", help="factor on every pixel")
    mode: str = parameter("fast", kind=str, choices=("fast", "slow"), help="how")

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x.flip(-1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with my_op.py and a photograph of 12 x 16 pixels."""
    monkeypatch.chdir(tmp_path)
    Path("my_op.py").write_text(CODE)
    write_image("a.png", torch.rand(3, 12, 16, generator=torch.Generator().manual_seed(0)))
    return tmp_path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """install(package, code, name=target, ...): what pip would leave on sys.path, and a registry that reads it."""
    site, loaded = tmp_path / "site", set(sys.modules)
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def add(package: str, code: str, **points: str) -> None:
        (site / f"{package}.py").write_text(code)
        info = site / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {target}\n" for name, target in points.items())
        (info / "entry_points.txt").write_text(f"[invdiff.operators]\n{lines}")
        importlib.invalidate_caches()
        monkeypatch.setattr(operators, "REGISTRY", fresh())

    yield add
    for name in set(sys.modules) - loaded:
        if name.startswith("plug_"):
            del sys.modules[name]


def fresh() -> Registry:
    return Registry("operator", operators._BUILT_IN, group="invdiff.operators", check=check_class)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# A class in a file


def test_what_is_a_file_spec() -> None:
    for text in ("my_op.py", "a b/my:op.py:Mirror", "~/x.py:Mirror(gain=2)", "x.py(gain=2)", " x.py:Mirror "):
        assert is_file_spec(text), text
    for text in ("mirror", "mirror:gain=2", "kernel_blur:kernel=x.py", "kernel_blur:kernel=x.py:A", "x.pyc"):
        assert not is_file_spec(text), text


def test_a_class_in_a_file_is_an_operator_like_any_other(folder: Path) -> None:
    before, x = list(sys.path), torch.rand(1, 3, 4, 5)
    op = operators.get("my_op.py:Mirror(gain=2,mode=slow)")
    assert sys.path == before and "my_op" not in sys.modules and not Path("__pycache__").exists()
    assert torch.equal(op.A(x), 2 * x.flip(-1)) and torch.equal(op.A_adjoint(x), 2 * x.flip(-1))
    assert op.spec == f"{folder}/my_op.py:Mirror(gain=2,mode=slow)"
    assert operators.get(op.spec) == op == operators.get("my_op.py", gain=2, mode="slow")
    assert pickle.loads(pickle.dumps(op)) == op and operators.get(op, gain=3).gain == 3
    assert operators.get("my_op.py").spec == operators.get("my_op.py:Mirror").spec == f"{folder}/my_op.py:Mirror"


def test_another_process_unpickles_it(folder: Path) -> None:
    Path("op.bin").write_bytes(pickle.dumps(operators.get("my_op.py:Mirror(gain=2)")))
    code = "import pickle; print(pickle.load(open('op.bin', 'rb')))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == f"{folder}/my_op.py:Mirror(gain=2)", done.stderr


def test_an_edited_file_gives_its_new_class(folder: Path) -> None:
    first = operators.get("my_op.py")
    Path("my_op.py").write_text(CODE.replace("self.gain *", "3 * self.gain *"))
    second, x = operators.get("my_op.py"), torch.ones(1, 1, 1, 1)
    assert first.A(x) == 1 and second.A(x) == 3 and first != second
    assert first.settings()["loaded_from"]["sha256"] != second.settings()["loaded_from"]["sha256"]


def test_paths_with_blanks_colons_and_parentheses(folder: Path) -> None:
    for path in ("a b/my op.py", "c:d/x=y.py", "e.py(old)/x.py", "f.py:g/x.py"):
        Path(path).parent.mkdir()
        Path(path).write_text(CODE)
        op = operators.get(f"./{path}:Mirror(gain=2)")
        assert op.spec == f"{folder}/{path}:Mirror(gain=2)" and operators.get(op.spec) == op


def test_specs_become_absolute(folder: Path) -> None:
    assert absolute("inpaint:keep=0.5") == "inpaint:keep=0.5"
    assert absolute("my_op.py:Mirror(gain=2)") == f"{folder}/my_op.py:Mirror(gain=2)"
    assert absolute("my_op.py|identity") == f"{folder}/my_op.py | identity"


@pytest.mark.parametrize(
    ("spec", "code", "message"),
    [
        ("none.py:Mirror", "", r"none\.py: no such file"),
        ("my_op.py:Miror", CODE, r"unknown operator class 'Miror'. Did you mean 'Mirror'\? Available: Mirror\."),
        ("my_op.py", "x = 1", "defines 0 operators, not one; write a subclass of invdiff.operator.Operator"),
        ("my_op.py", f"{CODE}\nclass Other(Mirror): pass", r"2 operators, not one; write .*:Mirror or .*:Other"),
        ("my_op.py:x", "x = 1", "x is no operator but a int; it must be a subclass of invdiff.operator.Operator"),
        ("my_op.py:X", "class X: pass", "X is no operator but a class X"),
        ("my_op.py:Operator", CODE, "Operator is imported from invdiff.operator"),
        ("my_op.py", CODE.replace("def A(", "def B("), "has no method A"),
        ("my_op.py", CODE.replace("@dataclass(frozen=True, eq=False)", ""), r"no dataclass; put @dataclass\(frozen"),
        ("my_op.py:Mirror(gian=2)", CODE, r"unknown parameter of .*Mirror 'gian'. Did you mean 'gain'\?"),
        ("my_op.py:Mirror(gain=10)", CODE, "gain='10' must be > 0 and <= 9 V"),
        ("my_op.py:Mirror(mode=slo)", CODE, "Did you mean 'slow'"),
        ("my_op.py:Mirror(2)", CODE, r"cannot read '2' .*write PATH.py:CLASS\(key=value"),
        ("my_op.py:Mirror:gain=2", CODE, r"cannot read ':Mirror:gain=2'"),
        ("my_op.py", CODE.replace("parameter(1.0, ", "parameter("), r"needs gain: .* e\.g\. .*:Mirror\(gain=\.\.\.\)"),
    ],
)
def test_what_is_wrong_with_a_file_spec(folder: Path, spec: str, code: str, message: str) -> None:
    Path("my_op.py").write_text(code)
    with pytest.raises(UsageError, match=message):
        operators.get(spec)


def test_code_that_raises_shows_its_own_traceback_then_one_line(folder: Path) -> None:
    degrade = ["degrade", "a.png", "-o", "b.png", "--noise", "0", "--operator", "my_op.py"]
    for code, kind, line in (
        ("import torch\ndef f():\n    return 1 / 0\nf()\n", "ZeroDivisionError", "line 3, in f"),
        ("x = 1\ndef f(:\n", "SyntaxError", "line 2"),
        ("import sys\nsys.exit(3)\n", "SystemExit", "line 2"),
        ("import none_such\n", "ModuleNotFoundError", "line 1"),
        (CODE.replace("self.gain *", "self.gian *"), "AttributeError", "in A"),
    ):
        Path("my_op.py").write_text(code)
        result = invoke(*degrade)
        *before, last = result.stderr.splitlines()
        assert result.exit_code == 1 and last.startswith("Error: ") and kind in last and "my_op.py" in last
        assert any(line in text and "my_op.py" in text for text in before), result.stderr
        assert not any("invdiff/plugins" in text or "importlib" in text or "restoration" in text for text in before)
        assert "bug in invdiff" not in last and not Path("b.png").exists()
    assert not [name for name in sys.modules if name.startswith("invdiff_file_") and "f" in vars(sys.modules[name])]


def test_degrade_and_restore_record_the_file(folder: Path) -> None:
    text = "my_op.py:Mirror(gain=0.5)"
    succeed("degrade", "a.png", "-o", "y.tiff", "--operator", text, "--noise", "0.02")
    prior = ["--steps", "1", "--device", "cpu", "--precision", "fp32"]
    succeed("restore", "y.tiff", "-o", "x.tiff", "--operator", text, "--noise", "0.02", "--solver", "ddnm", *prior)
    digest = operators.get(text).settings()["loaded_from"]["sha256"]
    for name in ("y.tiff.json", "x.tiff.json"):
        record = json.loads(Path(name).read_text())
        assert record["operator"]["loaded_from"] == {"path": f"{folder}/my_op.py", "sha256": digest}
        assert f"--operator '{folder}/my_op.py:Mirror(gain=0.5)'" in record["command"]
        assert record["operator"]["spec"] == f"{folder}/my_op.py:Mirror(gain=0.5)"


def test_validate_recommend_and_show_take_a_file(folder: Path) -> None:
    small = ["--solver", "ddnm", "--quick", "--samples", "20", "--steps", "2", "--json", "v.json"]
    assert "my_op.py" in succeed("validate", "--operator", "my_op.py", *small)
    assert f"{folder}/my_op.py" in json.loads(Path("v.json").read_text())["command"]
    assert "solver" in succeed("solvers", "recommend", "--operator", "my_op.py:Mirror(gain=2)", "--noise", "0.05")
    shown = succeed("operators", "show", "my_op.py")
    assert "mirrored left to right" in shown and "> 0 and <= 9" in shown and "fast|slow" in shown


def test_a_chain_may_hold_a_file(folder: Path) -> None:
    op = operators.get("my_op.py:Mirror(gain=2) | grayscale")
    assert op.spec == f"{folder}/my_op.py:Mirror(gain=2) | grayscale" and operators.get(op.spec) == op
    assert "mirrored left to right" in " ".join(succeed("operators", "show", op.spec).split())


@pytest.mark.parametrize("spec", ["evil.py", "evil.py:A", "evil.py:A(b=1)", "evil.py(b=1)", "identity | evil.py"])
def test_a_measurement_file_cannot_make_code_run(folder: Path, spec: str) -> None:
    from invdiff.errors import ImageError
    from invdiff.problem.files import MeasurementFile

    Path("evil.py").write_text("open('ran', 'w')")
    about = {"operator": spec, "noise": "0.1", "image_shape": [3, 4, 4], "arrays": {}}
    with pytest.raises(ImageError, match="may make code run"):
        MeasurementFile(Path("y.npz"), torch.zeros(1, 3, 4, 4), about, {}).problem()
    assert not Path("ran").exists()


# An installed package


def test_an_installed_operator_is_found_everywhere(folder: Path, install: Callable[..., None]) -> None:
    install("plug_mirror", CODE, mirror="plug_mirror:Mirror")
    assert "mirror" in operators.names() and operators.get("mirror:gain=2").spec == "mirror:gain=2"
    assert "\nmirror " in succeed("operators", "list")
    assert "factor on every pixel" in succeed("operators", "show", "mirror")
    assert "mirror, motion_blur" in " ".join(succeed("degrade", "--help").split())
    assert "mirror" in invoke("operators", "show", "miror").stderr
    succeed("degrade", "a.png", "-o", "y.png", "--operator", "mirror:gain=0.5", "--noise", "0.02")
    small = ["--solver", "ddnm", "--quick", "--samples", "20", "--steps", "2"]
    assert "mirror" in succeed("validate", "--operator", "mirror", *small)


def test_a_broken_package_harms_nobody_else(folder: Path, install: Callable[..., None]) -> None:
    install("plug_broken", "def f():\n    return 1 / 0\nf()\n", broken="plug_broken:Broken")
    result = invoke("operators", "list")
    assert result.exit_code == 0 and "gaussian_blur" in result.stdout
    (line,) = result.stderr.splitlines()
    assert all(word in line for word in ("'broken'", "plug_broken:Broken", "ZeroDivisionError", "pip uninstall"))
    assert operators.get("identity").name == "identity"
    *before, last = invoke("operators", "show", "broken").stderr.splitlines()
    assert last.startswith("Error: operator 'broken' cannot be imported") and "plug_broken.py" in "".join(before)
    assert not any("registry.py" in text for text in before)
    with pytest.raises(PluginError):
        operators.get("broken")


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("mirror", "def Mirror(): pass", r"plug_wrong:Mirror is no operator but a function"),
        (
            "mirror",
            CODE.replace('    name: ClassVar[str] = "mirror"\n', ""),
            r'has no name; write name: ClassVar.*"mirror"',
        ),
        ("glass", CODE, r"operator 'glass': plug_wrong:Mirror calls itself 'mirror'"),
        (
            "inpaint",
            CODE,
            r"'inpaint': invdiff.operators.inpaint:Inpaint and plug_wrong:Mirror; .*pip uninstall plug_wrong",
        ),
    ],
)
def test_what_is_wrong_with_a_package(install: Callable[..., None], name: str, code: str, message: str) -> None:
    install("plug_wrong", code, **{name: "plug_wrong:Mirror"})
    with pytest.raises(UsageError, match=message):
        operators.get(name)
    result = invoke("operators", "list")
    assert result.exit_code == 0 and len(result.stderr.splitlines()) == 1 and name in result.stderr
    assert operators.get("identity").name == "identity" and operators.Inpaint.name == "inpaint"


def test_a_missing_attribute_is_the_packages_fault(install: Callable[..., None]) -> None:
    install("plug_empty", "", nothing="plug_empty:Nothing")
    with pytest.raises(PluginError, match="has no attribute 'Nothing'"):
        operators.get("nothing")


def test_built_ins_pass_the_check_of_plug_ins() -> None:
    found, failed = fresh().usable()
    assert set(operators._BUILT_IN) <= set(found) and not set(operators._BUILT_IN) & set(failed)


# The package to start from


def test_a_new_package_works_as_it_is(
    folder: Path, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from laws import test_operator_laws as laws

    assert "invdiff_row_bins.py" in succeed("operators", "new", "row_bins")
    assert sorted(str(path) for path in Path("row_bins").rglob("*.*")) == [
        "row_bins/README.md", "row_bins/invdiff_row_bins.py", "row_bins/pyproject.toml", "row_bins/tests/test_row_bins.py",
    ]  # fmt: skip
    if sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads(Path("row_bins/pyproject.toml").read_text())["project"]
        points = project["entry-points"]["invdiff.operators"]
        assert points == {"row_bins": "invdiff_row_bins:RowBins"} and project["name"] == "invdiff-row-bins"
    code = Path("row_bins/invdiff_row_bins.py").read_text()
    install("plug_row_bins", code, row_bins="plug_row_bins:RowBins")
    op, shape = operators.get("row_bins:rows=3"), (2, 6, 5)
    for law in (laws.linearity, laws.adjoint, laws.normal_maps, laws.norm):
        assert law(op, shape) <= laws.ROUNDING, law
    assert max(law(op, shape) for law in (laws.prox, laws.data_solve, laws.separate)) <= 1e-11
    assert op.image_shape(op.measurement_shape(shape)) == shape and op.usable_shape((2, 8, 5)) == shape

    # Its own tests, with the doctor's interface: check(operator, shape) -> a report with .passed.
    checked = []

    def check(operator: object, shape: object = None) -> types.SimpleNamespace:
        checked.append((str(operator), shape))
        return types.SimpleNamespace(passed=laws.adjoint(operator, shape) <= laws.ROUNDING)  # type: ignore[arg-type]

    doctor = types.ModuleType("invdiff.doctor")
    doctor.check = check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "invdiff.doctor", doctor)
    import invdiff

    monkeypatch.setattr(invdiff, "doctor", doctor, raising=False)
    tests: dict[str, Callable[..., None]] = {}
    exec(Path("row_bins/tests/test_row_bins.py").read_text(), tests)
    tests["test_the_laws"]("row_bins:rows=3", (1, 6, 7))
    tests["test_a_measurement_by_hand"]()
    tests["test_what_is_refused"]()
    assert checked == [("row_bins:rows=3", (1, 6, 7))]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["Coded-Aperture"], "such as coded_aperture"),
        (["2d"], "begin with a letter"),
        (["class"], "word of Python"),
        (["none"], "word of Python"),
        (["a_"], "such as"),
        (["../x"], "letters"),
        (["inpaint"], "operators list"),
        (["operator"], "class called Operator"),
        (["taken"], "taken exists"),
        (["fine", "--dir", "nowhere"], "mkdir -p nowhere"),
    ],
)
def test_names_that_are_refused(folder: Path, arguments: list[str], word: str) -> None:
    Path("taken").mkdir()
    before = sorted(Path.cwd().rglob("*"))
    result = invoke("operators", "new", *arguments)
    assert result.exit_code == 2 and word in result.stderr and len(result.stderr.splitlines()) == 1
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["ctrl-c", "full"])
def test_a_failure_in_the_middle_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write = Path.write_text

    def fail(path: Path, text: str, **options: str) -> int:
        if path.name.startswith("test_"):
            raise error
        return write(path, text, **options)

    monkeypatch.setattr(scaffold.Path, "write_text", fail)
    before = sorted(Path.cwd().rglob("*"))
    result = invoke("operators", "new", "half_made")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert result.stderr.strip() in ("interrupted", f"Error: {scaffold_full()}")
    assert sorted(Path.cwd().rglob("*")) == before


def scaffold_full() -> str:
    from invdiff.cli.errors import DISK_FULL

    return DISK_FULL


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("torch.fft.fft2(x)", "as two channels"),
        ("(x > 0.5).long()", "end it with .to(x.dtype)"),
        ("x.numpy()", "one tensor"),
        ("x[..., ::2]", "measurement_shape says (3, 12, 16)"),
    ],
)
def test_what_A_must_not_answer_is_told_before_the_run(folder: Path, answer: str, words: str) -> None:
    Path("my_op.py").write_text(CODE.replace("self.gain * x.flip(-1)", answer))
    commands = [("restore", "a.png", "-o", "x.png", "--solver", "dps", "--steps", "2")]
    if "::2" not in answer:  # simulating needs no shape map
        commands.append(("degrade", "a.png", "-o", "y.tiff"))
    for command in commands:
        result = invoke(*command, "--operator", "my_op.py", "--noise", "0.1")
        assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert not Path("x.png").exists() and not Path("y.tiff").exists()


def test_a_class_without_a_docstring_is_listed_as_such(folder: Path) -> None:
    lines = CODE.splitlines()
    Path("my_op.py").write_text("\n".join(line for line in lines if '"""' not in line))
    assert "\n(no docstring says what it does)\n" in succeed("operators", "show", "my_op.py")


def test_the_list_says_what_each_kind_of_operator_offers() -> None:
    listing = succeed("operators", "list")
    rows = [re.split(r" {2,}", line.strip(), maxsplit=2) for line in listing.splitlines() if line[:1].isalpha()]
    offers = {row[0]: row[1] for row in rows if len(row) > 1}
    assert offers["mri_multicoil"] == "linear" and offers["kernel_blur"] == "linear, svd?"
    assert offers["gamma"] == "differentiable" and offers["inpaint"] == "linear, svd"
    assert offers["linear, svd"] == "all 21" and "all but mcg_diff" in listing
