"""`invdiff operators`: the forward operators, what each takes, whether one keeps its laws, and the start of a new one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import errors, options, tables

if TYPE_CHECKING:
    from invdiff.doctor import Report

EXAMPLES = """
invdiff operators list
invdiff operators show gaussian_blur
invdiff operators new coded_aperture

# a chain: the links act from left to right
invdiff operators show 'gaussian_blur:sigma=1 | downsample:factor=4'
invdiff operators check gaussian_blur:sigma=2
"""
CHECKS = """
invdiff operators check gaussian_blur:sigma=2
invdiff operators check downsample:factor=4 --shape 1x128x128 --cost
"""
BEGIN = """
invdiff operators new coded_aperture
cd coded_aperture && pip install --no-deps -e .
invdiff operators show coded_aperture
"""
PROPERTIES = ("linear", "differentiable", "singular value decomposition")


@click.command(
    cls=options.LazyGroup,
    commands={name: f"invdiff.cli.operators:{name}_operators" for name in ("list", "show", "check", "new")},
    epilog=EXAMPLES,
)
def operators() -> None:
    """List the forward operators and their parameters; start one of your own."""


@click.command("list", cls=options.Command, epilog="invdiff operators list")
def list_operators() -> None:
    """One line for each operator: what it offers, what it does; below, the solvers that can use each kind."""
    from invdiff.operators import REGISTRY

    found, failed = REGISTRY.usable()
    rows = [(name, kind(cls), tables.first_line(cls)) for name, cls in found.items()]
    able = {kind(cls): in_words(solvers_for(cls)[0]) for cls in found.values()}
    click.echo(tables.table(("operator", "offers", "what it does"), rows, wrapped=2))
    click.echo(f"\n{tables.table(('offers', 'works with the solvers'), sorted(able.items()))}")
    if any(offers.endswith("?") for offers in able):
        click.echo("svd?: with some parameters it has a decomposition (invdiff operators check SPEC tells)")
    click.echo("\nParameters: invdiff operators show NAME")
    for error in failed.values():
        click.echo(f"unusable: {errors.one_line(str(error))}", err=True)


def kind(cls: Any) -> str:
    """What the operator offers to solvers: linear, differentiable, svd; svd? where only its parameters can tell."""
    first = "linear" if cls.linear else "differentiable" if cls.differentiable else "nothing"
    return first + {None: ", svd?", True: ", svd", False: ""}[has_svd(cls)]


def in_words(able: list[str]) -> str:
    """The names of the solvers that can use an operator; where these are most of all, the names of the others."""
    from invdiff.solvers import REGISTRY

    others = [name for name in REGISTRY if name not in able]
    if others and len(others) < len(able) / 2:
        return f"all but {', '.join(others)}"
    return ", ".join(able) or "none" if others else f"all {len(able)}"


@click.command("show", cls=options.Command, epilog="invdiff operators show gaussian_blur")
@click.argument("spec", metavar="NAME|FILE.py:CLASS")
def show_operators(spec: str) -> None:
    """What an operator computes, its parameters, and the solvers that can use it; of a chain "a | b", what links it has.

    Naming a file runs the code in it.
    """
    from invdiff import operators, solvers
    from invdiff.specs.parameters import declarations, split_links

    if len(split_links(spec)) > 1:
        chain = operators.get(spec)
        rows = [(link["spec"], tables.first_line(operators.find(link["spec"])[0])) for link in chain.settings()["of"]]
        click.echo(f"{chain}\n\n{tables.table(('link', 'what it does'), rows)}")
        able = [name for name in solvers.names() if not solvers.get(name).unmet(chain)]
        tell_use(able, (chain.linear, chain.differentiable, chain.has_svd))
        return
    cls, _ = operators.find(spec)
    click.echo(f"{cls.name}\n\n{tables.docstring(cls)}\n\n{tables.parameters(declarations(cls))}")
    able, dependent = solvers_for(cls)
    more = "; others depending on its parameters" if dependent else ""
    tell_use(able, (cls.linear, cls.differentiable, has_svd(cls)), more)
    example = tables.example(cls.name, declarations(cls))
    click.echo(f"\nExample: --operator {example if cls.loaded_from is None else shlex.quote(example)}")


def tell_use(able: list[str], properties: tuple[bool | None, ...], more: str = "") -> None:
    """Print which of the properties hold (None: unknown, left out), and the solvers that can use such an operator."""
    said = []
    for name, holds in zip(PROPERTIES, properties, strict=True):
        denied = f"no {name}" if "decomposition" in name else f"not {name}"
        said += [] if holds is None else [name if holds else denied]
    click.echo(f"\nProperties: {', '.join(said)}\nWorks with the solvers: {in_words(able)}{more}")


def has_svd(cls: Any) -> bool | None:
    """Whether the operator has a decomposition with default parameters; None if only its parameters can tell."""
    from invdiff.errors import InvdiffError
    from invdiff.operator import Operator

    if cls.has_svd is Operator.has_svd:
        return False
    try:
        return bool(cls().has_svd)
    except (InvdiffError, TypeError):
        return None


def solvers_for(cls: Any) -> tuple[list[str], bool]:
    """(names of the solvers that can use the operator, True if its parameters could add more)."""
    from invdiff.solvers import REGISTRY

    decomposition = has_svd(cls)
    offers = {"linear": cls.linear, "differentiable": cls.differentiable or cls.linear, "svd": bool(decomposition)}
    able = [name for name, solver in REGISTRY.items() if all(offers[need] for need in solver.needs)]
    return able, decomposition is None and len(able) < len(REGISTRY)


@click.command("check", cls=options.Command, epilog=CHECKS)
@click.argument("operator", metavar="SPEC")
@click.option(
    "--shape",
    type=options.SHAPE,
    metavar="CxHxW",
    help="Shape of the images.  [default: 3x64x64, or what the operator takes]",
)
@click.option("--device", metavar="DEVICE", default="cpu", help="Where to compute: cpu, cuda, cuda:1, mps, auto.")
@click.option("--cost", is_flag=True, help="Time A beside a call of the shipped prior's network at 256x256.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def check_operators(operator: str, shape: tuple[int, ...] | None, device: str, cost: bool, as_json: bool) -> int:
    """Examine an operator: shapes, adjoint, gradient, inverses, cost, and the solvers that can use it.

    Each line says pass or fail with what was measured and, on failure, the likely cause. The exit status is 0 if all pass,
    1 if a check fails, 2 if the operator cannot be built or takes no such images.
    """
    from invdiff import doctor

    report = doctor.check(operator, shape, device=device, cost=cost)
    click.echo(json.dumps(report.record(), indent=2) if as_json else text(report))
    return 0 if report.passed else 1


def text(report: Report) -> str:
    """A report of the doctor as a table, with the frames of what was raised below it."""
    rows = []
    for line in report.lines:
        cause = f". Likely cause: {line.cause}" if line.cause else ""
        rows.append((line.check, "FAIL" if line.status == "fail" else line.status, f"{line.text}{cause}"))
    table = tables.table(("check", "result", "measured"), rows, wrapped=2)
    raised = [f"\nRaised in '{line.check}':\n  " + "\n  ".join(line.where) for line in report.lines if line.where]
    return "\n".join([report.heading, "", table, *raised, "", report.summary])


@click.command("new", cls=options.Command, epilog=BEGIN)
@click.argument("name")
@click.option("--dir", "folder", metavar="DIR", default=".", help="The folder in which the folder NAME is made.")
def new_operators(name: str, folder: str) -> None:
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
