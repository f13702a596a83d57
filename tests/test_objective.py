"""The objective: every weighting and every form of the answer against formulas, and the draws against their distribution."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from invdiff.diffusion.parameterization import convert, to_clean
from invdiff.diffusion.schedule import Schedule
from invdiff.diffusion.weighting import normalisation, reference_error, weights
from invdiff.errors import UsageError
from invdiff.training.objective import (
    PREDICTIONS,
    WEIGHTINGS,
    LevelUncertainty,
    Objective,
    draw,
    level_probabilities,
    levels,
)

LINEAR, COSINE = Schedule.named("linear"), Schedule.named("cosine")
TIMES = torch.tensor([0, 1, 2, 10, 100, 300, 700, 998, 999])
GAMMA, SIGMA_DATA = 3.0, 0.7


def must_fail(check, *arguments):
    """The mutation twin: the same check has to notice a wrong value."""
    with pytest.raises(AssertionError):
        check(*arguments)


def column(values, t=TIMES):
    """Values of the table at t, to be broadcast over images."""
    return torch.as_tensor(np.asarray(values))[t][:, None, None, None]


@pytest.fixture
def answer():
    """x_0, eps and a wrong answer to x_t in each form, for each of TIMES; float64."""
    generator = torch.Generator().manual_seed(0)
    clean, noise, wrong = torch.randn(3, len(TIMES), 2, 4, 4, generator=generator, dtype=torch.float64)
    abar, alpha = column(LINEAR.alphas_bar), column(LINEAR.alphas)
    x_t = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    guess = noise + 0.3 * wrong
    forms = {form: convert("epsilon", form, guess, x_t, abar, alpha) for form in (*PREDICTIONS, "mean", "score")}
    return clean, noise, x_t, forms


def mse(a, b):
    return (a - b).square().flatten(1).mean(1)


# One answer, many forms

# The smallest coefficients, such as 1 - abar_{t-1} = 1e-4, come from differences that keep 1e-12, and the smallest errors
# are 1e-3 between numbers of order one.
ROUNDING = 1e-9


def test_the_errors_of_one_answer_differ_by_the_analytic_factors(answer):
    clean, noise, x_t, forms = answer
    error = mse(forms["sample"], clean)
    snr = torch.as_tensor(LINEAR.snr)[TIMES]
    mean = torch.stack([LINEAR.posterior(x_t[k], clean[k], int(t)).mean for k, t in enumerate(TIMES)])
    velocity = column(np.sqrt(LINEAR.alphas_bar)) * noise - column(np.sqrt(1 - LINEAR.alphas_bar)) * clean
    a = torch.as_tensor(LINEAR.posterior_coefficients[0])[TIMES]
    truth = {"epsilon": noise, "v_prediction": velocity, "mean": mean}
    factor = {"epsilon": snr, "v_prediction": snr + 1, "mean": a**2}

    def check(form, mutation=1.0):
        torch.testing.assert_close(
            mse(forms[form], truth[form]), mutation * factor[form] * error, rtol=ROUNDING, atol=0
        )

    for form in truth:
        check(form)
        must_fail(check, form, math.sqrt(2))


def test_the_noise_error_is_the_score_matching_loss_times_the_variance(answer):
    """Denoising score matching (Vincent 2011): |s - grad log q(x_t | x_0)|^2, the gradient by autograd."""
    clean, noise, x_t, forms = answer
    abar = column(LINEAR.alphas_bar)
    x = x_t.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((-0.5 * (x - abar.sqrt() * clean).square() / (1 - abar)).sum(), x)
    variance = torch.as_tensor(1 - LINEAR.alphas_bar)[TIMES]
    objective = Objective(LINEAR, "epsilon", "simple")

    def check(score, mutation=1.0):
        losses = objective.losses(forms["epsilon"], clean, noise, TIMES)
        torch.testing.assert_close(losses, mutation * variance * mse(score, gradient), rtol=1e-10, atol=0)

    check(forms["score"])
    must_fail(check, forms["score"], math.sqrt(2))
    must_fail(check, -forms["score"])


def formulas(clean, noise, x_t, forms):
    """Each weighted loss, not normalised, from the definitions of its paper rather than as a weight on the error of x_0."""
    snr = torch.as_tensor(LINEAR.snr)[TIMES]
    sigma = snr**-0.5
    on_clean, on_noise = mse(forms["sample"], clean), mse(forms["epsilon"], noise)
    mean = torch.stack([LINEAR.posterior(x_t[k], clean[k], int(t)).mean for k, t in enumerate(TIMES)])
    before = torch.cat([torch.tensor([1 + 2 * LINEAR.snr[0]]), torch.as_tensor(LINEAR.snr[:-1])])[TIMES]
    before[0] = 2 * snr[0] + 1  # so that (before - snr) / 2 = (SNR_0 + 1) / 2
    edm = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2 * on_clean
    return {
        "simple": on_noise,
        "sample": on_clean,
        "velocity": on_clean + on_noise,
        "mean": mse(forms["mean"], mean),
        "vlb": (before - snr) / 2 * on_clean,
        "snr": torch.maximum(on_clean, on_noise),
        "min_snr": (GAMMA / snr).clamp(max=1) * on_noise,
        "edm": edm,
        "uncertainty": edm,
    }


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_prediction_has_the_weighted_loss_of_its_formula(answer, prediction, weighting):
    clean, noise, x_t, forms = answer
    exact = formulas(clean, noise, x_t, forms)[weighting]
    objective = Objective(LINEAR, prediction, weighting, gamma=GAMMA, sigma_data=SIGMA_DATA)

    def check(factor, form=prediction):
        losses = objective.losses(forms[form], clean, noise, TIMES) / objective.scale
        torch.testing.assert_close(losses, factor * exact, rtol=1e-10, atol=0)
        unweighted = objective.epsilon_errors(forms[form], clean, noise, TIMES)
        torch.testing.assert_close(unweighted, mse(forms["epsilon"], noise), rtol=1e-10, atol=0)

    check(1.0)
    must_fail(check, math.sqrt(2))
    must_fail(check, 1.0, next(form for form in PREDICTIONS if form != prediction))


def test_the_bound_weighs_the_kl_between_the_reverse_steps(answer):
    """KL(N(mu~, s I) || N(mu, s I)) per dimension is what the weight vlb gives, with s = beta~_t."""
    clean, noise, x_t, forms = answer
    unscaled = Objective(LINEAR, "epsilon", "vlb")
    losses = unscaled.losses(forms["epsilon"], clean, noise, TIMES) / unscaled.scale
    for k, t in enumerate(TIMES.tolist()):
        true, answered = LINEAR.posterior(x_t[k], clean[k], t), LINEAR.posterior(x_t[k], forms["sample"][k], t)
        variance = true.variance if t > 0 else LINEAR.betas[0]  # the decoder's
        spread = torch.tensor(variance, dtype=torch.float64).sqrt()
        normal = [torch.distributions.Normal(step.mean, spread) for step in (true, answered)]
        kl = torch.distributions.kl_divergence(*normal).mean()
        torch.testing.assert_close(losses[k], kl, rtol=1e-9, atol=0)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(math.sqrt(2) * losses[k], kl, rtol=1e-9, atol=0)


def test_noisy_images_hold_the_noise_that_the_loss_asks_for(answer):
    clean, noise, x_t, _ = answer
    for prediction, perfect in (("epsilon", noise), ("sample", clean)):
        objective = Objective(LINEAR, prediction, "simple")
        torch.testing.assert_close(objective.noisy(clean, noise, TIMES), x_t, rtol=1e-14, atol=1e-14)
        assert objective.losses(perfect, clean, noise, TIMES).max() == 0
        assert objective.losses(math.sqrt(2) * perfect, clean, noise, TIMES).min() > 0
    assert torch.equal(Objective(LINEAR, "epsilon", "simple").losses(0 * noise, clean, noise, TIMES), mse(noise, 0))


# Numbers that half precision can hold


@pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_changes_a_loss_by_rounding_alone(schedule, dtype):
    """abar_T is 4e-5 and 2e-9 here. The loss of a 16-bit output is that of the same numbers in float64."""
    generator = torch.Generator().manual_seed(1)
    clean, noise, output = torch.randn(3, len(TIMES), 2, 8, 8, generator=generator)
    output = output.to(dtype)

    def check(losses, exact):
        assert losses.dtype == torch.float32 and torch.isfinite(losses).all()
        # A mean of 128 squares of differences: a few roundings of 6e-8 each, none of them amplified.
        torch.testing.assert_close(losses.double(), exact, rtol=2e-6, atol=0)

    for prediction in PREDICTIONS:
        for weighting in WEIGHTINGS:
            objective = Objective(schedule, prediction, weighting)
            exact = objective.losses(output.double(), clean.double(), noise.double(), TIMES)
            check(objective.losses(output, clean, noise, TIMES), exact)
    # The twin: the error of x_0 itself, formed in float32 from the epsilon.
    objective = Objective(schedule, "epsilon", "simple")
    exact = objective.losses(output.double(), clean.double(), noise.double(), TIMES)
    abar = column(schedule.alphas_bar).float()
    x_0 = to_clean("epsilon", output.float(), objective.noisy(clean, noise, TIMES), abar)
    must_fail(check, torch.as_tensor(schedule.snr)[TIMES].float() * mse(x_0, clean), exact)


# The normalisation


@pytest.mark.parametrize("low_noise", [0.0, 0.5])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_all_weightings_give_a_denoiser_of_white_pixels_one_loss(weighting, low_noise):
    """Independent pixels N(0, sigma_data^2) and their best denoiser, run through the objective at every level."""
    schedule, count = Schedule.named("linear", 200), 64
    t = torch.arange(200)
    clean, noise = torch.randn(2, 200, 1, count, count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clean *= 0.5
    objective = Objective(schedule, "sample", weighting, low_noise=low_noise)
    abar = column(schedule.alphas_bar, t)
    best = 0.25 * abar.sqrt() / (0.25 * abar + 1 - abar) * objective.noisy(clean, noise, t)
    probabilities = torch.as_tensor(level_probabilities(200, low_noise))

    @torch.no_grad()
    def mean_loss(weighting):
        objective = Objective(schedule, "sample", weighting, low_noise=low_noise)
        return float((probabilities * objective.losses(best, clean, noise, t)).sum())

    # Each level's mean of n squares has relative variance 2 / n, and few levels may hold the sum: 5 errors of one level.
    tolerance = 5 * math.sqrt(2 / count**2) * math.sqrt(2)

    def check(factor):
        assert abs(factor * mean_loss(weighting) / mean_loss("simple") - 1) < tolerance

    check(1.0)
    must_fail(check, math.sqrt(2))
    assert (objective.scale == 1) == (weighting == "simple")


def test_the_weighting_and_not_the_scale_decides_which_levels_count():
    ratios = Objective(LINEAR, "sample", "vlb").scale * weights("vlb", LINEAR)
    np.testing.assert_allclose(ratios / ratios[0], weights("vlb", LINEAR) / weights("vlb", LINEAR)[0], rtol=1e-12)
    uniform = np.full(1000, 1e-3)
    np.testing.assert_allclose(
        normalisation("edm", LINEAR, uniform), (LINEAR.snr / (LINEAR.snr + 4)).mean(), rtol=1e-12
    )
    np.testing.assert_allclose(reference_error(LINEAR), 0.25 * LINEAR.sigmas**2 / (0.25 + LINEAR.sigmas**2), rtol=1e-12)


# The learned uncertainty


def known_losses(objective, wanted, t):
    """Images whose output is wrong by a constant, such that the loss at level t, u aside, is wanted(log sigma_t)."""
    level = wanted(torch.as_tensor(np.log(LINEAR.sigmas)))[t].exp()
    weight = torch.as_tensor(objective.scale * weights("uncertainty", LINEAR))[t]
    clean = torch.zeros(len(t), 1, 1, 1, dtype=torch.float64)
    return (level / weight).sqrt()[:, None, None, None], clean, clean, t


def test_the_uncertainty_becomes_the_log_of_the_loss_at_each_level():
    """Trained as the network is, with its draws, optimiser and learning rate: from zero to a loss a hundred times lower."""
    objective = Objective(LINEAR, "sample", "uncertainty")
    assert objective.uncertainty is not None
    every = torch.arange(1000)

    def wanted(log_sigma):
        return -4 + 0.8 * torch.sin(0.7 * log_sigma)

    before = objective.losses(*known_losses(objective, wanted, every))
    torch.testing.assert_close(before, wanted(torch.as_tensor(np.log(LINEAR.sigmas))).exp())  # u = 0 at the start
    optimizer = torch.optim.AdamW(objective.parameters(), lr=4e-4)
    steps = 1000
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-4 * min(1, 2 - 2 * step / steps)
        t = torch.from_numpy(draw(0, step, range(16), 16, (1, 1, 1), LINEAR, 0.5).t)
        optimizer.zero_grad()
        objective.losses(*known_losses(objective, wanted, t)).mean().backward()
        optimizer.step()
    u = objective.uncertainty(every).double()

    def check(shift):
        assert (u - wanted(torch.as_tensor(np.log(LINEAR.sigmas))) - shift).abs().max() < 0.1

    check(0.0)
    must_fail(check, math.log(2) / 2)
    after = objective.losses(*known_losses(objective, wanted, every))
    torch.testing.assert_close(after, before / u.exp() + u, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_the_uncertainty_is_no_larger_than_its_error():
    """At u = 0 every coefficient's gradient is at most 1 - L, though u moves 32 times as far as the coefficients do."""
    objective = Objective(LINEAR, "sample", "uncertainty")
    assert objective.uncertainty is not None
    coefficients = objective.uncertainty.coefficients
    objective.losses(*known_losses(objective, lambda s: -3 + 0 * s, torch.arange(1000))).mean().backward()
    assert coefficients.grad is not None
    torch.testing.assert_close(coefficients.grad[0], torch.tensor(1 - math.exp(-3)))
    assert coefficients.grad.abs().max() < 1
    with torch.no_grad():
        coefficients[0] += 0.1
    torch.testing.assert_close(objective.uncertainty(TIMES), torch.full((len(TIMES),), 3.2))


