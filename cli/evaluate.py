"""`invdiff evaluate`: solvers on benchmark sets, under one protocol, in a folder that can be stopped and resumed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from invdiff.errors import UsageError

from . import options, tables

if TYPE_CHECKING:
    from invdiff.evaluation.plan import Plan, Task
    from invdiff.evaluation.runner import Share
    from invdiff.evaluation.suite import Suite

EXAMPLES = """
# a shipped suite: photographs of scikit-image, minutes on a laptop; then its report
invdiff evaluate quick --out runs/quick
invdiff report runs/quick

# what would run, and for how long
invdiff evaluate classic --data ~/benchmarks --out runs/classic --dry-run

# two solvers on a folder of clean images, at the same measurements
invdiff evaluate --data CBSD68 --operator gaussian_blur:sigma=2 --noise 0.05 --solver diffpir --solver ddrm --out runs/blur

# are the samples spread as they err?
invdiff evaluate --data CBSD68 --operator inpaint:keep=0.3 --noise 0.05 --samples 16 --calibration --limit 8 --out runs/spread

# one of four parts, for an array job of a cluster; on several devices: accelerate launch -m invdiff evaluate ...
invdiff evaluate classic --data ~/benchmarks --out /shared/classic --shard 2/4
"""


def _shard(text: str) -> tuple[int, int]:
    first, last = map(int, text.split("/"))
    if not 1 <= first <= last:
        raise ValueError(text)
    return first, last


SHARD = options.Parsed("shard", _shard, "a part of the work; write 2/4 for the second of four", "/")


def repeated(option: str, name: str, metavar: str, help: str, kind: Any = None) -> Any:
    """An option that may be given several times: every combination of such values is a row of the table."""
    return click.option(option, name, metavar=metavar, type=kind, multiple=True, help=f"{help}; repeatable.")


axis_options: options.Decorator = options.together(
    repeated("--operator", "operators", "SPEC", "Forward operator A"),
    repeated("--noise", "noises", "SIGMA|SPEC", "Noise, as `degrade` takes it"),
    repeated("--solver", "solvers", "SPEC", "Solver, default auto"),
    repeated("--preset", "presets", "FILE", "Solver with the settings that `tune` found"),
    repeated("--steps", "steps", "N", "Network calls, default the solver's", click.IntRange(min=1)),
    repeated("--prior", "priors", "PRIOR", "As `restore` takes it, default natural"),
    repeated("--seed", "seeds", "N", "Seed of the noise and the samples, default 0", click.IntRange(min=0)),
)
score_options: options.Decorator = options.together(
    options.count("--samples", metavar="K", help="Posterior samples for each image, default 1."),
    click.option(
        "--calibration", is_flag=True, help="Also coverage, spread over error, CRPS and ranks; needs --samples."
    ),
    click.option(
        "--simulations",
        type=click.IntRange(min=10),
        metavar="N",
        help="Also test with N images drawn from the prior whether the K samples are samples of the posterior.",
    ),
    click.option("--float-metrics", is_flag=True, help="Do not round to 8 bits before PSNR and SSIM."),
    click.option("--y-channel", is_flag=True, help="Also PSNR and SSIM of the luma Y."),
    click.option(
        "--border", type=click.IntRange(min=0), metavar="PIXELS", help="Leave out a border of this width, default 0."
    ),
    click.option(
        "--perceptual",
        metavar="NAME",
        multiple=True,
        help="Also lpips, lpips_vgg, dists or fid, where its weights are at hand; repeatable.",
    ),
)
work_options: options.Decorator = options.together(
    options.count("--limit", help="Only the first N images of each data set."),
    click.option("--shard", type=SHARD, metavar="I/N", help="Do only part I of N; all parts may share RUN."),
    options.count("--batch-size", help="Images that run together, default 1 on a CPU, else 16."),
    click.option(
        "--pictures", type=click.IntRange(min=0), metavar="N", default=4, help="Images a data set to keep pictures of."
    ),
    click.option("--dry-run", is_flag=True, help="Print what would run: network calls, and the time by a short trial."),
    click.option(
        "--force", is_flag=True, help="Go on in a RUN of other settings, keeping the cells that are the same."
    ),
)


@click.command(cls=options.Command, epilog=EXAMPLES)
@click.argument("suite", metavar="[SUITE]", required=False)
@click.option("--out", metavar="RUN", required=True, help="Folder of the results; the same command goes on with it.")
@click.option(
    "--data",
    metavar="DIR",
    help="With a SUITE, the folder that holds its data sets; else clean images (a folder, a pattern, a file), or skimage.",
)
@axis_options
@options.count("--crop", metavar="SIDE", help="Centre crop of every image, in pixels.")
@score_options
@work_options
@options.hardware_options
@options.quiet_option
def evaluate(
    suite: str | None,
    out: str,
    data: str | None,
    limit: int | None,
    shard: tuple[int, int] | None,
    batch_size: int | None,
    pictures: int,
    dry_run: bool,
    force: bool,
    device: str,
    precision: str,
    quiet: bool,
    **given: Any,
) -> int:
    """Restore clean images that are degraded first, and score the result: PSNR, SSIM, residual, calls, seconds, memory.

    SUITE: a file, or the name of a shipped suite (quick, classic, ffhq256); without one, --data, --operator and --noise
    say what to do. Every combination of repeated options is a row of the table. Results are appended image by image: however
    a run ends, the same command goes on with it. Scores follow the protocol that is printed, and do not depend on the batch
    size, the order or the number of processes.
    """
    from invdiff.evaluation.plan import make_plan
    from invdiff.evaluation.runner import Share, launched_device, launched_share

    chosen = _from_file(suite, data, given) if suite is not None else _from_options(data, given)
    share = launched_share()
    if shard is not None and share.count > 1:
        raise click.UsageError("--shard and a launcher of several processes exclude each other; leave --shard out.")
    plan = make_plan(chosen, launched_device(device), precision)
    if dry_run:
        _tell_plan(plan, out, limit)
        return 0
    if shard is not None:
        share = Share(shard[0] - 1, shard[1])
    return _run(plan, out, limit, share, batch_size, pictures, force, quiet)


def _from_file(suite: str, data: str | None, given: dict[str, Any]) -> Suite:
    from invdiff.evaluation.suite import read_suite

    extra = [name for name, value in given.items() if value not in (None, (), False)]
    if extra:
        singular = ("operators", "noises", "solvers", "presets", "priors", "seeds")
        option = "--" + (extra[0][:-1] if extra[0] in singular else extra[0]).replace("_", "-")
        raise click.UsageError(
            f"{option} belongs to a run without a suite; put it into a suite file, or leave SUITE out."
        )
    return read_suite(suite, data)


def _from_options(data: str | None, given: dict[str, Any]) -> Suite:
    from invdiff.evaluation.datasets import DataSet
    from invdiff.evaluation.protocol import Protocol
    from invdiff.evaluation.suite import AXES, Suite, grid_cells, shipped_suites
    from invdiff.operator.from_file import absolute
    from invdiff.solvers import load_preset

    for name, value in (("--data", data), ("--operator", given["operators"]), ("--noise", given["noises"])):
        if not value:
            raise click.UsageError(f"Missing option {name}, or the name of a suite ({', '.join(shipped_suites())}).")
    assert data is not None
    solvers = [*given["solvers"], *(load_preset(path).solver.spec for path in given["presets"])]
    axes = {**given, "solvers": solvers, "operators": list(map(absolute, given["operators"]))}
    protocol = Protocol(
        eight_bit=not given["float_metrics"],
        y_channel=given["y_channel"],
        border=given["border"] or 0,
        perceptual=tuple(given["perceptual"]),
    )
    data_set = DataSet(Path(data).name or "images", data, given["crop"])
    if data_set.missing:
        raise UsageError(f"--data {data}: no such folder; give one of clean images, or skimage")
    grid = {name: axes[name] for name in (*AXES, "samples", "calibration", "simulations") if axes[name]}
    return Suite(data_set.name, (data_set,), tuple(grid_cells(grid, [data_set.name])), protocol)


def _tell_plan(plan: Plan, out: str, limit: int | None) -> None:
    from invdiff.evaluation.estimate import estimate
    from invdiff.evaluation.runner import device_name
    from invdiff.evaluation.store import load, read_record

    done = set() if read_record(Path(out)) is None else load(out).done
    found = estimate(plan, done, limit)
    rows = [(item.label, str(item.images), str(item.calls), tables.duration(item.seconds)) for item in found]
    click.echo(tables.table(("cell", "images left", "network calls", "about"), rows, wrapped=0))
    for what, reason in plan.skipped:
        click.echo(f"left out: {what}: {reason}")
    seconds = sum(item.seconds for item in found if item.seconds is not None)
    click.echo(
        f"{len(found)} cells, {sum(item.images for item in found)} restorations, {sum(item.calls for item in found)} network "
        f"calls, about {tables.duration(seconds)} on {device_name(plan.tasks[0].prior)}"
    )


def _run(
    plan: Plan,
    out: str,
    limit: int | None,
    share: Share,
    batch_size: int | None,
    pictures: int,
    force: bool,
    quiet: bool,
) -> int:
    from tqdm import tqdm

    from invdiff.evaluation.cells import finish, needs_all_pictures
    from invdiff.evaluation.runner import evaluate as run
    from invdiff.evaluation.runner import schedule
    from invdiff.evaluation.store import Store

    store, speaks = Store(out), not quiet and share.index == 0
    record = plan.record(options.repeat_command(shard=None, force=None))
    held = store.open(record, force)
    done = held.done
    total = sum(len(batch.wanted) for batch in schedule(plan, done, batch_size, limit, share))
    failures: set[tuple[str, str]] = set()
    if speaks:
        for text in record["protocol_text"]:
            click.echo(text)
        for what, reason in plan.skipped:
            click.echo(f"left out: {what}: {reason}", err=True)
        if done:
            click.echo(f"{len(done)} results are there already, {total} to go")
    with tqdm(total=total, unit="image", leave=False, disable=not (speaks and sys.stderr.isatty())) as bar:

        def progress(task: Task, line: dict[str, Any], timing: dict[str, Any] | None) -> None:
            bar.set_postfix_str(f"{task.cell.label}: {line['image']}", refresh=False)
            bar.update()
            failure = (line["image"], line.get("error", ""))
            if speaks and failure[1] and failure not in failures:  # a file that cannot be read fails in every cell
                bar.clear()
                click.echo(f"failed: {failure[0]} ({task.cell.label}): {failure[1]}", err=True)
                failures.add(failure)

        try:
            outcome = run(
                plan, store, held, batch_size=batch_size, limit=limit, share=share,
                pictures=None if needs_all_pictures(plan) else pictures, progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt:
            click.echo(f"\nstopped: the results so far are in {out}, and the same command goes on with them", err=True)
            raise
    finish(plan, store, share, batch_size, _tell_simulation, lambda text: click.echo(f"note: {text}", err=True))
    if speaks:
        _tell_results(out)
        click.echo(f"{outcome.done} new results in {out}; look at them: invdiff report {shlex.quote(out)}")
    if outcome.failed:
        images = sorted({image for _, image in outcome.failed})
        click.echo(
            f"failed: {len(outcome.failed)} results, of {', '.join(images[:5])}{', ...' if len(images) > 5 else ''}; "
            "the same command tries them again",
            err=True,
        )
    return 1 if outcome.failed else 0


def _tell_simulation(task: Task, found: Any) -> None:
    """Print what images of the prior said of a cell, or why it could not be tested (text)."""
    click.echo(f"images of the prior, {task.cell.label}:")
    if isinstance(found, str):
        click.echo(f"  not tested: {found}", err=True)
    else:
        for line in found.lines():
            click.echo(f"  {line}")


def _tell_results(out: str) -> None:
    from invdiff.evaluation.summary import summaries

    shown = (("before_psnr", 2), ("psnr", 2), ("ssim", 3), ("residual", 2), ("nfe", 0), ("seconds", 1))
    head = ("solver", "images", "before", "PSNR", "SSIM", "residual", "calls", "s/image")
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in summaries(out):
        solver, steps = row.cell["solver"], row.cell["steps"]
        name = solver if steps is None else f"{solver}, {steps} calls"
        title = row.label.replace(f", {name}", "", 1)
        groups.setdefault(title, []).append((name, str(row.images), *(row.text(*each) for each in shown)))
    for title, rows in groups.items():
        click.echo(f"\n{title}\n{tables.table(head, rows, wrapped=0)}")
    click.echo()
