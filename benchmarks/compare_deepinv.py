"""deepinv's DDRM, DiffPIR and DPS beside ours on a folder of clean pictures: PSNR, SSIM, time.

    python benchmarks/compare_deepinv.py --data photos/ --operator gaussian_blur:sigma=2 --noise 0.05 --limit 6 --crop 128
    python benchmarks/compare_deepinv.py --data photos/ --operator inpaint:keep=0.3 --noise 0.05 --calls 20 --solver dpir \\
        --solver ddrm --peer ddrm --peer diffpir --json compared.json

All methods get the same network, operator, measurements and number of network calls. deepinv's get the prior as a Denoiser
and the operator as a Physics, and keep their defaults except for the number of steps. Seconds are those of the whole call,
network included. Scores are those of one sample, rounded to 8 bits.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

import invdiff
from invdiff import solvers
from invdiff.cli import errors, options, tables
from invdiff.errors import NumericalError, UsageError, unknown
from invdiff.evaluation.measured_folder import Picture, read_pictures
from invdiff.files.images import write_json
from invdiff.machine.versions import package_versions
from invdiff.noise import Gaussian, NoiseModel, noise_model
from invdiff.operator.contract import Operator
from invdiff.operator.from_file import absolute
from invdiff.operators import resolve_operator
from invdiff.priors.prior import CountedPrior, Prior
from invdiff.restoration.api import resolve_prior
from invdiff.scores.comparison import as_image, window
from invdiff.scores.metrics import psnr, ssim
from invdiff.scores.statistics import Paired, paired

SMALLEST_SSIM = 11
"""Pixels a side of the smallest image that has an SSIM."""

Restored = tuple[torch.Tensor, int, str]
"""The restored image (1, C, H, W), the number of network calls made, and the method's name for the table."""
Peer = Callable[[Any, Any, torch.Tensor, int, int], torch.Tensor]
"""(denoiser, physics, y, network calls, seed) -> the restored image (1, C, H, W)."""


def ddrm(denoiser: Any, physics: Any, y: torch.Tensor, calls: int, seed: int) -> torch.Tensor:
    import numpy as np
    from deepinv.sampling import DDRM

    return DDRM(denoiser, sigmas=np.linspace(1, 0, calls))(y, physics, seed=seed)


def diffpir(denoiser: Any, physics: Any, y: torch.Tensor, calls: int, seed: int) -> torch.Tensor:
    from deepinv.optim.data_fidelity import L2
    from deepinv.sampling import DiffPIR

    sigma = float(physics.noise_model.sigma)
    return DiffPIR(denoiser, L2(), sigma=sigma, max_iter=calls, device=y.device)(y, physics, seed=seed)


def dps(denoiser: Any, physics: Any, y: torch.Tensor, calls: int, seed: int) -> torch.Tensor:
    from deepinv.sampling import DPS

    # Without a generator DPS ignores the seed.
    rng = torch.Generator(y.device)
    return DPS(denoiser, num_steps=calls, device=y.device, dtype=torch.float32, rng=rng)(y, physics, seed=seed)


PEERS: dict[str, Peer] = {"ddrm": ddrm, "diffpir": diffpir, "dps": dps}


HEAD = (
    *("method", "calls asked", "calls made", "images"),
    *("PSNR mean / median", "PSNR - the first's (95 %)", "SSIM mean / median", "s/image"),
)
NOTE = (
    "The difference is the mean PSNR minus that of the first method with as many calls, on the same measurements, with its "
    "95 % interval; *: significant by that interval and the Wilcoxon test (which takes six images or more). "
    "s/image: median."
)


