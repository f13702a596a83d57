"""Noise beyond one sigma_y and counts: moments, likelihoods, and what solvers see of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import invdiff
from invdiff import noise
from invdiff.errors import UsageError
from invdiff.machine.random import generator
from invdiff.noise import (
    CorrelatedGaussian,
    GaussianChannels,
    GaussianMap,
    Laplace,
    NoiseModel,
    Quantization,
    SaltAndPepper,
    Uniform,
    noise_model,
)
from invdiff.operator.spectral import dense_matrix
from invdiff.operator.weighted import Prewhitened, Whitened
from invdiff.priors.gaussian import GaussianPrior
from invdiff.problem.problem import Problem

KERNEL = np.array([[0.0, 1.0, 0.5], [1.0, 3.0, 1.0], [0.2, 1.0, 0.0]])
MAP = np.linspace(0.02, 0.1, 64).reshape(8, 8)
MODELS: list[NoiseModel] = [
    GaussianChannels((0.02, 0.05, 0.1)),
    GaussianMap(MAP),
    CorrelatedGaussian(0.05, kernel=KERNEL),
    Laplace(0.05),
    Uniform(0.2),
    Quantization(0.05),
    SaltAndPepper(0.2, 0.02),
]
SHAPE = (3, 8, 8)


def levels(*shape: int) -> torch.Tensor:
    return 0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def draws(model: NoiseModel, z: torch.Tensor) -> torch.Tensor:
    return model.sample(z, [generator(0, row, 0) for row in range(len(z))])


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("factor", [1.0, 2**0.5])
def test_moments_of_samples(model: NoiseModel, factor: float) -> None:
    """Over 2000 draws of every trusted entry: mean 0 and mean square 1 of (y - z) / deviation, within 5 standard errors
    sqrt((kurtosis - 1) / n), where kurtosis is 1.8 for bounded noise and at most Laplace's 6; entries that are correlated
    count for a tenth. Noise sqrt(2) as large (the mutation twin) is not."""
    z = levels(1, *SHAPE).expand(2000, *SHAPE)
    y = draws(model, z)
    trusted = model.trusted(y)
    kept = torch.ones_like(y) if trusted is None else trusted
    scaled = factor * ((y - z) / model.variance(z).sqrt())[kept > 0]
    excess = 0.8 if isinstance(model, (Uniform, Quantization)) else 5
    n = scaled.numel() / (10 if isinstance(model, CorrelatedGaussian) else 1)
    if isinstance(model, Quantization):
        n = 3 * 64  # rounding draws nothing: as many errors as levels
    assert abs(float(scaled.mean())) < 5 * factor / n**0.5
    assert (abs(float(scaled.square().mean()) - 1) < 5 * (excess / n) ** 0.5) == (factor == 1.0)


@pytest.mark.parametrize("model", [m for m in MODELS if not isinstance(m, (Uniform, Quantization))], ids=str)
def test_score_is_the_derivative_of_the_log_likelihood(model: NoiseModel) -> None:
    """By automatic differentiation, also where values are extreme; the mutation twin has the other sign."""
    z = levels(2, *SHAPE).flip(2).requires_grad_(True)
    y = draws(model, levels(2, *SHAPE))
    y[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    (gradient,) = torch.autograd.grad(model.log_likelihood(y, z).sum(), z)
    torch.testing.assert_close(model.score(y, z).detach(), gradient, rtol=1e-8, atol=1e-8)
    assert float((gradient + model.score(y, z).detach()).abs().max()) > 1


@pytest.mark.parametrize("model", [Uniform(0.2), Quantization(0.05)], ids=str)
def test_bounded_noise_says_where_x_may_be(model: NoiseModel) -> None:
    """The exact log-likelihood is flat inside and minus infinity outside; the score pulls to the middle instead."""
    z = levels(1, *SHAPE)
    y = draws(model, z)
    inside, outside = model.log_likelihood(y, z), model.log_likelihood(y, z + 0.3)
    assert inside.unique().numel() == 1 and (outside == -torch.inf).all()
    torch.testing.assert_close(model.score(y, z), (y - z) / model.variance(z))


def test_log_likelihoods_are_logarithms_of_densities() -> None:
    """Each integrates to one over y; the correlated one is that of a dense multivariate normal."""
    y = torch.linspace(-2, 3, 500_001, dtype=torch.float64)
    z = torch.full_like(y, 0.3)
    for model in (Laplace(0.05), Uniform(0.2), SaltAndPepper(0.2, 0.02)):
        assert float(model.log_likelihood(y, z).exp().sum()) * 1e-5 == pytest.approx(1, rel=1e-3), model
    model = CorrelatedGaussian(0.05, kernel=KERNEL)
    units = torch.eye(30, dtype=torch.float64).reshape(30, 1, 5, 6)
    S = model.spectrum((1, 5, 6))
    covariance = torch.fft.irfft2(torch.fft.rfft2(units) * S, s=(5, 6)).flatten(1)
    assert torch.allclose(covariance.diagonal(), torch.full((30,), 0.05**2, dtype=torch.float64))
    r = levels(2, 1, 5, 6) - 0.5
    exact = torch.distributions.MultivariateNormal(torch.zeros(30, dtype=torch.float64), covariance)
    found = model.log_likelihood(r, torch.zeros_like(r)).flatten(1).sum(1)
    torch.testing.assert_close(found, exact.log_prob(r.flatten(1)))


def test_correlated_noise_has_the_covariance_of_filtered_white_noise() -> None:
    """Of neighbours, over 4000 draws, within 5 standard errors of at most sqrt(2) sigma^2 / sqrt(n)."""
    model = CorrelatedGaussian(1.0, kernel=KERNEL)
    n = draws(model, torch.zeros(4000, 1, 8, 8, dtype=torch.float64))[:, 0]
    white = torch.from_numpy(KERNEL)
    for shift in ((0, 1), (1, 0), (1, 1), (0, 2), (3, 3)):
        padded = torch.zeros(8, 8, dtype=torch.float64)
        padded[:3, :3] = white
        expected = float((padded * padded.roll(shift, (0, 1))).sum() / white.square().sum())
        found = float((n * n.roll(shift, (1, 2))).mean())
        assert abs(found - expected) < 5 * 2**0.5 / (4000 * 64 / 10) ** 0.5, shift
    power = np.abs(np.fft.fft2(KERNEL, s=(8, 8))) ** 2
    same = CorrelatedGaussian(1.0, power=power)
    torch.testing.assert_close(same.spectrum((1, 8, 8)), model.spectrum((1, 8, 8)))


def problem(model: NoiseModel, operator: str = "gaussian_blur:sigma=0.8,size=3", rows: int = 1) -> Problem:
    x = torch.nn.functional.interpolate(levels(rows, 3, 3, 3), (24, 24), mode="bilinear")
    return Problem.from_clean(x, operator, model)


@pytest.mark.parametrize("operator", ["gaussian_blur:sigma=0.8,size=3", "identity"])
@pytest.mark.parametrize("model", [m if not isinstance(m, GaussianMap) else GaussianMap(
    np.linspace(0.02, 0.1, 576).reshape(24, 24)) for m in MODELS], ids=str)  # fmt: skip
def test_residual_of_the_truth_is_one(model: NoiseModel, operator: str) -> None:
    """Within 5 standard errors: sqrt((kurtosis - 1) / m) / 2 with Laplace's 6 at most, for m of about 1400 values."""
    found = problem(model, operator, rows=2)
    residual = found.residual(found.truth)
    assert residual.shape == (2,) and float((residual - 1).abs().max()) < 5 * (5 / 1400) ** 0.5 / 2, residual
    assert float(found.rows([1]).residual(found.truth[1:])) == pytest.approx(float(residual[1]), rel=0.02)


