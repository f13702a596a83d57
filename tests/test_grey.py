"""A grey measurement, restored by a prior of colour images."""

from __future__ import annotations

import pytest
import torch

import invdiff
from invdiff import operators
from invdiff.priors import GaussianPrior
from invdiff.problem import Problem, problem
from invdiff.restoration.grey import repeated


@pytest.mark.parametrize("spec", ["gaussian_blur:sigma=1", "downsample:factor=4", "inpaint:keep=0.4", "identity"])
def test_grey_is_repeated_where_the_operator_commutes_with_it(spec: str) -> None:
    operator = operators.get(spec)
    grey = Problem.from_measurement(torch.rand(1, *operator.measurement_shape((1, 24, 32))), operator, 0.1)
    colour = repeated(grey)
    assert torch.equal(colour.y, grey.y.expand(-1, 3, -1, -1)) and colour.sigma_y == pytest.approx(3**0.5 * 0.1)


@pytest.mark.parametrize(("factor", "exact"), [(1.0, True), (3**-0.5, False)])
def test_repeated_grey_is_trusted_as_the_grey_measurement(factor: float, exact: bool) -> None:
    """Posterior means in closed form: pixels N(m, s^2), a colour prior whose three channels are one grey. The solver's
    three measurements of level sqrt(3) sigma_y must tell what the grey one tells; sigma_y (the twin) tells too much."""

    mean, variance, sigma_y = 0.4, 0.04, 0.1
    grey = Problem.from_measurement(torch.full((1, 1, 4, 4), 0.8, dtype=torch.float64), "identity", sigma_y)
    colour = repeated(grey)
    solver_sigma = factor * colour.sigma_y

    def posterior_mean(total: float, count: int, sigma: float) -> float:
        return (mean / variance + total / sigma**2) / (1 / variance + count / sigma**2)

    expected = posterior_mean(0.8, 1, sigma_y)
    assert (
        posterior_mean(float(colour.y[0, :, 0, 0].sum()), 3, solver_sigma) == pytest.approx(expected, rel=1e-12)
    ) is exact


def test_grey_spectra_are_repeated_as_pairs() -> None:
    operator = operators.get("fourier_subsample:acceleration=2")
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = repeated(Problem.from_measurement(operator.A(x), operator, 0.1)).y
    assert y.shape == (1, 6, 8, 8) and torch.allclose(y, operator.A(x.expand(1, 3, 8, 8)), atol=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_restore_gives_grey_images_with_the_residual_of_the_grey_measurement(samples: int) -> None:
    """A colour prior with independent channels; the answer in closed form is that of any linear solver here."""
    prior = GaussianPrior(torch.full((3, 4, 4), 0.4), 0.04 * torch.eye(48))
    prior.channels = 3
    y = invdiff.degrade(torch.full((2, 1, 4, 4), 0.6), "identity", 0.1)
    solution = invdiff.restore(y, "identity", 0.1, prior, "ddrm", steps=4, samples=samples)
    assert solution.samples.shape == (samples, 2, 1, 4, 4)
    assert solution.sigma_y == 0.1 and solution.solved_with == pytest.approx(3**0.5 * 0.1)
    residual = (y - solution.samples).flatten(2).norm(dim=2) / (0.1 * 16**0.5)
    assert torch.allclose(solution.residual, residual, rtol=1e-5)
    assert solution.provenance(1)["noise"]["solved_with"] == solution.solved_with


def test_a_problem_is_whitened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six runs of two images in batches, their residuals and the noise of three copies: one whitening for each image."""
    calls = []
    original = problem.whiten
    monkeypatch.setattr(problem, "whiten", lambda *given: calls.append(given) or original(*given))
    prior = GaussianPrior(torch.full((1, 4, 4), 0.4), 0.04 * torch.eye(16))
    y = invdiff.degrade(torch.full((2, 1, 4, 4), 0.6), "identity", "poisson:gain=0.01")
    invdiff.restore(y, "identity", "poisson:gain=0.01", prior, "diffpir", steps=2, samples=3, batch_size=1)
    assert len(calls) == 2
