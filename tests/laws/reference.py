"""Every solver once more, in dense numpy on flattened images with a Gaussian prior: the oracle of the solver laws.

Written from the equations in the solvers' headers with explicit matrices and numpy's own SVD; shares no code with the
package. With a Gaussian prior the denoiser is affine, so a solver whose correction is affine maps its noise affinely to
its sample, and the sample's mean and covariance follow exactly from the response to unit noises.
"""

from __future__ import annotations

import numpy as np


class GaussianProblem:
    """y = A x + sigma_y z with x ~ N(mean, covariance), all dense float64; rows are samples."""

    def __init__(self, A, y, sigma_y, mean, covariance, observed=None):
        self.A, self.y, self.sigma_y = A, y, sigma_y
        self.mean, self.covariance = mean, covariance
        self.n = A.shape[1]

    def gain(self, sigma):
        """K with D(x) = mean + K (x - mean)."""
        return self.covariance @ np.linalg.inv(self.covariance + sigma**2 * np.eye(self.n))

    def denoise(self, x, sigma):
        return self.mean + (x - self.mean) @ self.gain(sigma).T

    def posterior(self):
        """Exact mean and covariance of p(x | y)."""
        S = self.A @ self.covariance @ self.A.T + self.sigma_y**2 * np.eye(len(self.y))
        gain = self.covariance @ self.A.T @ np.linalg.inv(S)
        return self.mean + gain @ (self.y - self.A @ self.mean), self.covariance - gain @ self.A @ self.covariance


def singular(p):
    """U, s, V of A with all n right singular vectors; s padded with zeros."""
    U, s, Vt = np.linalg.svd(p.A, full_matrices=True)
    s_full = np.zeros(p.n)
    s_full[: len(s)] = np.where(s > 1e-6 * s.max(), s, 0)
    y_bar = np.zeros(p.n)
    y_bar[: len(s)] = (U.T @ p.y)[: len(s)]
    y_bar = np.divide(y_bar, s_full, out=np.zeros(p.n), where=s_full > 0)
    return s_full, y_bar, Vt


class Draws:
    """The random numbers of a run, in the order in which a method asks for them: seeded, the same here and there."""

    def __init__(self, seed, rows, n):
        self.rng, self.rows, self.n = np.random.default_rng(seed), rows, n

    def __next__(self):
        return self.normal(self.n)

    def normal(self, *shape):
        return self.rng.normal(size=(self.rows, *shape))

    def uniform(self, *shape):
        return self.rng.random((self.rows, *shape))


class Units(Draws):
    """Row 0 gets no noise, and every other row a 1 in one place of one draw. `used`: the rows that this takes."""

    def __init__(self, rows, n):
        self.rows, self.n, self.used = rows, n, 1

    def normal(self, *shape):
        size = int(np.prod(shape))
        out = np.zeros((self.rows, size))
        if self.used + size <= self.rows:
            out[self.used : self.used + size] = np.eye(size)
        self.used += size
        return out.reshape(self.rows, *shape)


def path(p, method, settings, levels, draws):
    """The samples (rows, n) that `method` makes from the draws: a `Draws`, or an iterator of arrays (rows, n)."""
    if method in WALKS:
        return WALKS[method](p, settings, levels, draws)
    x = START.get(method, start)(p, levels[0], next(draws))
    for sigma, following in zip(levels, [*levels[1:], 0.0], strict=True):
        x = STEPS[method](p, settings, x, sigma, following, draws)
    return x


def start(p, sigma, z):
    precision = p.A.T @ p.A / p.sigma_y**2 + 4 * np.eye(p.n)
    return np.linalg.solve(precision, p.A.T @ p.y / p.sigma_y**2 + 4 * 0.5) + sigma * z


def start_ddrm(p, sigma, z):
    s, y_bar, Vt = singular(p)
    z_bar = z @ Vt.T
    middle = Vt @ np.full(p.n, 0.5)
    x_bar = middle + sigma * z_bar
    for i in range(p.n):
        if s[i] > 0 and p.sigma_y / s[i] < sigma:
            x_bar[:, i] = y_bar[i] + np.sqrt(sigma**2 - (p.sigma_y / s[i]) ** 2) * z_bar[:, i]
    return x_bar @ Vt


def ddim(x, x0, sigma, following, v, z):
    return x0 + np.sqrt(following**2 - v**2) / sigma * (x - x0) + v * z


def ddim_noise(eta, sigma, following):
    return eta * np.sqrt(following**2 * (sigma**2 - following**2) / sigma**2)


