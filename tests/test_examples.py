"""The examples in README.md, CONTRIBUTING.md, docs/ and the commands' help: they parse, name what exists, and run."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import picture, tiny_prior

import invdiff
from invdiff.cli import options
from invdiff.cli.main import main
from invdiff.files.images import write_image

ROOT = Path(__file__).parents[1]
TINY_TRAINING = (
    "widths=8,16",
    "groups=4",
    "crops=16",
    "pixels=256",
    "holdout=1",
    "steps=2",
    "precision=fp32",
    "minutes=none",
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> Iterator[list[str]]:
    """The words after `invdiff` of each command line in a text; synopses with [...] or ... are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        found = re.match(r"(?: {4}| *)(?:accelerate launch .* -m )?invdiff ((?!recovers|the |   ).*)", line)
        if found and not re.search(r" \[-| \.\.\. |\|fp", line):
            yield shlex.split(found[1], comments=True)


def pages_and_help() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        indented = re.findall(r"(?m)^ {4}\S.*$(?:\n {6,}.*$)*", re.sub(r"(?s)```.*?```", "", text))
        for words in commands("\n".join([*fenced, *indented])):
            yield page.name, words

    def walk(command: click.Command, name: str) -> Iterator[tuple[str, list[str]]]:
        for words in commands(command.epilog or ""):
            yield f"{name} --help", words
        if isinstance(command, click.Group):
            for key in command.list_commands(click.Context(command)):
                child = command.get_command(click.Context(command), key)
                assert child is not None
                yield from walk(child, f"{name} {key}")

    yield from walk(main, "invdiff")


EXAMPLES = list(pages_and_help())


def resolved(words: list[str]) -> click.Context:
    """The context of the command that these words name, its options parsed; nothing is run."""
    command, context = main, click.Context(main, info_name="invdiff")
    while isinstance(command, click.Group):
        name, *words = words
        chosen = command.get_command(context, name)
        assert chosen is not None, name
        if not isinstance(chosen, click.Group):
            return chosen.make_context(name, words, parent=context)
        command, context = chosen, click.Context(chosen, info_name=name, parent=context)
    return context


@pytest.mark.parametrize(("where", "words"), EXAMPLES, ids=[f"{where}-{n}" for n, (where, _) in enumerate(EXAMPLES)])
def test_a_command_parses_and_its_specs_name_what_exists(where: str, words: list[str]) -> None:
    if words == ["--help"]:
        return
    try:
        given = resolved(words).params
    except click.exceptions.Exit:  # of an eager option, such as --list
        return
    for name in ("operator", "operators"):
        specs = given.get(name) or ()
        for spec in [specs] if isinstance(specs, str) else specs:
            if not re.search(r"\.(py|npy|png)|coded_aperture|my_|SPEC", spec):
                invdiff.operators.get(spec)
    for name in ("solver", "solvers", "specs"):
        specs = given.get(name) or ()
        for spec in [specs] if isinstance(specs, str) else specs:
            if spec != "auto":
                invdiff.solvers.get(spec)
    if isinstance(noise := given.get("noise"), str) and noise != "auto":
        invdiff.noise.noise_model(noise, zero=True)


@pytest.mark.parametrize(("where", "words"), EXAMPLES, ids=[f"{where}-{n}" for n, (where, _) in enumerate(EXAMPLES)])
def test_the_command_that_repeats_an_example_says_the_same(where: str, words: list[str]) -> None:
    try:
        context = resolved(words)
    except click.exceptions.Exit:
        return
    if isinstance(context.command, click.Group):
        return
    program, *again = shlex.split(options.repeat_command(context))
    assert program == "invdiff" and again[0] == words[0]
    told = {"overwrite", "skip_existing", "quiet"}  # which files may be replaced, and what is printed
    found = resolved(again).params
    assert {key: found[key] for key in found.keys() - told} == {key: context.params[key] for key in found.keys() - told}


