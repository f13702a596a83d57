"""`invdiff prior import`: a checkpoint in any form that is understood, as a clean diffusers folder."""

from __future__ import annotations

import click

from . import options

EXAMPLES = """
invdiff prior import ffhq_10m.pt -o priors/ffhq
invdiff prior import model.pt -o priors/mine --config num_head_channels=64 --config noise_schedule=cosine
invdiff prior import google/ddpm-celebahq-256 -o priors/celeba --precision fp16
"""

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


@click.command("import", cls=options.Command, epilog=EXAMPLES)
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
    click.echo(f"{summary(target)}\ncheck it: invdiff prior verify {target}")


def summary(folder: object) -> str:
    """One line about a folder that was written."""
    from invdiff.priors import describe_checkpoint

    facts = describe_checkpoint(str(folder))
    return (
        f"{folder}  {facts['parameters'] / 1e6:.1f} million parameters, {facts['size_mib']:.1f} MiB in {facts['dtype']}, "
        f"{facts['channels']} channel(s), {facts['prediction']}, {facts['schedule']} schedule"
    )
