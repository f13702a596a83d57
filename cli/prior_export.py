"""`invdiff prior export`: a prior as a clean diffusers folder, in another precision or in shards."""

from __future__ import annotations

import click

from . import options
from .prior_import import folder_options, summary

EXAMPLES = """
invdiff prior export natural -o natural-fp32 --precision fp32
invdiff prior export runs/mine -o mine --precision fp16 --shard-mib 100
"""


@click.command("export", cls=options.Command, epilog=EXAMPLES)
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
    click.echo(summary(target))
