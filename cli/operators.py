"""`invdiff operators`: which forward operators there are, and what each takes."""

from __future__ import annotations

from typing import Any

import click

from . import options, tables

EXAMPLES = """
invdiff operators list
invdiff operators show gaussian_blur
"""


@click.command(
    cls=options.LazyGroup,
    commands={"list": "invdiff.cli.operators:list_operators", "show": "invdiff.cli.operators:show_operator"},
    epilog=EXAMPLES,
)
def operators() -> None:
    """List the forward operators and their parameters."""


@click.command("list", cls=options.Command, epilog="invdiff operators list")
def list_operators() -> None:
    """One line for each operator: what it is, and the solvers that can use it."""
    from invdiff.operators import REGISTRY

    rows = []
    for name, cls in REGISTRY.items():
        able, dependent = solvers_for(cls)
        rows.append((name, tables.first_line(cls), ", ".join(able) + (", ..." if dependent else "")))
    click.echo(tables.table(("operator", "what it does", "works with"), rows))
    click.echo("\nParameters: invdiff operators show NAME")


@click.command("show", cls=options.Command, epilog="invdiff operators show gaussian_blur")
@click.argument("name")
def show_operator(name: str) -> None:
    """What an operator computes, its parameters, and the solvers that can use it."""
    from invdiff.operators import REGISTRY
    from invdiff.parameters import declarations, parse_spec

    name, _ = parse_spec(name)
    cls = REGISTRY[name]
    able, dependent = solvers_for(cls)
    click.echo(f"{name}\n\n{tables.docstring(cls)}\n")
    click.echo(tables.parameters(declarations(cls)))
    properties = {
        "linear": cls.linear,
        "differentiable": cls.differentiable,
        "singular value decomposition": has_svd(cls),
    }
    words = [text if value else f"not {text}" for text, value in properties.items() if value is not None]
    click.echo(f"\nProperties: {', '.join(words)}")
    more = "; others depending on its parameters" if dependent else ""
    click.echo(f"Works with the solvers: {', '.join(able) or 'none'}{more}")
    click.echo(f"\nExample: --operator {tables.example(name, declarations(cls))}")


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
