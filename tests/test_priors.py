"""Closed-form priors against quadrature, Monte Carlo, autograd and dense algebra; the network prior against them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import UsageError
from invdiff.priors import GaussianMixturePrior, GaussianPrior, NetworkPrior
from invdiff.priors.network import pad_to_multiple

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def must_fail(check, *arguments):
    """The mutation twin: the same check has to notice a wrong value."""
    with pytest.raises(AssertionError):
        check(*arguments)


def close(a, b, rtol=1e-10, atol=1e-12):
    a, b = (torch.as_tensor(value, dtype=F64) for value in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def spd(n, count=None, rank=None, seed=1):
    root = randn(*([count] if count else []), n, rank or n, seed=seed)
    return root @ root.mT / n


N = 6
MEANS = randn(3, N, seed=2)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)

# Every structure of covariance, as a builder of the prior with its dense covariances beside it.
BUILDERS = {
    "gaussian-scalar": lambda: (GaussianPrior(MEANS[0], 0.4), 0.4 * torch.eye(N, dtype=F64)[None]),
    "gaussian-diagonal": lambda: (GaussianPrior(MEANS[0], MEANS[1] ** 2), torch.diag(MEANS[1] ** 2)[None]),
    "gaussian-dense": lambda: (GaussianPrior(MEANS[0], spd(N)), spd(N)[None]),
    "gaussian-singular": lambda: (GaussianPrior(MEANS[0], spd(N, rank=2)), spd(N, rank=2)[None]),
    "mixture-one-scalar": lambda: (mixture(0.4), 0.4 * torch.eye(N, dtype=F64).expand(3, N, N)),
    "mixture-scalars": lambda: (
        mixture([0.1, 0.4, 2.0]),
        torch.stack([v * torch.eye(N, dtype=F64) for v in (0.1, 0.4, 2)]),
    ),
    "mixture-one-diagonal": lambda: (mixture(MEANS[1] ** 2), torch.diag(MEANS[1] ** 2).expand(3, N, N)),
    "mixture-diagonals": lambda: (mixture(MEANS**2), torch.diag_embed(MEANS**2)),
    "mixture-one-dense": lambda: (mixture(spd(N)), spd(N).expand(3, N, N)),
    "mixture-dense": lambda: (mixture(spd(N, 3)), spd(N, 3)),
    "mixture-singular": lambda: (mixture(spd(N, 3, rank=2)), spd(N, 3, rank=2)),
}


def mixture(covariances):
    return GaussianMixturePrior(MEANS, covariances, WEIGHTS)


@pytest.fixture(params=sorted(BUILDERS))
def known(request):
    """(prior, dense covariances (K, n, n))."""
    return BUILDERS[request.param]()


def dense_denoise(prior, covariances, x, sigma):
    """The textbook formula with dense inverses."""
    total = covariances + sigma**2 * torch.eye(N, dtype=F64)
    log_p = torch.stack(
        [torch.distributions.MultivariateNormal(m, c).log_prob(x) for m, c in zip(prior.means, total, strict=True)], 1
    )
    weights = (prior.weights.log() + log_p).softmax(1)
    gains = covariances @ torch.linalg.inv(total)
    clean = prior.means + torch.einsum("kij,bkj->bki", gains, x[:, None] - prior.means)
    return torch.einsum("bk,bki->bi", weights, clean)


class TestDenoise:
    @pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
    def test_is_the_dense_formula(self, known, sigma):
        prior, covariances = known
        x = 2 * randn(5, N, seed=3)

        def check(factor):
            close(prior.denoise(x, factor * sigma), dense_denoise(prior, covariances, x, sigma), 1e-9, 1e-10)

        check(1.0)
        must_fail(check, math.sqrt(2))

    @pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
    def test_is_tweedie_of_its_own_log_density(self, known, sigma):
        prior, _ = known
        x = (2 * randn(5, N, seed=3)).requires_grad_()
        (score,) = torch.autograd.grad(prior.log_prob(x, sigma).sum(), x)

        def check(factor):
            close(x + factor * sigma**2 * score, prior.denoise(x, sigma), 1e-10, 1e-10)
            close(score, prior.score(x, sigma), 1e-8, 1e-8)

        check(1.0)
        must_fail(check, math.sqrt(2))
        close(prior.epsilon(x, sigma), -sigma * score, 1e-8, 1e-8)

    def test_its_jacobian_is_the_posterior_covariance(self, known):
        """Cov[x_0 | x] = sigma^2 dE[x_0 | x] / dx (second-order Tweedie)."""
        prior, _ = known
        x, sigma = randn(2, N, seed=3), 0.7
        covariances = prior.posterior_covariance(x, sigma)

        def check(factor):
            for b in range(2):
                jacobian = torch.autograd.functional.jacobian(lambda z: prior.denoise(z[None], sigma)[0], x[b])
                close(covariances[b], factor * sigma**2 * jacobian, 1e-9, 1e-10)

        check(1.0)
        must_fail(check, math.sqrt(2))

    def test_is_the_integral_in_one_dimension(self):
        prior = GaussianMixturePrior([[-1.0], [0.5], [2.0]], [0.04, 0.3, 0.01], [1.0, 2.0, 1.0])
        sigma, x = 0.6, torch.linspace(-3, 4, 15, dtype=F64)[:, None]
        # The trapezoidal rule is exact to rounding for a density that is smooth and vanishes at both ends.
        grid = torch.linspace(-12, 12, 40_001, dtype=F64)
        density = prior.log_prob(grid[:, None]).exp()
        close(torch.trapezoid(density, grid), 1.0)

        def check(factor):
            joint = (
                density
                * torch.exp(-0.5 * ((x - grid) / (factor * sigma)) ** 2)
                / (factor * sigma * math.sqrt(2 * math.pi))
            )
            evidence = torch.trapezoid(joint, grid)
            close(prior.log_prob(x, sigma), evidence.log())
            close(prior.denoise(x, sigma)[:, 0], torch.trapezoid(joint * grid, grid) / evidence)

        check(1.0)
        must_fail(check, math.sqrt(2))

    def test_is_the_regression_of_samples_on_their_noisy_copies(self):
        """E[(x_0 - D(x)) g(x)] = 0 for any g: here g(x) = x and D itself, by Monte Carlo."""
        prior, count, sigma = mixture(spd(N, 3)), 40_000, 0.5
        clean = prior.sample(count, generator())
        noisy = clean + sigma * randn(count, N, seed=9)

        def check(factor):
            denoised = prior.denoise(noisy, factor * sigma)
            for probe in (noisy, denoised):
                products = (clean - denoised) * probe
                assert (products.mean(0).abs() < 5 * products.std(0) / math.sqrt(count)).all()

        check(1.0)
        must_fail(check, math.sqrt(2))

    def test_takes_one_sigma_for_each_image(self, known):
        prior, _ = known
        x, sigmas = randn(4, N, seed=3), torch.tensor([0.1, 0.5, 2.0, 30.0], dtype=F64)
        together = prior.denoise(x, sigmas)
        for b in range(4):
            close(together[b], prior.denoise(x[b : b + 1], float(sigmas[b]))[0])
        close(prior.denoise(x, sigmas.reshape(4, 1)), together)

    def test_first_called_in_inference_mode_still_has_gradients_later(self, known):
        prior, _ = known
        with torch.inference_mode():
            built_inside = prior.posterior(MATRICES["wide"], randn(3), 0.3)
            built_inside.denoise(randn(2, N), 0.3)
            prior.denoise(randn(2, N), 0.3)
        for each in (prior, built_inside):
            x = randn(2, N).requires_grad_()
            (gradient,) = torch.autograd.grad(each.denoise(x, 0.3).sum(), x)
            assert torch.isfinite(gradient).all()

    def test_works_on_images_and_keeps_their_dtype(self):
        mean = randn(2, 2, 3)
        prior = GaussianPrior(mean, spd(12))
        flat = GaussianPrior(mean.flatten(), spd(12))
        x = randn(3, 2, 2, 3, seed=3)
        assert prior.channels == 2 and flat.channels is None
        close(prior.denoise(x, 0.3).flatten(1), flat.denoise(x.flatten(1), 0.3))
        close(prior.log_prob(x, 0.3), flat.log_prob(x.flatten(1), 0.3))
        single = prior.denoise(x.float(), 0.3)
        assert single.dtype == torch.float32 and prior.log_prob(x.float(), 0.3).dtype == torch.float32
        close(single.double(), prior.denoise(x.float().double(), 0.3), 1e-6, 1e-6)
        assert prior.sample(5, generator()).shape == (5, 2, 2, 3)
        assert prior.mean().shape == (2, 2, 3) and prior.covariance().shape == (12, 12)

    @pytest.mark.parametrize("distance", [1e3, 1e6, 1e9])
    def test_is_safe_far_away(self, distance):
        """At 1e6 sigma every density underflows; the nearest component still takes all the weight."""
        prior = GaussianMixturePrior([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], 0.01, [0.5, 0.5])
        sigma = 0.1
        x = torch.tensor([[distance * sigma, 0.0, 0.0], [-distance * sigma, 0.0, 0.0]], dtype=F64, requires_grad=True)
        clean = prior.denoise(x, sigma)
        close(clean[:, 0], torch.tensor([1.0, 0.0], dtype=F64) + 0.5 * (x[:, 0] - torch.tensor([1.0, 0.0], dtype=F64)))
        assert torch.isfinite(prior.log_prob(x, sigma)).all()
        (gradient,) = torch.autograd.grad(clean.sum(), x)
        assert torch.isfinite(gradient).all()

    def test_is_fast_without_dense_matrices(self):
        prior = GaussianMixturePrior(randn(25, 800), 0.1)
        assert prior._spectrum.values.shape == (1, 1) and prior._spectrum.basis is None
        exact = prior.posterior(randn(40, 800, seed=4), randn(40, seed=5), 0.1)
        assert exact._spectrum.basis.shape == (1, 800, 800)


class TestMoments:
    def test_samples_have_the_mean_and_covariance(self, known):
        prior, _ = known
        count = 40_000
        samples = prior.sample(count, generator())

        def check(factor):
            errors = samples - prior.mean()
            # One unit of rounding for coordinates that do not vary at all.
            assert (errors.mean(0).abs() < 5 * errors.std(0) / math.sqrt(count) + 1e-12).all()
            products = errors[:, :, None] * errors[:, None, :]
            gap = (products.mean(0) - factor * prior.covariance()).abs()
            assert (gap < 5 * products.std(0) / math.sqrt(count) + 1e-12).all()

        check(1.0)
        must_fail(check, math.sqrt(2))

    def test_are_those_of_the_definition(self, known):
        prior, covariances = known
        mean = prior.weights @ prior.means
        offset = prior.means - mean
        close(prior.mean(), mean)
        expected = torch.einsum("k,kij->ij", prior.weights, covariances + offset[:, :, None] * offset[:, None, :])
        close(prior.covariance(), expected, 1e-10, 1e-12)
        close(prior.component_covariance(0), covariances[0], 1e-10, 1e-12)
        close(prior.weights.sum(), 1.0)

    def test_the_noise_range_drowns_and_resolves(self, known):
        prior, _ = known
        assert 0 < prior.sigma_min <= 1e-3 < prior.sigma_max
        samples = prior.sample(100, generator())
        assert samples.norm(dim=1).max() < prior.sigma_max

    def test_sampling_is_a_function_of_the_generator(self, known):
        prior, _ = known
        close(prior.sample(3, generator(0)), prior.sample(3, generator(0)), 0, 0)
        assert not torch.equal(prior.sample(3, generator(0)), prior.sample(3, generator(1)))


MATRICES = {
    "wide": randn(3, N, seed=6),
    "square": randn(N, N, seed=6),
    "tall": randn(9, N, seed=6),
    "rank deficient": randn(4, 2, seed=6) @ randn(2, N, seed=7),
    "zero": torch.zeros(2, N, dtype=F64),
    "mask": torch.eye(N, dtype=F64)[[0, 3]],
}


def dense_posterior(prior, covariances, matrix, y, sigma_y):
    """Bishop 2.113-2.117 with dense inverses: means, covariances and log evidences of every component."""
    noise = sigma_y**2 * torch.eye(len(matrix), dtype=F64)
    total = matrix @ covariances @ matrix.mT + noise
    gains = covariances @ matrix.mT @ torch.linalg.inv(total)
    means = prior.means + torch.einsum("kim,km->ki", gains, y - prior.means @ matrix.mT)
    evidence = torch.stack(
        [
            torch.distributions.MultivariateNormal(matrix @ m, c).log_prob(y)
            for m, c in zip(prior.means, total, strict=True)
        ]
    )
    return means, covariances - gains @ matrix @ covariances, prior.weights.log() + evidence


class TestPosterior:
    @pytest.mark.parametrize("name", sorted(MATRICES))
    def test_is_the_dense_formula(self, known, name):
        prior, covariances = known
        matrix, sigma_y = MATRICES[name], 0.3
        y = randn(len(matrix), seed=8)
        means, parts, log_weights = dense_posterior(prior, covariances, matrix, y, sigma_y)

        def check(factor):
            exact = prior.posterior(matrix, y, factor * sigma_y)
            assert type(exact) is type(prior)
            close(exact.means, means, 1e-9, 1e-10)
            close(exact.weights, log_weights.softmax(0), 1e-9, 1e-12)
            for k in range(len(means)):
                close(exact.component_covariance(k), parts[k], 1e-9, 1e-10)

        check(1.0)
        if name != "zero":
            must_fail(check, math.sqrt(2))

    def test_in_two_steps_is_the_posterior_in_one(self, known):
        prior, _ = known
        matrix, y = MATRICES["square"], randn(N, seed=8)
        once = prior.posterior(matrix, y, 0.2)
        twice = prior.posterior(matrix[:2], y[:2], 0.2).posterior(matrix[2:], y[2:], 0.2)
        close(twice.mean(), once.mean(), 1e-9, 1e-10)
        close(twice.covariance(), once.covariance(), 1e-9, 1e-10)
        close(twice.weights, once.weights, 1e-9, 1e-12)

    def test_with_the_identity_is_the_denoiser(self, known):
        prior, _ = known
        x = randn(1, N, seed=3)
        exact = prior.posterior(torch.eye(N, dtype=F64), x[0], 0.7)
        close(exact.mean(), prior.denoise(x, 0.7)[0], 1e-9, 1e-10)
        close(exact.covariance(), prior.posterior_covariance(x, 0.7)[0], 1e-9, 1e-10)

    def test_agrees_with_importance_sampling(self):
        prior, count, sigma_y = mixture(spd(N, 3)), 200_000, 0.8
        matrix = MATRICES["wide"]
        y = matrix @ MEANS[1]
        samples = prior.sample(count, generator())
        weights = (-0.5 * ((y - samples @ matrix.mT) ** 2).sum(1) / sigma_y**2).softmax(0)
        effective = 1 / float(weights.square().sum())

        def check(factor):
            exact = prior.posterior(matrix, y, factor * sigma_y)
            error = samples - exact.mean()
            # Delta method: the variance of a self-normalised estimate is sum w^2 (f - E f)^2.
            spread = (weights[:, None] ** 2 * error**2).sum(0).sqrt()
            assert ((weights[:, None] * error).sum(0).abs() < 5 * spread).all()
            gap = (weights[:, None] * (error**2 - exact.covariance().diagonal())).sum(0).abs()
            deviation = (weights[:, None] ** 2 * (error**2 - exact.covariance().diagonal()) ** 2).sum(0).sqrt()
            assert (gap < 5 * deviation).all()

        assert effective > 1000
        check(1.0)
        must_fail(check, math.sqrt(2))

    def test_keeps_its_digits_when_the_data_are_almost_exact(self):
        """For sigma_y = 1e-9 the posterior variance of x[0] is 1e-18, far below the rounding of C - C A^T S^-1 A C."""
        prior = GaussianPrior(torch.zeros(2, dtype=F64), torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=F64))
        exact = prior.posterior([[1.0, 0.0]], [0.5], 1e-9)
        close(exact.mean(), torch.tensor([0.5, 0.3], dtype=F64), 1e-12)
        eigenvalues = exact._spectrum.values[0].sort().values
        # det Cov = det C * sigma_y^2 / (C_00 + sigma_y^2), and the other eigenvalue is 1 - 0.36.
        close(eigenvalues[0] * eigenvalues[1], torch.tensor(0.64 * 1e-18, dtype=F64), 1e-6, 0)

    def test_of_images_acts_on_flattened_pixels(self):
        means = randn(2, 1, 2, 3)
        exact = GaussianMixturePrior(means, 0.2).posterior(randn(2, 6, seed=4), [0.1, 0.2], 0.1)
        flat = GaussianMixturePrior(means.flatten(1), 0.2).posterior(randn(2, 6, seed=4), [0.1, 0.2], 0.1)
        assert exact.channels == 1 and exact.mean().shape == (1, 2, 3)
        close(exact.mean().flatten(), flat.mean())

    def test_survives_data_that_no_component_explains(self):
        exact = GaussianMixturePrior([[0.0, 0.0], [9.0, 0.0]], 0.01).posterior([[1.0, 0.0]], [1e6], 1e-3)
        close(exact.weights, torch.tensor([0.0, 1.0], dtype=F64))
        assert torch.isfinite(exact.mean()).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GaussianPrior(torch.zeros(2), [[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (lambda: GaussianPrior(torch.zeros(2), [[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalue"),
        (lambda: GaussianPrior(torch.zeros(2), [1.0, -1.0]), "negative variance"),
        (lambda: GaussianPrior(torch.zeros(2), torch.ones(3)), r"must be \(\), \(2,\) or \(2, 2\)"),
        (lambda: GaussianPrior(torch.zeros(2), float("nan")), "NaN"),
        (lambda: GaussianPrior(torch.tensor([0.0, math.inf]), 1.0), "mean holds NaN or infinity"),
        (lambda: GaussianPrior(torch.zeros(2, 2), 1.0), r"\(n,\) vector or a \(C, H, W\) image"),
        (lambda: GaussianPrior("mean", 1.0), "mean must be a tensor"),
        (lambda: GaussianMixturePrior(torch.zeros(3), 1.0), r"means must be \(K, n\)"),
        (lambda: GaussianMixturePrior(torch.zeros(3, 2), 1.0, [1.0, 1.0]), "3 positive numbers"),
        (lambda: GaussianMixturePrior(torch.zeros(2, 3), 1.0, [1.0, 0.0]), "2 positive numbers"),
        (lambda: GaussianMixturePrior(torch.zeros(2, 2), torch.eye(2)), "ambiguous"),
        (lambda: GaussianMixturePrior(torch.zeros(2, 2), torch.ones(2)), "ambiguous"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).denoise(torch.zeros(1, 2), 0.0), "sigma must be positive"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).denoise(torch.zeros(1, 2), -1.0), "sigma must be positive"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).denoise(torch.zeros(1, 2), math.nan), "sigma must be positive"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).denoise(torch.zeros(1, 2), math.inf), "sigma must be positive"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).denoise(torch.zeros(3, 2), torch.ones(2)), "one per image"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).denoise(torch.zeros(1, 3), 1.0), r"shape \(2,\), got \(3,\)"),
        (
            lambda: GaussianPrior(torch.zeros(2), 1.0).denoise(torch.zeros(1, 2, dtype=torch.int64), 1.0),
            "floating-point",
        ),
        (lambda: GaussianPrior(torch.zeros(2), 0.0).log_prob(torch.zeros(1, 2)), "singular"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).sample(0, generator()), "count"),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).sample(1, 0), "torch.Generator"),
        (
            lambda: GaussianPrior(torch.zeros(2), 1.0).posterior(torch.eye(3), torch.zeros(3), 1.0),
            r"matrix must be \(m, 2\)",
        ),
        (
            lambda: GaussianPrior(torch.zeros(2), 1.0).posterior(torch.eye(2), torch.zeros(3), 1.0),
            "one number for each",
        ),
        (
            lambda: GaussianPrior(torch.zeros(2), 1.0).posterior(torch.eye(2), torch.zeros(2), 0.0),
            "sigma_y must be positive",
        ),
        (lambda: GaussianPrior(torch.zeros(2), 1.0).posterior(1j * torch.eye(2), torch.zeros(2), 1.0), "must be real"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    says = says.replace("sigma_y must be positive", "sigma_y must be a positive number")
    with pytest.raises(UsageError, match=says):
        make()


def test_an_ambiguous_covariance_can_be_written_clearly():
    means = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64)
    shared = spd(2)
    close(GaussianMixturePrior(means, shared[None]).component_covariance(1), shared)
    close(
        GaussianMixturePrior(means, torch.tensor([[1.0, 2.0]])).component_covariance(1),
        torch.diag(torch.tensor([1, 2.0], dtype=F64)),
    )
    close(
        GaussianMixturePrior(means, torch.tensor([[1.0], [2.0]])).component_covariance(1), 2 * torch.eye(2, dtype=F64)
    )


# The network prior, with networks that are exact by construction.

SCHEDULE = Schedule.named("linear")
MEAN_IMAGE = 0.5 + 0.2 * randn(3, 4, 5, seed=11)
VARIANCE = 0.07


class ExactNetwork(torch.nn.Module):
    """What a perfect network in [-1, 1] says for the prior N(MEAN_IMAGE, VARIANCE I) in [0, 1]."""

    def __init__(self, prediction, extra=0):
        super().__init__()
        self.prediction, self.extra = prediction, extra
        self.unused = torch.nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x_t, t):
        abar = torch.from_numpy(1 / (1 + SCHEDULE.sigma(t.double().numpy()) ** 2)).reshape(-1, 1, 1, 1)
        mean, variance = 2 * MEAN_IMAGE - 1, 4 * VARIANCE
        clean = mean + variance * abar**0.5 / (abar * variance + 1 - abar) * (x_t - abar**0.5 * mean)
        noise = (x_t - abar**0.5 * clean) / (1 - abar) ** 0.5
        output = {"epsilon": noise, "sample": clean, "v_prediction": abar**0.5 * noise - (1 - abar) ** 0.5 * clean}
        said = output[self.prediction]
        return torch.cat([said, torch.full_like(said, 7.0)], 1) if self.extra else said


@pytest.mark.parametrize("extra", [0, 3], ids=["mean only", "learned variance"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
class TestNetworkPrior:
    def make(self, prediction, extra):
        return NetworkPrior(ExactNetwork(prediction, extra), SCHEDULE, channels=3, prediction=prediction)

    @pytest.mark.parametrize("t", [0, 10, 500, 999])
    def test_is_exact_at_the_levels_of_the_schedule(self, prediction, extra, t):
        """A wrong factor of two anywhere between [0, 1] and [-1, 1] shows here."""
        network, exact = self.make(prediction, extra), GaussianPrior(MEAN_IMAGE, VARIANCE)
        sigma = float(SCHEDULE.sigmas[t]) / 2
        x = MEAN_IMAGE + math.sqrt(VARIANCE + sigma**2) * randn(2, 3, 4, 5, seed=12)

        def check(factor):
            # epsilon is divided by sqrt(abar), which is 2 sigma at high noise.
            close(network.denoise(x, sigma), exact.denoise(x, factor * sigma), 1e-10, 1e-12 * (1 + sigma))

        check(1.0)
        must_fail(check, math.sqrt(2))
        must_fail(check, 2.0)

    def test_is_right_between_the_levels(self, prediction, extra):
        network, exact = self.make(prediction, extra), GaussianPrior(MEAN_IMAGE, VARIANCE)
        sigmas = torch.tensor([0.0301, 0.31, 4.44], dtype=F64)
        x = MEAN_IMAGE + 0.5 * randn(3, 3, 4, 5, seed=12)
        # The network is told the time in float32: t ~ 500 is off by 3e-5, and sigma by about 1e-7 of itself.
        close(network.denoise(x, sigmas), exact.denoise(x, sigmas), 1e-5, 1e-5)
        close(network.denoise(x, sigmas.reshape(3, 1, 1, 1)), network.denoise(x, sigmas), 0, 0)
        for b in range(3):
            close(network.denoise(x[b : b + 1], float(sigmas[b]))[0], network.denoise(x, sigmas)[b], 1e-12, 1e-12)

    def test_score_and_epsilon_follow(self, prediction, extra):
        network, exact = self.make(prediction, extra), GaussianPrior(MEAN_IMAGE, VARIANCE)
        sigma = float(SCHEDULE.sigmas[500]) / 2
        x = MEAN_IMAGE + 0.5 * randn(1, 3, 4, 5, seed=12)
        close(network.score(x, sigma), exact.score(x, sigma), 1e-9, 1e-9)
        close(network.epsilon(x, sigma), exact.epsilon(x, sigma), 1e-9, 1e-9)


def test_network_prior_speaks_in_units_of_zero_to_one():
    prior = NetworkPrior(ExactNetwork("epsilon"), SCHEDULE, channels=3)
    assert prior.sigma_max == SCHEDULE.sigmas[-1] / 2 and prior.sigma_min == SCHEDULE.sigmas[0] / 2
    assert prior.describe()["prediction"] == "epsilon"


def test_network_prior_refuses_what_it_was_not_made_for():
    prior = NetworkPrior(ExactNetwork("epsilon"), SCHEDULE, channels=3)
    for x, sigma, says in [
        (torch.zeros(1, 1, 4, 5), 0.1, "3 channel"),
        (torch.zeros(3, 4, 5), 0.1, r"\(B, C, H, W\)"),
        (torch.zeros(1, 3, 4, 5), 0.0, "sigma must be positive"),
        (torch.zeros(1, 3, 4, 5), torch.tensor([0.1, 0.2]), "one per image"),
    ]:
        with pytest.raises(UsageError, match=says):
            prior.denoise(x, sigma)
    with pytest.raises(UsageError, match="prediction"):
        NetworkPrior(ExactNetwork("epsilon"), SCHEDULE, channels=3, prediction="noise")


@pytest.fixture(scope="module")
def tiny():
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network

    config = TrainingConfig(widths=(8, 16, 16), groups=4, crops=(16,))
    return NetworkPrior(build_network(config), SCHEDULE, channels=3, multiple=config.downsampling)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (5, 5), (8, 8), (13, 22)])
def test_network_prior_takes_any_image_size(tiny, shape):
    x = torch.rand(2, 3, *shape, generator=generator())
    clean = tiny.denoise(x, 0.1)
    assert clean.shape == x.shape and torch.isfinite(clean).all()
    # A pixel-exact statement: denoising the padded image and cropping is the same thing.
    padded = tiny.denoise(pad_to_multiple(x, 4), 0.1)
    close(padded[..., : shape[0], : shape[1]], clean, 1e-5, 1e-5)


def test_network_prior_is_batch_invariant_and_differentiable(tiny):
    x = torch.rand(3, 3, 10, 7, generator=generator())
    sigmas = torch.tensor([0.02, 0.3, 3.0])
    together = tiny.denoise(x, sigmas)
    for b in range(3):
        close(together[b], tiny.denoise(x[b : b + 1], float(sigmas[b]))[0], 1e-4, 1e-5)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(tiny.denoise(x, 0.3).sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_padding_mirrors_or_repeats():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert pad_to_multiple(x, 1) is x
    assert pad_to_multiple(x, 4).shape == (1, 1, 4, 4)
    assert np.array_equal(pad_to_multiple(x[..., :1, :1], 4)[0, 0], np.zeros((4, 4)))


@pytest.mark.parametrize("variance", [1.0, 1e-4, 1e-14])
@pytest.mark.parametrize("sigma", [1e-3, 0.5, 200.0])
def test_a_shared_variance_costs_no_digits(variance, sigma, monkeypatch):
    """Matrix products stand for differences where that is exact enough, and the result does not say which was taken."""
    from invdiff.priors import mixture as module

    means = 16 * randn(25, 40, seed=3)
    prior = GaussianMixturePrior(means, torch.tensor(variance, dtype=F64), torch.arange(1.0, 26))
    x = prior.sample(30, generator(1)) + sigma * randn(30, 40, seed=4)
    ours = prior.denoise(x, sigma)
    monkeypatch.setattr(module, "_LOST", 0.0)
    torch.testing.assert_close(ours, prior.denoise(x, sigma), rtol=0, atol=1e-8)
    monkeypatch.undo()
    x.requires_grad_(True)
    (gradient,) = torch.autograd.grad(prior.denoise(x, sigma).sum(), x)
    monkeypatch.setattr(module, "_LOST", 0.0)
    (expected,) = torch.autograd.grad(prior.denoise(x, sigma).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