def test_only_the_uncertainty_has_parameters():
    for weighting in WEIGHTINGS:
        objective = Objective(LINEAR, "epsilon", weighting)
        names = {"uncertainty.coefficients"} if weighting == "uncertainty" else set()
        assert set(objective.state_dict()) == names == {name for name, _ in objective.named_parameters()}


def test_autocast_leaves_the_uncertainty_exact():
    module = LevelUncertainty(LINEAR)
    with torch.no_grad():
        module.coefficients += torch.linspace(-1, 1, module.terms)
    exact = module(TIMES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(TIMES), exact)
        assert not torch.equal(module.basis[TIMES] @ module.coefficients, exact)  # what a matrix product would give


# The draws


@pytest.mark.parametrize("low_noise", [0.0, 0.3, 1.0])
def test_every_timestep_has_its_probability(low_noise):
    """Crop 2 of 5, over many steps: a single crop knows nothing of the even spread of its batch."""
    schedule, count = Schedule.named("linear", 20), 20_000
    t = np.array([draw(1, step, [2], 5, (1, 1, 1), schedule, low_noise).t[0] for step in range(count)])
    assert t.dtype == np.int64 and t.min() == 0 and t.max() == 19

    def check(share):
        for k in range(1, 20):  # floor(T u^3) < k exactly when u < (k / T)^(1/3)
            exact = share * (k / 20) ** (1 / 3) + (1 - share) * k / 20
            assert abs((t < k).mean() - exact) <= 5 * math.sqrt(exact * (1 - exact) / count)

    check(low_noise)
    must_fail(check, abs(low_noise - 0.1))
    below = np.cumsum(level_probabilities(20, low_noise))
    np.testing.assert_allclose(
        below, [low_noise * (k / 20) ** (1 / 3) + (1 - low_noise) * k / 20 for k in range(1, 21)]
    )


