"""`invdiff operators check`: examine a forward operator, law by law."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from . import options, tables

if TYPE_CHECKING:
    from invdiff.doctor import Line, Report

EXAMPLES = """
invdiff operators check gaussian_blur:sigma=2
invdiff operators check downsample:factor=4 --shape 1x128x128 --cost
"""


@click.command("check", cls=options.Command, epilog=EXAMPLES)
@click.argument("operator", metavar="SPEC")
@click.option("--shape", metavar="CxHxW", help="Shape of the images.  [default: 3x64x64, or what the operator takes]")
@click.option("--device", metavar="DEVICE", default="cpu", help="Where to compute: cpu, cuda, cuda:1, mps, auto.")
@click.option("--cost", is_flag=True, help="Time A beside a call of the shipped prior's network at 256x256.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def check(operator: str, shape: str | None, device: str, cost: bool, as_json: bool) -> int:
    """Examine an operator: shapes, adjoint, gradient, inverses, cost, and the solvers that can use it.

    Each line says pass or fail with what was measured and, on failure, the likely cause. The exit status is 0 if all pass,
    1 if a check fails, 2 if the operator cannot be built or takes no such images.
    """
    from invdiff import doctor
    from invdiff.errors import UsageError
    from invdiff.specs.parameters import shape as read_shape

    try:
        size = None if shape is None else read_shape(shape)
    except ValueError as error:
        raise UsageError(f"--shape {shape!r}: {error}, such as 3x64x64") from None
    report = doctor.check(operator, size, device=device, cost=cost)
    click.echo(json.dumps(report.record(), indent=2) if as_json else text(report))
    return 0 if report.passed else 1


def text(report: Report) -> str:
    """The report as a table, with the frames of what was raised below it."""
    rows = [(line.check, "FAIL" if line.status == "fail" else line.status, words(line)) for line in report.lines]
    raised = [f"\nRaised in '{line.check}':\n  " + "\n  ".join(line.where) for line in report.lines if line.where]
    return "\n".join(
        [
            report.heading,
            "",
            tables.table(("check", "result", "measured"), rows, wrapped=2),
            *raised,
            "",
            report.summary,
        ]
    )


def words(line: Line) -> str:
    return f"{line.text}. Likely cause: {line.cause}" if line.cause else line.text
