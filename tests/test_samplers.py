"""Every sampler against closed-form priors, against diffusers, and against its own order of convergence."""

from __future__ import annotations

import inspect
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from invdiff import samplers
from invdiff.diffusion.levels import RHO, SPACINGS, noise_levels
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import NumericalError, UsageError
from invdiff.machine.random import Draws, generator
from invdiff.priors import GaussianMixturePrior, GaussianPrior
from invdiff.priors.prior import CountedPrior, Prior
from invdiff.samplers.continuous import VPSDE
from invdiff.samplers.generation import sample
from invdiff.specs.parameters import declarations

ROOT2 = math.sqrt(2)
# One line for each sampler: spec, and the calls after which its bias is below a standard error of 12,000 samples. A sampler
# that is registered and not here fails `test_every_sampler_is_tested`.
REACHING = {
    "ancestral:spacing=quadratic": 800,
    "ddim:spacing=quadratic": 400,
    "ddim:eta=0.5,spacing=quadratic": 500,
    "sde": 250,
    "ode:spacing=karras": 300,
    "heun": 121,
    "dpmpp": 60,
}
COUNT = 12_000


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(counts, errors) -> float:
    """The exponent p of errors ~ counts^p."""
    return float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


class Bulk(Draws):
    """Noise for many rows from one generator, times a factor."""

    def __init__(self, rows: int, size: int, factor: float = 1.0) -> None:
        self.rows, self.size, self.factor = rows, size, factor
        self.generator = generator(0, "bulk", 0)

    def __call__(self) -> torch.Tensor:
        return self.factor * torch.randn(self.rows, self.size, generator=self.generator, dtype=torch.float64)


class Replay(Draws):
    """Unit noise in row 2 + k at draw k, and nothing elsewhere: the response to each draw on its own."""

    def __init__(self, rows: int, size: int, factor: float = 1.0) -> None:
        self.rows, self.size, self.factor, self.draw = rows, size, factor, 0

    def __call__(self) -> torch.Tensor:
        z = torch.zeros(self.rows, self.size, dtype=torch.float64)
        z[2 + self.draw] = self.factor
        self.draw += 1
        return z


def run(method, prior: Prior, x: torch.Tensor, levels, noise: Draws | None = None) -> torch.Tensor:
    *_, last = method.walk(prior, x, levels, noise)
    return last.x


