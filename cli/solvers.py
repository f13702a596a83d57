"""`invdiff solvers`: the methods, what they need, which settings they take, and which to take for a problem."""

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
RECOMMENDED = """
invdiff solvers recommend --operator gaussian_blur:sigma=2 --noise 0.05
invdiff solvers recommend --operator inpaint:keep=0.3 --noise 0.01 --budget 100 --aim sample
"""


@click.command(
    cls=options.LazyGroup,
    commands={
        "list": "invdiff.cli.solvers:list_solvers",
        "show": "invdiff.cli.solvers:show_solver",
        "recommend": "invdiff.cli.solvers:recommend",
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
        "\nneeds: what the operator must offer (svd: a singular value decomposition). calls: network calls for a sample with "
        "the\ndefault settings, and for a step where that takes several. transition: any sampler's step may be set: "
        "transition=heun.\nparticles: samples that one run gives together. nonlinear: works with operators that are not "
        "linear.\n\nSettings and equations: invdiff solvers show NAME"
    )


def _line(name: str, cls: type[Solver]) -> tuple[str, ...]:
    """One row of the list, from the default settings."""
    solver = cls()
    calls = solver.nfe / solver.population  # those of a run are shared by all its particles
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
    click.echo(f"{name}\n\n{cls.paper()}\n\n{tables.parameters(declarations(cls))}")
    click.echo(f"\nNeeds an operator that is or has: {', '.join(sorted(cls.needs)) or 'anything'}")
    able = [key for key, operator in OPERATORS.usable()[0].items() if name in solvers_for(operator)[0]]
    click.echo(f"Works with the operators: {', '.join(able) or 'none'}")
    click.echo(f"\nExample: --solver {tables.example(name, declarations(cls), optional=True)}")


@click.command("recommend", cls=options.Command, epilog=RECOMMENDED)
@options.operator_option
@click.option("--noise", metavar="SIGMA", required=True, help="Noise level sigma_y, [0, 1] units: 0.05 or 12.75/255.")
@options.count("--budget", default=20, help="Network calls and backward passes for one sample.")
@click.option(
    "--aim",
    type=click.Choice(["psnr", "single", "sample"]),
    default="psnr",
    help="psnr: the best estimate, a mean of samples; single: the best from one run; sample: the most truthful samples, "
    "by CRPS.",
)
@click.option("--shape", type=options.SHAPE, metavar="CxHxW", default="3x96x96", help="Shape of the images.")
@click.option("--all", "everything", is_flag=True, help="Every solver that was measured, not the best five.")
def recommend(operator: str, noise: str, budget: int, aim: str, shape: tuple[int, ...], everything: bool) -> None:
    """The best solvers for a problem, as measured.

    On photographs, with the nearest noise level and budget that were measured: for linear operators those held back from
    the training of the shipped prior; for others gains are over the first guess. "-": not measured. `restore --solver auto`
    takes the first line for the aim single, or psnr with several samples.
    """
    from invdiff.errors import UsageError
    from invdiff.noise import check_noise
    from invdiff.operators import resolve_operator
    from invdiff.restoration import recommendation

    chosen, sigma_y = resolve_operator(operator), check_noise(noise)
    found = recommendation.recommend(chosen, shape, sigma_y, budget, aim)
    if not found and aim == "sample" and recommendation.recommend(chosen, shape, sigma_y, budget, "single"):
        raise UsageError(f"the spread of samples was not measured on operators such as {chosen}; use --aim single")
    if not found:
        raise UsageError(
            f"no solver was measured on operators such as {chosen}; `invdiff solvers list` shows what they need"
        )
    family, level = found[0][0].family, found[0][0].noise
    click.echo(f"Measured on: {family}, noise {level:g}, at most {budget} network calls and backward passes\n")
    rows = []
    for score, solver in found if everything else found[:5]:
        calls = (solver.spec, str(solver.nfe), str(solver.passes - solver.nfe))
        measured = ((score.gain, "+.2f"), (score.single, "+.2f"), (score.crps, ".4f"))
        rows.append((*calls, *("-" if value is None else format(value, form) for value, form in measured)))
    click.echo(tables.table(("solver", "calls", "backward", "PSNR gain, mean", "PSNR gain, one sample", "CRPS"), rows))
    click.echo(f"\nExample: --solver {found[0][1].spec}")
