"""`invdiff prior verify`: does a network do what its files say?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from . import options, tables

if TYPE_CHECKING:
    from invdiff.priors.stored.verify import Verification

EXAMPLES = """
invdiff prior verify natural
invdiff prior verify priors/ct --data slices --count 16
"""


@click.command("verify", cls=options.Command, epilog=EXAMPLES)
@click.argument("prior")
@click.option(
    "--data", metavar="DIR", help="Pictures of the kind the prior is for.  [default: photographs of scikit-image]"
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", default=8, help="How many of the pictures in DIR.")
@click.option(
    "--size",
    type=click.IntRange(min=8),
    metavar="N",
    help="Side of the middle part that is used, in pixels.  [default: 64; with attention up to 128]",
)
@options.seed_option
@options.hardware_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options.quiet_option
def verify_prior(
    prior: str,
    data: str | None,
    count: int,
    size: int | None,
    seed: int,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Denoise known pictures with a prior, under what its files say and under every other reading of its network.

    Names a wrong prediction type, a wrong noise schedule and a wrong range of the images; then, and for a network that
    does not denoise, the exit code is 1.

    PRIOR: a shipped name, a diffusers folder, a guided-diffusion file or a Hugging Face id.
    """
    from tqdm import tqdm

    from invdiff.errors import CheckpointError, UsageError
    from invdiff.machine.device import choose_device, choose_precision
    from invdiff.priors.stored.loading import network_prior, open_checkpoint
    from invdiff.priors.stored.pictures import builtin_pictures, read_pictures
    from invdiff.priors.stored.verify import calls
    from invdiff.priors.stored.verify import verify_prior as run

    where = choose_device(device)
    dtype = choose_precision(precision, where)
    checkpoint, name = open_checkpoint(prior)
    trained = checkpoint.config.get("sample_size")
    usual = min(trained, 128) if checkpoint.attention and isinstance(trained, int) else 64
    side = size or max(usual - usual % checkpoint.multiple, checkpoint.multiple)
    if side % checkpoint.multiple:
        raise UsageError(f"--size {side}: this network needs a multiple of {checkpoint.multiple}")
    if data is None:
        pictures = builtin_pictures(checkpoint.channels, side)
    else:
        pictures = read_pictures(data, checkpoint.channels, side, checkpoint.multiple, count)
    network = network_prior(checkpoint, name, device=where, precision=dtype)
    bar_off = quiet or not sys.stderr.isatty()
    with tqdm(total=calls(network), desc="verify", unit="call", leave=False, disable=bar_off) as bar:
        found = run(network, pictures, checkpoint.schedule_name, seed=seed, advance=lambda: bar.update(1) and None)
    if as_json:
        facts = {"name": name, "pictures": len(pictures), "size": pictures.shape[-1], "seed": seed}
        click.echo(json.dumps(facts | found.to_dict(), indent=2))
    elif not quiet:
        click.echo(_table(found))
    if not found.passed:
        raise CheckpointError(f"{prior}: {'; '.join(found.problems)}{_lead(found)}")
    if not (quiet or as_json):
        click.echo(
            f"{name}: as its files say (prediction={found.stated.prediction}, schedule={found.stated.schedule})."
        )


def _table(found: Verification) -> str:
    rows = [
        (f"{sigma:.3f}", f"{sigma * 255:.0f}", f"{noisy:.2f}", f"{trivial:.2f}", f"{denoised:.2f}")
        for sigma, noisy, trivial, denoised in zip(
            found.sigmas, found.noisy, found.trivial, found.denoised, strict=True
        )
    ]
    return tables.table(("sigma", "x 255", "noisy, dB", "shrunk to its mean, dB", "denoised, dB"), rows, wrapped=3)


def _lead(found: Verification) -> str:
    return f" (denoises {found.lead:.1f} dB better so)" if found.best != found.stated else ""
