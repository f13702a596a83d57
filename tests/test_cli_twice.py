"""Every command that writes is run twice: it repeats its result, or says in one line what to do instead."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from tiny import picture, tiny_prior

from invdiff.cli.main import main
from invdiff.files import atomic

FAST = "--prior prior --device cpu --precision fp32"
TASK = "--operator gaussian_blur:sigma=1 --noise 0.05"
RESTORE = f"restore clean/a.png -o out/x.png {TASK} --steps 2 {FAST}"
TRAIN = (
    "train --data clean --out mine --device cpu --precision fp32 --widths 8,16 --crop 16 --batch-pixels 512 --steps 1"
)

# What a second run of the same command says, where it does not repeat the first; "": it writes the same files again.
TWICE = {
    f"{RESTORE}": "",
    f"{RESTORE} --samples 3": "",
    f"{RESTORE} --samples 3 --quantiles 0.05,0.95": "",
    f"{RESTORE} --samples auto --quantiles 0.5 --tolerance 10": "",
    f"{RESTORE} --skip-existing": "",
    f"restore clean -o out {TASK} --steps 1 {FAST} --samples 2 --quantiles 0.5": "",
    f"degrade clean/a.png -o y.png {TASK}": "",
    f"degrade clean/a.png -o y.npz {TASK}": "",
    f"degrade clean -o out {TASK} --format safetensors": "",
    f"demo --out demo --size 32 --steps 1 {FAST}": "",
    f"sample -o s.png --size 16 --steps 1 {FAST}": "",
    f"sample -o s --size 16 --steps 1 --count 3 {FAST}": "",
    f"evaluate --out run --data clean {TASK} --solver diffpir --steps 1 {FAST}": "",
    "report run": "",
    "report run --out page": "",
    f"tune -o p.yaml --data clean {TASK} --solver diffpir --steps 1 --trials 2 {FAST}": "",
    f"{TRAIN} --holdout 1": "--resume",
    "validate --json v.json --html v.html --quick --solver diffpir --steps 2 --samples 40": "",
    "prior import prior -o other": "--overwrite",
    "prior import prior -o other --overwrite": "",
    "prior export prior -o other": "--overwrite",
    f"prior elbo prior --data clean --crop 16 --timesteps 3 -o e.json {FAST.partition(' ')[2][6:]}": "",
    "operators new coded_aperture": "exists",
}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures in clean/ and a small prior."""
    monkeypatch.chdir(tmp_path)
    Path("prior").symlink_to(prior)
    for index, name in enumerate(("a.png", "b.png", "more/c.png")):
        picture(tmp_path / "clean" / name, index)
    return tmp_path


def invoke(command: str) -> Result:
    return CliRunner().invoke(main, shlex.split(command))


def succeed(command: str) -> Result:
    result = invoke(command)
    assert result.exit_code == 0, result.output
    return result


def names(pattern: str = "**/*") -> list[str]:
    """Paths below the working folder, without those of the prior."""
    return sorted(str(path) for path in Path().glob(pattern) if path.is_file() and path.parts[0] != "prior")


@pytest.mark.parametrize("command", TWICE)
def test_every_command_that_writes_is_run_twice(folder: Path, command: str) -> None:
    if command.startswith("report"):
        succeed(f"evaluate --out run --data clean/a.png {TASK} --solver diffpir --steps 1 {FAST}")
    succeed(command)
    before = {name: Path(name).read_bytes() for name in names()}
    result = invoke(command)
    if advice := TWICE[command]:
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
        assert advice in result.stderr and {name: Path(name).read_bytes() for name in names()} == before
    else:
        assert result.exit_code == 0, result.output
        assert names() == sorted(before)
        pictures = [name for name in before if name.endswith((".png", ".npz", ".safetensors")) and "plots" not in name]
        assert all(Path(name).read_bytes() == before[name] for name in pictures)


@pytest.mark.parametrize(
    "command", [line for line in TWICE if line.startswith(("restore clean/a", "degrade clean/a", "sample"))]
)
def test_the_recorded_command_repeats_the_result(folder: Path, command: str) -> None:
    succeed(command)
    before = {name: Path(name).read_bytes() for name in names() if not name.endswith(".json")}
    (record,) = names("**/*.json")
    recorded = json.loads(Path(record).read_text())["command"]
    for name in before:
        if not name.startswith("clean"):
            Path(name).unlink()
    succeed(recorded.removeprefix("invdiff "))
    assert {name: Path(name).read_bytes() for name in names() if not name.endswith(".json")} == before
    assert json.loads(Path(record).read_text())["command"] == recorded


