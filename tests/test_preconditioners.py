"""Image preconditioners: what they claim to be, and that prox_l2 takes fewer iterations for the same answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from invdiff import operators, restore
from invdiff.operator import linalg as module
from invdiff.operator.contract import Operator, Shape
from invdiff.operator.linalg import ACCURACY, SHARE, dot, solve, stopping_early
from invdiff.operators import MultiCoil, Tomography
from invdiff.operators.mri import birdcage
from invdiff.operators.tools.circulant import FLOOR, Circulant
from invdiff.priors.prior import Prior

BODY = np.add.outer(np.linspace(-1, 1, 32) ** 2, np.linspace(-1, 1, 32) ** 2) < 0.6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(apply, shape: Shape) -> torch.Tensor:
    n = int(np.prod(shape))
    return apply(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, -1).T


SMALL: list[tuple[Operator, Shape]] = [
    (MultiCoil(acceleration=2, coils=3), (1, 6, 8)),
    (MultiCoil(acceleration=2, coils=3, pattern="random", centered=False), (1, 8, 6)),
    (MultiCoil(acceleration=2, coils=3, complex=True), (2, 6, 8)),
    (MultiCoil(acceleration=2, maps=birdcage(4, 32, 32)[:, 12:20, :8] * BODY[12:20, :8]), (1, 8, 8)),
    (Tomography(angles=5), (1, 8, 8)),
    (Tomography(angles=4, stop=60), (1, 8, 8)),
]


@pytest.mark.parametrize("operator, shape", SMALL[:3], ids=lambda value: str(value))
def test_the_nearest_circulant_is_the_diagonal_in_the_fourier_basis(operator: MultiCoil, shape: Shape) -> None:
    """Of all circulants it is nearest to A^T A: what is left over has no part that is diagonal there."""
    size = shape[1] * shape[2]
    F = np.kron(np.fft.fft(np.eye(shape[1]), norm="ortho"), np.fft.fft(np.eye(shape[2]), norm="ortho"))
    M = dense(operator.A, shape).numpy()
    if operator.complex:  # columns of the real parts hold all of a complex linear map
        M = M.reshape(-1, 2, size, 2, size)[:, 0, :, 0] + 1j * M.reshape(-1, 2, size, 2, size)[:, 1, :, 0]
        M = M.reshape(-1, size)
    wanted = np.diag(F @ M.conj().T @ M @ F.conj().T).real
    a, b = 7.0, 0.5
    P = dense(operator.image_preconditioner(shape, a, b), shape).numpy()
    P = P[:size, :size] + 1j * P[size:, :size] if operator.complex else P
    response = (1 / np.diag(F @ P @ F.conj().T).real - b) / a
    assert np.abs(response - wanted - FLOOR * wanted.max()).max() <= 1e-12
    # A twin: the mask alone, without the coils, is another.
    mask = (
        np.fft.ifftshift(operator.observed(shape)[0].numpy())
        if operator.centered
        else operator.observed(shape)[0].numpy()
    )
    assert np.abs(wanted - mask.reshape(-1)).max() > 0.05


@pytest.mark.parametrize("operator, shape", SMALL, ids=lambda value: str(value))
@pytest.mark.parametrize("a, b", [(3.0, 1.0), (1e4, 0.1)])
def test_it_is_symmetric_and_positive(operator: Operator, shape: Shape, a: float, b: float) -> None:
    P = dense(operator.image_preconditioner(shape, a, b), shape)
    assert float((P - P.T).abs().max()) <= 1e-12 * float(P.abs().max())
    assert float(torch.linalg.eigvalsh((P + P.T) / 2).min()) > 0


def test_unseen_pixels_are_left_alone() -> None:
    seen = torch.ones(4, 6, dtype=torch.float64)
    seen[:, 4:] = 0
    r = normal(1, 2, 4, 6)
    out = Circulant(torch.ones(4, 6, dtype=torch.float64), support=seen).inverse(3.0, 0.5, r)
    assert torch.allclose(out[..., 4:], r[..., 4:] / 0.5) and not torch.allclose(out[..., :4], r[..., :4] / 0.5)


def steps(operator: Operator, z: torch.Tensor, y: torch.Tensor, gamma: float) -> tuple[torch.Tensor, int]:
    """prox_l2 and the number of products with A^T A, or A A^T, that it took."""
    count = 0

    class Counted(type(operator)):
        def A_adjoint_A(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            return super().A_adjoint_A(x)

        def A_A_adjoint(self, v: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            return super().A_A_adjoint(v)

    counted = Counted(**{key: value for key, value in operator.__dict__.items() if key != "_cache"})
    return counted.prox_l2(z, y, gamma), count


LARGE: list[tuple[Operator, int, float]] = [
    (MultiCoil(acceleration=4, coils=8), 1, 0.42),
    (MultiCoil(acceleration=4, coils=4, pattern="radial"), 1, 0.45),
    (MultiCoil(acceleration=4, coils=8, complex=True), 2, 0.55),
    (MultiCoil(acceleration=4, maps=birdcage(8, 32, 32) * BODY), 1, 0.45),
    (Tomography(angles=60), 1, 0.6),
    (Tomography(angles=30, stop=120.0), 1, 0.7),
]


@pytest.mark.parametrize("operator, channels, share", LARGE, ids=[str(case[0])[:60] for case in LARGE])
def test_it_takes_fewer_iterations_for_the_same_answer(
    operator: Operator, channels: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """share: of the iterations for measurements, as measured (0.35 to 0.62) and a little."""
    gamma, sigma_y = 1e3, 0.02
    x = operators.get("gaussian_blur:sigma=2").A(normal(1, channels, 32, 32))
    clean = operator.A(x)
    noise, mask = sigma_y * normal(*clean.shape, seed=1), operator.observed((channels, 32, 32))
    y = clean + (noise if mask is None else mask * noise)
    z = x + gamma**0.5 * sigma_y * normal(*x.shape, seed=2)
    p, ours = steps(operator, z, y, gamma)
    single, _ = steps(operator, z.float(), y.float(), gamma)
    monkeypatch.setattr(type(operator), "image_preconditioner", Operator.image_preconditioner)
    q, theirs = steps(operator, z, y, gamma)
    assert ours <= share * theirs, (ours, theirs)
    # Both are 1e-12 from the answer in the measure that stops them, gamma ||A e||^2 + ||e||^2.
    scale, error = gamma * dot(y - operator.A(z), y - operator.A(z)), p - q
    assert float((gamma * dot(operator.A(error), operator.A(error)) + dot(error, error)) / scale) <= 1e-22
    assert float((single.double() - q).square().mean().sqrt()) <= ACCURACY


@pytest.mark.parametrize("gamma", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize(
    "spec", ["motion_blur:length=9,angle=30", "mri_multicoil:acceleration=4,coils=4", "tomography:angles=40"]
)
def test_single_precision_stops_where_it_is_accurate_enough(
    spec: str, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image to ACCURACY, whatever its neighbours, in fewer iterations than to rounding; the twin stops too early."""
    operator = operators.get(spec)
    x = operators.get("gaussian_blur:sigma=2").A(normal(2, 3, 48, 48)) * torch.tensor([1.0, 1e-2])[:, None, None, None]
    z = x + gamma**0.5 * 0.02 * normal(*x.shape, seed=1)
    y = operator.A(x) + 0.02 * operator.A(normal(*x.shape, seed=2))

    def errors(accuracy: float) -> tuple[list[float], int]:
        monkeypatch.setattr(module, "ACCURACY", accuracy)
        found, count = steps(operator, z.float(), y.float(), gamma)
        return (found.double() - exact).square().flatten(1).mean(1).sqrt().tolist(), count

    exact, _ = steps(operator, z, y, gamma)
    enough, quick = errors(ACCURACY)
    _, long = errors(0.0)
    monkeypatch.setattr(module, "TOLD_ABOVE", 2.0)
    rough, _ = errors(100 * ACCURACY)
    assert max(enough) <= ACCURACY and quick < long
    assert max(rough) > ACCURACY


