"""What needs a CUDA device: the same answers as on the CPU. Run with `pytest -m gpu` on such a machine."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import invdiff
from invdiff import operators, samplers, solvers
from invdiff.diffusion.schedule import Schedule
from invdiff.evaluation.protocol import Protocol
from invdiff.priors.gaussian import GaussianPrior
from invdiff.priors.network import NetworkPrior
from invdiff.priors.tiled import tiled
from invdiff.samplers.generation import sample
from invdiff.scores import calibration
from invdiff.training.checkpoint import TrainingState
from invdiff.training.config import TrainingConfig
from invdiff.training.data.entries import find_entries
from invdiff.training.data.photographs import Photographs
from invdiff.training.data.resident import ResidentFeeder
from invdiff.training.data.sampler import CropSampler, to_network
from invdiff.training.distributed import Processes
from invdiff.training.engine import build_objective, train
from invdiff.training.learner import Feeder, Learner
from invdiff.training.network import build_network, build_scheduler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

OPERATORS = [
    "gaussian_blur:sigma=1,boundary=circular",
    "gaussian_blur:sigma=1",
    "motion_blur:length=5,angle=20",
    "downsample:factor=2,kernel=bicubic",
    "inpaint:keep=0.5",
    "grayscale",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from invdiff.training.checkpoint import export_pipeline

    config = TrainingConfig(widths=(16, 32), groups=4, crops=(32,), pixels=32 * 32 * 4)
    return export_pipeline(build_network(config), build_scheduler(config), config, tmp_path_factory.mktemp("prior"))


@pytest.mark.parametrize("spec", OPERATORS)
def test_operator_answers_as_on_the_cpu(spec: str) -> None:
    operator = operators.get(spec)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = operator.A(x)
    for result, expected in [
        (operator.A(x.cuda()), y),
        (operator.A_adjoint(y.cuda()), operator.A_adjoint(y)),
        (operator.prox_l2(x.cuda(), y.cuda(), 10.0), operator.prox_l2(x, y, 10.0)),
        (operator.solve_data(y.cuda(), 2.0, 0.1), operator.solve_data(y, 2.0, 0.1)),
    ]:
        assert result.is_cuda
        torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("spec", OPERATORS)
def test_restoration_agrees_with_the_cpu(name: str, spec: str, folder: Path) -> None:
    """The noise comes from CPU generators, so both devices walk the same path up to rounding."""
    operator = operators.get(spec)
    if solvers.get(name).unmet(operator):
        pytest.skip(f"{name} cannot use {spec}")
    y = invdiff.degrade(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), operator, noise=0.05)
    on = {
        device: invdiff.restore(y, operator, 0.05, str(folder), name, 4, device=device, precision="fp32").samples
        for device in ("cpu", "cuda")
    }
    torch.testing.assert_close(on["cuda"], on["cpu"], rtol=0, atol=2e-2)


def test_closed_form_prior_on_the_gpu() -> None:
    prior = GaussianPrior(torch.full((1, 8, 8), 0.5), 0.05)
    x = torch.rand(2, 1, 8, 8, device="cuda")
    torch.testing.assert_close(prior.denoise(x, 0.3).cpu(), prior.denoise(x.cpu(), 0.3))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    data = tmp_path_factory.mktemp("data")
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{index}.png")
    return data


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_learns_as_on_the_cpu(optimizer: str, photos: Path, tmp_path: Path) -> None:
    """Crops, noise and times come from the CPU, so both devices see the same losses up to rounding."""
    settings = {"widths": (16, 32), "groups": 4, "crops": (32,), "pixels": 32 * 32 * 4, "steps": 5, "holdout": 1}
    config = TrainingConfig(optimizer=optimizer, feed="host", **settings)
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, seen in losses.items():
        take = lambda facts, seen=seen: seen.append(facts["loss"])  # noqa: E731
        train(config, [photos], tmp_path / device, device=device, precision=torch.float32, drawing=None, report=take)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_training_runs_and_exports(precision: torch.dtype, compiled: bool, photos: Path, tmp_path: Path) -> None:
    settings = {"widths": (16, 32), "groups": 4, "crops": (32,), "pixels": 32 * 32 * 4, "steps": 5, "holdout": 1}
    config = TrainingConfig(ema=(0.5, 0.9), compile=compiled, **settings)
    out = train(config, [photos], tmp_path / "out", device="cuda", precision=precision)
    prior = invdiff.load_prior(str(out), device="cuda")
    assert torch.isfinite(prior.denoise(torch.rand(1, 3, 32, 32, device="cuda"), 0.2)).all()


def learner(photos: Path, graphs: bool) -> tuple[Learner, ResidentFeeder]:
    config = TrainingConfig(widths=(16, 32), groups=4, crops=(16, 32), pixels=32 * 32 * 8, optimizer="muon")
    photographs = Photographs(find_entries([photos]), 3, 16)
    cuda, schedule = torch.device("cuda"), Schedule.named("linear", 1000)
    assert ResidentFeeder.fits(photographs, cuda)
    feeder = Feeder(CropSampler(photographs, config), schedule, config)
    processes = Processes(cuda, torch.bfloat16)
    objective = build_objective(config, schedule).to(cuda)
    state = TrainingState.start(build_network(config).to(cuda), objective, config, photos / "out", cuda, resume=False)
    one = Learner(config, state, objective, processes)
    if not graphs:
        one._graphs = None
    return one, ResidentFeeder(feeder, cuda)


def test_steps_from_a_graph_are_those_of_single_kernels(photos: Path) -> None:
    """Two sizes of crops in turns, with the optimiser's moves between."""
    losses, weights = {}, {}
    for graphs in (False, True):
        one, feeder = learner(photos, graphs)
        losses[graphs] = [one.step(feeder(step), 1.0).read()[0] for step in range(12)]
        assert graphs == (one._graphs is not None)
        if one._graphs is not None:
            assert len(one._graphs._recordings) == 2 and one._graphs._recording
        weights[graphs] = torch.cat([p.flatten() for p in one.state.network.parameters()])
    assert losses[True] == pytest.approx(losses[False], rel=2e-2)
    assert losses[True][-1] != losses[True][-3]
    start = torch.cat([p.flatten() for p in learner(photos, False)[0].state.network.parameters()])
    assert (weights[True] - weights[False]).norm() < 0.1 * (weights[False] - start).norm()


