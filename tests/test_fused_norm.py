"""The kernels against torch's own operations in float64: in Triton's interpreter, in a process of its own, and on a GPU."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from invdiff.priors.gpu import fused_block, fused_norm
from invdiff.priors.gpu.fused_block import fuse
from invdiff.priors.gpu.fused_norm import add_bias, available, group_norm_silu

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_in_the_interpreter starts")
plain = pytest.mark.skipif(INTERPRETED, reason="does not need the interpreter")
NAMES = ("x", "weight", "bias", "shift")


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_norm, "_interpreted", lambda: True)


def tensors(shape: tuple[int, ...], shift: str = "image", mean: float = 0.0, dtype: Any = torch.float32) -> list:
    """x, weight, bias, shift and a gradient, with numbers that dtype holds exactly."""
    draw = torch.Generator().manual_seed(sum(shape))
    count, channels = shape[:2]
    shifts = {"image": (count, channels), "channel": (channels,), "one": (1, channels)}
    x = mean + torch.randn(shape, generator=draw)
    w, b, g = (torch.randn(s, generator=draw) for s in (channels, channels, shape))
    s = torch.randn(shifts[shift], generator=draw) if shift in shifts else None
    x, g = (a.to(dtype).contiguous(memory_format=torch.channels_last) for a in (x, g))
    return [x, w, b, s, g]


def with_gradients(function: Any, x: Any, w: Any, b: Any, s: Any, g: Any, groups: int) -> dict[str, torch.Tensor]:
    inputs = [None if t is None else t.detach().clone().requires_grad_() for t in (x, w, b, s)]
    y = function(*inputs[:3], groups, 1e-5, inputs[3])
    asked = {name: t for name, t in zip(NAMES, inputs, strict=True) if t is not None}
    found = torch.autograd.grad(y, list(asked.values()), g.to(y.dtype))
    return {"y": y.detach(), **dict(zip(asked, found, strict=True))}


def reference(x: Any, w: Any, b: Any, groups: int, eps: float, s: Any) -> torch.Tensor:
    x = x if s is None else x + s[..., None, None]
    return functional.silu(functional.group_norm(x, groups, w, b, eps))


def expected(x: Any, w: Any, b: Any, s: Any, g: Any, groups: int) -> dict[str, torch.Tensor]:
    return with_gradients(reference, *(None if t is None else t.double() for t in (x, w, b, s, g)), groups)


def wrong(
    got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: dict[str, float] | float
) -> list[str]:
    """The names of what is off by more than its tolerance, relative to its largest number (or 1, if that is less)."""
    assert got.keys() == want.keys()
    limits = tolerance if isinstance(tolerance, dict) else dict.fromkeys(got, tolerance)
    return [n for n in got if (got[n].double() - want[n]).abs().max() > limits[n] * want[n].abs().max().clamp(min=1)]


@plain
@pytest.mark.slow
def test_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    root = Path(__file__).parent.parent
    ran = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout


@interpreted
@pytest.mark.parametrize("shift", ["none", "image", "channel"])
@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (8, 1), (56, 8), (56, 7), (64, 8), (120, 8), (224, 8)])
def test_as_torch_in_float64(channels: int, groups: int, shift: str) -> None:
    for count in (1, 3) if channels == 56 else (2,):
        given = tensors((count, channels, 5, 7), shift)
        assert not wrong(with_gradients(group_norm_silu, *given, groups), expected(*given, groups), 1e-5)


@interpreted
def test_shift_for_all_images() -> None:
    given = tensors((3, 16, 3, 5), "one")
    assert not wrong(with_gradients(group_norm_silu, *given, 4), expected(*given, 4), 1e-5)


@interpreted
def test_large_mean_costs_no_digits() -> None:
    given = tensors((2, 56, 5, 7), mean=30.0)
    given[3] -= 60 * (torch.arange(56) % 2)  # and the channels of a group far from each other
    # a x + d rounds numbers near 30; sums of x and x^2 in float32 would be off by a hundred times that.
    assert not wrong(with_gradients(group_norm_silu, *given, 8), expected(*given, 8), 1e-5)
    larger = tensors((1, 8, 5, 7), "none", mean=3000.0)
    assert not wrong(with_gradients(group_norm_silu, *larger, 2), expected(*larger, 2), 1e-3)


@interpreted
@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-11)])
def test_half_precision_rounds_once(dtype: torch.dtype, step: float) -> None:
    given = tensors((2, 56, 5, 7), dtype=dtype)
    got = with_gradients(group_norm_silu, *given, 8)  # the interpreter cuts bfloat16 off: twice a rounding's error
    assert got["y"].dtype == got["x"].dtype == dtype and got["weight"].dtype == torch.float32
    limits = {"y": step, "x": step, "weight": 1e-5, "bias": 1e-5, "shift": 1e-5}
    assert not wrong(got, expected(*given, 8), limits)


@interpreted
@pytest.mark.parametrize("small", [{"PROGRAMS": 2, "SUMMED": 512}, {"SUMMED": 64, "MAPPED": 128}])
def test_many_tiles_and_many_programs(small: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in small.items():
        monkeypatch.setattr(fused_norm, name, value)
    rows, steps, splits = fused_norm._shares(1, 35, 64)
    assert (steps > 1 and splits > 1) or splits > fused_norm._group_tile(7, splits)["ROWS"]
    assert rows * steps * splits >= 35
    given = tensors((1, 56, 5, 7))
    assert not wrong(with_gradients(group_norm_silu, *given, 8), expected(*given, 8), 1e-5)


@interpreted
@pytest.mark.parametrize(
    ("kernel", "place", "names"),
    [
        ("back_statistics", (0,), ["x"]),
        ("back_statistics", (1,), ["x"]),
        ("back_statistics", (2,), ["weight"]),
        ("back_statistics", (3,), ["bias"]),
        ("back_statistics", (4,), ["shift"]),
        ("statistics", (slice(None), 1), ["y", "x", "weight", "bias", "shift"]),
        ("statistics", (slice(None), 2), ["x", "weight", "shift"]),
        ("statistics", (slice(None), 3), ["x", "weight", "shift"]),
        ("statistics", (slice(None), 4), ["shift"]),
    ],
)
def test_each_term_matters(kernel: str, place: Any, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the laws: without a term, just what it enters is wrong."""
    kernels = fused_norm.kernels()
    real = getattr(kernels, kernel)

    class Broken:
        def __getitem__(self, grid: Any) -> Any:
            def launch(*arguments: Any, **keywords: Any) -> None:
                real[grid](*arguments, **keywords)
                arguments[5 if kernel == "statistics" else 2][place] = 0

            return launch

    given = tensors((2, 16, 5, 7), mean=1.0)
    assert not wrong(with_gradients(group_norm_silu, *given, 4), expected(*given, 4), 1e-5)
    monkeypatch.setattr(kernels, kernel, Broken())
    assert wrong(with_gradients(group_norm_silu, *given, 4), expected(*given, 4), 1e-5) == names


