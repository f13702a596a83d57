"""`invdiff operators new`: the beginning of an operator of your own."""

from __future__ import annotations

from pathlib import Path

import click

from . import options

EXAMPLES = """
invdiff operators new coded_aperture
cd coded_aperture && pip install --no-deps -e .
invdiff operators show coded_aperture
"""


@click.command("new", cls=options.Command, epilog=EXAMPLES)
@click.argument("name")
@click.option("--dir", "folder", metavar="DIR", default=".", help="The folder in which the folder NAME is made.")
def new_operator(name: str, folder: str) -> None:
    """Write a small installable package with an operator called NAME: a working example to edit, and its test.

    NAME: lower-case letters, digits and underscores. The package is the folder NAME; nothing else is changed.
    """
    from invdiff.doctor.scaffold import new_package

    package = new_package(name, Path(folder))
    for path in sorted(package.rglob("*")):
        if path.is_file():
            click.echo(f"written: {path}")
    click.echo(f"\nEdit {package / f'invdiff_{name}.py'}, then:\n")
    click.echo(f"    pip install --no-deps -e {package}\n    invdiff operators show {name}")