def test_a_batch_is_spread_evenly_over_the_levels():
    schedule = Schedule.named("linear", 64)
    for step in range(20):
        t = draw(0, step, range(64), 64, (1, 1, 1), schedule, 0.0).t
        assert sorted(t) == list(range(64))  # one crop for each of 64 levels
        mixed = draw(0, step, range(64), 64, (1, 1, 1), schedule, 0.5).t
        # The mixture in 64 even steps: every cumulative count is within one crop of its probability, on either half.
        count = np.array([(mixed < k).sum() for k in range(65)])
        exact = 64 * np.concatenate([[0], np.cumsum(level_probabilities(64, 0.5))])
        assert np.abs(count - exact).max() <= 2
        assert not np.array_equal(t, np.sort(t))  # in no order, so that parts of a batch are alike
    independent = np.random.default_rng(0).integers(0, 64, 64)
    must_fail(lambda: np.testing.assert_array_equal(np.sort(independent), np.arange(64)))


def test_parts_of_a_batch_draw_what_the_whole_draws():
    shape = (3, 4, 5)
    whole = draw(7, 11, range(6), 6, shape, LINEAR, 0.5)
    assert whole.noise.shape == (6, *shape) and whole.noise.dtype == np.float32
    parts = [draw(7, 11, part, 6, shape, LINEAR, 0.5) for part in (range(2), [2], [], range(3, 6))]
    np.testing.assert_array_equal(np.concatenate([part.t for part in parts]), whole.t)
    np.testing.assert_array_equal(np.concatenate([part.noise for part in parts]), whole.noise)
    for seed, step in ((8, 11), (7, 12)):
        other = draw(seed, step, range(6), 6, shape, LINEAR, 0.5)
        assert not np.array_equal(other.t, whole.t) and not (other.noise == whole.noise).any()


