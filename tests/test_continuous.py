"""The SDE, its two ways back and the likelihood, against closed-form priors for which all of it is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from invdiff import samplers
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import NumericalError, UsageError
from invdiff.machine.random import Draws, generator
from invdiff.priors import GaussianMixturePrior, GaussianPrior, NetworkPrior
from invdiff.priors.prior import Prior
from invdiff.samplers import continuous
from invdiff.samplers.continuous import VPSDE, log_likelihood

NAMES = ["linear", "scaled_linear", "cosine"]
ROOT2 = math.sqrt(2)


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(size: int = 4, factor: float = 1.0) -> GaussianPrior:
    rng = np.random.default_rng(3)
    root = rng.normal(size=(size, size)) / math.sqrt(size)
    return GaussianPrior(rng.uniform(0.3, 0.7, size), factor * 0.08 * (root @ root.T + 0.1 * np.eye(size)))


def mixture(factor: float = 1.0) -> GaussianMixturePrior:
    means = [[0.2, 0.3, 0.8], [0.7, 0.6, 0.2], [0.5, 0.9, 0.6]]
    return GaussianMixturePrior(means, factor * np.array([[0.01], [0.03], [0.02]]), [0.5, 0.3, 0.2])


def slope(counts, errors) -> float:
    """The exponent p of errors ~ counts^p."""
    return float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


# abar(s) and s(sigma)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_abar_is_the_integral_of_beta(name, steps):
    schedule = Schedule.named(name, steps)
    # beta(s) is linear between the multiples of 1/T, so the trapezoidal rule on a grid that holds them is exact.
    s = np.linspace(0, 1.5, 6 * steps + 1)
    beta = schedule.beta(s)

    def check(factor):
        integral = np.concatenate([[0.0], np.cumsum((beta[1:] + beta[:-1]) / 2 * np.diff(s))])
        np.testing.assert_allclose(-schedule.log_abar(s), factor * integral, rtol=1e-11, atol=1e-14)

    check(1.0)
    with pytest.raises(AssertionError):
        check(ROOT2)
    assert schedule.log_abar(0.0) == 0 and isinstance(float(schedule.log_abar(0.3)), float)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_time_is_the_inverse_of_the_level(name, steps):
    schedule = Schedule.named(name, steps)
    s = np.linspace(0, 1.5, 1001)
    sigma = np.sqrt(np.expm1(-schedule.log_abar(s)))
    np.testing.assert_allclose(schedule.time(sigma), s, rtol=0, atol=1e-12)
    assert np.abs(schedule.time(ROOT2 * sigma[1:]) - s[1:]).min() > 1e-6
    equation = VPSDE.of(gaussian(), schedule)
    assert equation.level(equation.time(0.37)) == pytest.approx(0.37, rel=1e-12)


def test_the_table_is_met_at_first_order():
    counts, errors, wrong = (100, 200, 400, 800), [], []
    for steps in counts:
        schedule = Schedule.named("linear", steps, 0.1 / steps, 20 / steps)
        s = (np.arange(steps) + 1) / steps
        errors.append(np.abs(np.exp(schedule.log_abar(s)) - schedule.alphas_bar).max())
        wrong.append(np.abs(np.exp(ROOT2 * schedule.log_abar(s)) - schedule.alphas_bar).max())
    assert abs(slope(counts, errors) + 1) < 0.05, errors
    assert slope(counts, wrong) > -0.1


def test_impossible_times_are_refused():
    schedule = Schedule.named("linear")
    for make, says in [
        (lambda: schedule.log_abar(-0.1), "0 or more"),
        (lambda: schedule.log_abar(float("nan")), "0 or more"),
        (lambda: schedule.time(-1.0), "finite"),
        (lambda: schedule.time(float("inf")), "finite"),
    ]:
        with pytest.raises(UsageError, match=says):
            make()


# The three equations, by what they do to a density that is not Gaussian


def one_dimensional() -> GaussianMixturePrior:
    return GaussianMixturePrior([[0.2], [0.75]], [0.01, 0.04], [0.6, 0.4])


def density(equation: VPSDE, x_s: torch.Tensor, s: float) -> torch.Tensor:
    """q_s(x_s) = p_sigma(x) |dx / dx_s| of a one-dimensional closed-form prior."""
    log_p = equation.prior.log_prob(equation.image(x_s, s), equation.level(s))
    return log_p.exp() / (2 * equation.root_abar(s))


def kolmogorov(equation: VPSDE, drift, share: float, s: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(d/ds q, - d/dx (drift q) + share g^2 / 2 d^2/dx^2 q): equal where the equation with that drift moves q."""
    x = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]
    h = 1e-5
    left = (density(equation, x, s + h) - density(equation, x, s - h)) / (2 * h)
    x = x.requires_grad_(True)
    q = density(equation, x, s)
    flux = drift(x, s)[:, 0] * q
    (first,) = torch.autograd.grad(flux.sum(), x, retain_graph=True)
    (gradient,) = torch.autograd.grad(q.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    return left, (-first + share * equation.diffusion(s) ** 2 / 2 * second)[:, 0].detach()


@pytest.mark.parametrize("s", [0.08, 0.4, 0.91])
@pytest.mark.parametrize(
    ("name", "share"), [("drift", 1.0), ("reverse_drift", -1.0), ("flow", 0.0)], ids=["forward", "reverse", "flow"]
)
def test_each_equation_moves_the_density_as_the_others_do(name, share, s):
    """The forward SDE, its reversal (run backwards, its diffusion counts as negative) and the flow have the same
    marginals: each satisfies its Kolmogorov equation. Central differences: h^2 and rounding over h, both below 1e-8."""
    equation = VPSDE.of(one_dimensional(), Schedule.named("linear", 10, 0.01, 0.9))
    drift = getattr(equation, name)
    left, right = kolmogorov(equation, drift, share, s)
    scale = left.abs().max()
    assert (left - right).abs().max() < 1e-6 * scale
    # Twins: the score's weight wrong by a factor (a drift of its own for the forward SDE), and another diffusion.
    wrong = lambda x, t: ROOT2 * drift(x, t) if name == "drift" else drift(x, t) + 0.1 * equation.score(x, t)  # noqa: E731
    for other in (kolmogorov(equation, wrong, share, s), kolmogorov(equation, drift, share + ROOT2 - 1, s)):
        assert (other[0] - other[1]).abs().max() > 1e-3 * scale


def test_the_score_is_the_gradient_of_the_log_density():
    equation = VPSDE.of(one_dimensional())
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None].requires_grad_(True)
    for s in (0.01, 0.3, 1.0):
        (expected,) = torch.autograd.grad(density(equation, x, s).log().sum(), x)
        torch.testing.assert_close(equation.score(x.detach(), s), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("s", [0.02, 0.5, 1.0])
def test_the_marginal_is_what_the_prior_says(s):
    """x_0 ~ N(m, c) on [0, 1] becomes N(sqrt(abar) (2 m - 1), 4 abar c + 1 - abar)."""
    prior = GaussianPrior([0.3], 0.02)
    equation = VPSDE.of(prior)
    marginal = equation.marginal(double([[0.3]]), s)
    variance = 4 * equation.root_abar(s) ** 2 * 0.02 + marginal.variance
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    expected = torch.distributions.Normal(marginal.mean, variance**0.5).log_prob(x)
    torch.testing.assert_close(density(equation, x, s).log(), expected[:, 0], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(density(equation, x, s * 1.1).log(), expected[:, 0], rtol=1e-3)
    torch.testing.assert_close(equation.image(equation.state(x, s), s), x)


def test_the_schedule_is_the_priors_own():
    prior = network_prior()
    assert VPSDE.of(prior).schedule is prior.schedule
    assert VPSDE.of(gaussian()).schedule == Schedule.named("linear")


# The chain and the SDE


class Replay(Draws):
    """Unit noise in row 2 + k at draw k, and nothing elsewhere: the response to each draw on its own."""

    def __init__(self, rows: int, size: int) -> None:
        self.rows, self.size, self.draw = rows, size, 0

    def __call__(self) -> torch.Tensor:
        z = torch.zeros(self.rows, self.size, dtype=torch.float64)
        z[2 + self.draw] = 1.0
        self.draw += 1
        return z


def law(method, prior: Prior, levels, mean: torch.Tensor, variance: torch.Tensor, moves: int):
    """(mean, variance) of what a sampler makes of N(mean, diag variance) at levels[0] by so many moves.

    The prior is Gaussian with a diagonal covariance, so the sampler is affine in its start and its noises: its response to
    one unit of each is its law, exactly, without drawing anything.
    """
    rows = 2 + len(levels)
    x = mean.expand(rows, -1).clone()
    x[1] += 1.0
    for step in itertools.islice(method.walk(prior, x, levels, Replay(rows, len(mean))), moves):
        x = step.x
    response = x[1:] - x[0]
    return x[0], response[0] ** 2 * variance + (response[1:] ** 2).sum(0)


def chain_errors(counts, share: float, fresh: float = 1.0) -> list[float]:
    """The largest error of mean and variance, relative to the exact ones, of the chain of T steps (beta = 0.1 / T .. 20 / T)
    against the reverse SDE at time s = share; both start from the marginal of the SDE at s = 1."""
    m, c = double([0.3, 0.6, 0.5]), double([0.04, 0.02, 0.15])
    prior = GaussianPrior(m, c)
    errors = []
    for steps in counts:
        schedule = Schedule.named("linear", steps, 0.1 / steps, 20 / steps)
        equation = VPSDE.of(prior, schedule)
        roots = np.append(schedule.alphas_bar[::-1] ** 0.5, 1.0)  # of the chain's states, the last one clean

        def marginal(s, equation=equation):  # of the SDE, in its units
            mean, variance = equation.marginal(m, s)
            return mean, variance + 4 * equation.root_abar(s) ** 2 * c

        mean, variance = marginal(1.0)
        start = (mean / roots[0] + 1) / 2, variance / (4 * roots[0] ** 2)
        last = steps - round(share * steps)  # the chain's state number k has the time 1 - k / T
        mean, variance = law(Mutant(fresh), prior, list(schedule.sigmas[::-1] / 2), *start, moves=last)
        mean, variance = roots[last] * (2 * mean - 1), 4 * roots[last] ** 2 * variance
        exact_mean, exact = marginal(share)
        errors.append(float(max(((mean - exact_mean) / exact.sqrt()).abs().max(), (variance / exact - 1).abs().max())))
    return errors


class Mutant(samplers.REGISTRY["ancestral"]):
    """The ancestral sampler with its fresh noise multiplied by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        object.__setattr__(self, "factor", factor)

    def fresh(self, sigma: float, next_sigma: float) -> float:
        return self.factor * super().fresh(sigma, next_sigma)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_chain_converges_to_the_reverse_sde_at_first_order(share):
    counts = (50, 100, 200, 400, 800, 1600)
    errors = chain_errors(counts, share)
    # The second-order term bends the slope by a few per cent at T = 50.
    assert abs(slope(counts, errors) + 1) < 0.1, (slope(counts, errors), errors)
    assert abs(slope(counts[-3:], errors[-3:]) + 1) < 0.03, errors
    wrong = chain_errors(counts[:4], share, fresh=ROOT2)
    assert slope(counts[:4], wrong) > -0.5 and wrong[-1] > 0.1


def test_at_the_clean_end_the_chain_loses_a_logarithm():
    """Near s = 0 the levels are sigma^2 ~ k beta_0, k = 1, 2, .., whatever T is: the share of a step there does not shrink,
    and the sum of 1 / k over these steps leaves an error of log T / T. The slope rises towards 1 and is below it."""
    counts = (50, 100, 200, 400, 800, 1600)
    errors = chain_errors(counts, 0.0)
    local = [slope(counts[k : k + 2], errors[k : k + 2]) for k in range(5)]
    assert all(a > b for a, b in itertools.pairwise(local)) and -1 < local[-1] < -0.85, local
    assert errors[-1] < 0.02
    assert chain_errors(counts[-1:], 0.0, fresh=ROOT2)[0] > 0.1


# The likelihood


@pytest.mark.parametrize("make", [gaussian, mixture], ids=["gaussian", "mixture"])
def test_the_likelihood_is_the_density(make, monkeypatch):
    """What differs from log p_sigma_min is the end: N(1/2, s^2) there in place of p_s = N(1/2, s^2) * (x_0 - 1/2), which for
    |x_0 - 1/2| <= R changes the log-density by at most |x - 1/2| R / s^2 + R^2 / (2 s^2). The rest is the integration."""
    prior = make()
    x = prior.sample(2, generator(0, "x", 0))
    high = 3e4
    result = log_likelihood(prior, x, sigma_max=high)
    exact = prior.log_prob(x, prior.sigma_min)
    radius = 5 * math.sqrt(float(prior.covariance().trace() + (prior.mean() - 0.5).square().sum()))
    bound = (result.latent - 0.5).norm(dim=1) * radius / high**2 + radius**2 / (2 * high**2) + 1e-5
    assert ((result.log_prob - exact).abs() < bound).all(), (result.log_prob - exact, bound)
    assert bound.max() < 1e-3 and result.standard_error.tolist() == [0] * 2 and result.calls > 50

    # Of the prior itself, at sigma = 0: Gaussians of variance c grow to c + sigma_min^2.
    smallest = float(prior._spectrum.values.min())
    assert ((result.log_prob - prior.log_prob(x)).abs() < bound + 40 * prior.sigma_min**2 / smallest).all()

    # Twins: a prior whose variance is a tenth larger, and a divergence too large by sqrt(2).
    assert ((log_likelihood(make(factor=1.1), x, sigma_max=high).log_prob - exact).abs() > 10 * bound).all()
    trace = continuous._trace
    monkeypatch.setattr(continuous, "_trace", lambda clean, leaf: ROOT2 * trace(clean, leaf))
    assert ((log_likelihood(prior, x, sigma_max=high).log_prob - exact).abs() > 10 * bound).all()


def test_the_error_at_the_end_is_known_for_a_gaussian():
    """The flow keeps (x - m) / deviation, so x at sigma_max is known, and so is the likelihood at any sigma_max."""
    m, c = double([0.2, 0.6]), double([0.03, 0.1])
    prior = GaussianPrior(m, c)
    x = prior.sample(3, generator(0, "x", 1))
    for high in (2.0, 20.0):
        result = log_likelihood(prior, x, sigma_max=high)
        end = m + (x - m) * torch.sqrt((c + high**2) / (c + prior.sigma_min**2))
        torch.testing.assert_close(result.latent, end, rtol=1e-5, atol=1e-5)
        base = torch.distributions.Normal(0.5, high).log_prob(end).sum(1)
        expected = prior.log_prob(x, prior.sigma_min) - prior.log_prob(end, high) + base
        torch.testing.assert_close(result.log_prob, expected, rtol=0, atol=1e-5)


def test_the_runge_kutta_method_is_of_order_four():
    prior = mixture()
    x = prior.sample(1, generator(0, "x", 2))
    exact = log_likelihood(prior, x, tolerance=1e-11).log_prob
    counts = (40, 80, 160, 320)
    errors = [float((log_likelihood(prior, x, steps=n).log_prob - exact).abs().max()) for n in counts]
    assert abs(slope(counts, errors) + 4) < 0.4, (slope(counts, errors), errors)
    assert log_likelihood(prior, x, steps=5).calls == 20


def test_the_flow_in_s_is_the_same_curve():
    """Song et al.'s eq. 13 integrated as written, over s and in the paper's units, ends where the likelihood's flow ends."""
    prior = mixture()
    equation = VPSDE.of(prior)
    x = prior.sample(1, generator(0, "x", 3))
    low, high = 0.02, 20.0
    ends = equation.time(low), equation.time(high)

    def rate(s, state):
        return equation.flow(torch.from_numpy(state)[None], s).numpy()[0]

    solution = solve_ivp(rate, ends, equation.state(x, ends[0])[0].numpy(), rtol=1e-9, atol=1e-9, method="LSODA")
    end = equation.image(torch.from_numpy(solution.y[:, -1])[None], ends[1])
    latent = log_likelihood(prior, x, sigma_min=low, sigma_max=high).latent
    torch.testing.assert_close(end, latent, rtol=1e-5, atol=1e-5 * high)
    assert (end - x * high / low).abs().max() > 0.01 * high


class Probed:
    """The estimate by probes of one image's log-likelihood, for many seeds."""

    def __init__(self, prior: Prior, x: torch.Tensor, seeds: int, steps: int, probes: int) -> None:
        runs = [log_likelihood(prior, x, steps=steps, probes=probes, seed=seed) for seed in range(seeds)]
        self.values = torch.stack([run.log_prob for run in runs])[:, 0]
        self.errors = torch.stack([run.standard_error for run in runs])[:, 0]


def test_probes_estimate_the_divergence_with_an_honest_standard_error(monkeypatch):
    prior = gaussian()
    x = prior.sample(1, generator(0, "x", 4))
    exact = log_likelihood(prior, x, steps=10).log_prob[0]  # the same steps: the probes are all that differs
    seeds, probes = 40, 6
    runs = Probed(prior, x, seeds, 10, probes)
    spread = runs.values.std()
    assert (runs.values.mean() - exact).abs() < 5 * spread / math.sqrt(seeds)
    # The mean of the squared standard errors is the variance: chi-squared with (seeds - 1) and seeds (probes - 1) degrees.
    ratio = float(runs.errors.square().mean() / spread**2)
    relative = math.sqrt(2 / (seeds - 1) + 2 / (seeds * (probes - 1)))
    assert abs(ratio - 1) < 5 * relative, (ratio, relative)
    assert spread > 0.01
    call = continuous._Probes.__call__
    monkeypatch.setattr(continuous._Probes, "__call__", lambda self, clean, leaf: ROOT2 * call(self, clean, leaf))
    wrong = Probed(prior, x, 5, 10, probes)
    assert (wrong.values.mean() - exact).abs() > 5 * spread / math.sqrt(5)


class TinyNetwork(torch.nn.Module):
    """A smooth epsilon network for images of 1 x 4 x 4, with weights that nothing trained."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        shapes = ((8, 16), (16, 8))
        self.layers = torch.nn.ParameterList(
            torch.nn.Parameter(torch.tensor(rng.normal(size=shape) * 0.5, dtype=torch.float32)) for shape in shapes
        )

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(x_t.flatten(1) @ self.layers[0].mT + t[:, None] / 1000)
        return (hidden @ self.layers[1].mT).reshape(x_t.shape)


def network_prior() -> NetworkPrior:
    return NetworkPrior(TinyNetwork(), Schedule.named("linear"), channels=1)


def test_a_network_is_estimated_as_its_exact_divergence_says():
    prior = network_prior()
    x = torch.rand(2, 1, 4, 4, generator=generator(0, "x", 5))
    exact = log_likelihood(prior, x, steps=16)
    probed = log_likelihood(prior, x, steps=16, probes=50)
    assert ((probed.log_prob - exact.log_prob).abs() < 5 * probed.standard_error).all()
    assert (probed.standard_error > 0).all() and probed.latent.dtype == torch.float32
    torch.testing.assert_close(probed.latent, exact.latent)
    assert all(parameter.grad is None for parameter in prior.network.parameters())


@pytest.mark.parametrize("options", [{}, {"steps": 8}, {"steps": 8, "probes": 2}], ids=["adaptive", "fixed", "probes"])
def test_an_image_is_judged_alike_alone_and_in_a_batch(options):
    prior = gaussian()
    x = prior.sample(2, generator(0, "x", 6))
    both, alone = log_likelihood(prior, x, **options), log_likelihood(prior, x[:1], **options)
    torch.testing.assert_close(both.log_prob[:1], alone.log_prob, rtol=1e-10, atol=1e-10)
    assert log_likelihood(prior, x, **options, seed=1).log_prob.equal(both.log_prob) == ("probes" not in options)


class Broken(GaussianPrior):
    def denoise(self, x, sigma):
        return super().denoise(x, sigma) * float("nan")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sigma_min": 0.0}, "0 < sigma_min"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "0 < sigma_min"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"probes": 1}, "2 or more"),
        ({"x": torch.zeros(1, 3)}, "shape"),
        ({"x": torch.zeros(4)}, "batch"),
        ({"x": torch.full((1, 4), float("nan"))}, "finite"),
        ({"x": torch.zeros(1, 4, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_what_cannot_be_judged_is_refused(options, says):
    options = {"x": torch.zeros(1, 4), **options}
    with pytest.raises(UsageError, match=says):
        log_likelihood(gaussian(), options.pop("x"), **options)


def test_a_large_image_needs_probes_and_nan_is_an_error():
    with pytest.raises(UsageError, match="probes=8"):
        log_likelihood(network_prior(), torch.zeros(1, 1, 65, 65))
    for options in ({}, {"steps": 2}):
        with pytest.raises(NumericalError, match="likelihood"):
            log_likelihood(Broken([0.5, 0.5], 0.1), torch.zeros(1, 2), **options)