@dataclass(frozen=True)
class Row:
    """One method with one number of calls. psnr (dB), ssim, seconds: by picture; failed: picture -> reason."""

    method: str
    calls: int
    made: int
    psnr: Mapping[str, float]
    ssim: Mapping[str, float]
    seconds: Mapping[str, float]
    failed: Mapping[str, str] = field(default_factory=dict)

    def record(self, reference: Row | None) -> dict[str, Any]:
        """Plain data: numbers by picture, their means and medians, and the difference to the reference."""
        found: dict[str, Any] = {"method": self.method, "calls_asked": self.calls, "calls_made": self.made}
        for name in ("psnr", "ssim", "seconds"):
            values = getattr(self, name)
            mean, median = (
                (statistics.fmean(values.values()), statistics.median(values.values())) if values else (None, None)
            )
            found[name] = {"mean": mean, "median": median, "images": dict(values)}
        found["failed"] = dict(self.failed)
        test = self.against(reference)
        if test is not None and reference is not None:
            interval = test.difference
            found["psnr_difference"] = {
                "to": reference.method,
                "mean": interval.mean,
                "interval": None if math.isnan(interval.low) else [interval.low, interval.high],
                "images": interval.n,
                "p_value": test.p_value,
                "better": {"first": self.method, "second": reference.method, None: None}[test.better],
            }
        return found

    def cells(self, reference: Row | None) -> tuple[str, ...]:
        """The line of a table, under HEAD."""

        def both(values: Mapping[str, float], digits: int) -> str:
            if not values:
                return "-"
            each = statistics.fmean(values.values()), statistics.median(values.values())
            return " / ".join(f"{value:.{digits}f}" for value in each)

        test, difference = self.against(reference), "-"
        if test is not None:
            low, high = test.difference.low, test.difference.high
            difference = f"{test.difference.mean:+.2f} ({low:+.2f} to {high:+.2f}){'*' if test.better else ''}"
        seconds = f"{statistics.median(self.seconds.values()):.1f}" if self.seconds else "-"
        counted = (str(self.calls), str(self.made), str(len(self.psnr)))
        return (self.method, *counted, both(self.psnr, 2), difference, both(self.ssim, 3), seconds)

    def against(self, reference: Row | None) -> Paired | None:
        """This PSNR minus the reference's on the pictures that both restored; None if there are none."""
        both = [] if reference in (None, self) else [key for key in self.psnr if key in reference.psnr]  # type: ignore[union-attr]
        if reference is None or not both:
            return None
        return paired([self.psnr[key] for key in both], [reference.psnr[key] for key in both])


def check(operator: Operator, noise: NoiseModel, peers: Iterable[str], specs: Iterable[str]) -> None:
    """Raise UsageError for an unknown peer or solver, one that cannot use the operator, and noise that is not Gaussian."""
    for name in peers:
        if name not in PEERS:
            raise unknown("peer", name, PEERS)
    if not isinstance(noise, Gaussian):
        raise UsageError(f"noise={noise.spec}: deepinv's methods here are for Gaussian noise; give sigma_y, e.g. 0.05")
    for spec in specs:
        if spec != "auto":
            solvers.check(solvers.get(spec), operator)


def compare(
    pictures: Sequence[Picture],
    operator: Operator,
    noise: NoiseModel,
    prior: Prior,
    *,
    calls: Sequence[int] = (20, 100),
    specs: Sequence[str] = ("auto",),
    peers: Sequence[str] = tuple(PEERS),
    seed: int = 0,
) -> Iterator[Row]:
    """A row for the measurement itself, where it is a picture, and then for every number of calls one for each of our
    solvers (NAME, NAME:key=value,... or auto) and each peer, as they are computed.

    A row's `failed` names the pictures on which its method failed; deepinv's DDRM fails on a Physics without a mask of
    singular values.
    Raises UsageError as `check`.
    """
    check(operator, noise, peers, specs)
    if all(as_image(picture.y, tuple(picture.truth.shape)) is not None for picture in pictures):
        yield _row("measurement", 0, pictures, _seen)
    for count in calls:
        for spec in specs:
            yield _row(spec, count, pictures, partial(_ours, (operator, noise, prior), spec, count, seed))
        for name in peers:
            run = partial(_theirs, (operator, noise, prior), name, count, seed)
            yield _row(f"deepinv {name}", count, pictures, run)


def references(rows: Iterable[Row]) -> dict[int, Row]:
    """Number of calls -> the first row with that number, which the others are compared with."""
    found: dict[int, Row] = {}
    for row in rows:
        found.setdefault(row.calls, row)
    return found


def _row(method: str, calls: int, pictures: Sequence[Picture], run: Callable[[Picture], Restored]) -> Row:
    made = 0
    scores: dict[str, dict[str, float]] = {"psnr": {}, "ssim": {}, "seconds": {}}
    failed = {}
    for picture in pictures:
        started = time.perf_counter()
        try:
            restored, made, method = run(picture)
            seconds = time.perf_counter() - started
            restored = restored.float().cpu()
            truth = window(picture.truth, tuple(restored.shape[1:]))[None]
            scores["psnr"][picture.key] = float(psnr(restored, truth, eight_bit=True))
        except (NumericalError, PeerError) as error:
            failed[picture.key] = str(error)
            continue
        scores["seconds"][picture.key] = seconds
        if min(truth.shape[-2:]) >= SMALLEST_SSIM:
            scores["ssim"][picture.key] = float(ssim(restored, truth, eight_bit=True))
    return Row(method, calls, made, failed=failed, **scores)