def law(method, prior: Prior, factor: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, variance) of the samples for a Gaussian prior with a diagonal covariance, exactly: the sampler is then affine
    in its start and its noises, and its response to one unit of each says all."""
    levels = method.levels(prior)
    rows, size = 2 + len(levels), prior.size
    x = torch.full((rows, size), 0.5, dtype=torch.float64)
    x[1] += factor * levels[0]
    x = run(method, prior, x, levels, Replay(rows, size, factor))
    return x[0], ((x[1:] - x[0]) ** 2).sum(0)


# The targets


class Target:
    """A mixture with what its components are known by: E[r_k], E[r_k (x - mu_k)] and E[r_k (x - mu_k)(x - mu_k)^T], with r_k
    the probability of component k given x. These are w_k, 0 and w_k C_k, exactly, because r_k(x) p(x) = w_k N(x; mu_k, C_k).
    The last one, sum_k r_k (x - mu_k)^T C_k^-1 (x - mu_k), pools the variances: 2, the dimension.
    """

    def __init__(self, means, covariances, weights) -> None:
        self.means, self.covariances, self.weights = double(means), double(covariances), double(weights)
        self.prior = GaussianMixturePrior(self.means, self.covariances, self.weights)
        parts = zip(self.means, self.covariances, strict=True)
        self.parts = [torch.distributions.MultivariateNormal(mean, covariance) for mean, covariance in parts]
        self.spread = self.features(self.prior.sample(100_000, generator(0, "spread", 0))).std(0)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        logs = torch.stack([part.log_prob(x) for part in self.parts], 1) + self.weights.log()
        offset = x[:, None] - self.means
        columns, pooled = [], torch.zeros(len(x), dtype=torch.float64)
        for k, r in enumerate(logs.softmax(1).unbind(1)):
            d = offset[:, k]
            second = [r * d[:, i] * d[:, j] for i in range(2) for j in range(i + 1)]
            columns += [r, r * d[:, 0], r * d[:, 1], *second]
            pooled += r * torch.einsum("bi,ij,bj->b", d, self.covariances[k].inverse(), d)
        columns.append(pooled)
        return torch.stack(columns, 1)

    def exact(self) -> torch.Tensor:
        columns = []
        for w, C in zip(self.weights, self.covariances, strict=True):
            columns += [w, 0 * w, 0 * w, w * C[0, 0], w * C[1, 0], w * C[1, 1]]
        return torch.stack([*columns, double(2.0)])

    def distance(self, x: torch.Tensor) -> float:
        """The largest deviation of these moments, in standard errors; a weight that is 1 by definition deviates by 0."""
        deviation = (self.features(x).mean(0) - self.exact()).abs()
        return float((deviation / (self.spread / math.sqrt(len(x)) + 1e-12)).max())


def gaussian(factor: float = 1.0) -> Target:
    return Target([[0.4, 0.55]], [[[0.05 * factor, 0.02 * factor], [0.02 * factor, 0.03 * factor]]], [1.0])


def mixture(factor: float = 1.0) -> Target:
    covariances = [[[0.03, 0.01], [0.01, 0.02]], [[0.02, 0.0], [0.0, 0.04]], [[0.03, -0.01], [-0.01, 0.03]]]
    return Target([[0.1, 0.2], [0.9, 0.3], [0.5, 0.9]], factor * np.array(covariances), [0.5, 0.3, 0.2])


def draw(spec: str, steps: int, prior: Prior, factor: float = 1.0) -> torch.Tensor:
    method = samplers.get(spec, steps=steps)
    levels = method.levels(prior)
    noise = Bulk(COUNT, 2, factor)
    return run(method, prior, 0.5 + levels[0] * noise(), levels, noise)


@pytest.mark.parametrize("spec", REACHING)
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_samples_reach_the_target(spec, make):
    """Weights, means and covariances of all components within 5 standard errors of 12,000 samples."""
    target = make()
    x = draw(spec, REACHING[spec], target.prior)
    assert target.distance(x) < 5
    # Twins: a target whose variance is a tenth larger, and too few calls to be there.
    assert make(factor=1.1).distance(x) > 5
    assert target.distance(draw(spec, 9, target.prior)) > 5


@pytest.mark.parametrize("spec", REACHING)
def test_the_bias_on_a_gaussian_is_below_a_standard_error(spec):
    """So that 5 standard errors above leave 4 to chance. The start at 1/2 instead of around the mean is part of it."""
    m, c = double([0.4, 0.55]), torch.linalg.eigvalsh(gaussian().covariances[0])
    prior = GaussianPrior(m, c)

    def deviation(factor):
        mean, variance = law(samplers.get(spec, steps=REACHING[spec]), prior, factor)
        of_mean = ((mean - m).abs() / (c / COUNT).sqrt()).max()
        return float(max(of_mean, (variance / c - 1).abs().max() / math.sqrt(2 / COUNT)))

    assert deviation(1.0) < 1
    assert deviation(ROOT2) > 5  # the twin: noise too large by sqrt(2)


def test_every_sampler_is_tested():
    assert {samplers.get(spec).name for spec in REACHING} == set(samplers.names())


# Orders of convergence


@pytest.mark.parametrize(
    ("spec", "order"),
    [
        ("ode", 1),
        ("ode:spacing=karras", 1),
        ("ddim:spacing=log", 1),
        ("heun", 2),
        ("heun:spacing=log", 2),
        ("heun:spacing=timestep", 2),
        ("dpmpp", 2),
        ("dpmpp:spacing=log", 2),
    ],
)
def test_order_of_the_deterministic_samplers(spec, order):
    """The flow of a Gaussian keeps (x - m) / deviation, so its end at sigma_min, and E[x_0 | x] there, are known."""
    m, c = double([0.3, 0.6]), double([0.06, 0.02])
    prior = GaussianPrior(m, c)
    high, low = prior.sigma_max, prior.sigma_min
    z = double([[1.3, -0.7]])
    exact = m + c / (c + low**2) * (c + low**2).sqrt() * z
    start = m + (c + high**2).sqrt() * z

    def errors(spec, counts):
        found = []
        for levels in counts:
            method = samplers.get(spec, steps=levels)
            levels = noise_levels(levels, high, low, method.spacing)
            found.append(float((run(method, prior, start, levels) - exact).norm()))
        return found

    counts = (64, 128, 256, 512)
    found = errors(spec, counts)
    # Higher-order terms bend the slope by up to a tenth at 64 levels.
    assert abs(slope(counts, found) + order) < 0.15, (slope(counts, found), found)
    if order == 2:  # the twin: the method without its second-order term is DDIM
        assert slope(counts, errors(f"ddim:spacing={samplers.get(spec).spacing}", counts)) > -1.2


@pytest.mark.parametrize(
    "spec", ["ancestral:spacing=log", "ancestral:spacing=karras", "sde", "sde:spacing=log", "ddim:eta=0.5,spacing=log"]
)
def test_the_law_of_the_stochastic_samplers_converges_at_first_order(spec):
    m, c = double([0.5, 0.5]), double([0.06, 0.02])
    prior = GaussianPrior(m, c)
    counts = (100, 200, 400, 800)

    def errors(factor):
        runs = [law(samplers.get(spec, steps=steps), prior, factor) for steps in counts]
        return [float((variance / c - 1).abs().max()) for _, variance in runs]

    # The end at sigma_min and the start without x_0 change the variance by less than 1e-3, whatever the steps.
    assert abs(slope(counts, errors(1.0)) + 1) < 0.15, (slope(counts, errors(1.0)), errors(1.0))
    assert slope(counts, errors(ROOT2)) > -0.1


# Against diffusers, and against the equations they come from


def scheduler(kind: str, **options):
    import diffusers

    return getattr(diffusers, kind)(num_train_timesteps=1000, beta_schedule="linear", **options)


def affine(x: torch.Tensor) -> torch.Tensor:
    """A denoiser of no distribution: any function of x tells a wrong formula."""
    return 0.3 * x + 0.2 * torch.sin(x) + 0.1


class Curved(Prior):
    """E[x_0 | x] made up: the samplers must only combine it as their formulas say."""

    def denoise(self, x, sigma):
        return affine(x) / (1 + float(sigma))


def network_output(prior: Prior, x_t: torch.Tensor, abar: float) -> torch.Tensor:
    """epsilon in diffusers' units for x_t = sqrt(abar) (2 x - 1)."""
    x = (x_t / abar**0.5 + 1) / 2
    sigma = ((1 - abar) / abar) ** 0.5 / 2
    return (x - prior.denoise(x, sigma)) / sigma


