"""Validation: how well one call of `denoise` removes noise from images that training never saw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.files.images import centre, to_grid
from invdiff.priors.prior import Prior
from invdiff.samplers.generation import sample

SIGMAS = (5 / 255, 15 / 255, 25 / 255, 50 / 255, 100 / 255)
SIZES = (64, 128, 256)
"""Sides, in pixels, of the windows that `denoising_scores` compares."""

Scores = dict[tuple[int | None, float], float]


def validate(prior: Prior, images: Sequence[torch.Tensor], schedule: Schedule) -> dict[str, float]:
    """The columns of log.csv that say how good the prior is: psnr_5 .. psnr_100 of the whole images (dB), val_loss, and
    psnr_5_at_64 .. psnr_100_at_256 (dB, the same pixels denoised inside windows of each size; see `denoising_scores`).

    images: (C, H, W) in [0, 1]. Costs about as much as 1.4 calls of the network for each image and noise level.
    """
    scores = denoising_scores(prior, images)
    row = {f"psnr_{_name(sigma)}": round(scores[None, sigma], 3) for sigma in SIGMAS}
    row["val_loss"] = round(validation_loss(prior, images, schedule), 6)
    return row | {f"psnr_{_name(s)}_at_{side}": round(v, 3) for (side, s), v in scores.items() if side is not None}


def _name(sigma: float) -> str:
    return f"{255 * sigma:.0f}"


def denoising_psnr(
    prior: Prior, images: Iterable[torch.Tensor], sigmas: Sequence[float] = SIGMAS, seed: int = 0
) -> dict[float, float]:
    """Mean over images of 10 log10(1 / MSE) of denoise(x + sigma n, sigma), output clipped to [0, 1].

    images: (C, H, W) in [0, 1], of any sizes; the noise depends on (seed, position) alone.
    """
    scores = denoising_scores(prior, images, sigmas, sizes=(), seed=seed)
    return {sigma: scores[None, sigma] for sigma in sigmas}


def denoising_scores(
    prior: Prior,
    images: Iterable[torch.Tensor],
    sigmas: Sequence[float] = SIGMAS,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> Scores:
    """PSNR in dB by (None, sigma): of whole images, as `denoising_psnr`; and by (side, sigma): of the same pixels with
    the same noise, denoised inside a window of side x side pixels.

    The pixels scored are the central half (per side) of the smallest size, 32 x 32: what differs between the columns of
    one sigma is how far the network sees around them, and over how many pixels its normalisation layers average. (With
    all 64 x 64 scored, the smallest size lost 0.25 dB at 25/255 to its borders alone, at which half of the neighbours
    are missing, and hid the normalisation's 0.02 dB.) To compare like with like, all sizes take the same images, those
    with both sides at least the largest size that half of the images have; and windows lie inside each other at
    multiples of 32 pixels, so that the network's pooling meets the same phase.
    An image smaller than the smallest size has no part in them.
    """
    pictures = list(images)
    fitting = fitting_sizes(pictures, sizes)
    scored = fitting[0] // 2 if fitting else 0
    totals: Scores = {(None, sigma): 0.0 for sigma in sigmas}
    totals |= {(side, sigma): 0.0 for sigma in sigmas for side in fitting}
    compared = 0
    with torch.inference_mode():
        for index, image in enumerate(pictures):
            noise = np.random.default_rng([seed, index]).standard_normal(tuple(image.shape), dtype=np.float32)
            x, n = image[None].to(prior.device), torch.from_numpy(noise)[None].to(prior.device)
            takes_part = bool(fitting) and min(image.shape[-2:]) >= fitting[-1]
            compared += takes_part
            noisy = torch.cat([x + sigma * n for sigma in sigmas])
            whole = torch.cat([prior.denoise(y[None], sigma) for y, sigma in zip(noisy, sigmas, strict=True)])
            for sigma, answer in zip(sigmas, whole, strict=True):
                totals[None, sigma] += _psnr(answer, x[0])
            for side in fitting if takes_part else ():
                inside = centre(noisy, side)  # the noise levels in one batch: small windows leave a GPU idle
                answers = whole if inside.shape == noisy.shape else prior.denoise(inside, torch.tensor(sigmas))
                truth = centre(centre(x, side), scored)[0]
                for sigma, answer in zip(sigmas, answers, strict=True):
                    totals[side, sigma] += _psnr(centre(answer, scored), truth)
    return {key: total / max(1, len(pictures) if key[0] is None else compared) for key, total in totals.items()}


def fitting_sizes(images: Sequence[torch.Tensor], sizes: Sequence[int] = SIZES) -> list[int]:
    """The sizes, increasing, up to the largest that at least half of the images have on both sides."""
    sides = sorted(min(image.shape[-2:]) for image in images)
    median = sides[len(sides) // 2] if sides else 0
    return [side for side in sorted(sizes) if side <= median]


def _psnr(answer: torch.Tensor, truth: torch.Tensor) -> float:
    return -10 * float(torch.log10((answer.clamp(0, 1) - truth).square().mean()))


def validation_loss(
    prior: Prior, images: Sequence[torch.Tensor], schedule: Schedule, *, side: int = 64, seed: int = 0
) -> float:
    """E || n - n(x_0 + sigma_t n, t) ||^2 a value, t uniform: the simple loss (Ho et al. 2020, eq. 14), unweighted.

    Always at the same t and noise, so that its changes are those of the network. The central square of image i, of at
    most side x side pixels, has up to five stratified times t_j = floor(T (j + u_i) / draws), fewer where the image is
    small; u_i = frac(i (sqrt 5 - 1) / 2) spreads those of all images evenly (an additive recurrence).
    """
    golden = (math.sqrt(5) - 1) / 2
    total = 0.0
    with torch.inference_mode():
        for index, image in enumerate(images):
            height, width = image.shape[-2:]
            extent = min(side, height, width)
            draws = min(5, max(1, round(0.4 * height * width / extent**2)))  # 8 % of the calls for the PSNR
            t = (len(schedule) * (np.arange(draws) + math.fmod(index * golden, 1.0)) / draws).astype(np.int64)
            sigma = torch.from_numpy(schedule.sigmas[t] / 2).float()  # [0, 1] is half as wide as [-1, 1]
            x = centre(image, extent)[None].to(prior.device)
            rng = np.random.default_rng([seed, 1, index])
            n = torch.from_numpy(rng.standard_normal((draws, *x.shape[1:]), dtype=np.float32)).to(prior.device)
            noisy = x + sigma.to(prior.device)[:, None, None, None] * n
            total += float((prior.epsilon(noisy, sigma) - n).square().mean())
    return total / max(1, len(images))


def sample_picture(
    prior: Prior,
    images: Sequence[torch.Tensor],
    *,
    shape: tuple[int, int, int],
    count: int,
    steps: int,
    seed: int = 0,
    sigma: float = 50 / 255,
) -> torch.Tensor:
    """A picture (3, H, W) to judge the prior by: `count` samples of `shape` (C, h, w) in a row, by `steps` calls of
    DPM-Solver++;
    below, of two of the images (C, H, W) the centre, the same with noise sigma, and denoised.

    Always from the same noise, so that the pictures of one training can be compared.
    Raises NumericalError if the network gives NaN or infinity.
    """
    samples = sample(prior, shape, count, "dpmpp", steps=steps, seed=seed, batch_size=count)
    rows = [to_grid([as_rgb(x) for x in samples], columns=count)]
    if images:
        chosen = [images[0], images[len(images) // 2]] if len(images) > 1 else list(images)
        # Six tiles with their margins of 8 are as wide as the samples with theirs.
        side = min(count * (shape[2] + 8) // 6 - 8, *(extent for image in chosen for extent in image.shape[-2:]))
        tiles, labels = [], []
        for index, image in enumerate(chosen):
            x = centre(image, side)[None]
            noise = np.random.default_rng([seed, 2, index]).standard_normal(tuple(x.shape), dtype=np.float32)
            noisy = x + sigma * torch.from_numpy(noise)
            with torch.inference_mode():
                clean = prior.denoise(noisy.to(prior.device), sigma).cpu()
            tiles += [x[0], noisy[0], clean[0]]
            labels += ["held back", f"noise {_name(sigma)}/255", f"{_psnr(clean, x):.2f} dB"]
        rows.append(to_grid([as_rgb(x) for x in tiles], labels))
    width = max(row.shape[-1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, width - row.shape[-1]), value=1.0) for row in rows], dim=1)


def as_rgb(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) as (3, H, W) to look at: two channels as red and green, the first three of more."""
    channels = image.shape[0]
    if channels == 2:
        return torch.cat([image, torch.zeros_like(image[:1])])
    return image.expand(3, -1, -1) if channels == 1 else image[:3]