def test_noise_is_standard_normal():
    noise = draw(0, 0, range(8), 8, (3, 32, 32), LINEAR, 0.5).noise.astype(np.float64)
    n = noise.size

    def check(noise):
        assert abs(noise.mean()) < 5 / math.sqrt(n)
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / n)

    check(noise)
    must_fail(check, math.sqrt(2) * noise)
    between = np.corrcoef(noise.reshape(8, -1))[np.triu_indices(8, 1)]
    assert np.abs(between).max() < 5 / math.sqrt(noise[0].size)


def test_positions_at_the_edges_stay_inside():
    edges = np.array([0.0, np.nextafter(0.5, 0), 0.5, np.nextafter(1.0, 0)])
    np.testing.assert_array_equal(levels(edges, 10, 0.5), [0, 9, 0, 9])
    np.testing.assert_array_equal(levels(edges, 10, 0.0), [0, 4, 5, 9])
    np.testing.assert_array_equal(levels(edges, 10, 1.0), [0, 1, 1, 9])


# Bad input


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match="Did you mean 'min_snr'"):
        Objective(LINEAR, "epsilon", "minsnr")
    with pytest.raises(UsageError, match="prediction type 'eps'"):
        Objective(LINEAR, "eps", "simple")
    for name, value in (("gamma", 0.0), ("sigma_data", -1.0), ("sigma_data", math.inf), ("gamma", math.nan)):
        with pytest.raises(UsageError, match=f"{name} must be a positive number"):
            Objective(LINEAR, "epsilon", "edm", **{name: value})
    for index in (-1, 4):
        with pytest.raises(UsageError, match=f"a batch of 4 crops has no crop {index}"):
            draw(0, 0, [0, index], 4, (1, 1, 1), LINEAR, 0.5)


def test_the_names_of_the_weightings_load_no_torch():
    code = "import sys, invdiff.diffusion.weighting as w; assert w.WEIGHTINGS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
