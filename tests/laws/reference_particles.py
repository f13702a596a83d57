"""Sequential Monte Carlo once more, in dense numpy: their part of the oracle in `reference.py`.

Explicit covariance matrices, their inverses and determinants, and one population after the other, where the package works
with solves, proximal steps and the singular coordinates of A.
"""

from __future__ import annotations

import itertools

import numpy as np

SPECS = [
    "mcg_diff:particles=3",
    "mcg_diff:particles=5,eta=0.7,kappa=0.01,threshold=1,initial=noise",
    "tds:particles=4,spread=0.4,data_std=0.4",
    "tds:particles=3,twist=tweedie,threshold=0.9,initial=noise,spread=0.1",
    "tds:particles=3,twist=plain,spread=0.3",
    "fps_smc:particles=3",
    "fps_smc:particles=4,fresh=0.5,threshold=0.8,initial=noise",
]
"""Specs over which every law of the solvers runs."""
AFFINE = []
"""Those whose sample is an affine function of their noise, for a Gaussian prior: a choice between particles is not."""
STEPS = {}
START = {}


def log_density(x, mean, covariance):
    """log N(x; mean, covariance) of rows x."""
    offset = x - mean
    _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset) + log_determinant)


def effective_size(log_w):
    w = np.exp(log_w - log_w.max())
    return w.sum() ** 2 / (w**2).sum()


def systematic(log_w, u):
    w = np.exp(log_w - log_w.max())
    share = np.cumsum(w / w.sum())
    count = len(w)
    return np.minimum([np.sum(share <= (u + i) / count) for i in range(count)], count - 1)


def centre(p, settings, sigma):
    """Mean and variance of the first level's law."""
    if settings["initial"] == "noise":
        return np.full(p.n, 0.5), sigma**2 + 0.25
    precision = p.A.T @ p.A / p.sigma_y**2 + 4 * np.eye(p.n)
    return np.linalg.solve(precision, p.A.T @ p.y / p.sigma_y**2 + 2.0), sigma**2


class Populations:
    """Rows of N particles (rows, N, n) with their log weights; `method` works on one population (N, ...) at a time."""

    def __init__(self, settings, x, log_w):
        self.settings, self.x, self.log_w = settings, x, log_w

    def resample(self, u, always=False):
        """For each row the chosen particles, after which their weights are equal."""
        count = self.x.shape[1]
        chosen = []
        for row, log_w in enumerate(self.log_w):
            threshold = self.settings["threshold"]
            if always or threshold == 1 or effective_size(log_w) < threshold * count:
                chosen.append(systematic(log_w, u[row, 0]))
                self.log_w[row] = 0
            else:
                chosen.append(np.arange(count))
        self.x = np.stack([x[index] for x, index in zip(self.x, chosen, strict=True)])
        return chosen


def run(p, settings, levels, draws, look, move, population, pinned=False):
    """The particle loop: look(row, x, sigma, following) -> log weights; move(the same, and z) -> x, log weights."""
    for step, (sigma, following) in enumerate(zip(levels, [*levels[1:], 0.0], strict=True)):
        rows = range(len(population.x))
        weights = np.stack([look(row, population.x[row], sigma, following) for row in rows])
        if not (pinned and step == 0):
            population.log_w = population.log_w + weights
        population.resample(draws.uniform(1))
        z = move.draw(sigma, following)
        moved = [move(row, population.x[row], sigma, following, [part[row] for part in z]) for row in rows]
        population.x = np.stack([x for x, _ in moved])
        population.log_w = population.log_w + np.stack([gained for _, gained in moved])
    population.resample(draws.uniform(1), always=True)
    return population.x[:, 0]


class Mover:
    def __init__(self, p, settings, draws):
        self.p, self.settings, self.draws, self.count = p, settings, draws, settings["particles"]

    def normal(self, size):
        return self.draws.normal(self.count, size)


def observed(p):
    """The rows of A that measure something: a place-holder neither weighs nor is a measured value."""
    return np.abs(p.A).sum(1) > 0


