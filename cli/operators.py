"""`invdiff operators`: which forward operators there are, and what each takes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from . import errors, options, tables

EXAMPLES = """
invdiff operators list
invdiff operators show gaussian_blur
invdiff operators new coded_aperture

# a chain: the links act from left to right
invdiff operators show 'gaussian_blur:sigma=1 | downsample:factor=4'
invdiff operators check gaussian_blur:sigma=2
"""


@click.command(
    cls=options.LazyGroup,
    commands={
        "list": "invdiff.cli.operators:list_operators",
        "show": "invdiff.cli.operators:show_operator",
        "check": "invdiff.cli.operators_check:check",
        "new": "invdiff.cli.operators_new:new_operator",
    },
    epilog=EXAMPLES,
)
def operators() -> None:
    """List the forward operators and their parameters; start one of your own."""


@click.command("list", cls=options.Command, epilog="invdiff operators list")
def list_operators() -> None:
    """One line for each operator: what it offers, what it does; below, the solvers that can use each kind."""
    from invdiff.operators import REGISTRY

    rows = []
    able: dict[str, list[str]] = {}
    found, failed = REGISTRY.usable()
    for name, cls in found.items():
        offers = kind(cls)
        able[offers], _ = solvers_for(cls)
        rows.append((name, offers, tables.first_line(cls)))
    click.echo(tables.table(("operator", "offers", "what it does"), rows, wrapped=2))
    click.echo()
    click.echo(tables.table(("offers", "works with the solvers"), [(k, in_words(v)) for k, v in sorted(able.items())]))
    if any(offers.endswith("?") for offers in able):
        click.echo("svd?: with some parameters it has a decomposition (invdiff operators check SPEC tells)")
    click.echo("\nParameters: invdiff operators show NAME")
    for error in failed.values():
        click.echo(f"unusable: {errors.one_line(str(error))}", err=True)


def kind(cls: Any) -> str:
    """What the operator offers to solvers: linear, differentiable, svd; svd? where only its parameters can tell."""
    words = ["linear" if cls.linear else "differentiable" if cls.differentiable else "nothing"]
    decomposition = has_svd(cls)
    return ", ".join(words + (["svd?"] if decomposition is None else ["svd"] if decomposition else []))


def in_words(able: list[str]) -> str:
    """The names of solvers; of more than half of all, those that are missing."""
    from invdiff.solvers import REGISTRY

    others = [name for name in REGISTRY if name not in able]
    if not others:
        return f"all {len(able)}"
    if len(others) < len(able) / 2:
        return f"all but {', '.join(others)}"
    return ", ".join(able) or "none"


@click.command("show", cls=options.Command, epilog="invdiff operators show gaussian_blur")
@click.argument("spec", metavar="NAME|FILE.py:CLASS")
def show_operator(spec: str) -> None:
    """What an operator computes, its parameters, and the solvers that can use it; of a chain "a | b", what links it has.

    Naming a file runs the code in it.
    """
    from invdiff.operators import find
    from invdiff.specs.parameters import declarations, split_links

    if len(split_links(spec)) > 1:
        show_chain(spec)
        return
    cls, _ = find(spec)
    name = cls.name
    able, dependent = solvers_for(cls)
    click.echo(f"{name}\n\n{tables.docstring(cls)}\n")
    click.echo(tables.parameters(declarations(cls)))
    properties = {
        "linear": cls.linear,
        "differentiable": cls.differentiable,
        "singular value decomposition": has_svd(cls),
    }
    click.echo(f"\nProperties: {said(properties)}")
    more = "; others depending on its parameters" if dependent else ""
    click.echo(f"Works with the solvers: {in_words(able)}{more}")
    example = tables.example(name, declarations(cls))
    click.echo(f"\nExample: --operator {example if cls.loaded_from is None else shlex.quote(example)}")


def show_chain(spec: str) -> None:
    """The links of "a | b" in the order in which they act, what the whole offers, and the solvers that can use it."""
    from invdiff import operators, solvers

    chain = operators.get(spec)
    rows = [(one["spec"], tables.first_line(operators.find(one["spec"])[0])) for one in chain.settings()["of"]]
    click.echo(f"{chain}\n")
    click.echo(tables.table(("link", "what it does"), rows))
    offers = {
        "linear": chain.linear,
        "differentiable": chain.differentiable,
        "singular value decomposition": chain.has_svd,
    }
    able = [name for name in solvers.names() if not solvers.get(name).unmet(chain)]
    click.echo(f"\nProperties: {said(offers)}\nWorks with the solvers: {in_words(able)}")


def said(properties: Mapping[str, bool | None]) -> str:
    """Those that hold and those that do not; None: left out."""
    words = {name: f"no {name}" if "decomposition" in name else f"not {name}" for name in properties}
    return ", ".join(name if holds else words[name] for name, holds in properties.items() if holds is not None)


def has_svd(cls: Any) -> bool | None:
    """Whether the operator has a decomposition with default parameters; None if only its parameters can tell."""
    from invdiff.errors import InvdiffError
    from invdiff.operator.contract import Operator

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
