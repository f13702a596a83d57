"""Decoupled, splitting and variational methods once more, in dense numpy: their part of the oracle in `reference.py`."""

from __future__ import annotations

import numpy as np
from laws.reference import singular, start

SPECS = [
    "daps",
    "daps:ode_steps=3,spread=0.8,data_std=0.3",
    "daps:sampler=langevin,langevin_steps=3",
    "pnp_dm",
    "pnp_dm:calls=1",
    "pnp_dm:sampler=langevin,langevin_steps=3,langevin_size=0.5",
    "red_diff",
    "red_diff:lam=2,rate=0.1,sigma_max=1",
    "dpir:settled=0",
    "dpir:lam=0.5,sigma_max=1,settled=0",
    "measurement_sde",
    "measurement_sde:sigma_max=0.4",
]
"""Specs over which every law of the solvers runs."""
AFFINE = [spec for spec in SPECS if "langevin" not in spec and not spec.startswith("red_diff")]
"""Those whose sample is an affine function of their noise, for a Gaussian prior: not Adam, not steps scaled by curvature."""


def following(levels):
    return zip(levels, [*levels[1:], 0.0], strict=True)


class Nonlinear:
    """y = f(x) + sigma_y z with x ~ N(mean, covariance); `forward`: x -> f(x), `pull`: (x, v) -> J(x)^T v, on rows."""

    def __init__(self, p, y, forward, pull):
        self.gaussian, self.y, self.sigma_y, self.n = p, y, p.sigma_y, p.n
        self.forward, self.pull, self.denoise = forward, pull, p.denoise


def maps(p):
    """A and (x, v) -> J(x)^T v, on rows."""
    if isinstance(p, Nonlinear):
        return p.forward, p.pull
    return lambda x: x @ p.A.T, lambda x, v: v @ p.A


def begin(p, sigma, z):
    return 0.5 + sigma * z if isinstance(p, Nonlinear) else start(p, sigma, z)


def likelihood_step(p, settings, centre, r, draws):
    """A draw of N(x; centre, r^2) N(y; A(x), sigma_y^2)."""
    n, m = p.n, len(p.y)
    if settings["sampler"] != "langevin" and not isinstance(p, Nonlinear):
        x, y = centre + r * next(draws), p.y + p.sigma_y * draws.normal(m)
        covariance = np.linalg.inv(p.A.T @ p.A / p.sigma_y**2 + np.eye(n) / r**2)
        return (x / r**2 + y @ p.A / p.sigma_y**2) @ covariance
    forward, pull = maps(p)
    x, u = centre, pull(centre, p.y - forward(centre))
    largest = 0.0
    for k in range(4 + settings["langevin_steps"]):
        u = u / np.linalg.norm(u, axis=1, keepdims=True)
        h = 0.01 * np.sqrt(n)
        Ju = (forward(x + h * u) - forward(x)) / h
        curvature = (Ju**2).sum(1, keepdims=True)
        if k >= 3:
            largest = np.maximum(largest, curvature)
        u = pull(x, Ju)
        if k < 4:
            continue
        h = settings["langevin_size"] / (1 / r**2 + largest / p.sigma_y**2)
        slope = (centre - x) / r**2 + pull(x, p.y - forward(x)) / p.sigma_y**2
        x = x + h * slope + np.sqrt(2 * h) * next(draws)
    return x


def inner(sigma, calls):
    return [sigma * (calls - j) / calls for j in range(calls)]


def walk_daps(p, settings, levels, draws):
    x = begin(p, levels[0], next(draws))
    for sigma, s in following(levels):
        for outer, inside in following(inner(sigma, settings["ode_steps"])):
            x = x + (inside - outer) * (x - p.denoise(x, outer)) / outer
        nu = settings["data_std"] ** 2
        r = settings["spread"] * np.sqrt(sigma**2 * nu / (sigma**2 + nu))
        x = likelihood_step(p, settings, x, r, draws)
        if s > 0:
            x = x + s * next(draws)
    return x


