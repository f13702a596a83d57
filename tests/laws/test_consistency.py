"""As sigma_y goes to 0, A x goes to y: a law for every solver that claims it (`Solver.consistent`).

The prior is Gaussian, so that the network call has no error of its own; what a method misses comes from its last noise
level, which is far above sigma_y here. Without the data step at the end every one of these misses y by about that level.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import invdiff
from invdiff import operators, solvers
from invdiff.errors import InputWarning
from invdiff.operator import Operator
from invdiff.priors import GaussianPrior

pytestmark = pytest.mark.filterwarnings("ignore::invdiff.errors.InputWarning")  # short runs fit ordinary noise roughly

SHAPE = (1, 8, 8)
# With a decomposition, without one (conjugate gradients), and not linear.
OPERATORS = (
    "identity",
    "gaussian_blur:sigma=0.7,size=3",
    "uniform_blur:size=3,boundary=circular",
    "downsample:factor=2",
    "inpaint:keep=0.6,seed=1",
    "motion_blur:length=2,angle=30,boundary=reflect",
    "gamma:exponent=1.5",
)
# A curve whose slope nearly vanishes makes its diagonal covariance of y vanish too, and it diverges.
DIVERGES = {("tmpd", "gamma:exponent=1.5")}
CONSISTENT = [name for name, cls in solvers.REGISTRY.items() if cls.consistent]


def prior() -> GaussianPrior:
    """Smooth images: neighbouring pixels are alike."""
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    alike = (-torch.cdist(place, place).square() / 4).exp()
    return GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), 0.02 * (alike + 0.1 * torch.eye(64)))


def measured(spec: str, sigma_y: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x = prior().sample(1, torch.Generator().manual_seed(1)).reshape(1, *SHAPE).clamp(0.05, 1)
    return invdiff.degrade(x.to(dtype), spec, sigma_y)


def misfit(name: str, spec: str, sigma_y: float, dtype: torch.dtype = torch.float64) -> float:
    """The root mean square of y - A x, on the entries that are measured."""
    y = measured(spec, sigma_y, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # conjugate gradients tell that they end at the rounding of float32
        solution = invdiff.restore(y, spec, sigma_y, prior(), name, steps=6)
    return float(solution.residual.max()) * sigma_y


@pytest.mark.parametrize("spec", OPERATORS)
@pytest.mark.parametrize("name", CONSISTENT)
def test_the_measurement_is_kept(name: str, spec: str) -> None:
    operator = operators.get(spec)
    if solvers.get(name).unmet(operator) or (name, spec) in DIVERGES:
        pytest.skip("does not take the operator, or diverges there")
    for sigma_y in (1e-7, 1e-8):
        assert misfit(name, spec, sigma_y) < 3 * sigma_y


@pytest.mark.parametrize("name", CONSISTENT)
def test_the_measurement_is_kept_in_single_precision(name: str) -> None:
    assert misfit(name, "identity", 1e-6, torch.float32) < 3e-6


@pytest.mark.parametrize("name", ["ddrm", "ddnm", "ilvr"])
def test_the_law_sees_the_missing_data_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers.REGISTRY[name], "consistent", False)
    assert misfit(name, "identity", 1e-6) > 1e-4


@pytest.mark.parametrize("settings", [{"steps": 6}, {"steps": 1}, {"steps": 4, "sigma_min": 0.1}])
@pytest.mark.parametrize("name", CONSISTENT)
def test_the_data_step_leaves_ordinary_noise_alone(
    name: str, settings: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method has weighed y itself, however high its last level: a data step would count y twice."""
    y = measured("identity", 0.02)
    kept = invdiff.restore(y, "identity", 0.02, prior(), name, **settings).samples
    monkeypatch.setattr(solvers.REGISTRY[name], "consistent", False)
    assert torch.equal(kept, invdiff.restore(y, "identity", 0.02, prior(), name, **settings).samples)


@pytest.mark.parametrize("settings", [{"steps": 1}, {"steps": 4, "sigma_min": 0.1}])
@pytest.mark.parametrize("name", ["ddrm", "diffpir", "mmps", "fps_smc"])
def test_the_measurement_is_kept_by_runs_that_end_early(name: str, settings: dict[str, float]) -> None:
    y = measured("identity", 1e-7)
    assert float(invdiff.restore(y, "identity", 1e-7, prior(), name, **settings).residual.max()) < 3


@dataclass(frozen=True, eq=False)
class SinglePrecision(Operator):
    """An operator with tables of float32, such as a network, which refuses float64."""

    name: ClassVar[str] = "single_precision"
    linear: ClassVar[bool] = False

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, torch.full((1, 1, 1, 1), 0.8))


@pytest.mark.parametrize("name", ["diffpir", "dpir", "mmps"])
def test_an_operator_of_single_precision_is_imposed_in_it(name: str) -> None:
    x = measured("identity", 1e-6, torch.float32)
    y = SinglePrecision().A(x)
    solution = invdiff.restore(y, SinglePrecision(), 1e-6, prior(), name, steps=4)
    assert solution.samples.dtype == torch.float32 and float(solution.residual.max()) < 3


@pytest.mark.parametrize("sigma_y", [1e-5, 1e-6, 1e-7, 1e-9])
@pytest.mark.parametrize(
    "spec", ["gaussian_blur:sigma=1.5", "uniform_blur:size=3", "motion_blur:length=5,boundary=circular", "identity"]
)
def test_measurement_sde_takes_little_noise(spec: str, sigma_y: float) -> None:
    """Its first level is that of the noise, here below the smallest that the prior knows."""
    shape = (1, 16, 16)
    flat = GaussianPrior(torch.full(shape, 0.5), 0.04 * torch.eye(256))
    y = invdiff.degrade(torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)), spec, sigma_y)
    solution = invdiff.restore(y, spec, sigma_y, flat, "measurement_sde", steps=5)
    assert torch.isfinite(solution.samples).all()


@pytest.mark.parametrize(("name", "told"), [("dps:weight=0.001", True), ("ddrm", False)])
def test_a_measurement_that_is_not_fitted_is_told(name: str, told: bool) -> None:
    y = measured("identity", 1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = invdiff.restore(y, "identity", 1e-4, prior(), name, steps=4)
    lines = [str(warning.message) for warning in caught if issubclass(warning.category, InputWarning)]
    assert (len(lines) == 1) is told and bool(solution.misfit) is told
    if told:
        assert lines[0] == solution.misfit and "residual" in lines[0] and "dps" in lines[0] and "noise" in lines[0]
