"""`invdiff prior push`: a prior to the Hugging Face hub."""

from __future__ import annotations

import click

from . import options

EXAMPLES = """
invdiff prior push runs/mine owner/name
invdiff prior push natural owner/natural-fp32 --precision fp32 --private
"""


@click.command("push", cls=options.Command, epilog=EXAMPLES)
@click.argument("prior")
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    metavar="TYPE",
    help="Store the weights as fp32, bf16 or fp16.  [default: as they are]",
)
@click.option("--private", is_flag=True, help="A new repository is private; an existing one stays as it is.")
@click.option("--message", metavar="TEXT", default="Upload a diffusion prior", help="Message of the commit.")
def push_prior(prior: str, repository: str, precision: str | None, private: bool, message: str) -> None:
    """Upload a prior to the Hugging Face hub as a diffusers folder; the repository is created if it is new.

    It needs a token with write access: `hf auth login`, or HF_TOKEN. Back again: --prior owner/name, or
    `invdiff prior import owner/name -o DIR`.

    PRIOR: a shipped name, a diffusers folder or a guided-diffusion file.
    """
    import tempfile
    from pathlib import Path

    from invdiff.priors.stored.export import write_folder
    from invdiff.priors.stored.hub import check_push, push
    from invdiff.priors.stored.loading import open_checkpoint

    check_push(repository)
    checkpoint, _ = open_checkpoint(prior)
    with tempfile.TemporaryDirectory() as folder:
        written = write_folder(checkpoint, Path(folder) / "prior", name=repository, precision=precision)
        click.echo(push(written, repository, private=private, message=message))