@interpreted
def test_nothing_is_saved_where_no_gradient_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, b, s, _ = tensors((1, 8, 3, 5))
    want = reference(x, w, b, 4, 1e-5, s)
    monkeypatch.setattr(fused_norm._NormSilu, "apply", None)  # who calls it fails
    monkeypatch.setattr(fused_norm._AddBias, "apply", None)
    torch.testing.assert_close(group_norm_silu(x, w, b, 4, 1e-5, s), want)
    with torch.no_grad():
        torch.testing.assert_close(group_norm_silu(x, w.requires_grad_(), b, 4, 1e-5, s), want)
        torch.testing.assert_close(add_bias(x, x, w), 2 * x + w[:, None, None])


@interpreted
def test_gradients_that_are_asked_for_alone() -> None:
    given = tensors((2, 16, 3, 5))
    want = expected(*given, 4)
    for i, name in enumerate(NAMES):
        inputs = [t.clone().requires_grad_(i == j) for j, t in enumerate(given[:4])]
        y = group_norm_silu(*inputs[:3], 4, 1e-5, inputs[3])
        (got,) = torch.autograd.grad(y, inputs[i], given[4])
        assert not wrong({name: got}, {name: want[name]}, 1e-5)


@interpreted
def test_gradient_of_a_gradient() -> None:
    given = tensors((2, 16, 3, 5))

    def twice(function: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
        x, w, b, s, g = (t.detach().clone().requires_grad_() for t in inputs)
        y = function(x, w, b, 4, 1e-5, s)
        first = torch.autograd.grad(y, (x, w, b, s), g, create_graph=True)
        return list(torch.autograd.grad(sum((f**2).sum() for f in first), (x, w, b, s, g)))

    want = twice(reference, *(t.double() for t in given))
    for got, true in zip(twice(group_norm_silu, *given), want, strict=True):
        torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-4 * true.abs().max().item())


