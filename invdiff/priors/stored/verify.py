"""Check that a network is what its files state: denoise known pictures under every reading of it and compare the errors.

A checkpoint states how its network is to be read: what it predicts (epsilon, x_0, v), on which noise schedule it was
trained, and that its images lie in [-1, 1]. A wrong statement raises no error: the prior only denoises worse. E[x_0 | x]
has the least mean squared error of all functions of x, so of several readings of one network the right one denoises best.

Every reading denoises x = x_0 + sigma n for the same pictures x_0 and the same noise n, at five noise levels sigma, evenly
spaced in log sigma. One network call serves all prediction types, which differ only in how the output is interpreted.
A reading is beaten if another one has a higher PSNR in the mean over pictures and levels, by more than `MARGIN`
and by more than three standard errors of the differences between pictures. Tables whose sigma(t) is nearly the same
(cosine, and scaled_linear from 1e-4 to 0.02) cannot be told apart so: a mistake between them costs less than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from invdiff.diffusion.parameterization import PREDICTIONS, to_clean
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import NumericalError, UsageError
from invdiff.priors.network import NetworkPrior

MARGIN = 0.15
"""By how many dB another reading must be better. A network that ignores t does equally well on every schedule."""

LEVELS = 5
_LOWEST, _HIGHEST = 0.02, 2.0  # noise levels on [0, 1], from about 5/255 to one at which pictures cannot be seen
_RANGES = {"[-1, 1]": (-1.0, 1.0), "[0, 1]": (0.0, 1.0)}
_STATED_RANGE = "[-1, 1]"


@dataclass(frozen=True)
class Reading:
    """One way to interpret a network: its prediction type, its noise schedule and the range of its images."""

    prediction: str
    schedule: str
    range: str

    def changes(self, stated: Reading) -> list[str]:
        """One sentence for every difference between this reading and the stated one."""
        said = []
        if self.prediction != stated.prediction:
            said.append(
                f"this network behaves as prediction={self.prediction}, but its scheduler says {stated.prediction}: "
                "set prediction_type in its scheduler_config.json"
            )
        if self.schedule != stated.schedule:
            said.append(
                f"this network behaves as schedule={self.schedule}, but its scheduler says {stated.schedule}: "
                "set the betas in its scheduler_config.json"
            )
        if self.range != stated.range:
            said.append(
                f"this network behaves as one for images in {self.range}, but it is given images in {stated.range}: "
                "train it on those, or scale them in a denoiser of your own (invdiff.priors.DeepinvPrior)"
            )
        return said


@dataclass(frozen=True)
class Verification:
    """The result of `verify_prior`.

    sigmas: the five noise levels. noisy, denoised, trivial: PSNR in dB at each, in the mean over the pictures, of x, of the
    stated reading's answer, and of shrinking x towards the picture's own mean, which needs no network. best: the reading
    that fits; lead: by how many dB it denoises better than the stated one on average. problems: one sentence each.
    """

    sigmas: tuple[float, ...]
    noisy: tuple[float, ...]
    trivial: tuple[float, ...]
    denoised: tuple[float, ...]
    stated: Reading
    best: Reading
    lead: float
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = zip(self.sigmas, self.noisy, self.trivial, self.denoised, strict=True)
        keys = ("sigma", "noisy_psnr", "trivial_psnr", "denoised_psnr")
        return {
            "passed": self.passed,
            "problems": list(self.problems),
            "stated": vars(self.stated),
            "best": vars(self.best),
            "lead_db": round(self.lead, 3),
            "levels": [dict(zip(keys, (round(value, 4) for value in row), strict=True)) for row in rows],
        }


def calls(prior: NetworkPrior) -> int:
    """The number of network calls that `verify_prior` makes."""
    return LEVELS * len(_RANGES) * len(_schedules(prior, "stated"))


def verify_prior(
    prior: NetworkPrior,
    pictures: torch.Tensor,
    schedule_name: str = "stated",
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Verification:
    """Denoise pictures (B, C, H, W) in [0, 1] under every reading of the prior's network.

    schedule_name: the name of the stated schedule; advance: called after each network call. Raises UsageError for
    pictures of other channels, NumericalError if the network answers with NaN or infinity.
    """
    if pictures.ndim != 4 or not len(pictures):
        raise UsageError(f"pictures must be (B, C, H, W), got a tensor of shape {tuple(pictures.shape)}")
    prior.check_shape(pictures.shape[1:])
    pictures = pictures.to(prior.device, torch.float32)
    low, high = max(_LOWEST, prior.sigma_min), min(_HIGHEST, prior.sigma_max)
    sigmas = tuple(float(sigma) for sigma in np.geomspace(low, high, LEVELS))
    schedules = _schedules(prior, schedule_name)
    errors: dict[Reading, list[torch.Tensor]] = {}
    noisy, trivial = [], []
    for level, sigma in enumerate(sigmas):
        noise = np.random.default_rng([seed, level]).standard_normal(pictures.shape, dtype=np.float32)
        x = pictures + sigma * torch.from_numpy(noise).to(prior.device)
        noisy.append(_error(x, pictures))
        # The best affine function of a pixel, with the picture's own mean m and variance v: MSE = v s^2 / (v + s^2).
        variance = pictures.var((1, 2, 3), correction=0)
        trivial.append((variance * sigma**2 / (variance + sigma**2)).cpu())
        for span in _RANGES:
            for name, schedule in schedules.items():
                for prediction, clean in _readings(prior, schedule, span, x, sigma):
                    errors.setdefault(Reading(prediction, name, span), []).append(_error(clean, pictures))
                advance()
    psnr = {reading: _psnr(torch.stack(found)) for reading, found in errors.items()}
    stated = Reading(prior.prediction, schedule_name, _STATED_RANGE)
    # An answer with NaN or infinity is an error under the stated reading; any other reading is then merely wrong.
    if not torch.isfinite(torch.stack(errors[stated])).all():
        raise NumericalError(f"{prior.name}: the network answers with NaN or infinity")
    psnr = {reading: values for reading, values in psnr.items() if torch.isfinite(values).all()}
    best = _choose(psnr, stated)
    problems = [] if best == stated else best.changes(stated)
    floor, base = _psnr(torch.stack(noisy)), _psnr(torch.stack(trivial))
    if not problems:
        problems = _quality(psnr[stated], floor, base, sigmas)
    elif float((psnr[best] - base).mean()) < MARGIN:
        problems = [_useless("under any reading of it")]
    return Verification(
        sigmas,
        tuple(floor.mean(1).tolist()),
        tuple(base.mean(1).tolist()),
        tuple(psnr[stated].mean(1).tolist()),
        stated,
        best,
        float((psnr[best] - psnr[stated]).mean()),
        tuple(problems),
    )


def _schedules(prior: NetworkPrior, name: str) -> dict[str, Schedule]:
    """The stated schedule, and the usual ones with as many steps that differ from it."""
    steps = len(prior.schedule)
    usual = {
        "linear": Schedule.named("linear", steps),
        "scaled_linear": Schedule.named("scaled_linear", steps),
        "scaled_linear (0.00085 to 0.012)": Schedule.named("scaled_linear", steps, 0.00085, 0.012),
        "cosine (squaredcos_cap_v2)": Schedule.named("cosine", steps),
    }
    others = {
        key if key != name else f"{key} (1e-4 to 0.02)": schedule
        for key, schedule in usual.items()
        if schedule != prior.schedule
    }
    return {name: prior.schedule, **others}


def _readings(
    prior: NetworkPrior, schedule: Schedule, span: str, x: torch.Tensor, sigma: float
) -> list[tuple[str, torch.Tensor]]:
    """(prediction type, E[x_0 | x]) for each type from one network call, as NetworkPrior.denoise but for either range."""
    low, high = _RANGES[span]
    scale = high - low
    abar = 1 / (1 + (scale * sigma) ** 2)
    x_t = (low + scale * x) * abar**0.5
    t = torch.full((len(x),), float(schedule.t(scale * sigma)), dtype=torch.float32, device=x.device)
    with torch.no_grad():
        output = prior._predict(x_t, t)
    return [(name, (to_clean(name, output, x_t, abar) - low) / scale) for name in PREDICTIONS]


def _choose(psnr: dict[Reading, torch.Tensor], stated: Reading) -> Reading:
    """Among the readings that no other one beats, the one with the fewest changes, and of several the best."""
    top = max(psnr, key=lambda reading: float(psnr[reading].mean()))

    def beaten(reading: Reading) -> bool:
        # One number for each picture, because differences between noise levels are systematic and not random.
        difference = (psnr[top] - psnr[reading]).mean(0)
        lead = float(difference.mean())
        error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
        return lead > MARGIN and lead > 3 * error

    left = [reading for reading in psnr if not beaten(reading)]
    return min(left, key=lambda reading: (len(reading.changes(stated)), -float(psnr[reading].mean())))


def _quality(psnr: torch.Tensor, noisy: torch.Tensor, trivial: torch.Tensor, sigmas: tuple[float, ...]) -> list[str]:
    """The problems of a network under the right reading: it removes no noise, or makes pictures worse at some levels."""
    if float((psnr - trivial).mean()) < MARGIN:
        return [_useless("better than shrinking it towards its mean does")]
    worse = [sigma for sigma, gain in zip(sigmas, (psnr - noisy).mean(1).tolist(), strict=True) if gain < 0]
    if worse:
        levels = ", ".join(f"{sigma:.3g}" for sigma in worse)
        return [
            f"this network makes pictures worse at sigma = {levels}, where doing nothing would be better: train it "
            "longer, or give pictures of the kind it was trained on"
        ]
    return []


def _useless(how: str) -> str:
    return (
        f"this network does not remove noise {how}: it is untrained, or made for other pictures "
        "(give some of its own kind)"
    )


def _error(x: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    return ((x - pictures).double() ** 2).mean((1, 2, 3)).cpu()


def _psnr(error: torch.Tensor) -> torch.Tensor:
    """10 log10(1 / MSE) in dB, for pictures in [0, 1]."""
    return -10 * torch.log10(error.clamp(min=1e-20))
