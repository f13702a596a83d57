"""Noise models: moments and scores, the Gaussian problem that stands for them, and what the command line makes of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import invdiff
from invdiff import noise, operators, solvers
from invdiff.errors import UsageError
from invdiff.machine.random import generator
from invdiff.noise import Gaussian, NoiseModel, Poisson, PoissonGaussian, noise_model
from invdiff.operator.contract import Operator
from invdiff.operator.spectral import Decomposed, Lanczos, spectral
from invdiff.operator.weighted import Whitened
from invdiff.priors.gaussian import GaussianPrior
from invdiff.problem.problem import Problem
from invdiff.problem.whitening import WINDOW, average_deviation, local_deviation

MODELS = [Gaussian(0.05), Poisson(0.02), Poisson(0.3), PoissonGaussian(0.02, 0.03), PoissonGaussian(0.1, 0.01)]
SPECS = ["gaussian:sigma=0.05", "poisson:gain=0.02", "poisson_gaussian:gain=0.02,sigma=0.01"]


def levels(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def moment_errors(model: NoiseModel, y: torch.Tensor, z: torch.Tensor, fourth: float) -> tuple[float, float]:
    """How far mean and variance of y (n values each) are from z and variance(z), in standard errors: sqrt(v / n), and
    sqrt((m4 - v^2) / n) with m4 the fourth central moment."""
    n, v = y.shape[1], model.variance(z)[:, 0]
    of_mean = (y.mean(1) - z[:, 0]).abs() / (v / n).sqrt()
    of_variance = (y.var(1) - v).abs() / ((fourth - v**2) / n).sqrt()
    return float(of_mean.max()), float(of_variance.max())


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("factor", [1.0, 2**0.5])
def test_moments_of_samples(model: NoiseModel, factor: float) -> None:
    """Within 5 standard errors of n = 20,000; samples that scatter sqrt(2) as much (the mutation twin) are not."""
    z = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)[:, None].expand(3, 20_000)
    y = model.sample(z, [generator(0, k, 0) for k in range(3)])
    gain, read = getattr(model, "gain", 0.0), getattr(model, "sigma", 0.0) ** 2
    v = model.variance(z)[:, 0]
    # E (y - z)^4 of gain k: gain^4 (mu + 3 mu^2); with independent N(0, read): + 6 gain z read + 3 read^2.
    fourth = gain**3 * z[:, 0] + 3 * (v - read) ** 2 + 6 * (v - read) * read + 3 * read**2
    errors = moment_errors(model, z + factor * (y - z), z, fourth)
    assert (max(errors) < 5) == (factor == 1.0), errors


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_score_is_the_derivative_of_the_log_likelihood(model: NoiseModel) -> None:
    """By automatic differentiation, above and below the floor; (y - z) / variance is exact for Gaussians and counts."""
    z = torch.linspace(-0.2, 1.2, 301, dtype=torch.float64)[None].requires_grad_(True)
    y = model.sample(levels(1, 301), [generator(0, 0, 0)])
    (gradient,) = torch.autograd.grad(model.log_likelihood(y, z).sum(), z)
    torch.testing.assert_close(gradient, model.score(y, z).detach(), rtol=1e-9, atol=1e-9)
    assert float((2**0.5 * model.score(y, z).detach() - gradient).abs().max()) > 1  # the mutation twin


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_score_has_mean_zero_at_the_truth(model: NoiseModel) -> None:
    """E[score] = 0 within 5 standard errors, sqrt(1 / (n variance)); at sqrt(2) z it is not."""
    z = torch.full((1, 20_000), 0.4, dtype=torch.float64)
    y = model.sample(z, [generator(0, 0, 0)])
    for factor in (1.0, 2**0.5):
        deviation = (model.variance(z) / 20_000).sqrt() / model.variance(factor * z)
        errors = float((model.score(y, factor * z).mean() / deviation[0, 0]).abs())
        assert (errors < 5) == (factor == 1.0), errors


def test_log_likelihoods_are_logarithms_of_probabilities() -> None:
    """A Poisson's sum to one over all counts; a Gaussian's integrates to one; Poisson-Gaussian's is near the exact mixture
    sum_k Poisson(k; z / gain) N(y; gain k, sigma^2), as a density: within 0.1 of its logarithm in the middle 90 %."""
    z = torch.tensor(0.3, dtype=torch.float64)
    counts = torch.arange(0, 400, dtype=torch.float64)
    assert float(Poisson(0.02).log_likelihood(0.02 * counts, z.expand(400)).exp().sum()) == pytest.approx(1)
    y = torch.linspace(-1, 2, 30_001, dtype=torch.float64)
    assert float(Gaussian(0.05).log_likelihood(y, z.expand_as(y)).exp().sum()) * 1e-4 == pytest.approx(1)
    gain, sigma = 0.02, 0.03
    y = torch.linspace(0.1, 0.5, 101, dtype=torch.float64)
    exact = torch.logsumexp(
        Poisson(gain).log_likelihood(gain * counts, z.expand(400))
        + Gaussian(sigma).log_likelihood(y[:, None], gain * counts),
        1,
    )
    found = PoissonGaussian(gain, sigma).log_likelihood(y, z.expand_as(y)) - math.log(gain)
    assert float((found - exact).abs().max()) < 0.1


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_tempered_is_a_share_of_the_likelihood(model: NoiseModel) -> None:
    """Three copies under the tempered model pull as one under the model itself."""
    y, z = levels(1, 50), levels(1, 50) * 0.9 + 0.05
    torch.testing.assert_close(3 * model.tempered(3).score(y, z), model.score(y, z))


def test_samples_depend_on_their_row_alone() -> None:
    x = levels(3, 3, 8, 8)
    for spec in SPECS:
        together = invdiff.degrade(x, "grayscale", noise=spec, seed=4, ids=["a", "b", "c"])
        alone = invdiff.degrade(x[1:2], "grayscale", noise=spec, seed=4, ids=["b"])
        assert torch.equal(together[1:2], alone)
        assert not torch.equal(alone, invdiff.degrade(x[1:2], "grayscale", noise=spec, seed=5, ids=["b"]))


def test_a_number_is_a_gaussian() -> None:
    x = levels(2, 1, 8, 8)
    plain = invdiff.degrade(x, "inpaint:keep=0.5", noise="12.75/255")
    assert torch.equal(plain, invdiff.degrade(x, "inpaint:keep=0.5", noise="gaussian:sigma=12.75/255"))
    assert noise_model("12.75/255") == Gaussian(0.05) and noise_model(Poisson(0.1)) == Poisson(0.1)
    assert noise_model("poisson:photons=50") == Poisson(0.02) and noise_model("poisson:photons=50").spec == SPECS[1]
    assert noise_model("poisson_gaussian:photons=1e2/2,sigma=0.01") == PoissonGaussian(0.02, 0.01)
    assert [noise_model(spec).spec for spec in SPECS] == SPECS
    assert {spec.split(":")[0] for spec in SPECS} < set(noise.names())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "much",
            r"neither a number nor a noise model; write 0.05 or 12.75/255 .*gaussian, .*poisson, poisson_gaussian",
        ),
        ("poison:gain=0.1", r"neither a number nor a noise model.*poisson:gain=0.02"),
        ("poisson", r"poisson needs gain: brightness of one count"),
        ("poisson:photons=0", r"poisson: photons='0' must be a number > 0"),
        ("poisson:photons=many", r"poisson: photons='many' must be a number > 0"),
        ("poisson:photons=50,gain=0.02", r"say the same twice"),
        ("gaussian:photons=50,sigma=1", r"unknown parameter of gaussian 'photons'"),
        ("poisson:gain=0", r"poisson: gain='0' must be > 0"),
        ("poisson:gain=-1", r"poisson: gain='-1' must be > 0"),
        ("poisson:gain=nan", r"poisson: gain='nan' must be > 0"),
        ("poisson:gain=much", r"gain='much' is not a number"),
        ("poisson:sigma=1", r"unknown parameter of poisson 'sigma'"),
        ("poisson_gaussian:gain=0.1", r"poisson_gaussian needs sigma"),
        ("poisson_gaussian:gain=0.1,sigma=0", r"sigma='0' must be > 0"),
        ("gaussian:sigma=0", r"noise must be more than 0, got 0.*0.3/255"),
        (0, r"noise must be more than 0, got 0.*0.3/255"),
        ("nan", r"noise must be more than 0, got nan"),
        ("0,05", r"'0,05' is not a number; write 0.05"),
        (None, r"None is not a number"),
    ],
)
def test_impossible_noise_is_refused_in_one_line(given: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        Problem.from_measurement(torch.zeros(1, 1, 4, 4), "identity", given)
    assert "\n" not in str(refusal.value)


def test_what_counting_cannot_give_is_refused() -> None:
    y = torch.full((1, 1, 4, 4), 0.5)
    y[0, 0, 0, 0] = -0.1
    with pytest.raises(
        UsageError, match=r"no negative values, .*smallest is -0.1: .*poisson_gaussian:gain=0.02,sigma="
    ):
        Problem.from_measurement(y, "identity", "poisson:gain=0.02")
    Problem.from_measurement(y, "identity", "poisson_gaussian:gain=0.02,sigma=0.05")  # read noise may
    mask = torch.ones(4, 4)
    mask[0, 0] = 0
    Problem.from_measurement(y, operators.get("inpaint", mask=mask), "poisson:gain=0.02")  # nothing was measured there
    for spec in SPECS[1:]:
        with pytest.raises(UsageError, match=r"noise counts a brightness, and A\(x\) is -0.1 somewhere"):
            invdiff.degrade(y, "identity", noise=spec)
    assert (invdiff.degrade(y.clamp(min=-1e-3), "identity", noise=SPECS[1]) >= 0).all()  # rounding


def poisson_problem(operator: str | Operator = "gaussian_blur:sigma=1", rows: int = 1, **settings: float) -> Problem:
    x = 0.1 + 0.8 * torch.nn.functional.interpolate(levels(rows, 1, 3, 3), (16, 16), mode="bilinear")
    return Problem.from_clean(x, operator, Poisson(settings.get("gain", 0.02)))


@pytest.mark.parametrize("operator", ["gaussian_blur:sigma=0.8,size=3", "inpaint:keep=0.5", "downsample:factor=2"])
def test_the_score_of_x_is_the_gradient_of_the_log_likelihood(operator: str) -> None:
    for spec in SPECS:
        problem = Problem.from_clean(0.1 + 0.8 * levels(2, 1, 8, 8), operator, spec)
        x = (0.1 + 0.8 * levels(2, 1, 8, 8).flip(2)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(problem.log_likelihood(x).sum(), x)
        torch.testing.assert_close(problem.likelihood_score(x.detach()), gradient, rtol=1e-9, atol=1e-9)


def test_sigma_y_is_the_root_mean_square_deviation() -> None:
    """From y, within 5 standard errors of what x tells; the same for one image and for copies of it."""
    problem = poisson_problem("inpaint:keep=0.5", gain=0.02)
    mask = problem.operator.observed(problem.image_shape).expand(1, 1, 16, 16).double()
    truth = (0.02 * (problem.truth * mask).sum() / mask.sum()).sqrt()
    relative = 0.5 * (0.02 / float((problem.truth * mask).sum())) ** 0.5  # of a root of m counts' mean
    assert abs(problem.sigma_y / float(truth) - 1) < 5 * relative
    for count in (3, 5, 6, 7, 1000):
        assert problem.rows([0] * count).sigma_y == problem.sigma_y
    dark = Problem.from_measurement(torch.zeros(1, 1, 16, 16), "identity", "poisson:gain=0.02")
    assert dark.sigma_y > 0 and (local_deviation(dark.noise, dark.y, None) > 0).all()


def test_local_deviation_is_of_the_neighbours_that_were_measured() -> None:
    y, mask = levels(2, 1, 9, 9), (levels(1, 1, 9, 9) > 0.4).double()
    found = local_deviation(Poisson(0.02), y * mask, mask)
    half = WINDOW // 2
    for i, j in ((4, 4), (0, 0), (1, 8)):
        near = slice(max(0, i - half), i + half + 1), slice(max(0, j - half), j + half + 1)
        mean = (y[1, 0][near] * mask[0, 0][near]).sum() / mask[0, 0][near].sum()
        assert float(found[1, 0, i, j]) == pytest.approx((0.02 * float(mean)) ** 0.5)
    # What is no picture has neighbours in memory only: one deviation for all.
    flat = y.flatten(1)
    expected = average_deviation(Poisson(0.02), flat, None)
    torch.testing.assert_close(local_deviation(Poisson(0.02), flat, None), expected[:, None].expand_as(flat))


@pytest.mark.parametrize("factor", [1.0, 2**0.5])
def test_whitened_noise_is_white(factor: float) -> None:
    """chi^2 = ||W (y - A x)||^2 / sigma_y^2 of the truth is m within 5 of its standard deviations, sqrt(2 m), and the
    share that weights from y itself cost (2 %); with weights a factor off it is not."""
    problem = poisson_problem(rows=4)
    problem = problem.rows([3])
    white = problem.whitened()
    assert white.noise is None and white.sigma_y == problem.sigma_y and isinstance(white.operator, Whitened)
    m = 256
    chi2 = float((factor * (white.y - white.operator.A(problem.truth)) / white.sigma_y).square().sum())
    assert (abs(chi2 - m) < 5 * (2 * m) ** 0.5 + 0.02 * m) == (factor == 1.0), chi2
    assert float(problem.residual(problem.truth)) == pytest.approx((chi2 / m) ** 0.5 / factor)
    gaussian = Problem.from_measurement(problem.y, problem.operator, 0.1)
    assert gaussian.whitened() is gaussian


def test_weights_do_not_darken_the_image() -> None:
    """The mean of a flat image of mu = 5 counts, by weights from its measurement, is off by less than a tenth of a count.
    By weights from each pixel alone (the mutation twin) it is off by about one, harmonic means being lower."""
    gain, mu = 0.02, 5
    y = Poisson(gain).sample(torch.full((1, 1, 100, 100), gain * mu, dtype=torch.float64), [generator(0, 0, 0)])

    def weighted_mean(variance: torch.Tensor) -> float:
        return float((y / variance).sum() / (1 / variance).sum()) / gain

    assert abs(weighted_mean(local_deviation(Poisson(gain), y, None) ** 2) - mu) < 0.2 + 5 * (mu / 1e4) ** 0.5
    assert weighted_mean(gain * y.clamp(min=gain)) < mu - 0.8


@pytest.mark.parametrize("operator", ["gaussian_blur:sigma=1", "motion_blur:length=4,angle=30", "inpaint:keep=0.5"])
def test_whitened_operator_keeps_the_contract(operator: str) -> None:
    """Adjoint, Jacobian, and the proximal point and solve against dense matrices, for two images and their particles."""
    problem = poisson_problem(operator, rows=2).whitened()
    W = problem.operator
    assert W.linear and not W.has_svd and W.measurement_shape((1, 16, 16)) == (1, 16, 16)
    x, y = levels(2, 1, 16, 16), levels(2, 1, 16, 16).flip(0)
    inner = (W.A(x) * y).flatten(1).sum(1)
    torch.testing.assert_close(inner, (x * W.A_adjoint(y)).flatten(1).sum(1))
    torch.testing.assert_close(W.A_vjp(x, y), W.A_adjoint(y))
    for row in range(2):
        alone = problem.rows([row])
        dense = alone.operator.rows([0]).A  # one image's operator, on unit images
        matrix = (
            torch.cat([dense(e[None]) for e in torch.eye(256, dtype=torch.float64).reshape(-1, 1, 16, 16)])
            .flatten(1)
            .mT
        )
        gamma = 3.0
        expected = torch.linalg.solve(
            gamma * matrix.mT @ matrix + torch.eye(256, dtype=torch.float64),
            gamma * matrix.mT @ alone.y.flatten() + x[row].flatten(),
        )
        found = problem.operator.prox_l2(x, problem.y, gamma)[row].flatten()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    particles = W.A(x.repeat_interleave(3, 0))
    torch.testing.assert_close(particles, W.A(x).repeat_interleave(3, 0))
    with pytest.raises(UsageError, match="weights for 2 images do not fit a batch of 3"):
        W.A(levels(3, 1, 16, 16))


@pytest.mark.parametrize("solver", ["diffpir", "pigdm", "dps", "ddrm", "ddnm"])
def test_results_do_not_depend_on_the_batch(solver: str) -> None:
    """Each image has the sigma_y of its own brightness, whoever is restored with it."""
    x = levels(2, 1, 8, 8) * torch.tensor([1.0, 0.2], dtype=torch.float64)[:, None, None, None]
    y = invdiff.degrade(x, "gaussian_blur:sigma=0.8,size=3", noise="poisson:gain=0.05")
    prior = GaussianPrior(torch.full((1, 8, 8), 0.4, dtype=torch.float64), 0.05)
    settings = dict(
        operator="gaussian_blur:sigma=0.8,size=3", noise="poisson:gain=0.05", prior=prior, solver=solver, steps=4
    )
    together = invdiff.restore(y, samples=3, batch_size=4, ids=["a", "b"], **settings)
    for index, key in enumerate("ab"):
        alone = invdiff.restore(y[index : index + 1], samples=3, batch_size=1, ids=[key], **settings)
        torch.testing.assert_close(together.samples[:, index : index + 1], alone.samples, rtol=0, atol=1e-10)
        torch.testing.assert_close(together.residual[:, index : index + 1], alone.residual)
    assert alone.noise == "poisson:gain=0.05" and alone.provenance()["noise"]["model"] == "poisson:gain=0.05"
    assert alone.provenance()["noise"]["sigma_y"] == alone.sigma_y < together.sigma_y


@pytest.mark.parametrize("solver", solvers.names())
def test_every_solver_takes_counts(solver: str) -> None:
    """Finite samples from every method, on an operator that suits it."""
    prior = GaussianPrior(torch.full((1, 8, 8), 0.4, dtype=torch.float64), 0.02)
    y = invdiff.degrade(levels(1, 1, 8, 8), "inpaint:keep=0.7", noise="poisson:gain=0.05")
    found = invdiff.restore(y, "inpaint:keep=0.7", "poisson:gain=0.05", prior=prior, solver=solver, steps=3)
    assert torch.isfinite(found.samples).all() and found.noise == "poisson:gain=0.05"


def test_the_documentation_names_the_methods_that_see_the_average() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "noise.md").read_text()
    sentence = page.partition("**Average**")[2].partition(".")[0]
    average = [name for name in solvers.names() if "svd" in solvers.get(name).needs or not solvers.get(name).whitens]
    assert sorted(re.findall(r"`(\w+)`", sentence)) == average


def test_a_decomposition_is_not_shared_by_images_of_different_weights() -> None:
    problem = poisson_problem(rows=2).whitened()
    assert isinstance(spectral(problem.operator, (1, 16, 16)), Lanczos)
    assert isinstance(spectral(problem.rows([1]).operator.rows([0]), (1, 16, 16)), Decomposed)
    norms = [problem.operator.rows([row]).norm((1, 16, 16)) for row in range(2)]
    assert problem.operator.norm((1, 16, 16)) == max(norms)


def test_whitening_reaches_the_exact_posterior_mean() -> None:
    """A Gaussian prior and Poisson noise of many counts: the mean of DiffPIR's conjugate problem, with sigma_i^2 from the
    truth, is that of p(x | y). Here in one data step: prox_l2 of the whitened problem is the posterior mean for a prior
    N(1/2, tau^2 I), up to what the weights cost; with one average sigma_y it is three times further away."""
    x = torch.cat([torch.full((1, 1, 16, 8), 0.02), torch.full((1, 1, 16, 8), 0.95)], 3).double()
    problem = Problem.from_clean(x, "gaussian_blur:sigma=1", "poisson:gain=0.001")
    tau = 0.2

    def mean(of: Problem) -> torch.Tensor:
        return of.operator.prox_l2(torch.full_like(x, 0.5), of.y, (tau / of.sigma_y) ** 2)

    weights = problem.sigma_y / Poisson(0.001).variance(problem.operator.A(x)).sqrt()
    exact = mean(Problem(Whitened(problem.operator, weights), weights * problem.y, problem.sigma_y, (1, 16, 16)))
    apart = [float((mean(of) - exact).square().mean().sqrt()) for of in (problem.whitened(), problem)]
    assert apart[0] < apart[1] / 3, apart


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    pixels = (levels(24, 24, 3).numpy() * 200 + 20).astype(np.uint8)
    Image.fromarray(pixels).save("photo.png")
    Image.fromarray(pixels[..., 0]).save("grey.png")
    return tmp_path


def invoke(*words: object) -> tuple[int, str]:
    from click.testing import CliRunner

    from invdiff.cli.main import main

    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_command_line(folder: Path) -> None:
    """degrade and restore with a noise model: the records keep it, and the recorded command repeats it."""
    spec = "poisson:gain=0.02"
    blur = ["--operator", "gaussian_blur:sigma=1"]
    for name, expected in (("photo", 1.0), ("grey", 3**0.5)):
        code, said = invoke("degrade", f"{name}.png", "-o", f"{name}-y.npy", *blur, "--noise", spec)
        assert code == 0, said
        assert "poisson:gain=0.02, sigma_y" in said
        measured = json.loads(Path(f"{name}-y.npy.json").read_text())
        assert measured["noise"]["model"] == spec and 0 < measured["noise"]["sigma_y"] < 0.15
        code, said = invoke("restore", f"{name}-y.npy", "-o", f"{name}-x.png", *blur, "--noise", spec, "--steps", 2)
        assert code == 0, said
        record = json.loads(Path(f"{name}-x.png.json").read_text())
        assert record["noise"]["model"] == spec and f"--noise {spec}" in record["command"]
        assert record["noise"]["sigma_y"] == pytest.approx(measured["noise"]["sigma_y"], rel=1e-6)
        solved = record["noise"].get("solved_with", record["noise"]["sigma_y"])
        assert solved == pytest.approx(expected * record["noise"]["sigma_y"], rel=1e-6)
    code, said = invoke("restore", "photo-y.npy", "-o", "no.png", *blur, "--noise", "poisson:gain=0", "--steps", 2)
    assert code != 0 and "must be > 0" in said and not Path("no.png").exists()
