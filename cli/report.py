"""`invdiff report`: a page with the results of an evaluation, or the comparison of two evaluations."""

from __future__ import annotations

import click

from . import options

EXAMPLES = """
# a page to open in a browser, with plots and tables beside it, in RUN/report
invdiff report runs/set5

# the cells that two runs share, image by image
invdiff report runs/before runs/after --out comparison
"""


@click.command("report", cls=options.Command, epilog=EXAMPLES)
@click.argument("run")
@click.argument("other", metavar="[RUN_B]", required=False)
@click.option(
    "--out",
    metavar="DIR",
    help="Folder for the report.  [default: RUN/report, for two runs RUN/report-RUN_B]",
)
@options.quiet_option
def report(run: str, other: str | None, out: str | None, quiet: bool) -> None:
    """Make a report of the folder RUN that `invdiff evaluate --out RUN` wrote; with RUN_B, compare the two.

    The page is one file that loads nothing else: protocol, tables with confidence intervals, plots, pictures, calibration
    and provenance. Beside it: the table as CSV, Markdown and LaTeX, the plots as PNG and SVG. A run may be unfinished.
    """
    from invdiff.evaluation.report import writing

    files = writing.report(run, out) if other is None else writing.comparison(run, other, out)
    if not quiet:
        click.echo(f"written: {files[0]}, and {len(files) - 1} files of tables and plots in {files[0].parent}")