def walk_tds(p, settings, levels, draws):
    n, eye = p.n, np.eye(p.n)
    twist = settings["twist"]
    if twist == "auto":
        twist = "tweedie" if len(p.y) <= 16 else "scalar"
    variance = lambda sigma, deviation: sigma**2 * deviation**2 / (sigma**2 + deviation**2)  # noqa: E731

    def moments(x, sigma):
        C = sigma**2 * p.gain(sigma)
        r2 = variance(sigma, settings["data_std"])
        inside = {"tweedie": p.A @ C @ p.A.T, "scalar": r2 * p.A @ p.A.T, "plain": r2 * np.eye(len(p.y))}[twist]
        S = inside + p.sigma_y**2 * np.eye(len(p.y))
        clean = p.denoise(x, sigma)
        residual = p.y - clean @ p.A.T
        return clean, residual @ np.linalg.inv(S) @ p.A @ C.T, log_density(residual, 0.0, S)

    class Move(Mover):
        def draw(self, sigma, following):
            z = [self.normal(n)]
            if settings["spread"] > 0:
                z += [self.normal(n), self.normal(len(p.y))]
            return z

        def __call__(self, row, x, sigma, following, z):
            clean, shift, log_g = moments(x, sigma)
            k = following**2 / sigma**2
            v2 = following**2 * (sigma**2 - following**2) / sigma**2
            base = clean + k * (x - clean)
            mean = base + (1 - k) * shift
            model = proposal = v2 * eye
            moved = mean + np.sqrt(v2) * z[0]
            if settings["spread"] > 0:
                r2 = variance(sigma, settings["spread"])
                gain = r2 * p.A.T @ np.linalg.inv(r2 * p.A @ p.A.T + p.sigma_y**2 * np.eye(len(p.y)))
                u, noise = np.sqrt(r2) * z[1], p.sigma_y * z[2]
                moved = moved + (1 - k) * (u + (noise - u @ p.A.T) @ gain.T)
                model = (v2 + (1 - k) ** 2 * r2) * eye
                proposal = v2 * eye + (1 - k) ** 2 * (r2 * eye - gain @ p.A * r2)
            gained = -log_g
            if np.trace(model) > 0:
                gained = gained + log_density(moved, base, model) - log_density(moved, mean, proposal)
            if following == 0:
                gained = gained + log_density(p.y - moved @ p.A.T, 0.0, p.sigma_y**2 * np.eye(len(p.y)))
            return moved, gained

    c, spread = centre(p, settings, levels[0])
    move = Move(p, settings, draws)
    x = c + np.sqrt(spread) * move.normal(n)
    look = lambda row, x, sigma, following: moments(x, sigma)[2]  # noqa: E731
    population = Populations(settings, x, np.zeros(x.shape[:2]))
    return run(p, settings, levels, draws, look, move, population, settings["initial"] == "measurement")


def walk_fps_smc(p, settings, levels, draws):
    m, count = len(p.y), settings["particles"]
    fresh = settings["fresh"]
    noise = fresh**2 * p.sigma_y**2 * np.eye(m)
    walk = levels[0] * next(draws)
    path = {levels[0]: p.y + walk @ p.A.T}
    for sigma, following in itertools.pairwise(levels):
        ratio = following**2 / sigma**2
        walk = ratio * walk + following * np.sqrt(1 - ratio) * next(draws)
        path[following] = p.y + walk @ p.A.T
    own = draws.normal(count, m) * np.sqrt(1 - fresh**2) * p.sigma_y
    path = {sigma: y[:, None] - own for sigma, y in path.items()}

    def model(x, sigma, following):
        clean = p.denoise(x, sigma)
        v2 = following**2 * (sigma**2 - following**2) / sigma**2
        return clean + following**2 / sigma**2 * (x - clean), v2

    def evidence(base, v2, y):
        return log_density(y - base @ p.A.T, 0.0, v2 * p.A @ p.A.T + noise)

    def conditioned(base, v2, y, z):
        gain = v2 * p.A.T @ np.linalg.inv(v2 * p.A @ p.A.T + noise)
        free = base + np.sqrt(v2) * z[0]
        return free + (y + fresh * p.sigma_y * z[1] - free @ p.A.T) @ gain.T

    class Move(Mover):
        def draw(self, sigma, following):
            return [self.normal(p.n), self.normal(m)] if following > 0 else [np.zeros((draws.rows, 0))] * 2

        def __call__(self, row, x, sigma, following, z):
            base, v2 = model(x, sigma, following)
            return conditioned(base, v2, path[following][row], z) if following > 0 else base, np.zeros(len(x))

    class Own(Populations):
        def resample(self, u, always=False):
            chosen = super().resample(u, always)
            for sigma in path:
                path[sigma] = np.stack([y[index] for y, index in zip(path[sigma], chosen, strict=True)])

    def look(row, x, sigma, following):
        return evidence(*model(x, sigma, following), path[following][row]) if following > 0 else np.zeros(len(x))

    c, variance = centre(p, settings, levels[0])
    move = Move(p, settings, draws)
    z = [move.normal(p.n), move.normal(m)]
    rows = range(draws.rows)
    base = np.broadcast_to(c, z[0].shape[1:])
    x = np.stack([conditioned(base, variance, path[levels[0]][row], [part[row] for part in z]) for row in rows])
    log_w = np.stack([evidence(base, variance, path[levels[0]][row]) for row in rows])
    return run(p, settings, levels, draws, look, move, Own(settings, x, log_w))


