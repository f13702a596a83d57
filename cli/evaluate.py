"""`invdiff evaluate`: solvers on benchmark sets, under one protocol, in a folder that can be stopped and resumed."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from invdiff.errors import UsageError

from . import options

if TYPE_CHECKING:
    from invdiff.evaluation.plan import Plan, Task
    from invdiff.evaluation.runner import Share
    from invdiff.evaluation.store import Store
    from invdiff.evaluation.suite import Suite

EXAMPLES = """
# a shipped suite: photographs of scikit-image, minutes on a laptop; then its report
invdiff evaluate quick --out runs/quick
invdiff report runs/quick

# what would run, and for how long
invdiff evaluate classic --data ~/benchmarks --out runs/classic --dry-run

# two solvers on a folder of clean images, at the same measurements
invdiff evaluate --data CBSD68 --operator gaussian_blur:sigma=2 --noise 0.05 --solver diffpir --solver ddrm --out runs/blur

# is the spread of the samples right?
invdiff evaluate --data CBSD68 --operator inpaint:keep=0.3 --noise 0.05 --samples 16 --calibration --limit 8 --out runs/spread

# one of four parts, for a cluster's array; over the devices of machines: accelerate launch -m invdiff evaluate ...
invdiff evaluate classic --data ~/benchmarks --out /shared/classic --shard 2/4
"""


class ShardType(click.ParamType):
    """i/n."""

    name = "shard"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value  # type: ignore[return-value]
        first, _, last = str(value).partition("/")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            self.fail(f"{value!r} is no part of a whole; write 2/4 for the second of four.", param, ctx)
        return int(first), int(last)


def repeated(option: str, name: str, metavar: str, help: str, kind: Any = None) -> Any:
    """An option whose values make rows."""
    return click.option(option, name, metavar=metavar, type=kind, multiple=True, help=f"{help}; repeatable.")


axis_options = options.together(
    repeated("--operator", "operators", "SPEC", "Forward operator A"),
    repeated("--noise", "noises", "SIGMA|SPEC", "Noise, as `degrade` takes it"),
    repeated("--solver", "solvers", "SPEC", "Solver, default auto"),
    repeated("--preset", "presets", "FILE", "Solver with the settings that `tune` found"),
    repeated("--steps", "steps", "N", "Network calls, default the solver's", click.IntRange(min=1)),
    repeated("--prior", "priors", "PRIOR", "As `restore` takes it, default natural"),
    repeated("--seed", "seeds", "N", "Seed of the noise and the samples, default 0", click.IntRange(min=0)),
)
score_options = options.together(
    click.option("--samples", type=click.IntRange(min=1), metavar="K", help="Posterior samples an image, default 1."),
    click.option(
        "--calibration", is_flag=True, help="Also coverage, spread over error, CRPS and ranks; needs --samples."
    ),
    click.option(
        "--simulations",
        type=click.IntRange(min=10),
        metavar="N",
        help="Also test whether the K samples are of the posterior, with N images drawn from the prior itself.",
    ),
    click.option("--float-metrics", is_flag=True, help="Do not round to 8 bits before PSNR and SSIM."),
    click.option("--y-channel", is_flag=True, help="Also PSNR and SSIM of the luma Y."),
    click.option(
        "--border", type=click.IntRange(min=0), metavar="PIXELS", help="Leave out an edge so wide, default 0."
    ),
    click.option(
        "--perceptual", metavar="NAME", multiple=True, help="Also lpips, dists or fid, if at hand; repeatable."
    ),
)
work_options = options.together(
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N images of each data set."),
    click.option("--shard", type=ShardType(), metavar="I/N", help="Do only part I of N; all parts may share RUN."),
    click.option(
        "--batch-size", type=click.IntRange(min=1), metavar="N", help="Images together; default 1 on a CPU, else 16."
    ),
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
@click.option("--crop", type=click.IntRange(min=1), metavar="SIDE", help="Centre crop of every image, in pixels.")
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
    say what to do. Every combination of what is repeated is a row. Results are appended image by image: after a stop of any
    kind the same command goes on. Numbers are of the protocol that is printed, and do not depend on the batch size, the order
    or the number of processes.
    """
    from invdiff.evaluation.plan import make_plan
    from invdiff.evaluation.runner import launched_device, launched_share

    chosen = _from_file(suite, data, given) if suite is not None else _from_options(data, given)
    share = launched_share()
    if shard is not None and share.count > 1:
        raise click.UsageError("--shard and a launcher of several processes exclude each other; leave --shard out.")
    plan = make_plan(chosen, launched_device(device), precision)
    if dry_run:
        _tell_plan(plan, out, limit)
        return 0
    if shard is not None:
        from invdiff.evaluation.runner import Share

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
    from pathlib import Path

    from invdiff.evaluation.datasets import DataSet
    from invdiff.evaluation.protocol import Protocol
    from invdiff.evaluation.suite import Suite, grid_cells
    from invdiff.operator.from_file import absolute

    missing = [
        name
        for name, value in (("--data", data), ("--operator", given["operators"]), ("--noise", given["noises"]))
        if not value
    ]
    if missing or data is None:
        from invdiff.evaluation.suite import shipped_suites

        raise click.UsageError(f"Missing option {missing[0]}, or the name of a suite ({', '.join(shipped_suites())}).")
    axes = {
        name: list(given[name])
        for name in ("operators", "noises", "solvers", "steps", "priors", "seeds")
        if given[name]
    }
    if given["presets"]:
        from invdiff.solvers import load_preset

        axes["solvers"] = [*axes.get("solvers", ()), *(load_preset(path).solver.spec for path in given["presets"])]
    axes["operators"] = [absolute(text) for text in axes["operators"]]
    protocol = Protocol(
        eight_bit=not given["float_metrics"],
        y_channel=given["y_channel"],
        border=given["border"] or 0,
        perceptual=tuple(given["perceptual"]),
    )
    name = Path(data).name or "images"
    data_set = DataSet(name, data, given["crop"])
    if data_set.missing:
        raise UsageError(f"--data {data}: no such folder; give one of clean images, or skimage")
    rest = {"samples": given["samples"] or 1, "calibration": given["calibration"]}
    cells = grid_cells({**axes, **rest, "simulations": given["simulations"] or 0}, [name])
    return Suite(name, (data_set,), tuple(cells), protocol)