def drive(theirs, steps: int, x: torch.Tensor, prior: Prior, **options) -> tuple[torch.Tensor, list[float]]:
    """(the sample of a diffusers scheduler in [0, 1] units, its noise levels) from x = x_0 + sigma n at the first level."""
    theirs.set_timesteps(steps)
    abars = [float(theirs.alphas_cumprod[int(t)]) for t in theirs.timesteps]
    x_t = abars[0] ** 0.5 * (2 * x - 1)
    for t, abar in zip(theirs.timesteps, abars, strict=True):
        x_t = theirs.step(network_output(prior, x_t, abar), t, x_t, **options).prev_sample
    return (x_t + 1) / 2, [((1 - abar) / abar) ** 0.5 / 2 for abar in abars]


START = 0.5 + 40 * torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


def test_dpmpp_is_that_of_diffusers():
    theirs = scheduler(
        "DPMSolverMultistepScheduler",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=False,
        final_sigmas_type="zero",
    )
    expected, levels = drive(theirs, 15, START, Curved())
    got = run(samplers.get("dpmpp"), Curved(), START, levels)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)  # their tables are float32
    assert (run(samplers.get("ddim"), Curved(), START, levels) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_that_of_diffusers(eta):
    """With the same noise added in every step, eta = 1 is the ancestral sampler too."""
    theirs = scheduler("DDIMScheduler", clip_sample=False, set_alpha_to_one=True)
    z = torch.linspace(-2, 1, 12, dtype=torch.float64).reshape(3, 4)
    expected, levels = drive(theirs, 15, START, Curved(), eta=eta, variance_noise=z)
    # Theirs ends at abar = 1, where both add no noise.
    got = run(samplers.get("ddim", eta=eta), Curved(), START, levels, lambda: z)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (run(samplers.get("ddim", eta=eta), Curved(), START, levels, lambda: z * ROOT2) - got).abs().max() > (
        1e-2 if eta else -1
    )
    if eta == 1:
        torch.testing.assert_close(run(samplers.get("ancestral"), Curved(), START, levels, lambda: z), got)


@pytest.mark.parametrize(("variance", "name"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_the_ancestral_variances_are_those_of_diffusers(variance, name):
    theirs = scheduler("DDPMScheduler", variance_type=name)
    theirs.set_timesteps(20)
    method = samplers.get("ancestral", variance=variance)
    for t in theirs.timesteps[:-1]:
        now, before = (float(theirs.alphas_cumprod[int(k)]) for k in (t, t - 50))
        levels = [((1 - abar) / abar) ** 0.5 / 2 for abar in (now, before)]
        ours = 4 * before * method.fresh(*levels) ** 2  # from x_0 + sigma n on [0, 1] to x_t on [-1, 1]
        assert ours == pytest.approx(float(theirs._get_variance(t)), rel=1e-4)
        assert 2 * ours != pytest.approx(float(theirs._get_variance(t)), rel=1e-1)
    assert method.fresh(0.1, 0.0) == 0


def test_large_variance_is_exact_for_standard_normal_data():
    """x_0 ~ N(0, I) on [-1, 1] is N(1/2, 1/4) here: one step then leads from p_sigma to p_sigma' exactly (Ho et al. 2020)."""
    prior = GaussianPrior([0.5], 0.25)
    sigma, next_sigma = 1.7, 0.4
    gain = 0.25 / (0.25 + sigma**2)
    kept = (next_sigma / sigma) ** 2
    slope_ = kept + (1 - kept) * gain
    for variance, exact in (("large", True), ("small", False)):
        method = samplers.get("ancestral", variance=variance)
        x = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
        first = next(method.walk(prior, x, [sigma, next_sigma], lambda: torch.zeros(2, 1, dtype=torch.float64)))
        assert float(first.x[1] - first.x[0]) == pytest.approx(slope_)
        reached = slope_**2 * (0.25 + sigma**2) + method.fresh(sigma, next_sigma) ** 2
        assert (reached == pytest.approx(0.25 + next_sigma**2, rel=1e-12)) == exact


class Constant(Prior):
    """E[x_0 | x] that does not depend on x: the equation with D held over a step."""

    def denoise(self, x, sigma):
        return torch.full_like(x, 0.3)


def test_ancestral_and_ddim_are_the_exponential_integrators():
    """With D held, the reverse SDE is linear: its mean and variance over a step, integrated numerically, are those of one
    ancestral step; and the flow's end is that of one step of DDIM with eta = 0."""
    sigma, next_sigma, x = 2.5, 0.6, double([[1.7]])
    equation = VPSDE.of(Constant())
    s, next_s = equation.time(sigma), equation.time(next_sigma)

    def rate(time, state, drift, share):
        lower, upper = (drift(double([[value]]), time).item() for value in (state[0], state[0] + 1))
        return [lower, 2 * (upper - lower) * state[1] - share * equation.diffusion(time) ** 2]

    def integrated(drift, share):
        start = [equation.state(x, s).item(), 0.0]
        end = solve_ivp(rate, (s, next_s), start, args=(drift, share), rtol=1e-10, atol=1e-12).y[:, -1]
        return equation.image(double(end[0]), next_s).item(), end[1] / (4 * equation.root_abar(next_s) ** 2)

    quiet = lambda: torch.zeros(1, 1, dtype=torch.float64)  # noqa: E731
    mean, variance = integrated(equation.reverse_drift, 1.0)
    method = samplers.get("ancestral")
    assert next(method.walk(Constant(), x, [sigma, next_sigma], quiet)).x.item() == pytest.approx(mean, rel=1e-7)
    assert method.fresh(sigma, next_sigma) ** 2 == pytest.approx(variance, rel=1e-7)
    end, _ = integrated(equation.flow, 0.0)
    assert next(samplers.get("ddim").walk(Constant(), x, [sigma, next_sigma], quiet)).x.item() == pytest.approx(end)
    assert abs(end - mean) > 0.01


# Noise levels, calls and settings


def test_karras_levels_are_those_of_the_paper():
    """EDM's own: sigma_max 80, sigma_min 0.002, rho = 7, N = 5, by the formula and even in sigma^(1/7)."""
    levels = noise_levels(5, 80.0, 0.002, "karras")
    expected = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    assert levels == pytest.approx(expected, rel=1e-12) and (levels[0], levels[-1]) == (80.0, 0.002) and RHO == 7
    assert noise_levels(1, 80.0, 0.002, "karras") == [80.0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_levels_decrease_between_the_ends(spacing, count):
    method = samplers.get("dpmpp", steps=count, spacing=spacing)
    levels = method.levels(gaussian().prior)
    assert len(levels) == count and levels[0] == gaussian().prior.sigma_max
    assert all(a > b > 0 for a, b in itertools.pairwise(levels))
    assert samplers.get("dpmpp", steps=count, sigma_max=2.0, spacing=spacing).levels(gaussian().prior)[0] == 2.0


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 11])
def test_steps_are_network_calls(name, steps):
    prior = CountedPrior(gaussian().prior)
    method = samplers.get(name, steps=steps)
    ticks: list[int] = []
    sample(prior, (2,), 3, method, batch_size=2, advance=lambda: ticks.append(1))
    assert prior.images == 3 * method.nfe and len(ticks) == 2 * method.nfe  # two batches
    assert method.nfe <= steps and method.nfe == (steps if name != "heun" else 2 * ((steps + 1) // 2) - 1)


@pytest.mark.parametrize("name", samplers.names())
def test_a_sample_depends_on_its_seed_and_number_alone(name):
    prior = gaussian().prior
    together = sample(prior, (2,), 5, name, steps=11, batch_size=5, seed=3)
    assert torch.equal(together, sample(prior, (2,), 5, name, steps=11, batch_size=5, seed=3))
    torch.testing.assert_close(together, sample(prior, (2,), 5, name, steps=11, batch_size=2, seed=3))
    torch.testing.assert_close(together[:2], sample(prior, (2,), 2, name, steps=11, seed=3))
    other = sample(prior, (2,), 5, name, steps=11, batch_size=5, seed=0)
    assert ((together - other).abs().amax(1) > 1e-3).all()
    assert len({tuple(row.tolist()) for row in together}) == 5


class Network(Prior):
    """Answers 3 everywhere, as an epsilon network may at high noise."""

    def __init__(self, schedule: Schedule | None) -> None:
        if schedule:
            self.schedule = schedule

    def denoise(self, x, sigma):
        return torch.full_like(x, 3.0)


@pytest.mark.parametrize("name", samplers.names())
def test_what_a_network_says_is_kept_in_the_range_of_pictures(name):
    trained, other = Network(Schedule.named("linear")), Network(None)
    assert sample(trained, (1, 2, 2), sampler=name, steps=3).max() == 1
    assert sample(trained, (1, 2, 2), sampler=name, steps=3, clip=False).max() == 3
    assert sample(other, (1, 2, 2), sampler=name, steps=3).max() == 3
    assert sample(other, (1, 2, 2), sampler=name, steps=3, clip=True).max() == 1


def test_a_sampler_is_found_by_name_spec_or_settings():
    assert samplers.get("ddim:eta=0.5") == samplers.get("ddim", eta=0.5) == samplers.get(eta=0.5)
    assert samplers.get().name == samplers.DEFAULT
    method = samplers.get("heun", steps=7)
    assert samplers.get(method) is method and samplers.get(method, spacing="log").settings()["steps"] == 7
    assert samplers.get(samplers.get("ancestral:variance=large", steps=20).spec).settings() == {
        "name": "ancestral", "steps": 20, "spacing": "timestep", "sigma_max": None, "variance": "large",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: samplers.get("huen"), "Did you mean 'heun'"),
        (lambda: samplers.get("sde", eta=0.5), "eta is a setting of ddim, not of sde"),
        (lambda: samplers.get("sde", variance="small"), "unknown parameter of sde 'variance'"),
        (lambda: samplers.get("ddim:eta=0.5", eta=0.5), "given both"),
        (lambda: samplers.get("ddim:eta=1.5"), "<= 1"),
        (lambda: samplers.get("dpmpp", steps=0), ">= 1"),
        (lambda: samplers.get("dpmpp", steps=2.5), "whole number"),
        (lambda: samplers.get("dpmpp", spacing="karas"), "Did you mean 'karras'"),
        (lambda: samplers.get("dpmpp", sigma_max=1e-5).levels(gaussian().prior), "not above the prior's last level"),
        (lambda: sample(gaussian().prior, (2,), 0), "count"),
        (lambda: sample(gaussian().prior, (2,), batch_size=0), "batch size"),
        (lambda: sample(gaussian().prior, (3,)), "shape"),
        (lambda: sample(gaussian().prior, (2,), seed=-1), "seed"),
        (lambda: list(samplers.get("heun").walk(Constant(), START, [1.0, 2.0], None)), "must decrease"),
        (lambda: list(samplers.get("heun").walk(Constant(), START, [1.0, 0.0], None)), "more than 0"),
        (lambda: list(samplers.get("heun").walk(Constant(), START, [], None)), "must decrease"),
    ],
)
def test_what_cannot_be_sampled_is_refused(make, says):
    with pytest.raises(UsageError, match=says):
        make()


class Failing(Prior):
    """NaN below a noise level."""

    def denoise(self, x, sigma):
        return x * (1 if float(sigma) > 1 else float("nan"))


@pytest.mark.parametrize("name", samplers.names())
def test_nan_names_the_sampler_and_the_level(name):
    with pytest.raises(NumericalError, match=f"{name}: NaN or infinity at sigma"):
        sample(Failing(), (2,), sampler=name, steps=21)


# What is written about them


def test_every_sampler_is_described():
    page = (Path(__file__).parents[1] / "docs" / "sampling.md").read_text(encoding="utf-8")
    for name, cls in samplers.REGISTRY.items():
        assert "https://" in cls.paper() and "Differs from the paper" in cls.paper(), name
        assert f"| `{name}` |" in page and inspect.cleandoc(cls.__doc__ or "")
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        default = {declared.name: declared.default for declared in declarations(cls)}
        assert str(default["steps"]) in row and default["spacing"] in row, row


TABLE = ("ancestral", "ancestral:variance=large", "ancestral:spacing=quadratic", "ddim", "sde", "ode", "heun", "dpmpp")
CALLS = (10, 20, 30, 60, 100, 300)


def variance_table() -> str:
    """The rows of docs/sampling.md: variance of the samples over that of the data, for deviations 0.25 and 0.05."""
    lines = ["| calls | " + " | ".join(map(str, CALLS)) + " |", "|---" * (len(CALLS) + 1) + "|"]
    for spec in TABLE:
        cells = []
        for steps in CALLS:
            ratios = []
            for deviation in (0.25, 0.05):
                prior = GaussianPrior([0.5], deviation**2)
                prior.sigma_max, prior.sigma_min = 78.7, 0.005
                ratios.append(float(law(samplers.get(spec, steps=steps), prior)[1]) / deviation**2)
            cells.append(" / ".join(f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.0f}" for ratio in ratios))
        lines.append(f"| `{spec}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_table_in_the_docs_is_what_the_samplers_do():
    page = (Path(__file__).parents[1] / "docs" / "sampling.md").read_text(encoding="utf-8")
    table = page.partition("<!-- table:variance -->")[2].partition("<!-- /table:variance -->")[0]
    assert table.strip() == variance_table()
