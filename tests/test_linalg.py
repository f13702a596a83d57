"""Conjugate gradients: exact where the arithmetic allows, honest where it does not."""

from __future__ import annotations

import warnings

import pytest
import torch

from invdiff import operators
from invdiff.operator.contract import Operator
from invdiff.operator.linalg import TOLD_ABOVE, solve


def spectrum(condition: float, dtype: torch.dtype = torch.float64, size: int = 60) -> torch.Tensor:
    return torch.logspace(0, torch.tensor(condition).log10().item(), size, dtype=dtype)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_the_residual_is_the_true_one_of_each_sample() -> None:
    weights, b = spectrum(100.0), normal(3, 60)
    b[1] *= 1e6
    b[2] = 0
    solved = solve(lambda x: weights * x, b, iterations=5)
    error = (b - weights * solved.x).norm(dim=1) / torch.where(b.norm(dim=1) > 0, b.norm(dim=1), 1.0)
    assert solved.iterations == 5 and torch.allclose(solved.residual, error) and solved.residual[2] == 0
    assert float(solved.residual[0]) > 1e-6
    done = solve(lambda x: weights * x, b)
    assert float(done.residual.max()) <= 2e-12 and done.iterations < 200
    assert torch.equal(done.x, solve(lambda x: weights * x, b).x)


def test_it_stops_where_rounding_ends_progress() -> None:
    weights, b = spectrum(1e8, torch.float32, 400), normal(2, 400, dtype=torch.float32)
    solved = solve(lambda x: weights * x, b, iterations=100_000, tolerance=1e-9)
    assert solved.iterations < 50_000
    # The true residual of a float32 answer: eps ||M|| ||x||, relative to ||b||.
    floor = torch.finfo(torch.float32).eps * 1e8 * solved.x.norm(dim=1) / b.norm(dim=1)
    assert (solved.residual <= floor).all()


def test_samples_stop_alone() -> None:
    weights = torch.stack([spectrum(10.0), spectrum(1e5)])
    b = normal(2, 60)
    together = solve(lambda x: weights * x, b)
    for i in range(2):
        alone = solve(lambda x, i=i: weights[i] * x, b[i : i + 1])
        assert torch.equal(alone.x[0], together.x[i])


def test_half_precision_is_solved_in_single() -> None:
    weights, b = spectrum(100.0, torch.float32), normal(1, 60, dtype=torch.bfloat16)
    x = solve(lambda x: weights * x, b).x
    assert x.dtype == torch.bfloat16
    exact = (b.float() / weights).to(torch.bfloat16).float()
    assert float((x.float() - exact).abs().max()) <= 0.01 * float(exact.abs().max())


def test_nan_ends_at_once() -> None:
    b = normal(2, 60)
    b[0, 0] = torch.nan
    solved = solve(lambda x: spectrum(10.0) * x, b)
    assert solved.iterations < 200 and torch.isfinite(solved.x[1]).all()


SIGMA_Y = 0.3 / 255


def misfit(operator: Operator, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, y and y - A z, as a first step of a solver meets them: float32."""
    smooth = operators.get("gaussian_blur:sigma=2").A(normal(1, 3, size, size))
    x = (0.5 + 2 * smooth).float()
    y = operator.A(x)
    y = y + SIGMA_Y * normal(*y.shape, seed=1, dtype=torch.float32)
    z = 0.5 + 0.1 * normal(*x.shape, seed=2, dtype=torch.float32)
    return z, y, y - operator.A(z)


SOLVED = [
    "motion_blur:boundary=reflect",
    "motion_blur:angle=30,boundary=zero",
    "motion_blur:path=random,boundary=valid",
]
# Thousands of iterations would be needed.
HARD = ["motion_blur:angle=30,boundary=reflect", "motion_blur:angle=30,boundary=replicate"]


@pytest.mark.parametrize("spec", SOLVED + HARD)
def test_little_noise_is_solved_or_told(spec: str) -> None:
    """The hardest systems of a run at sigma_y = 0.3/255, which 200 iterations without a preconditioner left at 1e-2."""
    op = operators.get(spec)
    z, y, v = misfit(op, 64)
    gamma, r2 = (2 / 0.0012) ** 2 / 2, 0.8**2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = op.solve_data(v, r2, SIGMA_Y**2)
        step = op.prox_l2(z, y, gamma) - z
    residual = float((r2 * op.A_A_adjoint(data) + SIGMA_Y**2 * data - v).norm() / v.norm())
    told = any("solve_data" in str(one.message) for one in caught)
    assert told == (residual > TOLD_ABOVE) and residual <= 5e-3
    assert spec in HARD or (not caught and residual <= TOLD_ABOVE)
    # The same system in float64, to its end.
    start = [t.double() for t in (z, y)]
    exact = start[0] + gamma * op.A_adjoint(
        solve(
            lambda q: gamma * op.A_A_adjoint(q) + q,
            start[1] - op.A(start[0]),
            precondition=op.data_preconditioner((3, 64, 64), gamma, 1.0),
            iterations=5000,
            tolerance=1e-7,
        ).x
    )
    error = float((z + step - exact).square().mean().sqrt())
    assert error <= (0.04 if spec in HARD else 1 / 255), error


def test_symmetric_kernels_converge_at_once() -> None:
    """The preconditioner is then the inverse itself: the default motion blur, horizontal, is such a kernel."""
    op = operators.get("motion_blur")
    z, y, v = misfit(op, 64)
    calls = 0
    plain = type(op).A

    class Counted(type(op)):
        def A(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return plain(self, x)

    counted = Counted()
    counted.prox_l2(z.double(), y.double(), 1e4)
    counted.solve_data(v.double(), 1e4, 1.0)
    assert calls < 20


def test_missing_the_aim_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    op = operators.get("motion_blur:path=random")
    z, y, _ = misfit(op, 32)
    monkeypatch.setattr(
        "invdiff.operator.linalg.solve", lambda *args, **more: solve(*args, **{**more, "iterations": 3})
    )
    with pytest.warns(
        RuntimeWarning, match=r"motion_blur:path=random: prox_l2 .*residual of .*boundary=circular.*sigma_y"
    ):
        op.prox_l2(z, y, 1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op.prox_l2(z, y, 1e6)
