"""Everything that deepinv ships as an operator of ours, unchanged; and ours in deepinv's algorithms."""

from __future__ import annotations

import inspect
from typing import Any

import deepinv
import pytest
import torch
from deepinv_physics import BUILDERS, NOT_BUILT, ONE_AT_A_TIME

from invdiff import operators, restore
from invdiff.operator.deepinv_physics import as_operator, to_deepinv
from invdiff.priors.deepinv_denoiser import DeepinvPrior, as_deepinv_denoiser

SINGLE = 3e-5  # deepinv keeps its tables in float32: a few hundred roundings
# deepinv's own A_adjoint is not the transpose there; the bridge differentiates A instead.
WRONG_ADJOINT = {"CompressiveSpectralImaging", "SequentialMRI"}


class Shrink(torch.nn.Module):
    """The exact denoiser of N(1/2, 1/4)."""

    def forward(self, x: torch.Tensor, sigma: Any, **kwargs: Any) -> torch.Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return 0.5 + 0.25 / (0.25 + level**2) * (x - 0.5)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed))


def test_no_physics_is_forgotten() -> None:
    kinds = (deepinv.physics.Physics, deepinv.physics.LinearPhysics, deepinv.physics.DecomposablePhysics)
    shipped = {
        name
        for name, kind in inspect.getmembers(deepinv.physics, inspect.isclass)
        if issubclass(kind, deepinv.physics.Physics) and kind not in kinds
    }
    assert shipped == set(BUILDERS) | set(NOT_BUILT) and not set(BUILDERS) & set(NOT_BUILT)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.filterwarnings("ignore")
def test_a_physics_is_an_operator(name: str) -> None:
    make, shape = BUILDERS[name]
    count = 1 if name in ONE_AT_A_TIME else 2
    op, x, z = as_operator(make(), shape), random(*shape)[:count], random(*shape, seed=1)[:count]
    y = op.A(x)
    assert y.is_floating_point() and y.isfinite().all() and not y.isnan().any()
    assert tuple(y.shape[1:]) == op.measurement_shape(shape) and op.image_shape(tuple(y.shape[1:])) == shape
    if op.linear:
        mixed = op.A(2 * x - 3 * z)
        assert float((mixed - 2 * y + 3 * op.A(z)).norm()) < SINGLE * float(mixed.norm() + y.norm())
        v = random(*y.shape[1:], seed=2)[:count] - 0.3
        inner = float((op.A_adjoint(v) * x).sum() - (v * y).sum())
        assert abs(inner) < SINGLE * float(v.norm() * y.norm())
        assert (op.adjoint_error(shape) > 1e-3) is (name in WRONG_ADJOINT)
        prox = op.prox_l2(z, y, 2.0)
        gradient = 2 * op.A_adjoint(op.A(prox) - y) + prox - z
        assert float(gradient.norm()) < 2e-3 * float(z.norm() + 2 * op.A_adjoint(y).norm())
    solver = "diffpir" if op.linear else "dps"
    solution = restore(y, op, 0.1, prior=DeepinvPrior(Shrink()), solver=solver, steps=3)
    assert tuple(solution.mean.shape) == (count, *shape) and solution.mean.isfinite().all()


def test_complex_and_several_measurements_keep_their_norm_and_come_back() -> None:
    from invdiff.operator.deepinv_physics import from_reals, to_reals

    y = torch.randn(2, 3, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    reals = to_reals(y)
    assert torch.equal(reals[:, 0], y[:, 0].real) and torch.equal(reals[:, 3], y[:, 1].imag)
    assert torch.equal(from_reals(reals, y[:1]), y) and torch.allclose(reals.norm(), y.norm())
    both = deepinv.utils.TensorList([y, random(5)])
    again = from_reals(to_reals(both), both)
    assert torch.equal(again[0], y) and torch.equal(again[1], both[1])


# Ours in deepinv's algorithms; DiffPIR and DDRM are in test_bridge.py.

SHAPE = (3, 8, 8)
SPECS = ["gaussian_blur:sigma=0.7", "downsample:factor=2"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def theirs(name: str) -> Any:
    """The same map out of deepinv's own parts."""
    op = operators.get(name)
    if name.startswith("inpaint"):
        return deepinv.physics.Inpainting(SHAPE, mask=op.observed(SHAPE).float().expand(1, *SHAPE))
    kernel = torch.from_numpy(op.stencil.plane.copy()).float()[None, None]
    return deepinv.physics.Blur(filter=kernel, padding="circular")


@pytest.mark.parametrize("spec", ["inpaint:keep=0.5", "gaussian_blur:sigma=0.7,boundary=circular"])
def test_deepinvs_dps_samples_with_ours_as_with_its_own(spec: str) -> None:
    x = random(*SHAPE)
    y = operators.get(spec).A(x)
    found = []
    for physics, weight in ((to_deepinv(operators.get(spec), SHAPE), 1.0), (theirs(spec), 1.0), (theirs(spec), 0.0)):
        physics.noise_model = deepinv.physics.GaussianNoise(0.05)
        denoiser = as_deepinv_denoiser(DeepinvPrior(Shrink()))
        dps = deepinv.sampling.DPS(denoiser, num_steps=20, weight=weight, rng=generator())
        found.append(dps(y, physics, seed=1))
    assert torch.allclose(found[0], found[1], atol=1e-3)
    assert not torch.allclose(found[0], found[2], atol=1e-2)  # the twin: no measurement


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("iteration", ["PGD", "HQS"])
def test_deepinvs_plug_and_play_runs_on_ours(spec: str, iteration: str) -> None:
    physics, x = to_deepinv(operators.get(spec), SHAPE), random(*SHAPE)
    y = physics.A(x)
    model = deepinv.optim.optim_builder(
        iteration=iteration,
        prior=deepinv.optim.prior.PnP(as_deepinv_denoiser(DeepinvPrior(Shrink()))),
        data_fidelity=deepinv.optim.L2(),
        max_iter=10,
        params_algo={"stepsize": 1.0, "g_param": 0.05},
    )
    restored = model(y, physics)
    assert restored.shape == x.shape and float((physics.A(restored) - y).abs().mean()) < 0.1