@interpreted
def test_a_sum_with_a_bias() -> None:
    x, bias, _, _, g = tensors((3, 56, 5, 7))
    inputs = [t.clone().requires_grad_() for t in (x, g, bias)]
    out = add_bias(*inputs)
    torch.testing.assert_close(out, x + g + bias[:, None, None])
    got = torch.autograd.grad(out, inputs, x)
    for result, want in zip(got, (x, x, x.sum((0, 2, 3))), strict=True):
        torch.testing.assert_close(result, want)


@interpreted
def test_what_the_kernels_are_for(anywhere: None) -> None:
    good = torch.zeros(2, 16, 3, 5).contiguous(memory_format=torch.channels_last)
    assert available(good)
    assert not available(good.contiguous())
    assert not available(torch.zeros(2, 12, 3, 5).contiguous(memory_format=torch.channels_last))
    assert not available(good[:, :8])
    assert not available(torch.zeros(1, 1032, 1, 1))
    assert not available(good[0])


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DModel

    settings: dict[str, Any] = dict(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 24), norm_num_groups=8
    )
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False)
    with torch.random.fork_rng():
        network = UNet2DModel(**{**settings, **blocks, **changes}).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # no bias is 0, no weight 1: none can be left out
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / fan_in**0.5 + (parameter.ndim == 1))
    return network


def ask(network: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    network.zero_grad()
    y = network(x, torch.tensor([3, 500], device=x.device)[: x.shape[0]]).sample
    (y.float() ** 2).sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **gradients}


@interpreted
def test_a_network_answers_as_before(anywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet().train()
    x = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    want = ask(network, x)
    fused = copy.deepcopy(network)
    calls = []
    count = fuse(fused)
    assert count == sum(type(m).__name__ == "ResnetBlock2D" for m in network.modules()) == 8
    monkeypatch.setattr(fused_block, "add_bias", lambda *a: calls.append(1) or add_bias(*a))
    heads = []  # two norms in each block, and the last one
    monkeypatch.setattr(fused_block, "group_norm_silu", lambda *a: heads.append(1) or group_norm_silu(*a))
    got = ask(fused, x)
    assert len(calls) == count
    assert len(heads) == 1 + 2 * count
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=1e-4 * max(1.0, value.abs().max().item()), msg=name
        )


@interpreted
def test_a_network_under_autocast(anywhere: None) -> None:
    network, x = unet(), torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    want = network(x, 10).sample
    fuse(network)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        got = network(x, 10).sample
    assert got.dtype == torch.bfloat16
    assert (got - want).square().mean() < 1e-3 * want.square().mean()


@interpreted
@pytest.mark.parametrize("dropped", ["embedding", "shortcut bias"])
def test_a_block_without(dropped: str, anywhere: None) -> None:
    from diffusers.models.resnet import ResnetBlock2D

    changes = {"embedding": dict(temb_channels=None), "shortcut bias": dict(conv_shortcut_bias=False)}[dropped]
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        block = ResnetBlock2D(**{**dict(in_channels=16, out_channels=24, temb_channels=12, groups=8), **changes})
    x, temb = (torch.randn(2, n, *rest, generator=draw) for n, *rest in ((16, 3, 5), (12,)))
    temb = None if dropped == "embedding" else temb
    want = block(x, temb)
    assert fuse(block) == 1
    torch.testing.assert_close(block(x, temb), want, rtol=1e-4, atol=1e-5)


