"""Every noise model with every kind of operator and every solver that takes them: finite, of the right shape, fitted.

Noise that is not white and Gaussian reaches a solver through an operator that was whitened, W A: faults lie where a noise
model, an operator and a solver meet.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import invdiff
from invdiff import operators, solvers
from invdiff.errors import UsageError
from invdiff.noise import CorrelatedGaussian, GaussianMap, NoiseModel, names, noise_model
from invdiff.priors import GaussianPrior
from invdiff.problem import Problem
from invdiff.restoration import states
from invdiff.restoration.loop import seen_by

SHAPE = (1, 8, 8)
KERNEL = np.full((3, 3), 0.15)
KERNEL[1, 1] = 1.0
NOISES: dict[str, NoiseModel] = {
    "gaussian": noise_model(0.05),
    "gaussian_channels": noise_model("gaussian_channels:sigma=0.04"),
    "gaussian_map": GaussianMap(np.linspace(0.02, 0.08, 64).reshape(8, 8)),
    "gaussian_correlated": CorrelatedGaussian(0.05, kernel=KERNEL),
    "poisson": noise_model("poisson:gain=0.005"),
    "poisson_gaussian": noise_model("poisson_gaussian:gain=0.003,sigma=0.03"),
    "laplace": noise_model("laplace:scale=0.04"),
    "uniform": noise_model("uniform:width=0.15"),
    "quantization": noise_model("quantization:step=1/15"),
    "salt_and_pepper": noise_model("salt_and_pepper:p=0.15,sigma=0.05"),
}
# With a decomposition, without one, and not linear; y has the image's size, as some of the noise models are of one size.
OPERATORS = (
    "identity",
    "gaussian_blur:sigma=0.7,size=3",
    "motion_blur:length=2,angle=30,boundary=reflect",
    "gamma:exponent=1.5",
    "saturate:gain=1.3",
)
# The settings that a solver needs to end anywhere near y in so few steps.
SPECS = {"tds": "tds:particles=4", "fps_smc": "fps_smc:particles=4", "mcg_diff": "mcg_diff:particles=4"}
# The largest residual: 1 where the noise is explained; six steps and the prior's pull leave up to 4. Two methods pull towards
# y with a weight of their own that fits no problem here.
LARGEST, LOOSE = 4, {"dps": 30, "score_ald": 200}
STEPS = 6
PARTICLES = ("fps_smc", "tds", "mcg_diff")


def prior() -> GaussianPrior:
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    alike = (-torch.cdist(place, place).square() / 8).exp()
    return GaussianPrior(torch.full(SHAPE, 0.5), 0.03 * (alike + 0.02 * torch.eye(64)))


def measured(spec: str, noise: NoiseModel, images: int = 1) -> Problem:
    x = prior().sample(images, torch.Generator().manual_seed(1)).reshape(-1, *SHAPE).clamp(0.05, 0.95)
    return Problem.from_measurement(invdiff.degrade(x, spec, noise, seed=2), spec, noise)


def test_every_noise_model_is_in_the_matrix() -> None:
    assert set(NOISES) == set(names())


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("spec", OPERATORS)
def test_a_restoration_is_finite_and_fits(spec: str, name: str) -> None:
    solver = solvers.get(SPECS.get(name, name), steps=STEPS)
    if solver.unmet(operators.get(spec)):
        pytest.skip("does not take the operator")
    tried = 0
    for label, noise in NOISES.items():
        problem = measured(spec, noise)
        try:
            seen_by(solver, problem)
        except UsageError:
            continue  # it needs all values of y, and says so
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = invdiff.restore(problem.y, spec, noise, prior(), solver)
        residual = float(solution.residual.max())
        assert solution.samples.shape[1:] == (1, *SHAPE) and torch.isfinite(solution.samples).all(), label
        assert residual < LOOSE.get(name, LARGEST), (label, residual)
        tried += 1
    assert tried >= len(NOISES) - 1


def last(problem: Problem, solver: str) -> torch.Tensor:
    """The particles (B, N, *image shape) at the end, of all images together."""
    *_, state = states(problem, prior(), solvers.get(solver), seed=3)
    assert state.population is not None
    return state.population


@pytest.mark.parametrize("label", ["gaussian", "gaussian_correlated", "gaussian_map", "poisson", "salt_and_pepper"])
@pytest.mark.parametrize("name", PARTICLES)
def test_chunks_of_particles_change_nothing(name: str, label: str) -> None:
    """Two images, whose noise differs where it depends on the brightness; some chunks hold particles of both."""
    problem = measured("identity", NOISES[label], 2)
    if name == "mcg_diff" and label == "salt_and_pepper":
        pytest.skip("needs all values of y")
    whole = last(problem, f"{name}:particles=8,steps=4,chunk=16")
    for chunk in (3, 4, 8):
        assert torch.allclose(last(problem, f"{name}:particles=8,steps=4,chunk={chunk}"), whole, atol=1e-5), chunk


@pytest.mark.parametrize("label", ["gaussian", "gaussian_correlated", "poisson", "salt_and_pepper"])
@pytest.mark.parametrize("spec", ["fps_smc:particles=4", "tds:particles=4,chunk=3", "mmps", "diffpir", "fast_dips"])
def test_batches_of_images_change_nothing(spec: str, label: str) -> None:
    problem = measured("identity", NOISES[label], 3)
    alone, together = (
        invdiff.restore(
            problem.y, "identity", NOISES[label], prior(), spec, steps=4, samples=4, batch_size=size
        ).samples
        for size in (1, 6)
    )
    assert torch.allclose(alone, together, atol=1e-5)