def test_crops_on_the_gpu_are_those_of_the_processor(photos: Path) -> None:
    _, feeder = learner(photos, False)
    for step in range(4):
        (batch,), (expected,) = feeder(step), feeder.feeder(step)
        difference = torch.as_tensor(batch.crops).cpu() - to_network(np.asarray(expected.crops), "cpu")
        assert (127.5 * difference).abs().max() < 6 and (127.5 * difference).abs().mean() < 0.3
        (again,) = feeder(step)
        assert torch.equal(torch.as_tensor(batch.draws.noise), torch.as_tensor(again.draws.noise))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_quick_network_answers_as_the_plain_one(precision: str, folder: Path) -> None:
    """At several sizes and levels in turns, often enough that graphs answer; also with a gradient."""
    plain, quick, exact = (
        invdiff.load_prior(str(folder), device="cuda", precision=p, compile=c)
        for p, c in ((precision, False), (precision, None), ("fp32", False))
    )
    x = {side: torch.rand(2, 3, side, side, device="cuda") for side in (32, 48)}
    for turn in range(7):
        for image in x.values():
            sigma = 0.05 * (1 + turn)
            with torch.no_grad():
                one, other, true = (prior.denoise(image, sigma) for prior in (plain, quick, exact))
            assert (other - true).norm() < 1.5 * (one - true).norm() + 1e-3 * true.norm()
    assert set(quick._quick._graphs) == {(2, 3, 32, 32), (2, 3, 48, 48)}
    gradients = []
    for prior in (plain, quick, exact):
        leaf = x[32].clone().requires_grad_()
        gradients.append(torch.autograd.grad(prior.denoise(leaf, 0.2).square().sum(), leaf)[0])
    one, other, true = gradients
    assert (other - true).norm() < 1.5 * (one - true).norm() + 1e-3 * true.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_tiles_on_the_gpu(precision: str, folder: Path) -> None:
    """Their shared statistics replace norms inside the network, which the fused kernels and the graphs know nothing of."""
    small = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)).cuda()
    x = torch.rand(1, 3, 192, 160, generator=torch.Generator().manual_seed(1)).cuda()
    gpu, cpu = (
        invdiff.load_prior(str(folder), device=d, precision=p) for d, p in (("cuda", precision), ("cpu", "fp32"))
    )
    for _ in range(6):
        before = gpu.denoise(small, 0.2)
    on = {}
    for prior, given in ((gpu, x), (cpu, x.cpu())):
        leaf = given.clone().requires_grad_()
        answer = tiled(prior, 128).denoise(leaf, 0.2)
        on[prior.device.type] = (answer.detach().cpu(), torch.autograd.grad(answer.square().sum(), leaf)[0].cpu())
    for found, expected in zip(on["cuda"], on["cpu"], strict=True):
        assert (found - expected).norm() < (2e-2 if precision == "bf16" else 1e-4) * expected.norm()
    assert torch.equal(gpu.denoise(small, 0.2), before)