@plain
def test_what_it_does_not_suit_is_left_alone() -> None:
    assert fuse(unet(resnet_time_scale_shift="scale_shift")) == 0
    assert fuse(unet(norm_num_groups=6, block_out_channels=(12, 24))) < 8
    assert fuse(unet(downsample_type="resnet", upsample_type="resnet")) == 8
    assert fuse(unet(act_fn="gelu")) == 0


@plain
def test_on_the_cpu_nothing_changes() -> None:
    network, x = unet(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    want = network(x, 10).sample
    state = network.state_dict()
    assert fuse(network) == 8 and fuse(network) == 0
    assert not available(torch.zeros(1, 8, 2, 2, dtype=torch.bfloat16))
    assert torch.equal(network(x, 10).sample, want)
    assert network.state_dict().keys() == state.keys()
    block = type(copy.deepcopy(network.mid_block).resnets[0])
    assert getattr(sys.modules[block.__module__], block.__qualname__) is block  # where pickle looks for it


@plain
def test_triton_is_not_imported_before_it_is_needed() -> None:
    program = (
        "import sys, torch; before = 'triton' in sys.modules; import invdiff.priors.gpu.fused_block; "
        "assert ('triton' in sys.modules) == before; assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"), plain]
SHAPES = [(4, 56, 64, 64), (2, 120, 32, 32), (1, 56, 256, 256), (3, 8, 5, 7), (2, 1024, 8, 8)]


def applied(test: Any) -> Any:
    for mark in gpu:
        test = mark(test)
    return test


@applied
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    step = torch.finfo(dtype).eps
    for shift, mean in (("image", 0.0), ("none", 30.0)):
        given = [None if t is None else t.cuda() for t in tensors(shape, shift, mean, dtype)]
        assert available(given[0])
        got = with_gradients(group_norm_silu, *given, 8)
        limits = {"y": step, "x": step, "weight": 1e-4, "bias": 1e-4, "shift": 1e-3}
        assert not wrong(got, expected(*given, 8), limits)
        again = with_gradients(group_norm_silu, *given, 8)
        assert all(torch.equal(got[name], again[name]) for name in got)
        assert got["y"].is_contiguous(memory_format=torch.channels_last)


@applied
@pytest.mark.parametrize("shape", SHAPES)
def test_in_a_cuda_graph(shape: tuple[int, ...]) -> None:
    x, w, b, s, g = (t.cuda() for t in tensors(shape, dtype=torch.bfloat16))
    x, w, b, s = (t.requires_grad_() for t in (x, w, b, s))

    def step() -> list[torch.Tensor]:
        y = add_bias(group_norm_silu(x, w, b, 8, 1e-5, s), x, b)
        return [y, *torch.autograd.grad(y, (x, w, b, s), g)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = step()
    with torch.no_grad():
        x.mul_(0.5).add_(1)
        s.mul_(-1)
    graph.replay()
    for got, want in zip(held, step(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@applied
def test_a_network_on_a_gpu() -> None:
    """Fused, autocast to bfloat16 is no further from float32 than diffusers' own blocks are."""
    network = unet(block_out_channels=(56, 120)).cuda().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()
    true = ask(network, x)
    with torch.autocast("cuda", torch.bfloat16):
        usual = ask(network, x)
    assert fuse(network) == 8
    with torch.autocast("cuda", torch.bfloat16):
        got = ask(network, x)
    for name in true:
        error, other = ((a[name].double() - true[name]).norm() / true[name].norm() for a in (got, usual))
        assert error < 1.5 * other + 0.01, (name, error, other)
    with torch.inference_mode():  # weights in half precision, no autocast
        y = network.bfloat16()(x.bfloat16(), torch.tensor([3, 500], device="cuda")).sample
    assert y.dtype == torch.bfloat16
    assert (y.double() - true["y"]).norm() < 0.05 * true["y"].norm()