def walk_mcg_diff(p, settings, levels, draws):
    eta, kappa = settings["eta"], settings["kappa"]
    _, s, Vt = np.linalg.svd(p.A, full_matrices=True)
    U = np.linalg.svd(p.A, full_matrices=True)[0]
    measured = [i for i in range(len(s)) if s[i] > 1e-6 * s.max()]
    tau = {i: p.sigma_y / s[i] for i in measured}
    y = {i: (U[:, i] @ p.y) / s[i] for i in measured}
    soft = {i: kappa * (tau[i] ** 2 + 0.25) for i in measured}

    def model(x, clean, sigma, following):
        """Mean and variance of one coordinate at the following level."""
        v = eta * following * np.sqrt(max(0.0, sigma**2 - following**2)) / sigma
        return clean + np.sqrt(max(0.0, following**2 - v**2)) / sigma * (x - clean), v**2

    def normal(y, mean, variance):
        return -0.5 * ((y - mean) ** 2 / variance + np.log(variance))

    def look(row, x, sigma, following):
        x_bar, clean_bar = x @ Vt.T, p.denoise(x, sigma) @ Vt.T
        log_w = np.zeros(len(x))
        for i in measured:
            if tau[i] > sigma:
                continue
            if tau[i] > following:
                mean, variance = model(x_bar[:, i], clean_bar[:, i], sigma, tau[i])
                of_y = soft[i]
            else:
                mean, variance = model(x_bar[:, i], clean_bar[:, i], sigma, following)
                of_y = following**2 - tau[i] ** 2 + soft[i]
            log_w += normal(y[i], mean, variance + of_y)
            log_w -= normal(y[i], x_bar[:, i], sigma**2 - tau[i] ** 2 + soft[i])
        return log_w

    class Move(Mover):
        def draw(self, sigma, following):
            return [self.normal(p.n)]

        def __call__(self, row, x, sigma, following, z):
            x_bar, clean_bar, z_bar = x @ Vt.T, p.denoise(x, sigma) @ Vt.T, z[0] @ Vt.T
            out = np.empty_like(x_bar)
            for i in range(p.n):
                mean, variance = model(x_bar[:, i], clean_bar[:, i], sigma, following)
                if i in tau and following < tau[i] <= sigma:
                    mean, variance = model(x_bar[:, i], clean_bar[:, i], sigma, tau[i])
                    total = variance + soft[i]
                    mean, left = (mean * soft[i] + y[i] * variance) / total, variance * soft[i] / total
                    slope = model(1.0, 0.0, tau[i], following)[0]
                    mean, fresh = model(mean, clean_bar[:, i], tau[i], following)
                    variance = slope**2 * left + fresh
                elif i in tau and tau[i] <= following:
                    of_y = following**2 - tau[i] ** 2 + soft[i]
                    total = variance + of_y
                    mean, variance = (mean * of_y + y[i] * variance) / total, variance * of_y / total
                out[:, i] = mean + np.sqrt(variance) * z_bar[:, i]
            return out @ Vt, np.zeros(len(x))

    c, variance = centre(p, settings, levels[0])
    move = Move(p, settings, draws)
    z_bar, base = move.normal(p.n) @ Vt.T, Vt @ c
    x_bar = base + np.sqrt(variance) * z_bar
    for i in measured:
        if tau[i] <= levels[0]:
            of_y = levels[0] ** 2 - tau[i] ** 2 + soft[i]
            mean = (base[i] * of_y + y[i] * variance) / (variance + of_y)
            x_bar[..., i] = mean + np.sqrt(variance * of_y / (variance + of_y)) * z_bar[..., i]
    x = x_bar @ Vt
    return run(p, settings, levels, draws, look, move, Populations(settings, x, np.zeros(x.shape[:2])))


WALKS = {"mcg_diff": walk_mcg_diff, "tds": walk_tds, "fps_smc": walk_fps_smc}