def walk_pnp_dm(p, settings, levels, draws):
    z = begin(p, levels[0], next(draws))
    for rho, next_rho in following(levels):
        x = z
        for outer, inside in following(inner(rho, settings["calls"])):
            x0 = p.denoise(x, outer)
            x = x0 + inside**2 / outer**2 * (x - x0)
            if inside > 0:
                x = x + np.sqrt(inside**2 * (outer**2 - inside**2) / outer**2) * next(draws)
        z = likelihood_step(p, settings, x, next_rho, draws) if next_rho > 0 else x
    return z


def walk_red_diff(p, settings, levels, draws):
    forward, pull = maps(p)
    mu = begin(p, 0.0, next(draws))
    m = v = 0.0
    for k, sigma in enumerate(levels, 1):
        x0 = p.denoise(mu + sigma * next(draws), sigma)
        gradient = pull(mu, forward(mu) - p.y) + settings["lam"] * p.sigma_y * (mu - x0)
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        rate = settings["rate"] * (len(levels) - k + 1) / len(levels)
        mu = mu - rate * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.99**k)) + 1e-8)
    return mu


def walk_dpir(p, settings, levels, draws):
    z = start(p, 0.0, next(draws))
    for sigma in levels:
        precision = p.A.T @ p.A / p.sigma_y**2 + settings["lam"] / sigma**2 * np.eye(p.n)
        x = np.linalg.solve(precision, (p.A.T @ p.y / p.sigma_y**2 + settings["lam"] / sigma**2 * z).T).T
        z = p.denoise(x, sigma)
    return z


def walk_measurement_sde(p, settings, levels, draws):
    s, y_bar, Vt = singular(p)
    tau = np.full(p.n, np.inf)
    tau[s > 0] = p.sigma_y / s[s > 0]
    x_bar, z_bar = start(p, levels[0], next(draws)) @ Vt.T, next(draws) @ Vt.T
    middle, noise = Vt @ np.full(p.n, 0.5), levels[0] ** 2
    for i in np.flatnonzero(s > 0):
        extra = tau[i] ** 2 - noise
        if extra <= 0:
            mean, variance = y_bar[i], -extra
        else:  # x ~ N(1/2, 1/4 + noise), and y_bar is x with the rest of its noise, extra
            variance = 1 / (1 / (0.25 + noise) + 1 / extra)
            mean = variance * (middle[i] / (0.25 + noise) + y_bar[i] / extra)
        x_bar[:, i] = mean + np.sqrt(variance) * z_bar[:, i]
    for sigma, below in following(levels):
        x0_bar, z_bar = p.denoise(x_bar @ Vt, sigma) @ Vt.T, next(draws) @ Vt.T
        out = np.empty_like(x_bar)
        for i in range(p.n):
            if tau[i] <= below and tau[i] < sigma:  # between two ends of a Brownian bridge in the variable sigma^2
                t, T, end = below**2 - tau[i] ** 2, sigma**2 - tau[i] ** 2, y_bar[i]
                out[:, i] = end + t / T * (x_bar[:, i] - end) + np.sqrt(t * (T - t) / T) * z_bar[:, i]
                continue
            u, value = (tau[i], y_bar[i]) if tau[i] < sigma else (sigma, x_bar[:, i])
            variance = below**2 * (u**2 - below**2) / u**2
            out[:, i] = x0_bar[:, i] + below**2 / u**2 * (value - x0_bar[:, i]) + np.sqrt(variance) * z_bar[:, i]
        x_bar = out
    return x_bar @ Vt


PINNED = {
    "daps": (1.3461, 0.6178, 0.5991),
    "daps:spread=1,data_std=0.25": (1.0, 1.0, 0.0),
    "pnp_dm": (0.7388, 0.7067, 0.0512),
    "pnp_dm:calls=20": (0.9579, 0.9127, 0.0512),
    "measurement_sde": (0.8551, 0.9124, 0.0024),
}
"""Their part of `test_solver_laws.PINNED`; `dpir` and `red_diff` are point estimates."""
STEPS = {}
START = {}
WALKS = {
    "daps": walk_daps,
    "pnp_dm": walk_pnp_dm,
    "red_diff": walk_red_diff,
    "dpir": walk_dpir,
    "measurement_sde": walk_measurement_sde,
}
