"""deepinv's DDRM, DiffPIR and DPS beside ours: the same network, operator, measurements and number of network calls.

deepinv's methods get the prior as a Denoiser and the operator as a Physics, and have their defaults but for the number of
steps. Seconds are of the whole call, network included. Scores are those of one sample, rounded to 8 bits.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import invdiff
from invdiff import solvers
from invdiff.errors import NumericalError, UsageError, unknown
from invdiff.evaluation.measured_folder import Picture
from invdiff.noise import Gaussian, NoiseModel
from invdiff.operator.contract import Operator
from invdiff.priors.counted import CountedPrior
from invdiff.priors.prior import Prior
from invdiff.scores.comparison import as_image, window
from invdiff.scores.metrics import psnr, ssim
from invdiff.scores.statistics import Paired, paired

SMALLEST_SSIM = 11
"""Pixels a side from which on there is an SSIM."""

Restored = tuple[torch.Tensor, int, str]
"""(1, C, H, W), network calls that were made, and the method as it is to be called."""
Peer = Callable[[Any, Any, torch.Tensor, int, int], torch.Tensor]


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

    # Without a generator it ignores the seed.
    rng = torch.Generator(y.device)
    return DPS(denoiser, num_steps=calls, device=y.device, dtype=torch.float32, rng=rng)(y, physics, seed=seed)


PEERS: dict[str, Peer] = {"ddrm": ddrm, "diffpir": diffpir, "dps": dps}


HEAD = (
    *("method", "calls asked", "calls made", "images"),
    *("PSNR mean / median", "PSNR - the first's (95 %)", "SSIM mean / median", "s/image"),
)
NOTE = (
    "The difference is that of the mean PSNR on the same measurements to the first method with as many calls, with its 95 % "
    "interval; *: a real one, by interval and Wilcoxon test (which takes six images or more). s/image: median."
)


@dataclass(frozen=True)
class Row:
    """One method with one number of calls. psnr (dB), ssim, seconds: by picture; failed: picture -> why."""

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

    What fails on a picture is told in `failed`; deepinv's DDRM fails on a Physics without a mask of singular values.
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
    """Number of calls -> the first row with it, which the others are compared with."""
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
        # It seeds the global generators, which are nobody's business, and takes seed 0 for none.
        with torch.random.fork_rng(devices):
            restored = PEERS[name](counted.to_deepinv(), physics, picture.y[None].to(prior.device), calls, seed + 1)
    except Exception as error:  # somebody else's code: its failure is a result
        raise PeerError(f"{type(error).__name__}: {error}") from error
    return restored, counted.calls, f"deepinv {name}"
