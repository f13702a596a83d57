"""Networks on tiles: the weights, independence of the tiles, gradients, what fits into memory, and what is refused."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner

import invdiff
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import InputWarning, InvdiffError, UsageError
from invdiff.files.images import write_image
from invdiff.machine.memory import free_memory, is_out_of_memory
from invdiff.priors import GaussianPrior
from invdiff.priors import tiled as module
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.priors.network import NetworkPrior
from invdiff.priors.tiled import TiledPrior, tiled
from invdiff.priors.tiles import Tiles, windows

ROOT = Path(__file__).resolve().parents[1]


class Small(torch.nn.Module):
    """A U-Net in small: two resolutions, GroupNorm, a reach of some pixels."""

    def __init__(self, norms: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.enter = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8) if norms else torch.nn.Identity()
        self.down = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.inner = torch.nn.GroupNorm(4, 8) if norms else torch.nn.Identity()
        self.leave = torch.nn.Conv2d(8, 3, 3, padding=1)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * (0.3 if weight.ndim > 1 else 0.5)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        z = torch.nn.functional.silu(self.norm(self.enter(x)))
        low = torch.nn.functional.silu(self.inner(self.down(z)))
        return self.leave(z + torch.nn.functional.interpolate(low, scale_factor=2.0))


def network_prior(norms: bool = True, **options) -> NetworkPrior:
    return NetworkPrior(Small(norms).double(), Schedule.named("linear"), channels=3, multiple=2, **options)


def noisy(*shape: int, seed: int = 0) -> torch.Tensor:
    """A gradient below flat sky, with noise, float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(-1, 1, shape[-2], dtype=torch.float64).clamp(min=0)[:, None]
    return 0.3 + 0.4 * rows + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Windows that do not cover the images here, and tiles small enough for several of them."""
    monkeypatch.setattr(module, "WINDOW", 8)


# Where tiles lie and what they weigh.


@pytest.mark.parametrize(
    "size, side, overlap, multiple",
    [
        ((96, 200), 64, 32, 8),
        ((64, 640), 128, 64, 8),
        ((128, 136), 128, 64, 8),
        ((50, 74), 33, 16, 2),
        ((8, 8), 64, 32, 8),
    ],
)
def test_weights_sum_to_one_and_vanish_at_the_edges_inside(size, side, overlap, multiple):
    tiles = Tiles(size, side, overlap, multiple)
    total = torch.zeros(size, dtype=torch.float64)
    for place in tiles.places:
        weight = tiles.weight(place, total)
        total[place] += weight
        for axis, (span, length) in enumerate(zip(place[1:], size, strict=True)):
            assert span.start % multiple == 0 and span.stop - span.start <= side
            across = weight.movedim(axis, 0)
            if span.start > 0:
                assert across[: overlap // 4].abs().max() < 1e-12
            if span.stop < length:
                assert across[-overlap // 4 :].abs().max() < 1e-12
    assert (total - 1).abs().max() < 1e-12
    for axis in (1, 2):
        spans = sorted({(place[axis].start, place[axis].stop) for place in tiles.places})
        assert all(first[1] - second[0] >= overlap for first, second in itertools.pairwise(spans))


def test_windows_are_spread_over_the_image_and_cover_a_small_one():
    x = torch.arange(64.0).expand(1, 1, 64, 64)
    found = windows(x, 4, 8, 2)
    assert found.shape == (16, 1, 8, 8)
    assert sorted({float(window[0, 0, 0]) for window in found}) == [4, 20, 36, 52]
    assert windows(x[..., :32, :32], 4, 8, 2).shape == (1, 1, 32, 32)
    assert windows(x[..., :6, :], 2, 8, 2).shape == (4, 1, 6, 8)  # a strip: along its length, as high as it is


# The answer.


def reference(prior: NetworkPrior, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """One call for the whole image, with GroupNorm's averages taken over the windows: by hooks, unlike the code."""
    norms = [norm for norm in prior.network.modules() if isinstance(norm, torch.nn.GroupNorm)]
    averages = {}

    def take(norm, inputs):
        grouped = inputs[0].transpose(0, 1).reshape(norm.num_groups, -1)
        averages[norm] = grouped.mean(1), grouped.var(1, unbiased=False)

    def use(norm, inputs, output):
        mean, variance = (value.repeat_interleave(norm.num_channels // norm.num_groups) for value in averages[norm])
        unit = (inputs[0] - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        return unit * norm.weight[:, None, None] + norm.bias[:, None, None]

    taking = [norm.register_forward_pre_hook(take) for norm in norms]
    using = [norm.register_forward_hook(use) for norm in norms]
    prior.denoise(windows(x, module.WINDOWS, module.WINDOW, prior.multiple), sigma)
    for hook in taking:
        hook.remove()
    answer = prior.denoise(x, sigma)
    for hook in using:
        hook.remove()
    return answer


@pytest.mark.parametrize("norms", [True, False], ids=["groupnorm", "plain"])
@pytest.mark.parametrize("size", [(96, 96), (64, 130), (75, 61)])
def test_tiles_of_any_size_give_the_same_answer(norms, size):
    prior, x = network_prior(norms), noisy(1, 3, *size)
    padded = x if size != (75, 61) else torch.nn.functional.pad(x, (0, 1, 0, 1), mode="reflect")
    wanted = reference(prior, padded, 0.1)[..., : size[0], : size[1]]
    for side in (32, 48, 60):
        found = tiled(prior, side).denoise(x, 0.1)
        assert (found - wanted).abs().max() < 1e-12, side


def test_averages_of_each_tile_alone_would_show_seams(monkeypatch):
    """The mutation twin: with GroupNorm left to each tile the answers depend on the tiles."""
    monkeypatch.setattr(TiledPrior, "_norms", lambda self: [])
    prior, x = network_prior(), noisy(1, 3, 96, 96)
    first, second = (tiled(prior, side).denoise(x, 0.1) for side in (32, 48))
    assert (first - second).abs().max() > 1e-3


def test_the_overlap_covers_the_reach(monkeypatch):
    """The mutation twin of the overlap: a quarter of it lets the tiles' edges through."""
    prior, x = network_prior(), noisy(1, 3, 96, 96)
    monkeypatch.setattr(module, "REACH", -0.5)
    thin = TiledPrior(prior, 32)
    thin.overlap = 2
    assert (thin.denoise(x, 0.1) - reference(prior, x, 0.1)).abs().max() > 1e-5


def test_a_batch_equals_its_images_and_each_has_its_level():
    prior = tiled(network_prior(), 32)
    x, sigma = torch.cat([noisy(1, 3, 40, 64, seed=seed) for seed in (0, 1)]), torch.tensor([0.1, 0.5])
    together = prior.denoise(x, sigma)
    alone = torch.cat([prior.denoise(x[:1], 0.1), prior.denoise(x[1:], 0.5)])
    assert (together - alone).abs().max() < 1e-6  # float32 levels
    with pytest.raises(UsageError, match="one per image"):
        prior.denoise(x, torch.tensor([0.1, 0.5, 0.5]))


def test_images_that_fit_are_taken_whole_and_the_closed_form_is_not_cut():
    prior = network_prior(high_noise=GaussianImages((0.5,) * 3, tuple(map(tuple, np.eye(3) * 0.05)), 0.01, 2.0, 1.0))
    cut, small, large = tiled(prior, 32), noisy(1, 3, 32, 20), noisy(1, 3, 64, 64)
    assert torch.equal(cut.denoise(small, 0.1), prior.denoise(small, 0.1))
    assert cut.describe() == prior.describe() | {"tile": "off"}
    assert torch.equal(cut.denoise(large, 10.0), prior.denoise(large, 10.0))
    mixed = cut.denoise(torch.cat([large, large]), torch.tensor([0.1, 10.0]))
    assert (mixed[1:] - prior.denoise(large, 10.0)).abs().max() < 1e-6
    cut.denoise(large, 0.1)
    assert cut.describe()["tile"] == 32


# Gradients.


@pytest.mark.parametrize("norms", [True, False], ids=["groupnorm", "plain"])
def test_the_gradient_is_that_of_the_answer(norms):
    prior, x = network_prior(norms), noisy(1, 3, 43, 64)
    cut = tiled(prior, 32)
    v = noisy(1, 3, 43, 64, seed=1)
    leaf = x.clone().requires_grad_()
    answer = cut.denoise(leaf, 0.1)
    (found,) = torch.autograd.grad(answer, leaf, v, retain_graph=True)
    assert torch.equal(answer.detach(), cut.denoise(x, 0.1))
    assert torch.equal(torch.autograd.grad(answer, leaf, v)[0], found)  # may be asked for again
    # <v, J u> by central differences: error of order h^2, and eps / h of rounding.
    u = noisy(1, 3, 43, 64, seed=2)
    h = 1e-5
    slope = ((cut.denoise(x + h * u, 0.1) - cut.denoise(x - h * u, 0.1)) / (2 * h) * v).sum()
    assert float((found * u).sum()) == pytest.approx(float(slope), rel=1e-7)


def test_second_derivatives_through_tiles_are_refused():
    """They would be zero without a word."""
    leaf, prior = noisy(1, 3, 64, 64).requires_grad_(), network_prior()
    for cut in (tiled(prior), tiled(prior, 32)):
        with (
            contextlib.nullcontext()
            if cut.tile == "auto"
            else pytest.raises(UsageError, match="first derivatives only")
        ):
            torch.autograd.grad(cut.denoise(leaf, 0.1).square().sum(), leaf, create_graph=True)


def test_the_gradient_through_the_averages_is_not_forgotten(monkeypatch):
    """The mutation twin: without it the vector-Jacobian product is another one."""
    prior, x, v = network_prior(), noisy(1, 3, 64, 64), noisy(1, 3, 64, 64, seed=1)
    cut = tiled(prior, 32)

    def gradient():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(cut.denoise(leaf, 0.1), leaf, v)[0]

    right, statistics = gradient(), TiledPrior.statistics
    monkeypatch.setattr(TiledPrior, "statistics", lambda *a: [s.detach() + 0 * a[1].sum() for s in statistics(*a)])
    assert (gradient() - right).norm() > 1e-4 * right.norm()


def test_the_gradient_keeps_the_graph_of_one_tile_at_a_time(monkeypatch):
    prior, kept = network_prior(), []
    cut = tiled(prior, 32)
    leaf = noisy(1, 3, 128, 128).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        cut.denoise(leaf, 0.1)
    assert sum(kept) <= 2 * leaf.numel()  # x, and the cut to its size


# What fits.


class Limited(Small):
    """A network that runs out of memory above so many pixels a call, or in the backward pass of so many."""

    def __init__(self, pixels: float, backward: float = float("inf")) -> None:
        super().__init__(norms=backward == float("inf"))
        self.pixels, self.backward, self.calls = pixels, backward, []

    def forward(self, x, t):
        self.calls.append(tuple(x.shape))
        pixels = x.shape[0] * x.shape[-1] * x.shape[-2]
        if pixels > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory")
        answer = super().forward(x, t)
        if answer.requires_grad and pixels > self.backward:
            answer.register_hook(out_of_memory)
        return answer


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def limited(pixels: float, backward: float = float("inf")) -> NetworkPrior:
    return NetworkPrior(Limited(pixels, backward).double(), Schedule.named("linear"), channels=3, multiple=2)


def test_out_of_memory_halves_what_is_computed_at_once_and_says_so_once():
    x = torch.cat([noisy(1, 3, 64, 64, seed=seed) for seed in range(2)])
    wanted = tiled(network_prior(), 32).denoise(x, 0.1)
    cut = tiled(limited(1100), 64)
    with pytest.warns(InputWarning) as told:
        found = cut.denoise(x, 0.1)
        cut.denoise(x, 0.1)
    assert [str(warning.message) for warning in told] == ["not enough memory: going on with 1 image at once"]
    assert cut.used == 32 and cut.describe()["tile"] == 32
    assert (found - wanted).abs().max() < 1e-12


def test_too_little_memory_for_the_smallest_tile_is_one_line():
    with pytest.warns(InputWarning), pytest.raises(InvdiffError, match="not enough memory: the network takes about"):
        tiled(limited(100)).denoise(noisy(1, 3, 64, 64), 0.1)


def test_averages_that_do_not_fit_are_one_line_whatever_was_computed_before(monkeypatch):
    """They take the same memory by smaller tiles: trying those would never end."""
    cut, x = tiled(network_prior(), 32), noisy(1, 3, 96, 96)
    cut.denoise(x, 0.1)
    windows_of, asked = module.windows, []
    monkeypatch.setattr(module, "windows", lambda *a: asked.append(1) or (out_of_memory() if a else windows_of(*a)))
    with pytest.raises(InvdiffError, match="not enough memory: the network takes about"):
        cut.denoise(x, 0.1)
    assert len(asked) == 1


def test_no_more_tiles_at_once_than_there_are():
    x, network = noisy(1, 3, 64, 64), Limited(4000, 10**9).double()
    cut = tiled(NetworkPrior(network, Schedule.named("linear"), channels=3, multiple=2), 32)
    with pytest.warns(InputWarning, match="going on with 4 tiles at once"):  # of 9
        cut.denoise(x, 0.1)
    counts = [shape[0] for shape in network.calls]
    assert counts == [9, 4, 4, 1] or counts == [9, 4, 2, 2, 2, 2, 1]


def test_a_backward_pass_without_memory_takes_fewer_tiles_then_smaller_ones():
    x, v = noisy(1, 3, 96, 96), noisy(1, 3, 96, 96, seed=1)

    def gradient(prior, side):
        cut, leaf = tiled(prior, side), x.clone().requires_grad_()
        return torch.autograd.grad(cut.denoise(leaf, 0.1), leaf, v)[0], cut

    wanted, _ = gradient(network_prior(norms=False), 64)
    with pytest.warns(InputWarning, match="going on with 2 tiles at once") as told:
        found, cut = gradient(limited(float("inf"), 1100), 64)
    assert len(told) == 1 and cut._most == 1 and cut._limit == 32
    assert (found - wanted).norm() < 1e-12 * wanted.norm()
    with pytest.warns(InputWarning), pytest.raises(InvdiffError, match="not enough memory: the network takes about"):
        gradient(limited(float("inf"), 100), 64)


@pytest.mark.parametrize("most, tile", [(4 * 48**2, "off"), (48**2, "off"), (1100, 32)])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_restoration_without_memory_takes_fewer_images_then_tiles(most, tile, where):
    """Their graphs are kept, and more of them for many images, so halving inside a call would be of no use."""
    y = invdiff.degrade(torch.cat([noisy(1, 3, 48, 48, seed=k) for k in range(5)]), "inpaint:keep=0.5", noise=0.05)

    def restored(prior):
        return invdiff.restore(y, "inpaint:keep=0.5", 0.05, prior, "dps", 4, batch_size=5), prior

    wanted, _ = restored(tiled(network_prior(norms=False)))
    small = tiled(limited(most if where == "forward" else float("inf"), most if where == "backward" else 10**9))
    small.prior.network.norm = small.prior.network.inner = torch.nn.Identity()
    with pytest.warns(InputWarning, match="not enough memory: going on with 2 images at once") as told:
        found, small = restored(small)
    small.prior.network.calls.clear()
    restored(small)
    assert sum("memory" in str(warning.message) for warning in told) == 1 and small.describe()["tile"] == tile
    assert small.batch in (1, 2) and max(shape[0] for shape in small.prior.network.calls) <= 2  # without trying again
    assert (found.samples - wanted.samples).abs().max() < 1e-9 and found.nfe == wanted.nfe == 4


def test_what_a_failed_batch_reported_is_forgotten():
    """Its moves are made again, by fewer particles' images at once, and told once."""
    prior = GaussianPrior(torch.full((3, 8, 8), 0.5), 0.05)
    y, denoise, calls = torch.rand(2, 3, 8, 8), prior.denoise, []
    wanted = invdiff.restore(y, "identity", 0.1, prior, "tds:particles=4", 4, batch_size=2)

    def failing(x, sigma):
        calls.append(len(x))
        return out_of_memory() if len(calls) == 3 else denoise(x, sigma)

    prior.denoise = failing
    with pytest.warns(InputWarning, match="1 image at once"):
        found = invdiff.restore(y, "identity", 0.1, prior, "tds:particles=4", 4, batch_size=2)
    assert {name: values.shape for name, values in found.diagnostics.items()} == {
        name: values.shape for name, values in wanted.diagnostics.items()
    }
    assert wanted.diagnostics and torch.allclose(found.samples, wanted.samples, atol=1e-5)


def test_a_single_image_of_a_prior_without_tiles_says_what_it_ran_out_of():
    class Limits(GaussianPrior):
        def denoise(self, x, sigma):
            return super().denoise(x, sigma) if len(x) == 1 or self.most > 1 else out_of_memory()

    prior = Limits(torch.full((3, 8, 8), 0.5), 0.05)
    y = torch.rand(3, 3, 8, 8)
    answers = []
    for prior.most in (3, 1):
        with contextlib.nullcontext() if prior.most == 3 else pytest.warns(InputWarning, match="1 image at once"):
            answers.append(invdiff.restore(y, "identity", 0.1, prior, "diffpir", 3, batch_size=3).samples)
    assert (answers[0] - answers[1]).abs().max() < 1e-6
    prior.denoise = out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        invdiff.restore(y[:1], "identity", 0.1, prior, "diffpir", 3)


@pytest.mark.skipif(sys.platform != "linux", reason="needs ulimit -v")
def test_a_real_limit_of_memory_is_met_and_kept():
    """In a process of its own: 64 channels of 1024 x 1024 take 256 MiB, twice what is left."""
    code = """
import resource, psutil, torch
from invdiff.priors.network import NetworkPrior
from invdiff.priors.tiled import tiled
from invdiff.diffusion.schedule import Schedule

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolutions = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), torch.nn.Conv2d(64, 3, 1))
    def forward(self, x, t):
        return self.convolutions(x)

x = torch.zeros(1, 3, 1024, 1024)
prior = NetworkPrior(Wide(), Schedule.named("linear"), channels=3, multiple=2)
with torch.no_grad():
    wanted = prior.denoise(x, 0.1)
    limit = psutil.Process().memory_info().vms + 2**27
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    cut = tiled(prior, 1024)
    found = cut.denoise(x, 0.1)
print(cut.used, float((found - wanted).abs().max()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    side, difference = done.stdout.split()
    assert 32 <= int(side) < 1024 and float(difference) < 1e-5
    assert done.stderr.count("not enough memory: going on with tiles of") == 1


def test_other_errors_pass():
    prior = network_prior()
    prior.network.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        tiled(prior, 32).denoise(noisy(1, 3, 64, 64), 0.1)


def test_auto_takes_what_fits(monkeypatch):
    prior = network_prior()
    pixel = 8 * 56 * 4 * 2  # channels, bytes, with a gradient, in half of what is free
    for free, size, wanted in [
        (pixel * 10**7, (1024, 1024), None),
        (pixel * 10**7, (1024, 1032), 512),
        (pixel * 300**2, (1024, 1024), 256),
        (pixel * 100**2, (128, 128), 64),
        (pixel * 20**2, (128, 128), 32),
    ]:
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        assert tiled(prior)._side(torch.empty(1, 3, *size, device="meta")) == wanted, (free, size)
    # Small tiles are there for want of memory: no more of them at once than fit.
    for free, at_once in [(pixel * 10**7, 9), (pixel * 50**2, 2), (pixel * 40**2, 1)]:
        monkeypatch.setattr(module, "free_memory", lambda device, free=free: free)
        cut, x = tiled(prior, 32), torch.empty(1, 3, 64, 64)
        assert len(next(cut._chunks(x, cut.tiles(x, 32)))) == at_once
    monkeypatch.setattr(module, "free_memory", lambda device: 10**4)
    with pytest.raises(InvdiffError, match="ulimit -v"):
        tiled(prior)._side(torch.empty(1, 3, 128, 128, device="meta"))


def test_a_machine_without_any_limit_has_what_the_system_has(monkeypatch):
    monkeypatch.setattr("invdiff.machine.memory._left_by_limits", lambda: iter(()))
    monkeypatch.setattr("invdiff.machine.memory.left_by_cgroups", list)
    assert free_memory(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_free_memory_is_the_least_of_system_container_and_limit(monkeypatch):
    assert 0 < free_memory(torch.device("cpu")) < 2**50
    monkeypatch.setattr("invdiff.machine.memory.left_by_cgroups", lambda: [10**9, 10**8])
    assert free_memory() == 10**8
    monkeypatch.undo()
    if sys.platform != "win32":
        import resource

        used = 10**9
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (used, used))
        assert free_memory(torch.device("cpu")) < used


@pytest.mark.parametrize(
    "error, wanted",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (InvdiffError("out of memory at step 3"), False),
        (RuntimeError("sizes do not match"), False),
    ],
)
def test_which_errors_are_of_memory(error, wanted):
    assert is_out_of_memory(error) is wanted


# What is refused.


@pytest.mark.parametrize("tile", ["big", 0, -5, 2.5, None, "12px", float("inf")])
def test_a_tile_is_a_number_of_pixels_auto_or_off(tile):
    with pytest.raises(UsageError, match='tile must be a number of pixels, "auto" or "off"'):
        tiled(network_prior(), tile)


def test_a_tile_below_the_networks_reach_is_refused():
    with pytest.raises(UsageError, match="needs 16 pixels of overlap, so tiles of at least 32"):
        tiled(network_prior(), 31)


def test_priors_without_a_network_are_never_cut():
    exact = GaussianPrior(torch.zeros(12), torch.eye(12))
    assert tiled(exact) is exact and tiled(exact, "off") is exact
    with pytest.raises(UsageError, match="answers for the image as a whole: leave tile out"):
        tiled(exact, 256)


def test_restore_is_the_same_by_tiles_and_says_so():
    prior, x = network_prior(False), noisy(1, 3, 64, 64)
    y = invdiff.degrade(x, "gaussian_blur:sigma=1", noise=0.05)
    settings = {"noise": 0.05, "prior": prior, "solver": "diffpir", "steps": 3}
    off, auto, cut = (
        invdiff.restore(y, "gaussian_blur:sigma=1", tile=tile, **settings) for tile in ("off", "auto", 32)
    )
    assert torch.equal(off.samples, auto.samples)
    assert (cut.samples - off.samples).abs().max() < 1e-9
    assert (off.prior.get("tile"), auto.prior["tile"], cut.prior["tile"]) == (None, "off", 32)


@pytest.fixture
def measured(tmp_path):
    y = torch.rand(3, 136, 136, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "y.png", y)
    return tmp_path


def command(folder, *options):
    from invdiff.cli.restore import restore

    arguments = [str(folder / "y.png"), "-o", str(folder / "x.png"), "--operator", "identity", "--noise", "0.1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(restore, [*arguments, "--steps", "1", *options], catch_exceptions=True)


def test_the_record_of_the_command_says_the_tile_and_repeats_it(measured):
    for option, wanted in (("auto", "--tile off"), ("off", "--tile off"), ("128", "--tile 128")):
        done = command(measured, "--tile", option)
        assert done.exit_code == 0, done.output
        record = json.loads((measured / "x.png.json").read_text())
        assert wanted in record["command"]


@pytest.mark.parametrize(
    "tile, words",
    [("64", "tile=64 is too small"), ("large", "not a number of pixels, auto or off"), ("0", "not a number")],
)
def test_bad_tiles_on_the_command_line(measured, tile, words):
    done = command(measured, "--tile", tile)
    assert done.exit_code != 0 and words in f"{done.output} {done.exception}"
