"""`invdiff solvers`: which methods there are, what they need and which settings they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from . import options, tables

if TYPE_CHECKING:
    from invdiff.solvers.solver import Solver

EXAMPLES = """
invdiff solvers list
invdiff solvers show diffpir
invdiff solvers recommend --operator gaussian_blur:sigma=2 --noise 0.05
"""


@click.command(
    cls=options.LazyGroup,
    commands={
        "list": "invdiff.cli.solvers:list_solvers",
        "show": "invdiff.cli.solvers:show_solver",
        "recommend": "invdiff.cli.recommend:recommend",
    },
    epilog=EXAMPLES,
)
def solvers() -> None:
    """List the solvers and their settings."""


@click.command("list", cls=options.Command, epilog="invdiff solvers list")
def list_solvers() -> None:
    """One line for each solver: its paper, what it needs from the operator, what it costs and what it takes."""
    from invdiff.solvers import REGISTRY

    head = ("solver", "method", "needs", "calls", "transition", "particles", "nonlinear")
    click.echo(tables.table(head, [_line(name, cls) for name, cls in REGISTRY.items()]))
    click.echo(
        "\nneeds: what the operator must offer (svd: a singular value decomposition). calls: network calls for a sample, "
        "with\nthe default settings (for a step, where it is not one). transition: takes any sampler's step, "
        "transition=heun say.\nparticles: samples that one run gives together. nonlinear: works with operators that are "
        "not linear.\n\nSettings and equations: invdiff solvers show NAME"
    )


def _line(name: str, cls: type[Solver]) -> tuple[str, ...]:
    """One row of the list, from the default settings."""
    solver = cls()
    calls = solver.nfe / solver.population  # a run's calls are those of all its particles
    each = calls / solver.steps
    return (
        name,
        cls.paper().splitlines()[0].rstrip("."),
        ", ".join(sorted(cls.needs)) or "nothing",
        f"{calls:g}" if each == 1 else f"{calls:g} ({each:.3g} a step)",
        "any" if cls.interchangeable else "-",
        str(solver.population) if solver.population > 1 else "-",
        "-" if "linear" in cls.needs else "yes",
    )


@click.command("show", cls=options.Command, epilog="invdiff solvers show diffpir")
@click.argument("name")
def show_solver(name: str) -> None:
    """A solver's paper, equations and settings, and the operators it can be used with."""
    from invdiff.operators import REGISTRY as OPERATORS
    from invdiff.solvers import REGISTRY
    from invdiff.specs.parameters import declarations, parse_spec

    from .operators import solvers_for

    name, _ = parse_spec(name)
    cls = REGISTRY[name]
    click.echo(f"{name}\n\n{cls.paper()}\n")
    click.echo(tables.parameters(declarations(cls)))
    click.echo(f"\nNeeds an operator that is or has: {', '.join(sorted(cls.needs)) or 'anything'}")
    able = [key for key, operator in OPERATORS.usable()[0].items() if name in solvers_for(operator)[0]]
    click.echo(f"Works with the operators: {', '.join(able) or 'none'}")
    click.echo(f"\nExample: --solver {tables.example(name, declarations(cls), optional=True)}")
