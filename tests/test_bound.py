"""The variational bound against closed forms: exact denoisers, exact likelihoods, and errors that are what they claim."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from invdiff.cli.main import Root
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import NumericalError, UsageError
from invdiff.files.images import write_image
from invdiff.priors import GaussianPrior
from invdiff.priors.prior import Prior
from invdiff.scores import bound as module
from invdiff.scores.bound import discrete_decoder, gaussian_decoder, variational_bound

SHAPE = (1, 16, 16)
VARIANCES = np.geomspace(0.02, 0.3, 256) ** 2
BITS = 1 / math.log(2)


def must_fail(check, *arguments):
    """The mutation twin: the same check has to notice a wrong value."""
    with pytest.raises(AssertionError):
        check(*arguments)


def chain(steps: int, first: float = 9.2, last: float = -10.0) -> Schedule:
    """log SNR from `first` to `last` in equal steps: the noise at both ends is the same for every number of steps."""
    abar = 1 / (1 + np.exp(-np.linspace(first, last, steps)))
    return Schedule(1 - abar / np.concatenate([[1.0], abar[:-1]]))


def prior(variances=VARIANCES, shape=SHAPE) -> GaussianPrior:
    return GaussianPrior(torch.full(shape, 0.5), torch.as_tensor(variances))


def draws(count: int, seed: int = 0) -> torch.Tensor:
    return prior().sample(count, torch.Generator().manual_seed(seed))


class Scaled(Prior):
    """A denoiser that is wrong by a factor."""

    def __init__(self, factor: float) -> None:
        self.exact, self.factor = prior(), factor

    def denoise(self, x, sigma):
        return self.factor * self.exact.denoise(x, sigma)


def step_parts(schedule: Schedule, variance: str):
    """Per dimension and t >= 1: the divergence of two Gaussians with the variances beta~_t and s_t^2 whose means differ by
    a_t e is factor e^2 + constant. From the definition of q(x_{t-1} | x_t, x_0), by its own route."""
    abar, before = schedule.alphas_bar, np.concatenate([[1.0], schedule.alphas_bar[:-1]])
    precision = (schedule.alphas / schedule.betas)[1:] + 1 / (1 - before[1:])  # Bayes' rule for x_{t-1}
    true = 1 / precision
    chosen = true if variance == "posterior" else schedule.betas[1:]
    slope = true * np.sqrt(before[1:]) / (1 - before[1:])  # of the mean in x_0
    factor = np.concatenate([[0], slope**2 / (2 * chosen)])
    constant = np.concatenate([[0], (true / chosen - 1 + np.log(chosen / true)) / 2])
    assert np.allclose(factor[1:] * (variance == "posterior"), (schedule.snr[:-1] - schedule.snr[1:]) / 2) or (
        variance == "beta"
    )
    return factor, constant, abar


def expected(schedule: Schedule, variance: str, x: torch.Tensor | None = None) -> dict[str, float]:
    """L_T, their sum, L_0 in bits per dimension, with the exact denoiser and the Gaussian decoder: for one image x, or in the
    mean over the prior. E|x_0 - D|^2 per coordinate is (k (x - m))^2 + c^2 q / (c + q)^2, k = q / (c + q), c the variance."""
    factor, constant, abar = step_parts(schedule, variance)
    q = ((1 - abar) / abar / 4)[:, None]
    square = VARIANCES if x is None else ((x.numpy().reshape(-1) - 0.5) ** 2)
    error = 4 * ((q / (VARIANCES + q)) ** 2 * square + VARIANCES**2 * q / (VARIANCES + q) ** 2).mean(1)
    last, beta = abar[-1], schedule.betas[0]
    parts = {
        "L_T": 0.5 * (last * (4 * square.mean() - 1) - math.log(1 - last)),
        "diffusion": float((factor * error + constant).sum()),
        "L_0": 0.5 * math.log(2 * math.pi * beta / 4) + error[0] / (2 * beta),
    }
    return {name: BITS * value for name, value in parts.items()} | {"L_t": BITS * (factor * error + constant)}


# Against the exact likelihood


def gaps(model: Prior, steps: int, count: int, variance: str = "posterior") -> np.ndarray:
    """(count,) of what the bound lacks to the exact log-likelihood, in bits per dimension, for draws of the prior."""
    x = draws(count)
    bound = variational_bound(model, x, schedule=chain(steps), decoder="gaussian", variance=variance)
    exact = BITS * prior().log_prob(x).numpy() / VARIANCES.size
    return bound.per_image + exact


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


COUNTS = {10: 64, 30: 64, 100: 64, 300: 64, 1000: 64}


@pytest.fixture(scope="module")
def exact_gaps() -> dict[int, np.ndarray]:
    return {steps: gaps(prior(), steps, count) for steps, count in COUNTS.items()}


def test_the_bound_never_exceeds_the_likelihood_and_closes_on_it(exact_gaps):
    results = {steps: mean_and_error(values) for steps, values in exact_gaps.items()}

    def never_exceeds(results):
        for mean, error in results.values():
            assert mean > -5 * error

    def closes(results):
        order = sorted(results)
        for few, many in itertools.pairwise(order):
            assert results[many][0] < results[few][0] - 5 * math.hypot(results[few][1], results[many][1])
        assert results[order[-1]][0] < 0.032 + 5 * results[order[-1]][1]  # 0.0315 bits is the closed form's

    def first_order(results):
        """Weighted regression of log gap on log T where higher orders have died out."""
        used = {steps: result for steps, result in results.items() if steps >= 100}
        place = np.log(list(used))
        value = np.array([math.log(mean) for mean, _ in used.values()])
        weight = np.array([(mean / error) ** 2 for mean, error in used.values()])
        centred = place - (weight * place).sum() / weight.sum()
        slope, error = (weight * centred * value).sum(), 1 / math.sqrt((weight * centred**2).sum())
        slope *= error**2
        assert error < 0.06
        assert abs(slope + 1) < 0.04 + 5 * error  # the closed form's slope here is -1.025

    for check in (never_exceeds, closes, first_order):
        check(results)
    must_fail(first_order, {steps: (mean**2, 2 * mean * error) for steps, (mean, error) in results.items()})
    must_fail(first_order, {steps: (mean**0.5, error / 2 / mean**0.5) for steps, (mean, error) in results.items()})
    must_fail(closes, {steps: mean_and_error(gaps(Scaled(1.05), steps, 8)) for steps in (100, 300)})


def test_too_small_a_weight_exceeds_the_likelihood(monkeypatch):
    """The twin of "never exceeds": half of each L_t is no bound."""

    def check():
        mean, error = mean_and_error(gaps(prior(), 100, 16))
        assert mean > -5 * error

    check()
    whole = module._Chain.of

    def half(*arguments):
        made = whole(*arguments)
        made.factor[:] /= 2
        return made

    monkeypatch.setattr(module._Chain, "of", staticmethod(half))
    must_fail(check)


def test_a_decoder_of_half_the_variance_does_not_close(monkeypatch, exact_gaps):
    def check(gap):
        mean, error = mean_and_error(gap)
        assert mean < 0.107 + 5 * error  # 0.106 bits is the closed form's; half the variance costs 0.22 more

    check(exact_gaps[300])
    right = module.gaussian_decoder
    monkeypatch.setattr(module, "gaussian_decoder", lambda x, mean, s: right(x, mean, s / math.sqrt(2)))
    must_fail(check, gaps(prior(), 300, 64))


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_each_part_is_its_closed_form(variance):
    x = draws(48, seed=1)
    schedule = chain(60)
    bound = variational_bound(prior(), x, schedule=schedule, decoder="gaussian", variance=variance)
    exact = expected(schedule, variance)

    def check(name, factor=1.0):
        term = getattr(bound, name)
        assert abs(term.value - factor * exact[name]) < 5 * term.standard_error

    for name in ("L_T", "diffusion", "L_0"):
        check(name)
        must_fail(check, name, math.sqrt(2))
    total = bound.L_T.value + bound.diffusion.value + bound.L_0.value
    assert math.isclose(bound.total.value, total, rel_tol=1e-12)
    assert math.isclose(bound.per_image.mean(), total, rel_tol=1e-12)
    np.testing.assert_array_equal(bound.t, np.arange(1, 60))
    assert np.all(np.abs(bound.L_t - exact["L_t"][1:]) < 5 * bound.L_t_error)
    must_fail(
        lambda: np.testing.assert_array_less(np.abs(bound.L_t - math.sqrt(2) * exact["L_t"][1:]), 5 * bound.L_t_error)
    )
    assert math.isclose(bound.L_t.sum(), bound.diffusion.value, rel_tol=1e-12)


def test_variance_beta_is_the_tighter_bound_here(exact_gaps):
    """beta_t is right where the density looks flat, which is at low noise: 0.137 bits for 0.333 at T = 100."""
    mean, error = mean_and_error(gaps(prior(), 100, 64, "beta"))
    closed = sum(expected(chain(100), "beta")[name] for name in ("L_T", "diffusion", "L_0"))
    entropy = BITS * 0.5 * np.log(2 * math.pi * math.e * VARIANCES).mean()
    assert abs(mean - (closed - entropy)) < 5 * error
    assert mean + 5 * error < exact_gaps[100].mean()


# The errors that are reported


@pytest.mark.parametrize("timesteps", [None, 12, 40])
def test_the_estimate_has_no_bias_and_the_error_it_claims(timesteps):
    """The same three images with many seeds, against the exact mean for these images."""
    schedule, x, repeats = chain(100), draws(3, seed=2), 400
    bounds = [
        variational_bound(prior(), x, schedule=schedule, decoder="gaussian", timesteps=timesteps, seed=seed)
        for seed in range(repeats)
    ]
    exact = [expected(schedule, "posterior", image) for image in x]

    def check(name, factor=1.0, size=1.0):
        values = factor * np.array([getattr(bound, name).value for bound in bounds])
        wanted = np.mean([parts[name] for parts in exact])
        spread = values.std(ddof=1)
        assert abs(values.mean() - wanted) < 5 * spread / math.sqrt(repeats)
        claimed = size * math.sqrt(np.mean([getattr(bound, name).monte_carlo_error ** 2 for bound in bounds]))
        # A deviation from n values is uncertain by 1 / sqrt(2 n). The claim, averaged over as many, has at least nine
        # degrees of freedom in each. What the trend over t bends counts as noise too, which may add a tenth.
        tolerance = 5 * math.sqrt(1 + 1 / 9) / math.sqrt(2 * repeats)
        assert -tolerance < claimed / spread - 1 < tolerance + 0.1

    for name in ("diffusion", "L_0"):
        check(name)
        must_fail(check, name, 1.02)
        must_fail(check, name, 1.0, 1 / math.sqrt(2))
        must_fail(check, name, 1.0, 2.0)
    assert bounds[0].calls == 3 * (4 + (99 if timesteps is None else timesteps))
    assert bounds[0].L_T.monte_carlo_error == 0


def test_a_subset_agrees_with_the_full_sum():
    x = draws(4, seed=3)
    full = variational_bound(prior(), x, schedule=chain(300), decoder="gaussian")
    for timesteps in (3, 10, 100):
        part = variational_bound(prior(), x, schedule=chain(300), decoder="gaussian", timesteps=timesteps, seed=5)
        error = math.hypot(part.total.monte_carlo_error, full.total.monte_carlo_error)
        assert abs(part.total.value - full.total.value) < 5 * error
        assert set(part.t) <= set(range(1, 300)) and part.calls == 4 * (4 + timesteps)
    assert abs(1.1 * full.diffusion.value - full.diffusion.value) > 5 * error  # what the last of them would notice


def test_a_subset_has_no_bias_where_the_prior_errs_and_none_expects_it(monkeypatch):
    """A denoiser that fails at high noise, where the plan draws few steps."""

    class Broken(Prior):
        def denoise(self, x, sigma):
            return torch.where((sigma > 1.0).reshape(-1, 1, 1, 1), 2.0, exact.denoise(x, sigma))

    exact, x, schedule = prior(), draws(1), chain(200)
    whole = variational_bound(Broken(), x, schedule=schedule, decoder="gaussian").diffusion.value

    def check():
        runs = [
            variational_bound(Broken(), x, schedule=schedule, decoder="gaussian", timesteps=20, seed=seed)
            for seed in range(300)
        ]
        mean, error = mean_and_error(np.array([run.diffusion.value for run in runs]))
        assert abs(mean - whole) < 5 * error < 0.15 * whole

    check()
    choose = module._Chain.choose
    monkeypatch.setattr(module._Chain, "choose", lambda self, rng: (choose(self, rng)[0], np.full(20, 199 / 20)))
    must_fail(check)  # as if all steps were drawn equally often


# The decoders


@pytest.mark.parametrize("deviation", [0.001, 0.004, 0.05, 1.0])
@pytest.mark.parametrize("mean", [-0.1, 0.0, 0.31, 0.5, 1.0, 1.2])
def test_the_discrete_decoder_is_a_distribution_over_256_levels(mean, deviation):
    levels = torch.arange(256, dtype=torch.float64) / 255

    def check(decoder):
        logs = [-float(decoder(x[None], torch.tensor([mean], dtype=torch.float64), deviation)) for x in levels]
        assert all(math.isfinite(log) for log in logs)
        assert abs(sum(math.exp(log) for log in logs) - 1) < 1e-12

    check(discrete_decoder)
    # The twin: a density times the width of a level is no distribution where the deviation is small or the ends are near.
    if deviation < 0.002 or deviation > 0.5 or not 0.2 < mean < 0.8:
        must_fail(check, lambda x, m, s: gaussian_decoder(x, m, s) + math.log(255))


def test_the_discrete_decoder_keeps_its_digits_far_out():
    """Ten levels and fifty deviations away: -log of the tail, by its asymptotic series."""
    s = 0.2 / 255
    for sign in (1, -1):
        x = torch.tensor([100 / 255], dtype=torch.float64)
        value = float(discrete_decoder(x, x + sign * 10 / 255, s))
        z = 9.5 / 255 / s
        tail = z**2 / 2 + math.log(z * math.sqrt(2 * math.pi)) + 1 / z**2  # log(1 - 1/z^2 + ..) to 3 / z^4
        assert abs(value / tail - 1) < 1e-8
        assert abs(math.sqrt(2) * value / tail - 1) > 1e-8


def test_wide_decoders_differ_by_the_width_of_a_level():
    x, mean = torch.full((1, 2, 2), 0.4, dtype=torch.float64), torch.full((1, 2, 2), 0.45, dtype=torch.float64)
    difference = BITS * float(discrete_decoder(x * 255 / 255, mean, 0.1) - gaussian_decoder(x, mean, 0.1))
    assert abs(difference - math.log2(255)) < 1e-4  # the density bends by (1 / 255 / 0.1)^2 / 24 over a level


def test_eight_bit_images_need_the_entropy_and_the_gap():
    """Images drawn from a prior and rounded; 1/255 is a fifth of the smallest deviation, so they have the entropy of the
    density plus log2 255. On top come the gap at T = 1000, and a decoder of half the variance that the error has."""
    variances = np.geomspace(0.02, 0.1, 256) ** 2
    model = prior(variances)
    x = (255 * model.sample(32, torch.Generator().manual_seed(4))).round().clamp(0, 255) / 255
    bound = variational_bound(model, x, schedule=chain(1000), decoder="discrete", timesteps=100)
    entropy = BITS * 0.5 * np.log(2 * math.pi * math.e * variances).mean() + math.log2(255)
    density = variational_bound(model, x, schedule=chain(1000), decoder="gaussian", timesteps=100)
    gap = density.total.value - BITS * float(-model.log_prob(x).mean()) / 256

    def check(value):
        # A level is about as wide as the decoder, whose mass in it differs from density times width by less than 0.1 bits.
        assert abs(value - (entropy + gap + BITS * (1 - math.log(2)) / 2)) < 5 * bound.total.standard_error + 0.1

    check(bound.total.value)
    must_fail(check, bound.total.value + 0.5)
    must_fail(check, bound.total.value / math.sqrt(2))
    assert bound.total.standard_error < 0.05


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear"])
def test_the_discrete_decoder_has_the_variance_of_the_paper_on_its_schedules(name):
    schedule = Schedule.named(name)
    first, second = schedule.betas[:2]
    exact = second * first / (1 - (1 - first) * (1 - second))
    made = module._Chain.of(schedule, "discrete", "posterior", None)
    assert math.isclose(made.decoder_variance, exact, rel_tol=1e-9) and made.decoder_variance > first / 2
    assert module._Chain.of(chain(1000), "discrete", "beta", None).decoder_variance == chain(1000).betas[0] / 2
    assert module._Chain.of(schedule, "gaussian", "posterior", None).decoder_variance == first


# What the result does not depend on


def test_batches_order_and_company_change_nothing():
    x = list(draws(3))
    settings = {"schedule": chain(40), "decoder": "gaussian", "timesteps": 9, "seed": 4}
    whole = variational_bound(prior(), x, **settings)
    for batch_size in (1, 5, 1000):
        np.testing.assert_allclose(
            variational_bound(prior(), x, batch_size=batch_size, **settings).per_image, whole.per_image, rtol=1e-12
        )
    np.testing.assert_array_equal(variational_bound(prior(), x[:1], **settings).per_image, whole.per_image[:1])
    stacked = variational_bound(prior(), torch.stack(x), **settings)
    np.testing.assert_array_equal(stacked.per_image, whole.per_image)
    other = variational_bound(prior(), x, **settings | {"seed": 5})
    assert not np.isclose(other.per_image, whole.per_image, rtol=1e-6).any()
    assert whole.per_image[0] != variational_bound(prior(), [x[1], x[0]], **settings).per_image[1]


class Shrink(Prior):
    """Takes any size: E[x_0 | x] for independent pixels N(1/2, 1/16)."""

    def denoise(self, x, sigma):
        levels = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return 0.5 + (x - 0.5) / (1 + 16 * levels**2)


def test_images_of_mixed_sizes_count_alike():
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 8, 8, generator=generator), torch.rand(1, 20, 12, generator=generator)]
    both = variational_bound(Shrink(), images, timesteps=10)
    alone = variational_bound(Shrink(), images[:1], timesteps=10)
    assert both.per_image[0] == alone.per_image[0] and alone.total.standard_error is None
    assert math.isclose(both.total.value, both.per_image.mean(), rel_tol=1e-12)
    assert both.per_image.shape == (2,)


def test_the_schedule_is_the_priors_own_unless_another_is_given():
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Shrink()
    assert variational_bound(model, [image], timesteps=5).steps == 1000
    model.schedule = chain(30)  # type: ignore[attr-defined]
    assert variational_bound(model, [image], timesteps=5).steps == 30
    assert variational_bound(model, [image], timesteps=5, schedule=chain(20)).steps == 20


def test_progress_counts_every_call():
    seen = []
    variational_bound(Shrink(), torch.rand(2, 1, 8, 8), timesteps=6, batch_size=4, progress=lambda *n: seen.append(n))
    assert seen == [(4, 20), (8, 20), (10, 20), (14, 20), (18, 20), (20, 20)]


def test_the_record_holds_no_nan():
    bound = variational_bound(Shrink(), torch.rand(1, 1, 8, 8), timesteps=6)
    content = json.loads(json.dumps(bound.to_dict(), allow_nan=False))
    assert content["total"]["standard_error"] is None and None in content["L_t_error"]
    assert content["measure"].startswith("probability") and content["steps"] == 1000
    assert len(content["t"]) == len(content["L_t"]) == len(content["L_t_error"]) <= 6


# Bad input


@pytest.mark.parametrize(
    "change, words",
    [
        ({"images": []}, "no images"),
        ({"images": [torch.zeros(3, 4, 4, dtype=torch.uint8)]}, "image 0 is no floating-point"),
        ({"images": [torch.full((1, 4, 4), math.nan)]}, "image 0 holds NaN"),
        ({"images": [torch.zeros(1, 4, 4), torch.full((1, 4, 4), 1.5)]}, "image 1 has values from 1.5 to 1.5"),
        ({"timesteps": 31}, "from 3 to 30"),
        ({"timesteps": 2}, "from 3 to 30"),
        ({"decoder": "gausian"}, "Did you mean 'gaussian'"),
        ({"variance": "alpha"}, "unknown variance"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    arguments = {"images": [torch.zeros(1, 4, 4)], "schedule": chain(30)} | change
    with pytest.raises(UsageError, match=words):
        variational_bound(Shrink(), arguments.pop("images"), **arguments)


def test_wrong_images_are_called_by_their_names():
    images = [torch.zeros(SHAPE), torch.zeros(1, 4, 4)]
    with pytest.raises(UsageError, match=r"b.png: this prior is for images of shape \(1, 16, 16\)"):
        variational_bound(prior(), images, names=["a.png", "b.png"])


def test_a_prior_that_answers_nan_is_named():
    class Bad(Shrink):
        def denoise(self, x, sigma):
            return super().denoise(x, sigma) + torch.where(sigma > 1.0, math.nan, 0.0).reshape(-1, 1, 1, 1)

    with pytest.raises(NumericalError, match=r"NaN or infinity at t = \d+, sigma [1-9]"):
        variational_bound(Bad(), [torch.zeros(1, 4, 4)], schedule=chain(30), batch_size=7)


# The command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        network = UNet2DModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            add_attention=False,
        )
    folder = tmp_path_factory.mktemp("priors") / "tiny"
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name, shape in (("a", (3, 24, 32)), ("b", (3, 32, 24)), ("c", (3, 40, 40))):
        write_image(tmp_path / "photos" / f"{name}.png", torch.rand(shape, generator=generator))
    return tmp_path


def invoke(*arguments: object) -> Result:
    main = click.command(cls=Root, commands={"elbo": "invdiff.cli.elbo:elbo"})(lambda: None)
    fast = ["--device", "cpu", "--precision", "fp32"]
    return CliRunner().invoke(main, ["elbo", *map(str, arguments), *fast])


def succeed(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_the_command_prints_and_writes_the_same_numbers(folder, checkpoint):
    shared = (checkpoint, "--data", "photos", "--crop", "16", "--timesteps", "8")
    result = succeed(*shared, "-o", "bound.json")
    record = json.loads(Path("bound.json").read_text())
    bound = record["bits_per_dimension"]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert result.stdout.startswith(f"{checkpoint} on 3 image(s) of 16 x 16 pixels, 8 of 50 time steps, 36 calls\n")
    table = {line[0]: line[1:] for line in lines if line and line[0] in ("L_T", "L_0", "total")}
    for name, cells in table.items():
        exact = [bound[name][key] for key in ("value", "standard_error", "monte_carlo_error")]
        np.testing.assert_allclose(np.array(cells, dtype=float), exact, rtol=0.06)
    assert set(table) == {"L_T", "L_0", "total"} and "8 bits a dimension" in result.stdout
    assert [Path(item["path"]).name for item in record["inputs"]] == ["a.png", "b.png", "c.png"]
    assert "--timesteps 8" in record["command"] and record["prior"]["sha256"]
    assert json.loads(succeed(*shared, "--json").stdout) == bound
    assert not succeed(*shared, "--quiet").output
    succeed(*shared, "-o", "bound.json")  # its own files may be replaced
    assert json.loads(Path("bound.json").read_text())["bits_per_dimension"] == bound


def test_limit_and_mixed_sizes(folder, checkpoint):
    text = succeed(checkpoint, "--data", "photos", "--limit", "2", "--timesteps", "4").stdout
    assert "on 2 image(s) of 2 sizes" in text
    single = succeed(
        checkpoint, "--data", "photos/a.png", "--crop", "16", "--decoder", "gaussian", "--variance", "beta"
    )
    assert "of 16 x 16 pixels, all 50 time steps, 53 calls" in single.stdout and "density" in single.stdout
    assert single.stdout.splitlines()[-2].split()[2] == "-"  # one image has no spread


def test_images_that_are_not_8_bit_are_said_to_be_rounded(folder, checkpoint):
    write_image("photos/a.png", torch.rand(3, 16, 16), bits=16)
    shared = (checkpoint, "--data", "photos", "--crop", "16", "--timesteps", "4")
    assert "1 of 3 images are not 8-bit" in succeed(*shared).stderr
    assert not succeed(*shared, "--decoder", "gaussian").stderr


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--data", "nowhere"], 1, "no such file"),
        (["--data", "empty"], 1, "no images in empty"),
        (["--data", "text.png"], 1, "text.png"),
        (["--data", "grey.png"], 2, "grey.png: this prior is for images of 3 channel(s), the image has 1"),
        (["--data", "photos", "--crop", "25"], 1, "photos/a.png: 24 x 32 pixels are too few for --crop 25"),
        (["--data", "photos", "--timesteps", "51"], 2, "give a number from 3 to 50"),
        (["--data", "high.tif"], 2, "high.tif has values from 0 to 1.5"),
        (["--data", "photos", "-o", "bound.txt"], 2, "must end in .json"),
        (["--data", "photos", "-o", "photos/a.png"], 2, "must end in .json"),
        (["--data", "photos", "-o", "other.json"], 2, "other.json exists and was not written by this command"),
        (["--data", "photos", "-o", "text.png/bound.json"], 1, "is no folder that you may write to"),
        (["--data", "photos", "-o", "empty.json"], 1, "it is a folder"),
    ],
)
def test_bad_input_is_one_line(folder, checkpoint, arguments, code, words):
    Path("empty").mkdir()
    Path("empty.json").mkdir()
    Path("text.png").write_text("hello")
    Path("other.json").write_text('{"mine": 1}')
    write_image("grey.png", torch.rand(1, 16, 16))
    write_image("high.tif", torch.linspace(0, 1.5, 3 * 64).reshape(3, 8, 8))
    before = sorted(folder.rglob("*"))
    result = invoke(checkpoint, *arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1 and not result.stdout
    assert sorted(folder.rglob("*")) == before and Path("other.json").read_text() == '{"mine": 1}'


def test_help_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, invdiff.cli.elbo\nassert not {'torch', 'matplotlib', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
