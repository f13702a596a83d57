"""Where point estimates start and end: from what the operator leaves to fill in, until the noise is explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import invdiff
from invdiff import operators, solvers
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.prior import Sigma
from invdiff.problem.problem import Problem
from invdiff.restoration.api import states
from invdiff.solvers.first_level import FirstLevel, first_level
from invdiff.solvers.point import FIRST

SHAPE = (3, 64, 64)


def found(spec: str, noise: float = 0.05, shape: tuple[int, int, int] = SHAPE) -> FirstLevel:
    operator = operators.get(spec)
    y = torch.zeros(1, *operator.measurement_shape(shape))
    level = first_level(Problem.from_measurement(y, operator, noise))
    assert level is not None
    return level


def test_an_orthonormal_operator_leaves_its_noise() -> None:
    for noise in (0.01, 0.05, 0.1):
        level = found("identity", noise)
        kept = 0.25 / (0.25 + noise**2)  # by the mean with mid-grey
        assert level.error == pytest.approx(noise * kept, rel=0.03)
        assert noise < level.worst < 1.2 * noise  # 48 values in a cell: chi-squared, its 0.9 quantile 1.13^2
        assert level.hidden == pytest.approx(noise, rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("downsample:factor=4", 0.2, 0.2),  # a square of A^T A = 1/16 is told up to 4 sigma_y
        ("downsample:factor=8", 0.4, 0.4),
        ("inpaint:keep=0.95", 0.05, 0.08),
        ("inpaint:keep=0.3", 0.5, 1.0),  # squares of 2 x 2 pixels, 4 x 4 at most, are all lost
        ("inpaint:box=32x32", 4.0, 8.0),  # the hole as a whole
        ("inpaint:strokes=4,width=12", 1.0, 4.0),
        ("grayscale", 16.0, 16.0),  # a tint of the whole picture
        ("gaussian_blur:sigma=2", 0.05, 0.051),
        ("demosaic", 0.09, 0.11),  # a quarter of the reds
    ],
)
def test_what_is_smooth_and_not_measured_must_drown(spec: str, low: float, high: float) -> None:
    assert low * 0.999 <= found(spec).hidden <= high * 1.001


def test_a_mixture_of_channels_hides_their_combination() -> None:
    matrix = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    operator = operators.get("spectral_mixing", matrix=matrix)
    y = torch.zeros(1, *operator.measurement_shape(SHAPE))
    level = first_level(Problem.from_measurement(y, operator, 0.05))
    assert level is not None and level.hidden == pytest.approx(16.0)  # red minus green; each channel alone is seen
    diagonal = operators.get("spectral_mixing", matrix=np.diag([0.5, 0.5, 1.0]))
    y = torch.zeros(1, *SHAPE)
    level = first_level(Problem.from_measurement(y, diagonal, 0.05))
    assert level is not None and level.hidden == pytest.approx(0.1, rel=1e-5)


def test_large_pictures_small_ones_and_curves() -> None:
    large = found("gaussian_blur:sigma=2", shape=(3, 300, 520))
    assert large.error == pytest.approx(found("gaussian_blur:sigma=2", shape=(3, 256, 256)).error, rel=0.1)
    tiny = Problem.from_measurement(torch.zeros(1, 3, 4, 9), "identity", 0.05)
    curved = Problem.from_measurement(torch.full((1, *SHAPE), 0.5), "gamma", 0.05)
    assert first_level(tiny) is None and first_level(curved) is None
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.05)
    assert solvers.get("dpir", steps=3).levels(curved, prior)[0] == FIRST
    assert solvers.get("dpir", steps=3, initial="noise").levels(curved, prior)[0] == FIRST


def test_the_level_is_found_once_for_an_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = operators.get("gaussian_blur:sigma=1")
    problem = Problem.from_measurement(torch.rand(1, *SHAPE), operator, 0.05)
    first = first_level(problem)
    monkeypatch.setattr(type(operator), "A_adjoint_A", None)
    assert first_level(Problem.from_measurement(torch.rand(2, *SHAPE), operator, 0.05)) is first
    with pytest.raises(TypeError):
        first_level(Problem.from_measurement(torch.rand(1, *SHAPE), operator, 0.06))


def test_one_call_denoises() -> None:
    """E[x_0 | y] of a Gaussian prior, which is the prior's own answer at the level sigma_y."""
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.02)
    y = 0.5 + 0.15 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    exact = prior.denoise(y, 0.05) - 0.5
    error = {
        spec: float((invdiff.restore(y, "identity", 0.05, prior=prior, solver=spec).mean - 0.5 - exact).norm())
        for spec in ("dpir:steps=1", "dpir:steps=1,sigma_max=2")
    }
    assert (
        error["dpir:steps=1"]
        < 0.1 * float(exact.norm())
        < 0.9 * float(exact.norm())
        < error["dpir:steps=1,sigma_max=2"]
    )


