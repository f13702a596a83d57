"""`invdiff prior`: which priors are there, what is in a checkpoint, and how one comes in, is checked and goes out."""

from __future__ import annotations

import json

import click

from . import options, tables

EXAMPLES = """
invdiff prior list
invdiff prior info natural
invdiff prior import ffhq_10m.pt -o priors/ffhq
invdiff prior verify priors/ffhq
invdiff prior elbo natural --data photos
invdiff prior export runs/mine -o mine-fp16 --precision fp16
"""

COMMANDS = {
    "list": "invdiff.cli.prior:list_priors",
    "info": "invdiff.cli.prior:prior_info",
    "import": "invdiff.cli.prior_import:import_prior",
    "export": "invdiff.cli.prior_export:export_prior",
    "verify": "invdiff.cli.prior_verify:verify_prior",
    "elbo": "invdiff.cli.elbo:elbo",
}


@click.command(cls=options.LazyGroup, commands=COMMANDS, epilog=EXAMPLES)
def prior() -> None:
    """Show, import, check, measure and export trained priors."""


@click.command("list", cls=options.Command, epilog="invdiff prior list")
def list_priors() -> None:
    """The priors that come with this package."""
    from invdiff.priors import describe_checkpoint, shipped

    rows = []
    for name in shipped():
        facts = describe_checkpoint(name)
        size = f"{facts['parameters'] / 1e6:.1f} million parameters, {facts['size_mib']:.1f} MiB"
        rows.append((name, size, {1: "grey", 3: "colour"}.get(facts["channels"], str(facts["channels"]))))
    if not rows:
        click.echo("No prior is shipped with this installation; train one: invdiff train --help")
        return
    click.echo(tables.table(("prior", "size", "images"), rows))


@click.command("info", cls=options.Command, epilog="invdiff prior info natural\ninvdiff prior info runs/mine --json")
@click.argument("prior", default="natural")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the training recipe.")
def prior_info(prior: str, as_json: bool) -> None:
    """What a checkpoint is: network, schedule, size, cost, hash and training recipe.

    PRIOR: a shipped name, a diffusers folder, a guided-diffusion file or a Hugging Face id (default: natural).
    """
    from invdiff.priors import describe_checkpoint

    facts = describe_checkpoint(prior)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    lines = _flat(facts)
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        click.echo(f"{key:<{width}}  {value}")


def _flat(facts: dict) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [(f"{key}.{inner}", text) for inner, text in _flat(value)]
        elif isinstance(value, list):
            lines.append((key, ", ".join(map(str, value))))
        else:
            lines.append((key, f"{value:.6g}" if isinstance(value, float) else str(value)))
    return lines
