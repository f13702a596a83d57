"""deepinv's physics as our operators and ours as deepinv's, in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import deepinv
import pytest
import torch
from deepinv.physics.functional.blur import gaussian_blur

from invdiff import operators
from invdiff.errors import UsageError
from invdiff.operator.contract import Operator
from invdiff.operator.deepinv_physics import as_operator, to_deepinv

# deepinv keeps its tables in float32; a few hundred roundings.
SINGLE = 3e-5
SHAPE = (3, 8, 8)


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))


def blur_filter() -> torch.Tensor:
    return gaussian_blur(sigma=(1.0, 1.5), angle=20.0)[..., 2:-2, 2:-2].contiguous()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


THEIRS: dict[str, tuple[Callable[[], Any], bool]] = {
    "Denoising": (lambda: deepinv.physics.Denoising(), True),
    "Inpainting": (lambda: deepinv.physics.Inpainting(img_size=SHAPE, mask=0.5, rng=generator()), True),
    "Decolorize": (lambda: deepinv.physics.Decolorize(), True),
    "BlurFFT": (lambda: deepinv.physics.BlurFFT(img_size=SHAPE, filter=blur_filter()), False),
    "Blur": (lambda: deepinv.physics.Blur(filter=blur_filter(), padding="reflect"), False),
    "Downsampling": (lambda: deepinv.physics.Downsampling(img_size=SHAPE, factor=2, filter="gaussian"), False),
}


def dense(A: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    n = math.prod(SHAPE)
    return A(torch.eye(n).reshape(n, *SHAPE)).reshape(n, -1).T.double()


@pytest.mark.parametrize("label", THEIRS)
def test_a_deepinv_physics_is_an_operator(label: str) -> None:
    make, decomposed = THEIRS[label]
    physics = make()
    op = as_operator(physics, shape=SHAPE)
    x = picture(*SHAPE)
    y = op.A(x)
    assert isinstance(op, Operator) and op.linear and op.has_svd is decomposed and as_operator(op) is op
    assert torch.equal(y, physics.A(x)) and op.measurement_shape(SHAPE) == y.shape[1:]
    assert op.image_shape(tuple(y.shape[1:])) == SHAPE
    noise = picture(*y.shape[1:], seed=1)
    inner = float((op.A_adjoint(noise) * x).sum() - (noise * y).sum())
    assert abs(inner) < SINGLE * float(noise.norm() * y.norm())
    M = dense(physics.A)
    left = 3 * M.T @ M + torch.eye(M.shape[1])
    exact = torch.linalg.solve(left, (3 * noise.flatten(1).double() @ M + x.flatten(1)).T).T
    assert float((op.prox_l2(x, noise, 3.0).flatten(1) - exact).abs().max()) < 10 * SINGLE
    solved = torch.linalg.solve(2 * M @ M.T + 0.5 * torch.eye(M.shape[0]), noise.flatten(1).double().T).T
    assert float((op.solve_data(noise, 2.0, 0.5).flatten(1) - solved).abs().max()) < 10 * SINGLE
    if decomposed:
        svd = op.svd(SHAPE)
        assert torch.allclose(svd.U(svd.singular_values.to(x) * svd.V_adjoint(x)), y, atol=SINGLE)
    assert op.A(x.double()).dtype == torch.float64


def test_the_shape_is_read_off_the_physics_where_it_can_be() -> None:
    assert as_operator(deepinv.physics.Inpainting(img_size=SHAPE, mask=0.5)).has_svd
    bare = as_operator(deepinv.physics.Decolorize())
    assert not bare.has_svd and bare.image_shape((1, 8, 8)) == SHAPE


def test_nonlinear_and_foreign_objects() -> None:
    op = as_operator(deepinv.physics.Physics(A=lambda x, **kwargs: x**2))
    x = picture(*SHAPE)
    assert not op.linear and torch.equal(op.A(x), x**2)
    assert torch.allclose(op.A_vjp(x, torch.ones_like(x)), 2 * x)
    with pytest.raises(UsageError, match="not linear"):
        op.A_adjoint(x)
    with pytest.raises(UsageError, match=r"shape=\(C, H, W\)"):
        op.image_shape(SHAPE)
    with pytest.raises(UsageError, match="neither an invdiff Operator nor a deepinv Physics"):
        as_operator("gaussian_blur")
    complex_valued = as_operator(deepinv.physics.Physics(A=lambda x, **kwargs: torch.fft.fft2(x)))
    with pytest.raises(UsageError, match=r"shape=\(C, H, W\)"):
        complex_valued.A(x)


OURS = [
    ("gaussian_blur:sigma=0.7", deepinv.physics.DecomposablePhysics),
    ("gaussian_blur:sigma=0.7,boundary=circular", deepinv.physics.DecomposablePhysics),
    ("inpaint:keep=0.6", deepinv.physics.DecomposablePhysics),
    ("downsample:factor=2", deepinv.physics.LinearPhysics),
    ("motion_blur:length=3,angle=20", deepinv.physics.LinearPhysics),
    ("grayscale", deepinv.physics.LinearPhysics),
]


@pytest.mark.parametrize(("spec", "kind"), OURS)
def test_our_operators_are_deepinv_physics(spec: str, kind: type) -> None:
    op, x = operators.get(spec), picture(*SHAPE)
    physics = op.to_deepinv(SHAPE)
    assert isinstance(physics, kind)
    assert isinstance(physics, deepinv.physics.DecomposablePhysics) is (kind is deepinv.physics.DecomposablePhysics)
    y = physics(x)
    assert torch.equal(y, op.A(x))
    assert abs(float(physics.adjointness_test(x))) < 1e-3
    for ours, theirs in (
        (op.prox_l2(x, y, 2.0), physics.prox_l2(x, y, 2.0)),
        (op.prox_l2(torch.zeros_like(x), y, 2.0), physics.prox_l2(None, y, 2.0)),
        (op.A_dagger(y), physics.A_dagger(y)),
    ):
        assert torch.equal(ours, theirs)
    if kind is deepinv.physics.DecomposablePhysics:
        assert torch.allclose(physics.U(physics.mask * physics.V_adjoint(x)), y, atol=SINGLE)
        generic = deepinv.physics.DecomposablePhysics.prox_l2(physics, x, y, 2.0)
        assert torch.allclose(generic, physics.prox_l2(x, y, 2.0), atol=SINGLE)


class Shrink(torch.nn.Module):
    """The exact denoiser of N(1/2, 1/4): enough of a prior for an algorithm to run on."""

    def forward(self, x: torch.Tensor, sigma: Any, **kwargs: Any) -> torch.Tensor:
        weight = 0.25 / (0.25 + torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1) ** 2)
        return 0.5 + weight * (x - 0.5)


@pytest.mark.parametrize("spec", ["gaussian_blur:sigma=0.7", "inpaint:keep=0.6"])
def test_deepinvs_ddrm_runs_on_ours(spec: str) -> None:
    physics = to_deepinv(operators.get(spec), SHAPE)
    physics.noise_model = deepinv.physics.GaussianNoise(0.05)
    x = picture(*SHAPE)
    y = physics.A(x) + 0.05 * (picture(*SHAPE, seed=4) - 0.5)
    restored = deepinv.sampling.DDRM(Shrink(), sigmas=torch.linspace(1, 0, 5).numpy())(y, physics, seed=0)
    assert restored.shape == x.shape and torch.isfinite(restored).all()
    assert float((physics.A(restored) - y).abs().mean()) < 0.1


@pytest.mark.parametrize("spec", ["gaussian_blur:sigma=0.7", "downsample:factor=2", "motion_blur:length=3,angle=20"])
def test_deepinvs_diffpir_runs_on_ours(spec: str) -> None:
    physics = to_deepinv(operators.get(spec), SHAPE)
    x = picture(*SHAPE)
    y = physics.A(x)
    restored = deepinv.sampling.DiffPIR(Shrink(), deepinv.optim.L2(), sigma=0.05, max_iter=10)(y, physics, seed=0)
    assert restored.shape == x.shape and float((physics.A(restored) - y).abs().mean()) < 0.1


@pytest.mark.parametrize("spec", ["downsample:factor=2", "motion_blur:length=3,angle=20"])
def test_deepinvs_proximal_gradient_runs_on_ours(spec: str) -> None:
    physics = to_deepinv(operators.get(spec), SHAPE)
    x = picture(*SHAPE)
    y = physics.A(x)
    fidelity = deepinv.optim.L2()
    z = torch.zeros_like(x)
    for _ in range(20):
        z = fidelity.prox(z, y, physics, gamma=5.0)
    assert float((physics.A(z) - y).norm()) < 0.05 * float(y.norm())


def test_a_round_trip_gives_the_same_physics_back() -> None:
    physics = deepinv.physics.Denoising()
    assert to_deepinv(as_operator(physics), SHAPE) is physics
    op = operators.get("inpaint")
    again = as_operator(op.to_deepinv(SHAPE))
    assert again.has_svd and torch.equal(again.A(picture(*SHAPE)), op.A(picture(*SHAPE)))
