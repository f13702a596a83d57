"""`invdiff solvers`: which methods there are, what they need and which settings they take."""

from __future__ import annotations

import click

from . import options, tables

EXAMPLES = """
invdiff solvers list
invdiff solvers show diffpir
"""


@click.command(
    cls=options.LazyGroup,
    commands={"list": "invdiff.cli.solvers:list_solvers", "show": "invdiff.cli.solvers:show_solver"},
    epilog=EXAMPLES,
)
def solvers() -> None:
    """List the solvers and their settings."""


@click.command("list", cls=options.Command, epilog="invdiff solvers list")
def list_solvers() -> None:
    """One line for each solver: its paper, and what it needs from the operator."""
    from invdiff.solvers import REGISTRY

    rows = [
        (name, cls.paper().splitlines()[0].rstrip("."), ", ".join(sorted(cls.needs)) or "nothing")
        for name, cls in REGISTRY.items()
    ]
    click.echo(tables.table(("solver", "method", "needs"), rows))
    click.echo("\nSettings and equations: invdiff solvers show NAME")


@click.command("show", cls=options.Command, epilog="invdiff solvers show diffpir")
@click.argument("name")
def show_solver(name: str) -> None:
    """A solver's paper, equations and settings, and the operators it can be used with."""
    from invdiff.operators import REGISTRY as OPERATORS
    from invdiff.parameters import declarations, parse_spec
    from invdiff.solvers import REGISTRY

    from .operators import solvers_for

    name, _ = parse_spec(name)
    cls = REGISTRY[name]
    click.echo(f"{name}\n\n{cls.paper()}\n")
    click.echo(tables.parameters(declarations(cls)))
    click.echo(f"\nNeeds an operator that is or has: {', '.join(sorted(cls.needs)) or 'anything'}")
    able = [key for key, operator in OPERATORS.items() if name in solvers_for(operator)[0]]
    click.echo(f"Works with the operators: {', '.join(able) or 'none'}")
    click.echo(f"\nExample: --solver {tables.example(name, declarations(cls), optional=True)}")