def test_the_energy_of_the_error_is_what_stops_and_what_is_told() -> None:
    """With P = M^-1 but for one direction, <r, P r> is <e, M e> there and the first step is nearly the last."""
    weights, b = torch.logspace(0, 4, 50, dtype=torch.float64), normal(2, 50)
    P = 1 / weights
    P[0] /= 2
    energy = dot(b, b)
    solved = solve(lambda x: weights * x, b, precondition=lambda r: P * r, energy=energy, tolerance=1e-6)
    error = solved.x - b / weights
    assert float((dot(error, weights * error) / energy).max().sqrt()) <= 2e-6
    r = b - weights * solved.x
    assert torch.allclose(solved.residual, (dot(r, P * r) / energy).sqrt().flatten()) and solved.iterations <= 3
    early = solve(lambda x: weights * x, b, precondition=lambda r: P * r, energy=energy, iterations=1)
    r = b - weights * early.x
    told = (dot(r, P * r) / energy).sqrt().flatten()
    assert float(told.min()) > 1e-6 and torch.allclose(early.residual, told, atol=0)
    loose = solve(lambda x: weights * x, b, precondition=lambda r: P * r, energy=1e14 * energy, tolerance=1e-6)
    assert loose.iterations == 0


OPEN = [
    "motion_blur:length=9,angle=30",
    "motion_blur:length=9,angle=30,boundary=replicate",
    "motion_blur:length=9,angle=30,boundary=zero",
]
OTHERS = ["motion_blur:length=9,angle=30,boundary=valid", "defocus_blur:radius=3,boundary=replicate"]


