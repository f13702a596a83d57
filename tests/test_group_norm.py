"""The quick gradient of GroupNorm against torch's own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny import tiny_prior

import invdiff
from invdiff.priors.gpu import group_norm
from invdiff.priors.gpu.group_norm import GroupNorm, use_fast_gradients


def norm(channels: int = 12, groups: int = 4) -> torch.nn.GroupNorm:
    draw = torch.Generator().manual_seed(0)
    made = torch.nn.GroupNorm(groups, channels)
    torch.nn.init.normal_(made.weight, 1.0, 0.5, generator=draw)
    torch.nn.init.normal_(made.bias, generator=draw)
    return made.requires_grad_(False)


def picture(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Channels of different means and spreads, channels last."""
    draw = torch.Generator().manual_seed(1)
    spread, mean = torch.rand(shape[1], 1, 1, generator=draw) + 0.1, torch.randn(shape[1], 1, 1, generator=draw)
    x = torch.randn(shape, generator=draw) * spread + mean
    return x.to(dtype).to(memory_format=torch.channels_last)


def gradient(module: torch.nn.Module, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(module(x), x, g)[0]


@pytest.mark.parametrize("shape", [(1, 12, 16, 16), (3, 12, 8, 20), (2, 12, 5, 7)], ids=str)
def test_it_is_torchs_to_rounding(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torchs, x, g = norm(), picture(shape), picture(shape).flip(-1).contiguous(memory_format=torch.channels_last)
    exact = gradient(copy.deepcopy(torchs).double(), x.double(), g.double())
    ours = copy.deepcopy(torchs)
    use_fast_gradients(ours)
    assert torch.equal(ours(x), torchs(x)) and isinstance(ours, GroupNorm)

    def error(module: torch.nn.Module) -> float:
        return float((gradient(module, x, g).double() - exact).norm() / exact.norm())

    assert error(ours) < 3 * error(torchs) < 0.02
    called = []
    monkeypatch.setattr(group_norm, "_sum", lambda a: called.append(1) or a.float().sum(1) * 0)  # the twin: no means
    assert error(ours) > 0.05 and len(called) == 2


def test_torchs_own_answers_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, x = norm(), picture((1, 12, 8, 8))
    use_fast_gradients(ours)
    monkeypatch.setattr(group_norm._Quick, "apply", None)  # who calls it fails
    ours(x)
    with torch.no_grad():
        ours(x.requires_grad_(True))
    ours(x.float().requires_grad_(True))
    ours(x.detach().contiguous().requires_grad_(True))
    ours.requires_grad_(True)(x.requires_grad_(True)).sum().backward()
    assert ours.weight.grad is not None
    with pytest.raises(TypeError):
        ours.requires_grad_(False)(x.detach().requires_grad_(True))


def test_a_gradient_of_the_gradient() -> None:
    ours = norm()
    use_fast_gradients(ours)
    found = []
    for module in (ours, norm()):
        x = picture((1, 12, 8, 8)).requires_grad_(True)
        (first,) = torch.autograd.grad(module(x).float().square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.float().square().sum(), x)[0].float())
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.02


def test_a_prior_has_it_and_its_copies_too(tmp_path: Path) -> None:
    prior = invdiff.load_prior(tiny_prior(tmp_path / "tiny"), device="cpu", precision="bf16")
    norms = [module for module in prior.network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert norms and all(isinstance(module, GroupNorm) for module in norms)
    before = prior.network.state_dict()
    again = copy.deepcopy(prior.network)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in before.items())

    def pulled() -> torch.Tensor:
        x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        return torch.autograd.grad(prior.denoise(x, 0.1).square().sum(), x)[0]

    quick = pulled()
    for module in norms:
        module.__class__ = torch.nn.GroupNorm
    assert float((quick - pulled()).norm() / quick.norm()) < 0.03
