"""`invdiff validate`: how exactly the solvers sample posteriors that are known in closed form."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

from invdiff.errors import ImageError, UsageError

from . import options

EXAMPLES = """
# every solver on every problem: twenty minutes of one core
invdiff validate --json validate.json --html validate.html

# a first impression, in a minute or two
invdiff validate --quick

# one method with its settings, on two operators
invdiff validate --solver diffpir:zeta=0.3 --operator downsample --operator gaussian_blur:sigma=1.2

# pictures of the samples over the true density
invdiff validate --solver pigdm --solver dps --problem toys --html toys.html
"""

MARK = "invdiff validate"
"""What both kinds of file hold near their beginning, so that a later run knows its own."""


@click.command("validate", cls=options.Command, epilog=EXAMPLES)
@click.option(
    "--solver",
    "specs",
    metavar="SPEC",
    multiple=True,
    help="Solver: NAME or NAME:key=value,...; repeatable.  [default: all]",
)
@click.option(
    "--operator",
    "operators",
    metavar="SPEC",
    multiple=True,
    help="Only Gaussian priors under this operator: NAME (with values for 8 x 8 pixels), NAME:key=value,... "
    "or FILE.py:CLASS(key=value,...), which runs the file; repeatable.",
)
@click.option(
    "--problem",
    "families",
    type=click.Choice(["gaussian", "mixture", "toys"]),
    multiple=True,
    help="Only problems of this kind; repeatable.  [default: all]",
)
@click.option("--quick", is_flag=True, help="Fewer noise levels, samples and dimensions: a first impression.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Noise levels, unless a SPEC says.  [default: 100; quick 20]",
)
@click.option(
    "--samples", type=click.IntRange(min=20), metavar="N", help="Samples for each problem.  [default: 1000; quick 300]"
)
@options.seed_option
@click.option("--json", "json_file", metavar="FILE", help="Write every number as JSON.")
@click.option("--html", "html_file", metavar="FILE", help="Write a page with the tables and with pictures of the toys.")
@click.option("--overwrite", is_flag=True, help="Replace existing files that this command did not write.")
@options.quiet_option
def validate(
    specs: tuple[str, ...],
    operators: tuple[str, ...],
    families: tuple[str, ...],
    quick: bool,
    steps: int | None,
    samples: int | None,
    seed: int,
    json_file: str | None,
    html_file: str | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Compare the solvers' samples with posteriors that are known in closed form.

    The priors are Gaussians and Gaussian mixtures, whose E[x_0 | x] and whose posterior are exact, so that what is measured
    is the solver alone: the error of its mean and covariance, its distance to exact samples beside the distance between two
    exact sets, and the coverage of its intervals. No network, no claims: every verdict is measured.
    """
    from tqdm import tqdm

    from invdiff import solvers
    from invdiff.exactness import batteries, page, running
    from invdiff.exactness import text as report
    from invdiff.files.atomic import all_or_nothing, atomic_path
    from invdiff.files.images import write_json
    from invdiff.machine.versions import package_versions
    from invdiff.operator.from_file import absolute

    targets = _targets(json_file, html_file, overwrite)
    operators = tuple(map(absolute, operators))  # the text is what the random numbers are keyed by
    chosen = list(dict.fromkeys(specs)) or solvers.names()
    for spec in chosen:
        solvers.get(spec)
    cases, skipped = batteries.plan(families, operators, quick=quick, seed=seed, steps=steps, samples=samples)
    if specs:
        running.check_some_work(chosen, cases)
    total = sum(len(running.able(chosen, case)) for case in cases)
    started = time.perf_counter()
    with tqdm(total=total, desc="validate", unit="run", leave=False, disable=quiet or not sys.stderr.isatty()) as bar:

        def progress(done: str) -> None:
            bar.set_postfix_str(done, refresh=False)
            bar.update()

        measured = list(running.validate(chosen, cases, seed, progress))
    about = {
        "command": shlex.join(_words(specs, operators, families, quick, steps, samples, seed)),
        "kind": MARK,
        "seed": seed,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 1),
        "versions": package_versions(),
    }
    with all_or_nothing():
        if json_file is not None:
            write_json(json_file, report.record(measured, skipped, about))
        if html_file is not None:
            with atomic_path(html_file) as temporary:
                temporary.write_text(page.page(measured, skipped, about), encoding="utf-8")
    if not quiet:
        click.echo(report.text(measured))
        for name, reason in skipped:
            click.echo(f"left out: {name}: {reason}")
        click.echo(f"seed {seed}, {about['seconds']:.0f} seconds")
        for target in targets:
            click.echo(f"written: {target}")


def _words(
    specs: Sequence[str],
    operators: Sequence[str],
    families: Sequence[str],
    quick: bool,
    steps: int | None,
    samples: int | None,
    seed: int,
) -> list[str]:
    """The command that gives the same numbers again."""
    words = ["invdiff", "validate"]
    for option, values in (("--solver", specs), ("--operator", operators), ("--problem", families)):
        words += [word for value in values for word in (option, value)]
    words += ["--quick"] if quick else []
    for option, number in (("--steps", steps), ("--samples", samples), ("--seed", seed)):
        words += [] if number is None else [option, str(number)]
    return words


def _targets(json_file: str | None, html_file: str | None, overwrite: bool) -> list[Path]:
    """The files to write, refused before anything is computed if they could not be, or would replace someone else's."""
    targets: list[Path] = []
    for option, name in (("--json", json_file), ("--html", html_file)):
        if name is None:
            continue
        path = Path(name)
        if path.is_dir():
            raise ImageError(f"cannot write {path}: it is a folder; choose another {option}")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not _writable(folder):
            raise ImageError(
                f"cannot write {path}: {folder} is no folder that you may write to; choose another {option}"
            )
        if path.resolve() in {target.resolve() for target in targets}:
            raise UsageError(f"--json and --html both name {path}; give two files")
        if path.exists() and not overwrite and not _own(path):
            raise UsageError(f"{path} exists and was not written by this command; choose another, or use --overwrite")
        targets.append(path)
    return targets


def _writable(folder: Path) -> bool:
    """Whether a file can be made in a folder. Permissions alone do not tell: a disk may be read-only, or no disk at all."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _own(path: Path) -> bool:
    """Whether an earlier run wrote this file."""
    try:
        return path.is_file() and MARK in path.read_text(encoding="utf-8")[:2000]
    except (OSError, UnicodeDecodeError):
        return False