def test_an_image_that_is_explained_is_done() -> None:
    """It stops before the last level, alone or beside another that goes on, with the same answer; settled=0 goes on."""
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.002)
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = 0.5 + torch.tensor([0.06, 0.5])[:, None, None, None] * noise  # as the prior expects, and far from it

    def run(rows: slice, **settings: float) -> tuple[torch.Tensor, int]:
        keys = ["expected", "far"][rows]
        solver = solvers.get("dpir", steps=12, **settings)
        solution = invdiff.restore(y[rows], "identity", 0.05, prior=prior, solver=solver, ids=keys, batch_size=2)
        return solution.mean, solution.nfe

    first, second, both = run(slice(0, 1)), run(slice(1, 2)), run(slice(0, 2))
    assert first[1] < second[1] == 12 and first[1] < both[1] < 12
    assert torch.allclose(both[0], torch.cat([first[0], second[0]]), atol=1e-6)
    # One after the other, in either order: the calls of each count, not those of the last.
    for order in ([0, 1], [1, 0]):
        solver = solvers.get("dpir", steps=12)
        apart = invdiff.restore(y[order], "identity", 0.05, prior=prior, solver=solver, batch_size=1)
        assert apart.nfe == both[1] == -(-(first[1] + 12) // 2)
    going_on = run(slice(0, 2), settled=0)
    assert going_on[1] == 12 and torch.allclose(going_on[0][1], second[0][0], atol=1e-6)
    assert not torch.allclose(going_on[0][0], first[0][0], atol=1e-3)


def test_a_hole_is_not_done_because_the_rest_is_explained() -> None:
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.01)
    y = torch.full((1, *SHAPE), 0.9)
    solution = invdiff.restore(y, "inpaint:box=32x32", 0.05, prior=prior, solver="dpir:steps=12")
    assert solution.nfe > 6


def test_where_it_starts() -> None:
    """Few steps start at the error of the whole, more at that of the worst places or of what is hidden."""
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.05)

    def first(spec: str, **settings: float) -> float:
        operator = operators.get(spec)
        problem = Problem.from_measurement(torch.zeros(1, *operator.measurement_shape(SHAPE)), operator, 0.05)
        return solvers.get("dpir", **settings).levels(problem, prior)[0]

    noise, small = found("identity"), found("downsample:factor=8")
    assert [first("identity", steps=steps) for steps in (1, 2)] == [noise.error] * 2
    assert first("identity", steps=3) == first("identity", steps=30) == pytest.approx(1.5 * noise.worst)
    assert small.hidden > 1.5 * small.worst and first("downsample:factor=8", steps=10) == small.hidden
    assert first("inpaint:box=32x32", steps=10) == FIRST < found("inpaint:box=32x32").hidden
    # Below a last level that was asked for there is none to start at.
    assert first("identity", steps=5, sigma_min=0.2) == pytest.approx(0.2)


class Wanders(GaussianPrior):
    """Answers with flat pictures that explain y; bright ones sway, by more than a step may move them in the end."""

    turn = 0

    def denoise(self, x: torch.Tensor, sigma: Sigma) -> torch.Tensor:
        self.turn += 1
        bright = x.flatten(1).mean(1) > 0.5
        level = torch.where(bright, 0.7 + 0.012 * (-1) ** self.turn, 0.3)
        return level[:, None, None, None].expand_as(x)


def test_an_image_that_still_moves_is_not_done() -> None:
    """Though its noise is explained, and another beside it is done."""
    noise = 0.05 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0.3, 0.7])[:, None, None, None] + noise
    for rows, wanted in ((slice(0, 1), 3), (slice(1, 2), 12), (slice(0, 2), 12)):
        problem = Problem.from_measurement(y[rows], "identity", 0.05)
        found = list(states(problem, Wanders(torch.full(SHAPE, 0.5), 0.002), solvers.get("dpir", steps=12)))
        assert len(found) <= wanted and (wanted < 12 or len(found) == 12)
        assert (problem.residual(found[-1].clean) < 1.05).all()


def test_images_with_noise_of_their_own_share_a_batch() -> None:
    """Each is weighed by its own noise: the level is that of the one that needs the highest."""
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.02)
    generator = torch.Generator().manual_seed(0)
    y = torch.stack([torch.rand(SHAPE, generator=generator) * 0.2 + bright for bright in (0.1, 0.7)])
    problem = Problem.from_measurement(y, "inpaint:keep=0.9", "poisson:gain=0.02").whitened()
    each = [first_level(problem.rows([row])) for row in (0, 1)]
    together = first_level(problem)
    assert together is not None and each[0] is not None and each[1] is not None
    assert together.worst == max(each[0].worst, each[1].worst) > min(each[0].worst, each[1].worst)
    *_, last = states(
        Problem.from_measurement(y, "inpaint:keep=0.9", "poisson:gain=0.02"), prior, solvers.get("dpir", steps=4)
    )
    assert last.x.shape == y.shape
    several = invdiff.restore(y, "identity", "poisson:gain=0.02", prior, "dpir", 4, samples=2, batch_size=4)
    assert torch.equal(several.samples[0], several.samples[1])