def writers(command: click.Command, name: str = "") -> Iterator[str]:
    """The commands with an option that names a file or folder to write."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for key in command.list_commands(context):
            child = command.get_command(context, key)
            assert child is not None
            yield from writers(child, f"{name} {key}".strip())
    elif {"out", "json_file", "html_file", "plot", "folder"} & {parameter.name for parameter in command.params}:
        yield name


def test_no_command_that_writes_is_left_out() -> None:
    assert [name for name in writers(main) if not any(line.startswith(f"{name} ") for line in TWICE)] == []


# What an earlier run left beside its record.


def test_what_an_earlier_run_wrote_goes_with_its_record(folder: Path) -> None:
    succeed(f"{RESTORE} --samples 4")
    Path("out/x-mine.png").write_text("mine")
    succeed(f"{RESTORE} --samples 2 --quantiles 0.05,0.95")
    two = [
        "x-mine.png",
        "x-q05.png",
        "x-q95.png",
        "x-sample-1.png",
        "x-sample-2.png",
        "x-std.png",
        "x.png",
        "x.png.json",
    ]
    assert names("out/*") == [f"out/{name}" for name in two]
    succeed(f"{RESTORE} --samples 4")
    assert len(names("out/x-sample-*")) == 4 and names("out/x-q*") == []
    succeed(RESTORE)
    assert names("out/*") == ["out/x-mine.png", "out/x.png", "out/x.png.json"]


def test_samples_of_the_prior_that_were_more_before(folder: Path) -> None:
    common = f"sample -o s.png --size 16 --steps 1 {FAST} --count"
    for count in (3, 2, 3):
        succeed(f"{common} {count}")
        assert names("s*") == [*(f"s-{k}.png" for k in range(1, count + 1)), "s.png", "s.png.json"]


def test_a_failure_leaves_the_earlier_outputs_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed(f"{RESTORE} --samples 3 --quantiles 0.5")
    before = {name: Path(name).read_bytes() for name in names("out/*")}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("invdiff.files.images.write_json", full)
    assert invoke(f"{RESTORE} --seed 1").exit_code == 1
    assert {name: Path(name).read_bytes() for name in names("out/*")} == before


def test_what_is_not_of_this_result_is_neither_replaced_nor_removed(folder: Path) -> None:
    succeed(f"{RESTORE} --samples 2")
    record = json.loads(Path("out/x.png.json").read_text())
    # A picture with a record of its own, and one that does not bear the output's name, are of others whatever this one says.
    record["output"]["samples"] += ["out/other.png", "out/x-sample-3.png"]
    Path("out/x.png.json").write_text(json.dumps(record))
    Path("out/other.png").write_text("mine")
    succeed(f"restore clean/b.png -o out/x-sample-3.png {TASK} --steps 1 {FAST}")
    refused = invoke(f"{RESTORE} --samples 3")
    assert refused.exit_code == 2 and "x-sample-3.png exists and was not written" in refused.stderr
    succeed(RESTORE)
    left = ["other.png", "x-sample-3.png", "x-sample-3.png.json", "x.png", "x.png.json"]
    assert names("out/*") == [f"out/{name}" for name in left]


def test_an_input_is_not_removed_as_an_earlier_output(folder: Path) -> None:
    succeed(f"{RESTORE} --samples 2")
    refused = invoke(f"{RESTORE.replace('clean/a.png', 'out/x-sample-2.png')}")
    assert refused.exit_code == 2 and "out/x-sample-2.png is an input" in refused.stderr
    assert Path("out/x-sample-2.png").exists()


def test_files_that_are_written_and_discarded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (tmp_path / f"{k}.txt" for k in range(3))
    one.write_text("old")
    two.write_text("old")

    def write() -> None:
        with atomic.all_or_nothing():
            for path in (one, two, three):
                atomic.discard(path)
            for path in (one, three):
                with atomic.atomic_path(path) as part:
                    part.write_text("new")
            assert (one.read_text(), two.read_text()) == ("old", "old")

    replace, calls = os.replace, iter(range(100))

    def fail(source: Path, target: Path) -> None:
        if next(calls) == 3:  # of four renames: the last file's
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(Exception, match=r"2\.txt|No space"):
            write()
    assert (one.read_text(), two.read_text()) == ("old", "old") and len(list(tmp_path.iterdir())) == 2
    write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.txt", "2.txt"] and one.read_text() == "new"
