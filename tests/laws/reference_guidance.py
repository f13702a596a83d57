"""Guidance methods once more, in dense numpy: their part of the oracle in `reference.py`."""

from __future__ import annotations

import numpy as np
from laws.reference import ddim, ddim_noise, singular, start

SPECS = [
    "ilvr",
    "ilvr:weight=0.5",
    "mcg",
    "mcg:weight=0.002,trust=3",
    "repaint",
    "repaint:jump=2,resamplings=3",
    "score_ald",
    "score_ald:iterations=2,step_size=0.4,gamma=0.7",
    "score_sde",
    "score_sde:lam=0.5",
    "mmps",
    "mmps:iterations=100",
    "mmps:iterations=1,eta=0.5",
    "tmpd",
    "tmpd:covariance=scalar,eta=0.4",
    "fast_dips",
    "fast_dips:budget=0.5,rho=2,iterations=2,descents=3",
]
"""Specs over which every law of the solvers runs."""
AFFINE = [
    "ilvr",
    "ilvr:weight=0.5",
    "repaint",
    "repaint:jump=2,resamplings=3",
    "score_ald",
    "score_ald:iterations=2,step_size=0.4,gamma=0.7",
    "score_sde",
    "mmps:iterations=100",
    "tmpd",
    "tmpd:covariance=scalar,eta=0.4",
]
"""Those whose sample is an affine function of their noise, for a Gaussian prior. The others divide by a norm of their
residual (`mcg`, `fast_dips`) or solve for it to a limited order (`mmps`)."""


def pull(p, x, sigma, noise, weight):
    """argmin_u weight ||A u - (y + sigma A z)||^2 / sigma_y^2 + ||u - x||^2 / sigma^2, by its normal equations."""
    data = p.y + sigma * noise @ p.A.T
    precision = weight * p.A.T @ p.A / p.sigma_y**2 + np.eye(p.n) / sigma**2
    return (weight * data @ p.A / p.sigma_y**2 + x / sigma**2) @ np.linalg.inv(precision)


def ancestral(x, x0, sigma, following, draws):
    """q(x_s | x_t, x_0): mean x_0 + (sigma_s / sigma_t)^2 (x_t - x_0), variance sigma_s^2 (1 - (sigma_s / sigma_t)^2)."""
    ratio = (following / sigma) ** 2
    mean = (1 - ratio) * x0 + ratio * x
    return mean + following * np.sqrt(1 - ratio) * next(draws) if following > 0 else mean


def step_ilvr(p, settings, x, sigma, following, draws):
    moved = ancestral(x, p.denoise(x, sigma), sigma, following, draws)
    weight = settings["weight"] * (1 - following**2 / sigma**2)
    return pull(p, moved, following, next(draws), weight) if following > 0 else moved


def step_mcg(p, settings, x, sigma, following, draws):
    x0 = p.denoise(x, sigma)
    moved = ancestral(x, x0, sigma, following, draws)
    w = settings["weight"] * max(1.0, 1000 / settings["steps"]) / np.linalg.norm(p.A, 2)
    w *= np.sqrt((1 + 4 * sigma**2) * (1 + 4 * following**2)) / 2
    m = np.sqrt(np.count_nonzero(np.abs(p.A).sum(1)))  # rows of zeros measure nothing
    for b in range(len(x)):
        r = p.y - p.A @ x0[b]
        gradient = -p.gain(sigma).T @ p.A.T @ r / np.linalg.norm(r)
        longest = (np.linalg.norm(r) - p.sigma_y * m) / (gradient @ gradient)
        moved[b] -= max(0.0, min(w, longest)) * gradient
    trust = settings["trust"] * (1 - following**2 / sigma**2)
    return pull(p, moved, following, next(draws), trust) if following > 0 else moved


def walk_repaint(p, settings, levels, draws):
    s, y_bar, Vt = singular(p)
    jump = settings["jump"]
    every = [*levels, 0.0]
    x = start(p, levels[0], next(draws))
    repeats, k = {}, 0
    while k < len(levels):
        x = ancestral(x, p.denoise(x, every[k]), every[k], every[k + 1], draws)
        k += 1
        if every[k] > 0:
            x_bar, z_bar = x @ Vt.T, next(draws) @ Vt.T
            for i in range(p.n):
                if s[i] > 0 and p.sigma_y / s[i] <= every[k]:
                    x_bar[:, i] = y_bar[i] + np.sqrt(every[k] ** 2 - (p.sigma_y / s[i]) ** 2) * z_bar[:, i]
            x = x_bar @ Vt
        due = (len(levels) - 1 - k) % jump == 0 and k >= jump and k < len(levels)
        if due and repeats.get(k, 1) < settings["resamplings"]:
            repeats[k] = repeats.get(k, 1) + 1
            x = bridge(x @ Vt.T, y_bar, s, p.sigma_y, every[k], every[k - jump], next(draws) @ Vt.T) @ Vt
            k -= jump
    return x


def bridge(x_bar, y_bar, s, sigma_y, low, high, z_bar):
    """Noise from the level low to high; a direction whose measurement, of noise tau, is its state at the level tau > low
    goes there: a Brownian motion in time sigma^2, tied to y_bar at tau^2."""
    out = x_bar + np.sqrt(high**2 - low**2) * z_bar
    for i in np.flatnonzero(s):
        tau = sigma_y / s[i]
        if low < tau <= high:
            out[:, i] = y_bar[i] + np.sqrt(high**2 - tau**2) * z_bar[:, i]
        elif tau > high:
            weights = np.array([tau**2 - high**2, high**2 - low**2]) / (tau**2 - low**2)
            spread = np.sqrt((high**2 - low**2) * (tau**2 - high**2) / (tau**2 - low**2))
            out[:, i] = weights[0] * x_bar[:, i] + weights[1] * y_bar[i] + spread * z_bar[:, i]
    return out