class PeerError(Exception):
    """deepinv's method cannot be used here, or failed."""


def _seen(picture: Picture) -> Restored:
    image = as_image(picture.y, tuple(picture.truth.shape))
    assert image is not None  # see compare
    return image[None], 0, "measurement"


def _ours(given: tuple[Operator, NoiseModel, Prior], spec: str, calls: int, seed: int, picture: Picture) -> Restored:
    operator, noise, prior = given
    solution = invdiff.restore(
        picture.y[None], operator, noise, prior=prior, solver=spec, steps=calls, seed=seed, ids=[picture.key]
    )
    return solution.mean, solution.nfe, f"auto ({solution.solver['name']})" if spec == "auto" else spec


def _theirs(given: tuple[Operator, NoiseModel, Prior], name: str, calls: int, seed: int, picture: Picture) -> Restored:
    operator, noise, prior = given
    import deepinv

    assert isinstance(noise, Gaussian)  # see check
    physics = operator.to_deepinv(tuple(picture.truth.shape))
    physics.noise_model = deepinv.physics.GaussianNoise(noise.sigma)
    physics = physics.to(prior.device)
    if name == "ddrm" and not hasattr(physics, "mask"):
        raise PeerError("takes a DecomposablePhysics with a mask of singular values only")
    counted = CountedPrior(prior)
    devices = [prior.device] if prior.device.type == "cuda" else []
    try:
        # deepinv seeds the global generators, which are restored here, and takes seed 0 for no seed.
        with torch.random.fork_rng(devices):
            restored = PEERS[name](counted.to_deepinv(), physics, picture.y[None].to(prior.device), calls, seed + 1)
    except Exception as error:  # somebody else's code: its failure is a result
        raise PeerError(f"{type(error).__name__}: {error}") from error
    return restored, counted.calls, f"deepinv {name}"


class Script(options.Command):
    """The command of a script: what it raises becomes one line and an exit code, as with `invdiff`."""

    debug = False

    def main(self, *args: Any, **settings: Any) -> Any:
        settings |= {"prog_name": "python benchmarks/compare_deepinv.py", "standalone_mode": False}
        try:
            code = super().main(*args, **settings)
        except Exception as error:
            code = errors.report(error, self.debug)
        sys.exit(code)


@click.command(cls=Script)
@click.option("--data", metavar="DIR", required=True, help="Folder of clean pictures.")
@options.operator_option
@click.option("--noise", metavar="SIGMA", required=True, help="Noise level sigma_y, [0, 1] units: 0.05 or 12.75/255.")
@click.option(
    "--calls", type=click.IntRange(min=2), multiple=True, default=(20, 100), help="Network calls a sample; repeatable."
)
@click.option("--solver", "specs", metavar="SPEC", multiple=True, default=("auto",), help="One of ours; repeatable.")
@click.option(
    "--peer", "peers", metavar="NAME", multiple=True, default=tuple(PEERS), help="One of deepinv's; repeatable."
)
@options.count("--limit", help="Use the first N pictures.")
@options.count("--crop", metavar="S", help="Use the middle S x S pixels of each.")
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
    """Restore a folder with deepinv's DDRM, DiffPIR and DPS and with ours: PSNR, SSIM, time."""
    A, model = resolve_operator(operator), noise_model(noise)
    check(A, model, peers, specs)
    network = resolve_prior(prior, device, precision)
    pictures = read_pictures(data, A, model, network, crop=crop, limit=limit, seed=seed)
    for path, reason in pictures.failed:
        click.echo(errors.about(Path(path), reason), err=True)
    rows = []
    for row in compare(pictures.usable, A, model, network, calls=calls, specs=specs, peers=peers, seed=seed):
        rows.append(row)
        if row.failed:
            key, reason = next(iter(row.failed.items()))
            click.echo(
                f"{row.method}, {row.calls} calls: failed on {len(row.failed)} pictures; {key}: {reason}", err=True
            )
        if not quiet:
            click.echo(f"{row.method}, {row.calls} calls: done", err=True)
    first = references(rows)
    if not quiet:
        click.echo(tables.table(HEAD, [row.cells(first[row.calls]) for row in rows], wrapped=0))
        click.echo(f"\n{NOTE}")
    if json_file is not None:
        record = {
            "kind": "compare_deepinv",
            "format": 1,
            "command": options.repeat_command(operator=absolute(operator), json_file=None),
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


if __name__ == "__main__":
    compare_deepinv()
