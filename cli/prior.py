"""`invdiff prior`: list the shipped priors, describe a checkpoint, import one and export one as a diffusers folder."""

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

IMPORT_EXAMPLES = """
invdiff prior import ffhq_10m.pt -o priors/ffhq
invdiff prior import model.pt -o priors/mine --config num_head_channels=64 --config noise_schedule=cosine
invdiff prior import google/ddpm-celebahq-256 -o priors/celeba --precision fp16
"""

EXPORT_EXAMPLES = """
invdiff prior export natural -o natural-fp32 --precision fp32
invdiff prior export runs/mine -o mine --precision fp16 --shard-mib 100
"""

COMMANDS = {
    "list": "invdiff.cli.prior:list_priors",
    "info": "invdiff.cli.prior:prior_info",
    "import": "invdiff.cli.prior:import_prior",
    "export": "invdiff.cli.prior:export_prior",
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


folder_options: options.Decorator = options.together(
    click.option(
        "-o", "--out", metavar="DIR", required=True, help="Folder to write; it must not exist yet, or be empty."
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        metavar="TYPE",
        help="Store the weights as fp32, bf16 or fp16.  [default: as they are]",
    ),
    click.option(
        "--shard-mib", type=click.IntRange(min=1), metavar="N", help="Split the weights into files of at most N MiB."
    ),
    click.option("--overwrite", is_flag=True, help="Replace the diffusers folder that is at DIR."),
)


@click.command("import", cls=options.Command, epilog=IMPORT_EXAMPLES)
@click.argument("source")
@folder_options
@click.option(
    "--config",
    multiple=True,
    metavar="NAME|KEY=VALUE",
    help="What a guided-diffusion file does not say: ffhq_10m, imagenet256, or its flags, such as num_head_channels=64. "
    "May be repeated.",
)
def import_prior(
    source: str, out: str, precision: str | None, shard_mib: int | None, overwrite: bool, config: tuple[str, ...]
) -> None:
    """Write a checkpoint as a clean diffusers folder, with a note of where it came from.

    SOURCE: a diffusers folder of any layout, a guided-diffusion (ADM) state dict (.pt, .safetensors), or a Hugging Face
    id (owner/name), which is downloaded. Files are never unpickled.
    """
    from pathlib import Path

    from invdiff.priors.stored.export import check_target, provenance_of, write_folder
    from invdiff.priors.stored.loading import open_checkpoint

    check_target(Path(out).expanduser(), overwrite)
    checkpoint, name = open_checkpoint(source, config or None)
    target = write_folder(
        checkpoint,
        out,
        name=name,
        precision=precision,
        shard_mib=shard_mib,
        provenance=provenance_of(checkpoint, source),
        overwrite=overwrite,
    )
    click.echo(f"{_summary(target)}\ncheck it: invdiff prior verify {target}")


@click.command("export", cls=options.Command, epilog=EXPORT_EXAMPLES)
@click.argument("prior")
@folder_options
def export_prior(prior: str, out: str, precision: str | None, shard_mib: int | None, overwrite: bool) -> None:
    """Write a prior as a diffusers folder that `diffusers.DDPMPipeline` and deepinv load: weights, scheduler, model card,
    licence and recipe, without the state of a training.

    PRIOR: a shipped name, a diffusers folder, a guided-diffusion file or a Hugging Face id.
    """
    from invdiff.priors.stored.export import write_folder
    from invdiff.priors.stored.loading import open_checkpoint

    checkpoint, name = open_checkpoint(prior)
    target = write_folder(checkpoint, out, name=name, precision=precision, shard_mib=shard_mib, overwrite=overwrite)
    click.echo(_summary(target))


def _summary(folder: object) -> str:
    """One line that describes a written folder."""
    from invdiff.priors import describe_checkpoint

    facts = describe_checkpoint(str(folder))
    return (
        f"{folder}  {facts['parameters'] / 1e6:.1f} million parameters, {facts['size_mib']:.1f} MiB in {facts['dtype']}, "
        f"{facts['channels']} channel(s), {facts['prediction']}, {facts['schedule']} schedule"
    )