def test_a_network_that_looks_at_its_numbers_runs_without_a_graph() -> None:
    class Looks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * (1 + t.max().item())

    stream = torch.cuda.current_stream()
    prior = NetworkPrior(Looks(), Schedule.named("linear", 1000), channels=3, precision=torch.bfloat16).to("cuda")
    x = torch.rand(1, 3, 16, 16, device="cuda")
    answers = [prior.denoise(x, 0.1) for _ in range(8)]
    assert all(torch.equal(answer, answers[0]) for answer in answers) and torch.cuda.current_stream() == stream
    assert not prior._quick._capturing and not prior._quick._graphs
    torch.empty(2**20, device="cuda")


def test_a_used_prior_is_copied_and_shared_by_threads(folder: Path) -> None:
    prior = invdiff.load_prior(str(folder), device="cuda", precision="bf16")
    x = torch.rand(8, 1, 3, 32, 32, device="cuda")
    alone = [prior.denoise(image, 0.1) for image in x]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: prior.denoise(image, 0.1), [*x] * 4))
    for k, answer in enumerate(together):
        torch.testing.assert_close(answer, alone[k % 8], rtol=0, atol=1e-2)
    torch.testing.assert_close(copy.deepcopy(prior).denoise(x[0], 0.1), alone[0], rtol=0, atol=1e-2)


def test_streams_share_a_prior(folder: Path) -> None:
    """Each with an image of its own, in turns, without waiting for the other."""
    prior = invdiff.load_prior(str(folder), device="cuda", precision="bf16")
    x = torch.rand(2, 1, 3, 64, 64, device="cuda")
    for _ in range(6):
        alone = [prior.denoise(image, 0.1) for image in x]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found: list[list[torch.Tensor]] = [[], []]
    for _ in range(50):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[k].append(prior.denoise(x[k], 0.1))
    torch.cuda.synchronize()
    assert all(torch.equal(answer, alone[k]) for k in (0, 1) for answer in found[k])


def test_float32_is_no_tf32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever tests before this one have set for the process."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    on = {}
    for device in ("cuda", "cpu"):
        prior = invdiff.load_prior(str(folder), device=device, precision="fp32")
        leaf = x.to(device).requires_grad_()
        answer = prior.denoise(leaf, 0.3)
        on[device] = [answer.detach().cpu(), torch.autograd.grad(answer.square().sum(), leaf)[0].cpu()]
    for found, expected in zip(on["cuda"], on["cpu"], strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()  # TF32 gives 3e-4


@pytest.mark.parametrize("name", samplers.names())
def test_sampling_agrees_with_the_cpu(name: str, folder: Path) -> None:
    on = {
        device: sample(invdiff.load_prior(str(folder), device=device, precision="fp32"), (3, 16, 16), 2, name, steps=6)
        for device in ("cpu", "cuda")
    }
    torch.testing.assert_close(on["cuda"], on["cpu"], rtol=0, atol=2e-2)


def test_scores_and_calibration_are_those_of_the_cpu() -> None:
    draws = torch.rand(6, 3, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    samples, truth = draws[1:], draws[0]
    protocol = Protocol(y_channel=True, border=2)
    expected, found = (protocol.scores(samples[0].to(d), truth.to(d)) for d in ("cpu", "cuda"))
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, abs=1e-9)
    on_cpu, on_gpu = (calibration.of(samples.to(d), truth.to(d)) for d in ("cpu", "cuda"))
    assert [record["ranks"] for record in on_gpu] == [record["ranks"] for record in on_cpu]