def test_even_noise_keeps_the_decomposition() -> None:
    for model, sigma in (
        (Laplace(0.05), 2**0.5 * 0.05),
        (Uniform(0.2), 0.2 / 12**0.5),
        (Quantization(0.05), 0.05 / 12**0.5),
    ):
        white = problem(model).whitened()
        assert white.noise is None and white.operator.has_svd and white.sigma_y == pytest.approx(sigma)
    for model in (GaussianChannels((0.02, 0.05, 0.1)), SaltAndPepper(0.2)):
        assert type(problem(model).whitened().operator) is Whitened
    assert type(problem(CorrelatedGaussian(0.05, kernel=KERNEL)).whitened().operator) is Prewhitened


@pytest.mark.parametrize("model", [GaussianChannels((0.02, 0.05, 0.1)), CorrelatedGaussian(0.05, kernel=KERNEL),
                                   SaltAndPepper(0.2, 0.02)], ids=str)  # fmt: skip
def test_whitened_problems_have_the_exact_posterior(model: NoiseModel) -> None:
    """Adjoint, and the proximal point of W A against the dense solution with the noise's own covariance."""
    x = levels(1, 3, 6, 6)
    found = Problem.from_clean(x, "gaussian_blur:sigma=0.8,size=3", model)
    white = found.whitened()
    v = levels(1, 3, 6, 6).flip(3)
    left, right = (white.operator.A(x) * v).sum(), (x * white.operator.A_adjoint(v)).sum()
    torch.testing.assert_close(left, right)
    A = dense_matrix(found.operator, (3, 6, 6))
    precision = torch.func.vmap(lambda e: model.score(e[None], torch.zeros_like(e)[None])[0], randomness="error")
    units = torch.eye(108, dtype=torch.float64).reshape(108, 3, 6, 6)
    P = precision(units).flatten(1)
    if isinstance(model, SaltAndPepper):
        P = torch.diag(model.trusted(found.y).flatten() / 0.02**2)
    tau = 0.3
    exact = torch.linalg.solve(A.mT @ P @ A + torch.eye(108) / tau**2, A.mT @ P @ found.y.flatten() + 0.5 / tau**2)
    mean = white.operator.prox_l2(torch.full_like(x, 0.5), white.y, (tau / white.sigma_y) ** 2)
    torch.testing.assert_close(mean.flatten(), exact, rtol=1e-6, atol=1e-7)
    plain = found.operator.prox_l2(torch.full_like(x, 0.5), found.y, (tau / found.sigma_y) ** 2)
    assert float((plain.flatten() - exact).abs().max()) > 1e-3  # the mutation twin: without whitening


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_tempered_copies_are_one_measurement(model: NoiseModel) -> None:
    """Three times the precision of the tempered model is that of the model: all that solvers see of it."""
    z = levels(1, *SHAPE)
    torch.testing.assert_close(3 / model.tempered(3).variance(z), 1 / model.variance(z))


