"""`invdiff validate`: how exactly the solvers sample posteriors that are known in closed form."""

from __future__ import annotations

import sys
import time

import click

from . import files, options

EXAMPLES = """
# every solver on every problem: twenty minutes of one core
invdiff validate --json validate.json --html validate.html

# a first impression, in a minute or two
invdiff validate --quick

# one method with its settings, on two operators
invdiff validate --solver diffpir:zeta=0.3 --operator downsample --operator gaussian_blur:sigma=0.8

# pictures of the samples over the true density
invdiff validate --solver pigdm --solver dps --problem toys --html toys.html
"""


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
@options.count("--steps", help="Noise levels, unless a SPEC says.  [default: 100; quick 20]")
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

    The priors are Gaussians and Gaussian mixtures, whose E[x_0 | x] and posterior are exact, so that only the solver is
    tested: the error of its mean and covariance, its distance to exact samples beside the distance between two exact sets,
    and the coverage of its intervals. No network is used.
    """
    from tqdm import tqdm

    from invdiff import solvers
    from invdiff.exactness import batteries, page, running
    from invdiff.exactness import text as report
    from invdiff.files.atomic import all_or_nothing, atomic_path, has_mark
    from invdiff.files.images import write_json
    from invdiff.machine.versions import package_versions
    from invdiff.operator.from_file import absolute

    results = {"--json": json_file, "--html": html_file}
    targets = files.check_results(results, overwrite, lambda path: has_mark(path, page.MARK))
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
        "command": options.repeat_command(operators=operators, json_file=None, html_file=None),
        "kind": page.MARK,
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