@pytest.mark.parametrize("spec", OPEN + OTHERS)
def test_the_part_of_a_larger_grid_is_symmetric_and_positive(spec: str) -> None:
    operator = operators.get(spec)
    P = dense(operator.data_preconditioner((1, 14, 12), 300.0, 0.5), operator.measurement_shape((1, 14, 12)))
    assert float((P - P.T).abs().max()) <= 1e-12 * float(P.abs().max())
    assert float(torch.linalg.eigvalsh((P + P.T) / 2).min()) > 0


@pytest.mark.parametrize("spec", OPEN)
def test_zeros_around_keep_what_wraps_around_away(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer in fewer iterations than by the circular filter of the measurement's own grid (0.53 to 0.59)."""
    operator, gamma, sigma_y = operators.get(spec), 300.0, 0.02
    x = operators.get("gaussian_blur:sigma=2").A(normal(1, 3, 64, 64))
    z = x + gamma**0.5 * sigma_y * normal(*x.shape, seed=1)
    y = operator.A(x) + sigma_y * normal(*x.shape, seed=2)
    p, ours = steps(operator, z, y, gamma)
    monkeypatch.setattr("invdiff.operators.filtering.fast_length", lambda length: 64)
    q, theirs = steps(operators.get(spec), z, y, gamma)
    assert ours <= 0.65 * theirs, (ours, theirs)
    assert float((p - q).abs().max()) <= 1e-8


SPREAD = [
    "motion_blur:length=9,angle=30",
    "motion_blur:length=9,angle=30,boundary=valid",
    "mri_multicoil:acceleration=4,coils=4",
    "tomography:angles=40",
]


@pytest.mark.parametrize("spec", ["tomography:angles=8", "tomography:angles=15,stop=60", SPREAD[2]])
def test_rough_preconditioners_are_not_trusted_where_gamma_is_large(spec: str) -> None:
    """At sigma = 100 sigma_y; far above it float32 itself ends at some 1e-4."""
    operator, sigma_y, gamma = operators.get(spec), 0.01, 6667.0
    x = 0.5 + operators.get("gaussian_blur:sigma=2").A(normal(1, 1, 32, 32))
    clean = operator.A(x)
    mask = operator.observed((1, 32, 32))
    y = clean + sigma_y * normal(*clean.shape, seed=2) * (1.0 if mask is None else mask)
    z = x + 0.1 * gamma**0.5 * sigma_y * normal(*x.shape, seed=1)
    exact, _ = steps(operator, z, y, gamma)
    single = steps(operator, z.float(), y.float(), gamma)[0].double()
    assert float((single - exact).square().mean().sqrt()) <= ACCURACY
    with stopping_early(SHARE):
        e = steps(operator, z.float(), y.float(), gamma)[0].double() - exact
    q = y - operator.A(exact)
    energy = gamma * dot(operator.A(e), operator.A(e)) + dot(e, e)
    assert float((energy / (gamma * dot(q, q))).sqrt()) <= SHARE


@pytest.mark.parametrize("gamma", [3.0, 100.0, 3000.0])
@pytest.mark.parametrize("spec", SPREAD)
def test_a_share_of_the_posteriors_spread_may_be_missed(spec: str, gamma: float) -> None:
    """<e, M e> against share^2 gamma ||y - A x||^2, for each image of a batch; ten times the share would be too far."""
    operator, sigma_y = operators.get(spec), 0.02
    x = operators.get("gaussian_blur:sigma=2").A(normal(2, 3, 48, 48)) * torch.tensor([1.0, 3e-2])[:, None, None, None]
    z = x + gamma**0.5 * sigma_y * normal(*x.shape, seed=1)
    clean = operator.A(x)
    mask = operator.observed((3, 48, 48))
    y = clean + sigma_y * normal(*clean.shape, seed=2) * (1.0 if mask is None else mask)
    exact, _ = steps(operator, z, y, gamma)
    q = y - operator.A(exact)

    def missed(share: float) -> tuple[float, int]:
        with stopping_early(share):
            found, count = steps(operator, z.float(), y.float(), gamma)
        e = found.double() - exact
        energy = gamma * dot(operator.A(e), operator.A(e)).reshape(-1) + dot(e, e).reshape(-1)
        return float((energy / (gamma * dot(q, q).reshape(-1))).sqrt().max()), count

    (error, quick), (finer, long), (rough, _) = missed(SHARE), missed(0.0), missed(10 * SHARE)
    assert error <= SHARE and quick < long and finer < error
    assert rough > SHARE
    with stopping_early(SHARE):
        assert torch.equal(steps(operator, z, y, gamma)[0], exact)  # double precision goes to rounding all the same


class Smooth(Prior):
    """Answers by a blurred image; in half precision or not, as it says."""

    def __init__(self, coarse: bool) -> None:
        self._coarse = coarse

    @property
    def coarse(self) -> bool:
        return self._coarse

    def denoise(self, x: torch.Tensor, sigma: object) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1)


@pytest.mark.parametrize("solver", ["diffpir", "dpir", "pigdm"])
def test_data_steps_around_a_network_in_half_precision_are_no_finer_than_it(
    solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterations: list[int] = []
    operator = operators.get("motion_blur:length=9,angle=30")
    x = 0.5 + operators.get("gaussian_blur:sigma=2").A(normal(1, 3, 48, 48)).float()
    y = operator.A(x) + 0.02 * normal(1, 3, 48, 48, seed=1).float()

    def counted(*given: object, **named: object) -> object:
        solved = solve(*given, **named)
        iterations.append(solved.iterations)
        return solved

    monkeypatch.setattr(module, "solve", counted)

    def restored(coarse: bool) -> tuple[torch.Tensor, int]:
        iterations.clear()
        anew = operators.get(operator.spec)
        found = restore(y, anew, 0.02, prior=Smooth(coarse), solver=solver, steps=6, sigma_max=1.0, tile="off").mean
        return found, sum(iterations)

    (fine, long), (quick, short) = restored(False), restored(True)
    assert short < 0.7 * long
    assert 0 < float((fine - quick).square().mean().sqrt()) <= 0.1 * 0.02
    assert restored(False)[1] == long  # nothing is left behind
