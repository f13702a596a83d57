"""`invdiff compare-deepinv`: deepinv's methods beside ours on the same measurements, with the same network."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from . import errors, options, tables

EXAMPLES = """
invdiff compare-deepinv --data photos/ --operator gaussian_blur:sigma=2 --noise 0.05 --limit 6 --crop 128
invdiff compare-deepinv --data photos/ --operator inpaint:keep=0.3 --noise 0.05 --calls 20 --solver dpir --solver ddrm \\
    --peer ddrm --peer diffpir --json compared.json
"""


@click.command("compare-deepinv", cls=options.Command, epilog=EXAMPLES)
@click.option("--data", metavar="DIR", required=True, help="Folder of clean pictures.")
@options.operator_option
@click.option("--noise", metavar="SIGMA", required=True, help="Noise level sigma_y, [0, 1] units: 0.05 or 12.75/255.")
@click.option(
    "--calls", type=click.IntRange(min=2), multiple=True, default=(20, 100), help="Network calls a sample; repeatable."
)
@click.option("--solver", "specs", metavar="SPEC", multiple=True, default=("auto",), help="One of ours; repeatable.")
@click.option(
    "--peer", "peers", metavar="NAME", multiple=True, help="deepinv's ddrm, diffpir or dps; repeatable.  [default: all]"
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use the first N pictures.")
@click.option("--crop", type=click.IntRange(min=1), metavar="S", help="Use the middle S x S pixels of each.")
@options.prior_option
@options.seed_option
@options.hardware_options
@click.option("--json", "json_file", metavar="FILE", help="Write every number, picture by picture.")
@options.quiet_option
def compare_deepinv(
    data: str,
    operator: str,
    noise: str,
    calls: tuple[int, ...],
    specs: tuple[str, ...],
    peers: tuple[str, ...],
    limit: int | None,
    crop: int | None,
    prior: str,
    seed: int,
    device: str,
    precision: str,
    json_file: str | None,
    quiet: bool,
) -> int:
    """Restore a folder with deepinv's DDRM, DiffPIR and DPS and with ours: PSNR, SSIM, time.

    All get the same network, operator, measurements and number of calls; deepinv's keep its own defaults otherwise.
    """
    from invdiff.evaluation import peers as comparing
    from invdiff.evaluation.measured_folder import read_pictures
    from invdiff.files.images import write_json
    from invdiff.machine.versions import package_versions
    from invdiff.noise import noise_model
    from invdiff.operator.from_file import absolute
    from invdiff.operators import resolve_operator
    from invdiff.restoration.api import resolve_prior

    names = peers or tuple(comparing.PEERS)
    A, model = resolve_operator(operator), noise_model(noise)
    comparing.check(A, model, names, specs)
    network = resolve_prior(prior, device, precision)
    pictures = read_pictures(data, A, model, network, crop=crop, limit=limit, seed=seed)
    for path, why in pictures.failed:
        click.echo(errors.about(Path(path), why), err=True)
    rows = []
    for row in comparing.compare(pictures.usable, A, model, network, calls=calls, specs=specs, peers=names, seed=seed):
        rows.append(row)
        if row.failed:
            key, why = next(iter(row.failed.items()))
            click.echo(f"{row.method}, {row.calls} calls: failed on {len(row.failed)} pictures; {key}: {why}", err=True)
        if not quiet:
            click.echo(f"{row.method}, {row.calls} calls: done", err=True)
    first = comparing.references(rows)
    if not quiet:
        click.echo(tables.table(comparing.HEAD, [row.cells(first[row.calls]) for row in rows], wrapped=0))
        click.echo(f"\n{comparing.NOTE}")
    if json_file is not None:
        words = ["invdiff", "compare-deepinv", "--data", data, "--operator", absolute(operator), "--noise", noise]
        several = (("--calls", calls), ("--solver", specs), ("--peer", names))
        words += [word for option, values in several for value in values for word in (option, str(value))]
        for option, value in (("--limit", limit), ("--crop", crop), ("--prior", prior), ("--seed", seed)):
            words += [] if value is None else [option, str(value)]
        record = {
            "kind": "invdiff compare-deepinv",
            "format": 1,
            "command": shlex.join(words),
            "operator": A.spec,
            "noise": model.spec,
            "seed": seed,
            "prior": network.describe(),
            "data": {"path": data, "images": len(pictures.usable), "crop": crop, "fingerprint": pictures.fingerprint},
            "rows": [row.record(first[row.calls]) for row in rows],
            "versions": package_versions(),
        }
        write_json(json_file, record)
        if not quiet:
            click.echo(f"written: {json_file}")
    return 1 if pictures.failed else 0