def step_ddrm(p, settings, x, sigma, following, draws):
    eta, eta_b = settings["eta"], settings["eta_b"]
    s, y_bar, Vt = singular(p)
    x_bar, x0_bar, z_bar = x @ Vt.T, p.denoise(x, sigma) @ Vt.T, next(draws) @ Vt.T
    out = np.empty_like(x_bar)
    keep = np.sqrt(1 - eta**2)
    for i in range(p.n):
        if s[i] == 0:
            mean, std = x0_bar[:, i] + keep * following * (x_bar[:, i] - x0_bar[:, i]) / sigma, eta * following
        elif following < p.sigma_y / s[i]:
            direction = (y_bar[i] - x0_bar[:, i]) / (p.sigma_y / s[i])
            mean, std = x0_bar[:, i] + keep * following * direction, eta * following
        else:
            mean = (1 - eta_b) * x0_bar[:, i] + eta_b * y_bar[i]
            std = np.sqrt(following**2 - (p.sigma_y / s[i]) ** 2 * eta_b**2)
        out[:, i] = mean + std * z_bar[:, i]
    return out @ Vt


def step_ddnm(p, settings, x, sigma, following, draws):
    eta, keep = settings["eta"], np.sqrt(1 - settings["eta"] ** 2)
    s, y_bar, Vt = singular(p)
    x0 = p.denoise(x, sigma)
    x0_bar, e_bar = x0 @ Vt.T, (x - x0) @ Vt.T / sigma
    z_bar = next(draws) @ Vt.T if following > 0 else np.zeros_like(x0_bar)
    out = np.empty_like(x0_bar)
    for i in range(p.n):
        noise = eta * z_bar[:, i] + keep * e_bar[:, i]
        if s[i] == 0:
            out[:, i] = x0_bar[:, i] + following * noise
        elif p.sigma_y / s[i] <= following:
            out[:, i] = y_bar[i] + np.sqrt(following**2 - (p.sigma_y / s[i]) ** 2) * noise
        else:
            lam = keep * following * s[i] / p.sigma_y
            out[:, i] = x0_bar[:, i] + lam * (y_bar[i] - x0_bar[:, i]) + eta * following * z_bar[:, i]
    return out @ Vt


def step_pigdm(p, settings, x, sigma, following, draws):
    nu = settings["data_std"] ** 2
    r2 = sigma**2 * nu / (sigma**2 + nu)
    x0 = p.denoise(x, sigma)
    S = r2 * p.A @ p.A.T + p.sigma_y**2 * np.eye(len(p.y))
    guidance = (p.y - x0 @ p.A.T) @ np.linalg.inv(S) @ p.A @ p.gain(sigma)
    v = ddim_noise(settings["eta"], sigma, following)
    root_abar = 1 / np.sqrt(1 + (2 * following) ** 2)
    moved = ddim(x, x0, sigma, following, v, next(draws) if v > 0 else 0.0)
    return moved + settings["weight"] * r2 / root_abar * guidance


def step_diffpir(p, settings, x, sigma, following, draws):
    lam, zeta = settings["lam"], settings["zeta"]
    precision = p.A.T @ p.A / p.sigma_y**2 + lam / sigma**2 * np.eye(p.n)
    right = p.A.T @ p.y / p.sigma_y**2 + lam / sigma**2 * p.denoise(x, sigma)
    x0 = right @ np.linalg.inv(precision)
    v = np.sqrt(zeta) * following
    return ddim(x, x0, sigma, following, v, next(draws) if v > 0 else 0.0)


def step_dps(p, settings, x, sigma, following, draws):
    x0 = p.denoise(x, sigma)
    residual = p.y - x0 @ p.A.T
    norm = np.linalg.norm(residual, axis=1, keepdims=True)
    gradient = -(residual / norm) @ p.A @ p.gain(sigma)
    w = settings["weight"] * max(1.0, 1000 / settings["steps"])
    size = np.full_like(norm, w / 2 * np.sqrt((1 + 4 * sigma**2) * (1 + 4 * following**2)))
    size = np.minimum(size, settings["limit"] * norm / (gradient**2).sum(1, keepdims=True))
    v = ddim_noise(settings["eta"], sigma, following)
    return ddim(x, x0, sigma, following, v, next(draws) if v > 0 else 0.0) - size * gradient


STEPS = {"ddrm": step_ddrm, "ddnm": step_ddnm, "pigdm": step_pigdm, "diffpir": step_diffpir, "dps": step_dps}
START = {"ddrm": start_ddrm}
WALKS = {}
"""Methods that are more than start and steps: name -> (p, settings, levels, draws) -> samples (rows, n)."""


def moments(p, method, settings, levels):
    """Exact mean (n,) and covariance (n, n) of the sample of an affine method."""
    return response(lambda draws: path(p, method, settings, levels, draws), p.n)


def response(sample, n):
    """Exact mean and covariance of sample(draws) -> (rows, n) if it is affine in its draws: its response to unit noises."""
    counting = Units(1, n)
    sample(counting)
    x = sample(Units(counting.used, n))
    deviations = x[1:] - x[0]
    return x[0], deviations.T @ deviations