SOLVERS = ["diffpir", "dps", "ddrm", "pigdm", "measurement_sde"]


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_take_every_model(model: NoiseModel, solver: str) -> None:
    prior = GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), 0.05)
    y = invdiff.degrade(levels(2, *SHAPE), "identity", noise=model)
    settings = dict(operator="identity", noise=model, prior=prior, solver=solver, steps=3)
    if isinstance(model, SaltAndPepper) and solver == "measurement_sde":
        with pytest.raises(UsageError, match="salt_and_pepper noise has replaced some; any solver without"):
            invdiff.restore(y, **settings)
        return
    together = invdiff.restore(y, ids=["a", "b"], batch_size=2, **settings)
    alone = invdiff.restore(y[1:], ids=["b"], batch_size=1, **settings)
    assert torch.isfinite(together.samples).all() and together.noise == model.spec
    torch.testing.assert_close(together.samples[:, 1:], alone.samples, rtol=0, atol=1e-8)


def test_impulses_are_left_out() -> None:
    """A restoration does not see what an impulse put there: moving every 1 to 0 changes nothing."""
    model = SaltAndPepper(0.4, 0.01)
    x = levels(1, *SHAPE)
    prior = GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), 0.05)
    y = invdiff.degrade(x, "identity", noise=model)
    restored = [
        invdiff.restore(v, "identity", model, prior=prior, solver="ddrm", steps=5).mean
        for v in (y, torch.where(y == 1, 0.0, y), torch.where(y == 1, 0.5, y))
    ]
    torch.testing.assert_close(restored[0], restored[1], rtol=0, atol=1e-9)
    assert float((restored[0] - restored[2]).abs().max()) > 0.1  # the mutation twin


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("gaussian_channels:sigma=0.1x0", "each must be more than 0"),
        ("gaussian_channels:sigma=0.1x0.2", r"has 2 values, and the measurement \(3, 8, 8\) has 3 channels"),
        ("gaussian_map:sigma=none.npy", "is not a file"),
        (GaussianMap(np.full((4, 4), 0.1)), r"sigma has shape \(4, 4\), the measurement \(3, 8, 8\)"),
        ("gaussian_correlated:sigma=0.1", "needs one of kernel= and power="),
        (CorrelatedGaussian(0.1, kernel=np.ones((9, 9))), "kernel is 9 x 9, and the measurement 8 x 8"),
        (CorrelatedGaussian(0.1, power=np.ones((4, 4))), "power is 4 x 4, and the measurement 8 x 8"),
        ("laplace:scale=0", "scale='0' must be > 0"),
        ("uniform:width=-1", "width='-1' must be > 0"),
        ("quantization", "quantization needs step"),
        ("salt_and_pepper:p=1.5", "p='1.5' must be > 0 and <= 1"),
        ("salt_and_peper:p=0.5", "neither a number nor a noise model.*salt_and_pepper"),
    ],
)
def test_impossible_noise_is_refused_in_one_line(given: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        Problem.from_measurement(levels(1, *SHAPE), "identity", given)
    assert "\n" not in str(refusal.value)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(UsageError, match="smallest value of sigma is 0; every one must be more than 0"):
        GaussianMap(np.eye(3))
    with pytest.raises(UsageError, match="must not be all zeros"):
        CorrelatedGaussian(0.1, kernel=np.zeros((3, 3)))
    with pytest.raises(UsageError, match="power nowhere negative"):
        CorrelatedGaussian(0.1, power=-np.ones((3, 3)))
    with pytest.raises(UsageError, match="measures only a part of it"):
        Problem.from_measurement(levels(1, *SHAPE), "inpaint:keep=0.5", MODELS[2]).whitened()


def test_tables_from_files_and_arrays(tmp_path: Path) -> None:
    file = tmp_path / "map.npy"
    np.save(file, MAP)
    model = noise_model(f"gaussian_map:sigma={file}")
    assert model == noise_model(model.spec) and model != MODELS[1]
    assert model.spec == f"gaussian_map:sigma={file}" and MODELS[1].spec.startswith("gaussian_map:sigma=<8x8 ")
    z = levels(1, *SHAPE)
    torch.testing.assert_close(model.variance(z), MODELS[1].variance(z))
    assert GaussianMap(MAP) == MODELS[1] and hash(GaussianMap(MAP)) == hash(MODELS[1])
    assert GaussianChannels((0.1,)).variance(z).unique().numel() == 1


def test_the_table_of_the_documentation_is_complete() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "noise.md").read_text()
    assert all(f"`{name}:" in page for name in noise.names())
    assert all(f"\n    {name} " in str(noise.__doc__) for name in noise.names())


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner
    from PIL import Image

    from invdiff.cli.main import main

    monkeypatch.chdir(tmp_path)
    Image.fromarray((levels(24, 24).numpy() * 255).astype(np.uint8)).save("grey.png")
    np.save("map.npy", np.full((24, 24), 0.05))
    for spec in (
        "laplace:scale=0.05",
        "quantization:step=1/15",
        "salt_and_pepper:p=0.1",
        "gaussian_map:sigma=map.npy",
        "gaussian_channels:sigma=0.05",
    ):
        for words in (
            ["degrade", "grey.png", "-o", "y.npy", "--overwrite"],
            ["restore", "y.npy", "-o", "x.png", "--steps", "2", "--overwrite"],
        ):
            result = CliRunner().invoke(main, [*words, "--operator", "identity", "--noise", spec])
            assert result.exit_code == 0, (spec, result.output, result.exception)
        record = json.loads(Path("x.png.json").read_text())
        assert record["noise"]["model"] == noise_model(spec).spec and f"--noise {spec}" in record["command"]
