"""The variational bound of a prior on the log-likelihood of images, in bits per dimension.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239, eq. 5, 6, 13;
D. Kingma, T. Salimans, B. Poole, J. Ho, "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630, eq. 11-14.

    -log p(x_0) <= L_T + sum_{t=1}^{T-1} L_t + L_0                                     (t as in `Schedule`: 0 .. T-1)
    L_T = KL(q(x_{T-1} | x_0) || N(0, I)),  L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),  L_0 = -log p(x_0 | x_{t=0})

with p(x_{t-1} | x_t) = N(a_t D(x_t) + b_t x_t, s_t^2 I), D the prior's `denoise`, and s_t^2 = beta~_t or beta_t. Both
Gaussians share a_t, b_t and x_t, so that

    L_t = a_t^2 / (2 s_t^2) |x_0 - D|^2 + 1/2 (beta~_t / s_t^2 - 1 + log(s_t^2 / beta~_t))     per dimension.

Everything in the network's units, where images are in [-1, 1]; divergences do not depend on the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.diffusion.weighting import reference_error
from invdiff.errors import NumericalError, UsageError, unknown

if TYPE_CHECKING:
    from invdiff.priors.prior import Prior

DECODERS = ("discrete", "gaussian")
VARIANCES = ("posterior", "beta")
MEASURES = {
    "discrete": "probability of the image's 8-bit levels; a uniform guess is 8 bits a dimension",
    "gaussian": "density for values in [0, 1]; a uniform guess is 0 bits a dimension (add log2 255 for 8-bit levels)",
}
LEVELS = 255
# L_0 is a large part of the bound, and four calls an image are few beside those of the sum.
DECODER_DRAWS = 4
# The share of a subset's time steps that is drawn uniformly, in case the prior errs where no error is expected.
_SPREAD = 0.1
# [-1, 1] is twice as wide as [0, 1].
_NETWORK_UNITS = 2

Array = np.ndarray


@dataclass(frozen=True)
class Term:
    """A part of the bound in bits per dimension, mean over the images.

    standard_error: of that mean for other images of the same kind (None for a single image); the random numbers are in it.
    monte_carlo_error: what other random numbers would change for these very images.
    """

    value: float
    standard_error: float | None
    monte_carlo_error: float


@dataclass(frozen=True, eq=False)
class Bound:
    """total = L_T + diffusion + L_0, diffusion = sum of L_t for t = 1 .. T-1; every image counts alike, whatever its size.

    t, L_t, L_t_error: the terms of the sum at the time steps that were looked at, their mean over images and its standard
    error (NaN where a step was looked at once). per_image: the totals. All in bits per dimension.
    """

    total: Term
    L_T: Term
    diffusion: Term
    L_0: Term
    t: Array
    L_t: Array
    L_t_error: Array
    per_image: Array
    steps: int
    timesteps: int | None
    decoder: str
    variance: str
    calls: int
    """Images that went through the prior."""

    @property
    def measure(self) -> str:
        """What a bit is counted against."""
        return MEASURES[self.decoder]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; None for what is not known (NaN here)."""
        content: dict[str, Any] = {}
        for name in ("total", "L_T", "diffusion", "L_0"):
            content[name] = {key: _known(value) for key, value in asdict(getattr(self, name)).items()}
        for name in ("measure", "decoder", "variance", "steps", "timesteps", "calls"):
            content[name] = getattr(self, name)
        for name in ("per_image", "t", "L_t", "L_t_error"):
            content[name] = [_known(value) for value in getattr(self, name).tolist()]
        return content


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def variational_bound(
    prior: Prior,
    images: Sequence[torch.Tensor] | torch.Tensor,
    *,
    schedule: Schedule | None = None,
    decoder: str = "discrete",
    variance: str = "posterior",
    timesteps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    names: Sequence[str] | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Bound:
    """An upper bound on -log2 p(x_0) per dimension, one noise image for each term.

    images: (C, H, W) in [0, 1] each, of any sizes. schedule: the chain; default the prior's, else "linear".
    decoder: "discrete" takes the probability of 8-bit levels, to which the images are rounded, and clips D to [0, 1]; its
    variance is beta~_1, as in Ho et al.'s code, and at least beta_0 / 2, which only tables that rise no more fall below.
    "gaussian" takes the density N(x_0; D, beta_0 I), for any values.
    variance: s_t^2, "posterior" for beta~_t or "beta" for beta_t.
    timesteps: None for all T - 1 terms, or K drawn for each image in K strata of equal expected size, weighted by one over
    their probability: unbiased, at K calls an image. batch_size: calls of the prior at once; no influence on the result.
    seed: the random numbers of an image depend on (seed, position) alone. names: what errors call the images.
    progress: called with (calls done, all calls).
    Raises UsageError for arguments and images that cannot be used, NumericalError if the prior answers NaN or infinity.
    """
    schedule = getattr(prior, "schedule", None) if schedule is None else schedule
    chain = _Chain.of(Schedule.named("linear") if schedule is None else schedule, decoder, variance, timesteps)
    titles = [f"image {k}" for k in range(len(images))] if names is None else names
    pictures = [_checked(image, title, prior, decoder) for image, title in zip(images, titles, strict=True)]
    if not pictures:
        raise UsageError("no images given; the bound is a mean over images")
    for name, value, least in (("seed", seed, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise UsageError(f"{name} must be {least} or more, got {value}")
    calls = DECODER_DRAWS + (chain.steps - 1 if timesteps is None else timesteps)
    parts = []
    with torch.no_grad():
        for k, picture in enumerate(pictures):
            size = batch_size or _default_batch(picture, prior.device)
            report = lambda done, k=k: progress(k * calls + done, len(pictures) * calls)  # noqa: E731
            parts.append(_one_image(chain, prior, picture, [seed, k], size, report))
    return _gather(chain, parts)


@dataclass(frozen=True, eq=False)
class _Chain:
    """The numbers of the reverse chain. factor, constant: of L_t = factor |x_0 - D|^2 + constant per dimension, in nats;
    probability: of t in the subset, and the expected shape of L_t. All (T,), at t = 0 zero."""

    schedule: Schedule
    decoder: str
    variance: str
    timesteps: int | None
    factor: Array
    constant: Array
    probability: Array
    decoder_variance: float

    @classmethod
    def of(cls, schedule: Schedule, decoder: str, variance: str, timesteps: int | None) -> _Chain:
        if decoder not in DECODERS:
            raise unknown("decoder", decoder, DECODERS)
        if variance not in VARIANCES:
            raise unknown("variance", variance, VARIANCES)
        steps = len(schedule)
        if timesteps is not None and not 3 <= timesteps <= steps:
            raise UsageError(
                f"timesteps={timesteps}: give a number from 3 to {steps}, the steps of the schedule, or none for all"
            )
        true = schedule.posterior_variances
        chosen = np.where(variance == "posterior", true, schedule.betas)
        a, _ = schedule.posterior_coefficients
        factor, constant = np.zeros(steps), np.zeros(steps)
        factor[1:] = a[1:] ** 2 / (2 * chosen[1:])
        constant[1:] = 0.5 * (true[1:] / chosen[1:] - 1 + np.log(chosen[1:] / true[1:]))
        expected = factor * reference_error(schedule)
        uniform = (factor > 0) / max(steps - 1, 1)
        probability = (1 - _SPREAD) * expected / max(expected.sum(), 1e-300) + _SPREAD * uniform
        last = max(true[1], schedule.betas[0] / 2) if decoder == "discrete" and steps > 1 else schedule.betas[0]
        return cls(schedule, decoder, variance, timesteps, factor, constant, probability, float(last))

    @property
    def steps(self) -> int:
        return len(self.schedule)

    def choose(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Time steps of one image and how much each counts, so that sum(count * L_t) has the sum of L_t as its mean."""
        if self.timesteps is None:
            return np.arange(1, self.steps), np.ones(self.steps - 1)
        place = (np.arange(self.timesteps) + rng.random(self.timesteps)) / self.timesteps
        edges = np.cumsum(self.probability)
        t = np.minimum(np.searchsorted(edges / edges[-1], place, side="right"), self.steps - 1)
        return t, 1 / (self.timesteps * self.probability[t])


def _one_image(
    chain: _Chain, prior: Prior, x: torch.Tensor, seed: list[int], batch_size: int, progress: Callable[[int], object]
) -> tuple[list[float], Array, Array]:
    """One image's [L_T, sum of L_t, L_0, and the variances of the last two by what was drawn], t and L_t; all in nats per
    dimension. progress: called with the number of calls done."""
    t, count = chain.choose(np.random.default_rng([*seed, 0]))
    every = np.concatenate([np.zeros(DECODER_DRAWS, dtype=np.int64), t])
    values = np.empty(len(every))
    for first in range(0, len(every), batch_size):
        last = min(first + batch_size, len(every))
        generators = [np.random.default_rng([*seed, 1, row]) for row in range(first, last)]
        noise = np.stack([rng.standard_normal(tuple(x.shape), dtype=np.float32) for rng in generators])
        values[first:last] = _values(chain, prior, x, every[first:last], noise)
        progress(last)
    decoded, errors = values[:DECODER_DRAWS], values[DECODER_DRAWS:]
    sampled = chain.factor[t] * errors
    abar = chain.schedule.alphas_bar[-1]
    square = float((_NETWORK_UNITS * _exact(x) - 1).square().mean())
    L_T = 0.5 * (abar * (square - 1) - math.log1p(-abar))
    diffusion = (count * sampled).sum() + chain.constant.sum()
    variances = _variance(count * sampled, count * chain.probability[t]), decoded.var(ddof=1) / DECODER_DRAWS
    return [L_T, diffusion, decoded.mean(), *variances], t, sampled + chain.constant[t]


def _values(chain: _Chain, prior: Prior, x: torch.Tensor, t: Array, noise: Array) -> Array:
    """For each noise image (B, C, H, W) of one x: -log p(x_0 | x_t) where t = 0, else |x_0 - D|^2; per dimension."""
    levels = chain.schedule.sigmas[t] / _NETWORK_UNITS
    n, sigma = (torch.from_numpy(array).to(x.dtype).to(x.device) for array in (noise, levels))
    clean = prior.denoise(x + sigma.reshape(-1, *([1] * x.ndim)) * n, sigma)
    if not torch.isfinite(clean).all():
        bad = int(t[int((~torch.isfinite(clean)).flatten(1).any(1).nonzero()[0, 0])])
        raise NumericalError(
            f"the prior answers NaN or infinity at t = {bad}, sigma {levels[t == bad][0]:.4g}; try --precision fp32"
        )
    if chain.decoder == "discrete":
        clean = clean.clamp(0, 1)
    x, clean = _exact(x), _exact(clean)
    values = _NETWORK_UNITS**2 * (clean - x).square().flatten(1).mean(1)
    decode = discrete_decoder if chain.decoder == "discrete" else gaussian_decoder
    for row in np.flatnonzero(t == 0):
        values[row] = decode(x, clean[row], math.sqrt(chain.decoder_variance) / _NETWORK_UNITS)
    return values.cpu().numpy()


def gaussian_decoder(x: torch.Tensor, mean: torch.Tensor, deviation: float) -> torch.Tensor:
    """-log N(x; mean, deviation^2 I) per dimension, in nats; all in [0, 1] units."""
    z = (x - mean) / deviation
    return 0.5 * z.square().mean() + math.log(deviation * math.sqrt(2 * math.pi))


def discrete_decoder(x: torch.Tensor, mean: torch.Tensor, deviation: float) -> torch.Tensor:
    """-log of the mass that N(mean, deviation^2) has between the middles of x's level and its neighbours', per dimension,
    in nats; the first and the last of the 256 levels reach to infinity  (Ho et al. 2020, eq. 13)."""
    half = 0.5 / LEVELS
    upper = torch.where(x > 1 - half, math.inf, (x + half - mean) / deviation)
    lower = torch.where(x < half, -math.inf, (x - half - mean) / deviation)
    # Mirrored where the interval lies above the mean: far out, the upper tail keeps its digits and 1 - Phi does not.
    mirrored = lower + upper > 0
    lower, upper = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return -(log_upper + torch.log1p(-(log_lower - log_upper).exp())).mean()


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, which Apple's devices do not have."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _variance(values: Array, expected: Array) -> float:
    """The variance of sum(values), terms drawn independently one after the other along t.

    values / expected changes slowly from term to term, so what a term differs from the mean of its two neighbours is noise:
    its square is 3/2 of a term's variance (successive differences; Wolter 2007, "Introduction to Variance Estimation",
    sec. 8.2). What the trend bends is counted as noise too. NaN for fewer than three terms.
    """
    if len(values) < 3:
        return math.nan if len(values) else 0.0
    ratio = values / expected
    squares = (ratio[1:-1] - (ratio[:-2] + ratio[2:]) / 2) ** 2 / 1.5
    return float((expected**2 * np.concatenate([squares[:1], squares, squares[-1:]])).sum())


def _gather(chain: _Chain, parts: Sequence[tuple[list[float], Array, Array]]) -> Bound:
    """Means over images and their errors, in bits."""
    bits = 1 / math.log(2)
    none = np.zeros(len(parts))
    L_T, diffusion, L_0, *variances = np.array([numbers for numbers, _, _ in parts]).T * bits
    diffusion_variance, L_0_variance = (bits * variance for variance in variances)
    t = np.concatenate([t for _, t, _ in parts]).astype(np.int64)
    terms = bits * np.concatenate([L_t for _, _, L_t in parts])
    count = np.bincount(t, minlength=chain.steps)
    seen = np.flatnonzero(count)
    mean = np.bincount(t, terms, chain.steps)[seen] / count[seen]
    spread = np.bincount(t, (terms - np.interp(t, seen, mean)) ** 2, chain.steps)[seen] if len(seen) else none[:0]
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(count[seen] > 1, np.sqrt(spread / (count[seen] - 1) / count[seen]), np.nan)
    return Bound(
        total=_term(L_T + diffusion + L_0, diffusion_variance + L_0_variance),
        L_T=_term(L_T, none),
        diffusion=_term(diffusion, diffusion_variance),
        L_0=_term(L_0, L_0_variance),
        t=seen,
        L_t=mean,
        L_t_error=error,
        per_image=L_T + diffusion + L_0,
        steps=chain.steps,
        timesteps=chain.timesteps,
        decoder=chain.decoder,
        variance=chain.variance,
        calls=len(t) + DECODER_DRAWS * len(parts),
    )


def _term(values: Array, variances: Array) -> Term:
    n = len(values)
    spread = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Term(float(values.mean()), spread, float(np.sqrt(variances.sum()) / n))


def _checked(image: torch.Tensor, title: str, prior: Prior, decoder: str) -> torch.Tensor:
    """The image on the prior's device; for the discrete decoder at its nearest 8-bit levels."""
    if not isinstance(image, torch.Tensor) or not image.is_floating_point() or image.numel() == 0:
        raise UsageError(f"{title} is no floating-point tensor (C, H, W) with values in [0, 1]")
    try:
        prior.check_shape(tuple(image.shape))
    except UsageError as error:
        raise UsageError(f"{title}: {error}") from error
    if not torch.isfinite(image).all():
        raise UsageError(f"{title} holds NaN or infinity")
    x = image.detach().to(prior.device)
    if decoder == "gaussian":
        return x
    if x.min() < 0 or x.max() > 1:
        raise UsageError(
            f"{title} has values from {float(x.min()):.4g} to {float(x.max()):.4g}, and 8-bit levels are in [0, 1]; "
            'clip it, or use the decoder "gaussian"'
        )
    return (LEVELS * x).round() / LEVELS


def _default_batch(x: torch.Tensor, device: torch.device) -> int:
    """As many images as make a million pixels on an accelerator; on a CPU, where more only take more memory, fewer."""
    pixels = 2**16 if device.type == "cpu" else 2**20
    return max(1, pixels // max(1, x.shape[-1] * (x.shape[-2] if x.ndim > 1 else 1)))