def walk_score_ald(p, settings, levels, draws):
    norm = np.linalg.norm(p.A, 2)
    x = start(p, levels[0], next(draws))
    for sigma in levels:
        bound = p.sigma_y**2 + settings["gamma"] ** 2 * norm**2 * sigma**2
        k = np.exp(-settings["step_size"])
        for _ in range(settings["iterations"]):
            D, g = p.denoise(x, sigma), (p.y - x @ p.A.T) @ p.A / bound
            x = D + k * (x - D) + (1 - k) * sigma**2 * g + np.sqrt(1 - k**2) * sigma * next(draws)
    return p.denoise(x, levels[-1])


def walk_score_sde(p, settings, levels, draws):
    norm, lam = np.linalg.norm(p.A, 2), settings["lam"]
    x = start(p, levels[0], next(draws))
    for sigma, following in zip(levels, [*levels[1:], 0.0], strict=True):
        ratio = (1 - lam) / lam * norm**2 + p.sigma_y**2 / (sigma**2 - following**2)
        data = p.y + sigma * next(draws) @ p.A.T
        x = (data @ p.A + ratio * x) @ np.linalg.inv(p.A.T @ p.A + ratio * np.eye(p.n))
        x = ancestral(x, p.denoise(x, sigma), sigma, following, draws)
    return x


def least_residual(S, b, iterations):
    """q = argmin ||b - S q|| over span{b, S b, .., S^(iterations - 1) b}, all of space if that is as large."""
    if iterations >= len(b):
        return np.linalg.inv(S) @ b
    basis = np.empty((len(b), 0))
    for _ in range(iterations):
        basis = np.linalg.qr(np.column_stack([basis, S @ basis[:, -1] if basis.size else b]))[0]
    return basis @ np.linalg.lstsq(S @ basis, b, rcond=None)[0]


def step_mmps(p, settings, x, sigma, following, draws):
    C = sigma**2 * p.gain(sigma)
    S = p.A @ C @ p.A.T + p.sigma_y**2 * np.eye(len(p.y))
    x0 = p.denoise(x, sigma)
    for b in range(len(x)):
        x0[b] += C @ p.A.T @ least_residual(S, p.y - p.A @ x0[b], settings["iterations"])
    v = ddim_noise(settings["eta"], sigma, following)
    return ddim(x, x0, sigma, following, v, next(draws) if v > 0 else 0.0)


def step_tmpd(p, settings, x, sigma, following, draws):
    C = sigma**2 * p.gain(sigma)
    seen = np.abs(p.A).sum(1) > 0  # rows of zeros measure nothing
    rows = (p.A @ C @ p.A.T).sum(1)
    if settings["covariance"] == "scalar":
        rows = np.full_like(rows, rows[seen].mean())
    x0 = p.denoise(x, sigma)
    x0 = x0 + ((p.y - x0 @ p.A.T) / (np.maximum(rows, 0) + p.sigma_y**2)) @ p.A @ C
    v = ddim_noise(settings["eta"], sigma, following)
    return ddim(x, x0, sigma, following, v, next(draws) if v > 0 else 0.0)


def step_fast_dips(p, settings, x, sigma, following, draws):
    clean = p.denoise(x, sigma)
    m = np.count_nonzero(np.abs(p.A).sum(1))
    radius = settings["budget"] * p.sigma_y * np.sqrt(m)
    rho = settings["rho"] / p.sigma_y**2
    hessian = np.eye(p.n) / sigma**2 + rho * p.A.T @ p.A
    out = clean.copy()
    for b in range(len(x)):
        u = np.zeros(len(p.y))
        for _ in range(settings["iterations"]):
            w = p.A @ out[b] + u
            v = p.y + (w - p.y) * min(1.0, radius / np.linalg.norm(w - p.y))
            minimum = np.linalg.solve(hessian, clean[b] / sigma**2 + rho * p.A.T @ (v - u))
            for _ in range(settings["descents"]):
                g = hessian @ (out[b] - minimum)
                if np.any(g):
                    out[b] -= (g @ g) / (g @ hessian @ g) * g
            u = u + p.A @ out[b] - v
    return out + following * next(draws) if following > 0 else out


STEPS = {
    "ilvr": step_ilvr,
    "mcg": step_mcg,
    "mmps": step_mmps,
    "tmpd": step_tmpd,
    "fast_dips": step_fast_dips,
}
START = {}
WALKS = {"repaint": walk_repaint, "score_ald": walk_score_ald, "score_sde": walk_score_sde}
PINNED = {
    "ilvr": (0.5130, 0.9124, 0.0306),
    "repaint": (0.9038, 0.9141, 0.0003),
    "score_ald": (0.5894, 0.5978, 0.0125),
    "score_sde": (0.5157, 0.9124, 0.0263),
    "mmps": (0.9123, 0.9124, 0.0001),
    "tmpd": (0.9123, 0.9124, 0.0001),
    "fast_dips": (0.3375, 0.4777, 0.1639),
}
"""The bias of the methods that are affine for the problem of `bias`; `fast_dips` is, where A has orthonormal rows."""
SAMPLED = {"mcg": (0.4170, 0.9089, 0.1556)}
"""The same from 20,000 samples."""
