"""The wheel holds one top-level name with real files in it, and its `invdiff demo` works from another directory."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("operators", "cli", "checkpoints")


def run(*command: str | Path, cwd: Path, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH would let the working tree stand in for what was installed.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == expect, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.parametrize("name", ["operators", "cli"])
def test_a_bare_import_from_the_root_names_the_right_one(name):
    done = run(sys.executable, "-c", f"import {name}", cwd=ROOT, expect=1)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and f"invdiff.{name}" in last


@pytest.mark.parametrize("name", LINKS)
def test_the_links_are_relative(name):
    link = ROOT / "invdiff" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}" and link.is_dir()


def test_only_invdiff_is_packaged():
    found = find_namespace_packages(str(ROOT), include=["invdiff*"])
    assert {package.partition(".")[0] for package in found} == {"invdiff"}
    assert {"invdiff", "invdiff.operators", "invdiff.cli", "invdiff.solvers"} <= set(found)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """(wheel, sdist), built from a copy of what git tracks or would track; links stay links, as in a clone."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs the git repository: it decides which files belong to the project")
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():  # not one that was deleted and not yet committed
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source, cwd=output)
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return wheel, sdist


def expected_files() -> dict[str, Path]:
    """Wheel name -> file in the working tree, for everything that must be in it."""
    names = {"invdiff/py.typed": ROOT / "invdiff" / "py.typed"}
    for folder in ("operators", "cli", "checkpoints/natural"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc" and (path.suffix == ".py" or folder.startswith("checkpoints")):
                names[f"invdiff/{path.relative_to(ROOT).as_posix()}"] = path
    # What the code reads: recipes, suites, tables of scores, templates of reports.
    for pattern in (
        "recipes/*.yaml",
        "suites/*.yaml",
        "restoration/*.json",
        "evaluation/report/*.html",
        "exactness/*.html",
        "files/pages/*.[hcj][ts]*",
    ):
        found = list((ROOT / "invdiff").glob(pattern))
        assert found, pattern
        names |= {path.relative_to(ROOT).as_posix(): path for path in found}
    return names


@pytest.mark.packaging
def test_the_wheel_holds_real_files_under_one_name(distributions):
    wheel, _ = distributions
    with zipfile.ZipFile(wheel) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        tops = {name.partition("/")[0] for name in entries}
        assert tops == {"invdiff", next(name for name in tops if name.endswith(".dist-info"))}
        assert not [name for name, entry in entries.items() if stat.S_ISLNK(entry.external_attr >> 16)]
        missing = set(expected_files()) - set(entries)
        assert not missing
        for name, path in expected_files().items():
            assert archive.read(name) == path.read_bytes(), name


@pytest.mark.packaging
def test_the_sdist_holds_real_files(distributions):
    _, sdist = distributions
    with tarfile.open(sdist) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    for name in expected_files():
        assert name in members and members[name].isfile(), name
    assert not [name for name, member in members.items() if member.issym() or member.islnk()]


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory) -> Path:
    """The scripts folder of a fresh environment that holds the wheel and sees this one's dependencies."""
    wheel, _ = distributions
    home = tmp_path_factory.mktemp("environment")
    venv.EnvBuilder(with_pip=False).create(home)
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(scripts / "python", "-c", code, cwd=home).stdout.strip())
    # After the installation, so that pip does not mistake this environment's packages for the new one's. A path in a
    # .pth file comes last and its own .pth files are not read: an editable invdiff in it cannot be picked up.
    dependencies = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return scripts


@pytest.mark.packaging
def test_the_installed_package_imports_from_its_own_files(installed, tmp_path):
    code = "import invdiff.operators, invdiff.cli; print(invdiff.__file__, invdiff.operators.__file__)"
    for name in run(installed / "python", "-c", code, cwd=tmp_path).stdout.split():
        assert Path(name).is_relative_to(installed.parent)
    for name in ("operators", "cli"):
        done = run(installed / "python", "-c", f"import {name}", cwd=tmp_path, expect=1)
        assert "ModuleNotFoundError" in done.stderr


@pytest.mark.packaging
def test_the_installed_demo_writes_its_picture_from_another_directory(installed, tmp_path):
    picture = tmp_path / "result" / "demo.png"
    options = ("--out", picture.parent, "--size", "96", "--steps", "3")
    run(installed / "invdiff", "demo", *options, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
