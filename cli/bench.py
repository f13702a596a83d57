"""`invdiff bench`: how fast this machine is, so that one can choose the number of network calls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from invdiff.machine.device import PRECISION_NAMES

from . import options, tables

if TYPE_CHECKING:
    from invdiff.evaluation.speed import CallTime, CompileTime, SolverTime
    from invdiff.priors.network import NetworkPrior

EXAMPLES = """
invdiff bench
invdiff bench --sizes 128,512x768 --batch 1,8 --solver ddrm --solver dps:weight=0.5
invdiff bench --precision bf16 --json
"""
CALLS = 20
"""Network calls of a usual restoration, for which the last lines tell the time."""


@click.command(cls=options.Command, epilog=EXAMPLES)
@click.option("--sizes", type=options.SIZES, metavar="HxW,...", default="64,256", help="Image sizes in pixels.")
@click.option(
    "--batch", type=options.NUMBERS, metavar="N,...", default="1,4", help="Images in one call of the network."
)
@click.option(
    "--solver",
    "solvers",
    metavar="SPEC",
    multiple=True,
    default=("auto", "dps"),
    help="Solver to time on the largest size, batch 1; repeatable.",
)
@click.option(
    "--operator", metavar="SPEC", default="gaussian_blur:sigma=2", help="Forward operator that the solvers invert."
)
@options.count("--steps", default=5, help="Network calls of each timed restoration.")
@options.count("--repeats", default=5, help="Timings, of which the median is printed.")
@options.prior_option
@click.option("--device", metavar="DEVICE", default="auto", help="Where the network runs.")
@click.option(
    "--precision", metavar="TYPE,...", default="all", help="The network's arithmetic: all the device has, or a list."
)
@click.option("--compile", is_flag=True, help="Also time the compiled network, and after how many calls it pays.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def bench(
    sizes: tuple[tuple[int, int], ...],
    batch: tuple[int, ...],
    solvers: tuple[str, ...],
    operator: str,
    steps: int,
    repeats: int,
    prior: str,
    device: str,
    precision: str,
    compile: bool,
    as_json: bool,
) -> None:
    """Time the network and the solvers on this machine.

    Seconds for one call of the network, by image size, batch and precision; seconds for an image by solver, beside those of
    its network calls alone; memory. Takes a minute or two on a laptop and needs no files.
    """
    import dataclasses

    import torch

    from invdiff.evaluation.runner import device_name
    from invdiff.evaluation.speed import time_calls, time_compilation, time_solver
    from invdiff.machine.device import choose_device, precisions
    from invdiff.operators import resolve_operator
    from invdiff.priors.network import NetworkPrior
    from invdiff.restoration.api import resolve_prior
    from invdiff.solvers import check, get

    where = choose_device(device)
    names = precisions(where) if precision == "all" else [name.strip() for name in precision.split(",")]
    for solver in solvers:
        if solver != "auto":
            check(get(solver), resolve_operator(operator))
    priors: dict[str, NetworkPrior] = {}
    for name in names:
        network = resolve_prior(prior, device, name)
        assert isinstance(network, NetworkPrior)  # whatever a name, folder or file holds
        priors[PRECISION_NAMES[network.describe()["precision"]]] = network

    def say(text: str) -> None:
        if not as_json:
            click.echo(text)

    first = next(iter(priors.values()))
    machine = {"device": device_name(first), "torch": torch.__version__, "prior": first.name, "repeats": repeats}
    say(f"{machine['device']}; torch {machine['torch']}; prior {first.name}; medians of {repeats}\n")
    click.echo("timing the network ...", err=True)
    calls = list(time_calls(priors, sizes, batch, repeats))
    fastest = max(priors, key=lambda name: calls[-1].speedup[name])
    say(call_table(calls))
    largest = max(sizes, key=lambda size: size[0] * size[1])
    runs = []
    for solver in solvers:
        click.echo(f"timing {solver} at {_size(largest)} ...", err=True)
        runs.append(time_solver(priors[fastest], solver, operator, largest, 1, steps, repeats))
    say("\n" + solver_table(runs, fastest))
    compilation = None
    if compile:
        click.echo("timing the compiled network; compiling takes a minute or two ...", err=True)
        compiled = resolve_prior(prior, device, fastest, compile=True)
        assert isinstance(compiled, NetworkPrior)
        compilation = time_compilation(priors[fastest], compiled, largest, repeats)
    for line in meaning(calls, runs, fastest, compilation):
        say(f"\n{line}")
    if as_json:
        record: dict[str, Any] = machine | {
            "calls": [dataclasses.asdict(row) for row in calls],
            "solvers": [dataclasses.asdict(run) for run in runs],
            "fastest": fastest,
        }
        if compilation is not None:
            record["compilation"] = dataclasses.asdict(compilation) | {"pays_after_calls": compilation.pays_after}
        click.echo(json.dumps(record, indent=2))


def call_table(calls: list[CallTime]) -> str:
    """Seconds for one call of the network, a row for each size and batch."""
    first, *others = calls[0].seconds
    head = ("size", "batch", *(f"{name}, s/call" for name in (first, *others)), *(f"{n}/{first}" for n in others))
    rows = []
    for row in calls:
        numbers = [f"{seconds:.3g}" for seconds in row.seconds.values()] + [f"{row.speedup[n]:.2f} x" for n in others]
        rows.append((_size(row.size), str(row.batch), *numbers, f"{row.memory:.0f}"))
    return tables.table((*head, "memory, MB"), rows)


def solver_table(runs: list[SolverTime], precision: str) -> str:
    """Seconds for one image, a row for each solver."""
    head = ("solver", "operator", "size", "calls", f"s/image, {precision}", "over its bare calls", "memory, MB")
    rows = []
    for run in runs:
        calls = f"{run.calls}" + (f" + {run.backwards} backward" if run.backwards else "")
        numbers = (f"{run.seconds:.2f}", f"{run.ratio:.3f} x", f"{run.memory:.0f}")
        rows.append((run.solver, run.operator, _size(run.size), calls, *numbers))
    return tables.table(head, rows)


def meaning(calls: list[CallTime], runs: list[SolverTime], fastest: str, compilation: CompileTime | None) -> list[str]:
    """What the numbers mean, in sentences."""
    lines = []
    for run in runs:
        seconds = run.seconds / run.calls * CALLS
        lines.append(
            f"A {_size(run.size, ' x ')} image at {CALLS} calls takes about {tables.duration(seconds)} with {run.solver}, a "
            f"hundred of them {tables.duration(100 * seconds)}. Time grows with pixels, calls and samples alike."
        )
    if len(calls[-1].seconds) > 1:
        slowest = min(calls[-1].speedup, key=lambda name: calls[-1].speedup[name])
        gain = calls[-1].speedup[fastest] / calls[-1].speedup[slowest]
        lines.append(f"--precision {fastest} is the fastest here, {gain:.1f} times as fast as {slowest}.")
    if compilation is not None:
        pays = "never pays" if compilation.pays_after is None else f"pays after {compilation.pays_after:,} calls"
        lines.append(
            f"Compiling took {compilation.seconds:.0f} s (less next time) and makes a call of {_size(compilation.size)} "
            f"{compilation.eager / compilation.compiled:.2f} times as fast: --compile {pays}."
        )
    return lines


def _size(size: tuple[int, int], times: str = "x") -> str:
    return f"{size[0]}{times}{size[1]}"