def test_there_are_examples_to_check() -> None:
    seen = [where for where, _ in EXAMPLES]
    assert len(seen) > 90 and {"README.md", "tuning.md", "training.md", "invdiff restore --help"} <= set(seen)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_modules_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        # The table of what moved: its right column.
        rows = re.findall(r"(?m)^  \| .* \| (.*) \|$", text.partition("## 0.1.0")[0])
        text = "\n".join(rows)
        assert len(rows) > 15
    for imported, named in re.findall(r"(?:from|import) (invdiff[\w.]*)|`(invdiff(?:\.\w+)+)[(`]", text):
        thing: Any = invdiff
        for end in re.finditer(r"\.\w+", target := imported or named):
            try:
                thing = importlib.import_module(target[: end.end()])
            except ModuleNotFoundError:
                thing = getattr(thing, end[0][1:])
    for name in re.findall(r"\b((?:invdiff|operators|cli|benchmarks|docs|tests)/[\w/.-]+\.(?:py|md|yaml|jpg))", text):
        if "my_" not in name:
            assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("priors") / "tiny")


@pytest.fixture
def folder(tmp_path: Path, prior: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the examples read, small, and a small prior called my-prior."""
    monkeypatch.chdir(tmp_path)
    Path("my-prior").symlink_to(prior)
    folders = [f"{name}/{number}.png" for name in ("photos", "my-images", "CBSD68") for number in range(3)]
    for name in ("photo.png", "blurred.png", "small.png", "holes.png", "y.png", *folders):
        picture(tmp_path / name, len(name), (3, 32, 32))
    write_image("y.tiff", torch.rand(3, 32, 32))
    write_image("mask.png", torch.ones(1, 32, 32))
    source = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    source = re.sub("(?m)^   ", "", source)
    Path("flip.py").write_text(source)
    Path("my_op.py").write_text(source.replace("Flip", "MyOp").replace('"flip"', '"my_op"'))
    return tmp_path


def run(words: list[str]) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    return result.output


# What makes a command's example small: options that are added to it, and win over its own.
SMALL = {
    "restore": ["--steps", "2", "--device", "cpu", "--precision", "fp32"],
    "sample": ["--steps", "2", "--count", "1", "--size", "16", "--prior", "my-prior", "--device", "cpu"],
    "tune": ["--trials", "2", "--limit", "2", "--prior", "my-prior", "--device", "cpu"],
    "prior elbo": ["--limit", "1", "--crop", "16", "--timesteps", "3", "--device", "cpu"],
    "evaluate": ["--limit", "1", "--steps", "2", "--prior", "my-prior", "--device", "cpu"],
    "validate": ["--steps", "2", "--samples", "40"],
    "train": [*(f"--set={pair}" for pair in TINY_TRAINING), "--device", "cpu", "--out", "trained"],
}
# Examples that no test runs, by how they begin, each with its reason. All are parsed above.
NOT_RUN = {
    "evaluate quick": "photographs of full size: a minute or two",
    "evaluate classic": "benchmark sets that are not part of the repository",
    "evaluate --data CBSD68 --operator inpaint": "hundreds of restorations; test_sbc.py and test_calibration.py run few",
    "evaluate --data CBSD68 --operator gaussian_blur:sigma=2 --noise 0.05 --preset": "a preset that another page writes",
    "report runs/": "runs that other examples leave; test_report.py writes and reads them",
    "operators check coded_aperture": "a package that has to be installed first; test_plugins.py installs one",
    "prior import": "checkpoints of gigabytes, or the network; test_export.py imports small ones",
    "prior export": "a trained run; test_export.py exports one",
    "prior verify priors/ffhq": "a checkpoint of gigabytes; test_verify.py verifies small ones",
    "restore y.png -o x.png --operator gaussian_blur:sigma=2 --noise 0.05 --prior priors/ffhq": "a checkpoint of gigabytes",
    "train --data photos/ --data shards": "a hundred shards; test_training_data.py reads small ones",
    "train --init natural": "twenty minutes: the shipped network cannot be made smaller",
    "train --out runs/mine --resume": "a stopped training; test_training.py resumes them",
    "train large-gpu": "a GPU for days",
    "train mine.yaml": "a recipe of the reader's; test_recipes.py reads them",
    "train natural": "a GPU for hours",
    "validate --json": "all solvers on all problems: minutes; test_validate.py runs parts",
    "validate --quick": "all solvers: a minute; test_validate.py and test_cli_twice.py run one",
    "validate --solver mmps": "two hundred steps of 20,000 samples",
    "validate --solver pigdm": "a minute; test_validate.py runs parts",
}


def runnable(page: Path) -> tuple[list[list[str]], list[list[str]]]:
    """(the commands of a page that can run here, those that are in NOT_RUN)."""
    words = [words for where, words in EXAMPLES if where == page.name]
    left_out = [one for one in words if any(" ".join(one).startswith(start) for start in NOT_RUN)]
    return [one for one in words if one not in left_out], left_out


def test_every_reason_has_an_example() -> None:
    left_out = [" ".join(words) for page in PAGES for words in runnable(page)[1]]
    for start in NOT_RUN:
        assert any(text.startswith(start) for text in left_out), start


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)[0]], ids=lambda page: page.name)
def test_the_shell_examples_of_a_page_run(page: Path, folder: Path) -> None:
    """In their order, small: a tiny prior, few steps."""
    ran = []
    for words in runnable(page)[0]:
        more = ["--prior", "my-prior"] if words[0] == "restore" and "--prior" not in words else []
        extra = SMALL.get(words[0], SMALL.get(" ".join(words[:2]), []))
        run([*words, *extra, *more])
        ran.append(words[0])
    if page.name == "README.md":
        assert ran.count("restore") >= 5
        assert {"degrade", "operators", "tune", "sample", "prior", "evaluate", "train"} <= set(ran)


def test_the_operator_of_contributing_passes_its_check(folder: Path) -> None:
    assert "flip" in run(["operators", "show", "flip.py"])
    run(["operators", "check", "flip.py", "--shape", "3x16x16"])


def blocks() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for block in re.findall(
            r"(?m)^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            yield page, block


# Pages whose Python examples no test runs, each with its reason.
BLOCKS_NOT_RUN = {"priors.md": "reads checkpoints of gigabytes; test_loading.py reads small ones"}
BLOCKS = [item for item in blocks() if item[0].name not in BLOCKS_NOT_RUN]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page.name}-{n}" for n, (page, _) in enumerate(BLOCKS)])
def test_the_python_examples_run(folder: Path, page: Path, block: str) -> None:
    generator = torch.Generator().manual_seed(0)
    side = 5 if page.name == "sampling.md" else 32  # an exact divergence costs a gradient for each number
    x = torch.rand(1, 3, side, side, generator=generator)
    operator = invdiff.operators.get("gaussian_blur", sigma=0.5)
    y = invdiff.degrade(x, operator, noise=0.05)
    prior = invdiff.load_prior("my-prior", device="cpu", precision="fp32")
    solution = invdiff.restore(y, operator, noise=0.05, prior=prior, solver="diffpir", steps=2, samples=4)
    psnr = np.linspace(20, 30, 8)
    names = {
        "invdiff": invdiff, "torch": torch, "x": x, "y": y, "operator": operator, "prior": prior, "solution": solution,
        "restored": solution.mean, "truth": x, "psnr": psnr, "psnr_a": psnr, "psnr_b": psnr - 0.1, "lpips_a": psnr / 99,
        "lpips_b": psnr / 98, "gaussian_mixture": invdiff.priors.GaussianMixturePrior(
            torch.rand(2, 3, side, side, generator=generator).double(), [0.01, 0.02], [0.5, 0.5]),
    }  # fmt: skip
    small = {
        '"natural"': '"my-prior"', "draws=100": "draws=10", "samples=19": "samples=3", "steps=20": "steps=2",
        "samples=1000": "samples=40", "steps=100": "steps=2", '"diffpir", 20': '"diffpir", 2', "(3, 32, 32)": "(3, 16, 16)",
        "crop=128": "crop=24", "trials=30": "trials=2",
    }  # fmt: skip
    if "blur.yaml" in block:
        task = "--operator gaussian_blur:sigma=2 --noise 0.05 --solver diffpir --steps 2 --trials 2 --prior my-prior"
        run(["tune", "--data", "photos", *task.split(), "--device", "cpu", "-o", "blur.yaml"])
    for long, short in small.items():
        block = block.replace(long, short)
    exec(compile(block, str(page), "exec"), names)
