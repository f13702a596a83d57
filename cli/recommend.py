"""`invdiff solvers recommend`: which solver to take for an operator, a noise level and a budget."""

from __future__ import annotations

import click

from . import options, tables

EXAMPLES = """
invdiff solvers recommend --operator gaussian_blur:sigma=2 --noise 0.05
invdiff solvers recommend --operator inpaint:keep=0.3 --noise 0.01 --budget 100 --aim sample
"""


@click.command("recommend", cls=options.Command, epilog=EXAMPLES)
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
@click.option("--shape", metavar="CxHxW", default="3x96x96", help="Shape of the images.")
@click.option("--all", "everything", is_flag=True, help="Every solver that was measured, not the best five.")
def recommend(operator: str, noise: str, budget: int, aim: str, shape: str, everything: bool) -> None:
    """The best solvers for a problem, as measured.

    On photographs, with the nearest noise level and budget that were measured: for linear operators those held back from
    the training of the shipped prior; for others gains are over the first guess. "-": not measured. `restore --solver auto`
    takes the first line for the aim single, or psnr with several samples.
    """
    from invdiff.errors import UsageError
    from invdiff.noise import check_noise
    from invdiff.operators import resolve_operator
    from invdiff.restoration import recommendation
    from invdiff.specs.parameters import shape as read_shape

    chosen = resolve_operator(operator)
    try:
        size = read_shape(shape)
    except ValueError as error:
        raise UsageError(f"--shape {shape!r}: {error}, such as 3x96x96") from None
    found = recommendation.recommend(chosen, size, check_noise(noise), budget, aim)
    if not found and aim == "sample" and recommendation.recommend(chosen, size, check_noise(noise), budget, "single"):
        raise UsageError(f"the spread of samples was not measured on operators such as {chosen}; use --aim single")
    if not found:
        raise UsageError(
            f"no solver was measured on operators such as {chosen}; `invdiff solvers list` shows what they need"
        )
    score = found[0][0]
    click.echo(
        f"Measured on: {score.family}, noise {score.noise:g}, at most {budget} network calls and backward passes\n"
    )
    rows = [
        (
            solver.spec,
            str(solver.nfe),
            str(solver.passes - solver.nfe),
            number(score.gain, "+.2f"),
            number(score.single, "+.2f"),
            number(score.crps, ".4f"),
        )
        for score, solver in (found if everything else found[:5])
    ]
    click.echo(tables.table(("solver", "calls", "backward", "PSNR gain, mean", "PSNR gain, one sample", "CRPS"), rows))
    click.echo(f"\nExample: --solver {found[0][1].spec}")


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