def _tell_plan(plan: Plan, out: str, limit: int | None) -> None:
    from pathlib import Path

    from invdiff.evaluation.estimate import estimate
    from invdiff.evaluation.store import load, read_record

    from .tables import table

    done = set() if read_record(Path(out)) is None else load(out).done
    found = estimate(plan, done, limit)
    rows = [(item.label, str(item.images), str(item.calls), _duration(item.seconds)) for item in found]
    click.echo(table(("cell", "images left", "network calls", "about"), rows, wrapped=0))
    for what, reason in plan.skipped:
        click.echo(f"left out: {what}: {reason}")
    known = [item.seconds for item in found if item.seconds is not None]
    click.echo(
        f"{len(found)} cells, {sum(item.images for item in found)} restorations, {sum(item.calls for item in found)} network "
        f"calls, about {_duration(sum(known))} on {_where(plan)}"
    )


def _where(plan: Plan) -> str:
    from invdiff.evaluation.runner import device_name

    return device_name(plan.tasks[0].prior)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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

    from invdiff.evaluation import fid as sets
    from invdiff.evaluation.runner import evaluate as run
    from invdiff.evaluation.runner import schedule
    from invdiff.evaluation.store import Store

    command = shlex.join(["invdiff", *sys.argv[1:]])
    store, main = Store(out), share.index == 0
    record = plan.record(command)
    held = store.open(record, force)
    done = held.done
    total = sum(len(batch.wanted) for batch in schedule(plan, done, batch_size, limit, share))
    quiet_run = quiet or not main
    failures: set[tuple[str, str]] = set()
    if not quiet_run:
        for text in record["protocol_text"]:
            click.echo(text)
        for what, reason in plan.skipped:
            click.echo(f"left out: {what}: {reason}", err=True)
        if done:
            click.echo(f"{len(done)} results are there already, {total} to go")
    with tqdm(total=total, unit="image", leave=False, disable=quiet_run or not sys.stderr.isatty()) as bar:

        def progress(task: Task, line: dict[str, Any], timing: dict[str, Any] | None) -> None:
            bar.set_postfix_str(f"{task.cell.label}: {line['image']}", refresh=False)
            bar.update()
            if "error" in line and not quiet_run:
                told = (line["image"], line["error"])
                if told not in failures:  # a file that cannot be read fails in every cell
                    bar.clear()
                    click.echo(f"failed: {line['image']} ({task.cell.label}): {line['error']}", err=True)
                failures.add(told)

        try:
            outcome = run(
                plan, store, held, batch_size=batch_size, limit=limit, share=share,
                pictures=None if sets.wanted(plan) else pictures,
                progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt:
            click.echo(f"\nstopped: the results so far are in {out}, and the same command goes on with them", err=True)
            raise
    sets.measure(plan, store, lambda text: click.echo(f"note: {text}", err=True))
    if any(task.cell.simulations for task in plan.tasks):
        _simulate(plan, store, share, batch_size)
    if not quiet_run:
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


def _simulate(plan: Plan, store: Store, share: Share, batch_size: int | None) -> None:
    from invdiff.evaluation.simulating import simulate

    def tell(task: Task, found: Any) -> None:
        click.echo(f"images of the prior, {task.cell.label}:")
        if isinstance(found, str):
            click.echo(f"  not tested: {found}", err=True)
        else:
            for line in found.lines():
                click.echo(f"  {line}")

    simulate(plan, store, share, batch_size, tell)


def _tell_results(out: str) -> None:
    from invdiff.evaluation.summary import summaries

    from .tables import table

    shown = (("before_psnr", 2), ("psnr", 2), ("ssim", 3), ("residual", 2), ("nfe", 0), ("seconds", 1))
    head = ("solver", "images", "before", "PSNR", "SSIM", "residual", "calls", "s/image")
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in summaries(out):
        solver, steps = row.cell["solver"], row.cell["steps"]
        name = solver if steps is None else f"{solver}, {steps} calls"
        title = row.label.replace(f", {name}", "", 1)
        groups.setdefault(title, []).append((name, str(row.images), *(row.text(*each) for each in shown)))
    for title, rows in groups.items():
        click.echo(f"\n{title}\n{table(head, rows, wrapped=0)}")
    click.echo()
