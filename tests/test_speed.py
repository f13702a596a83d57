"""The fast ways to run a network answer as plain float32 does, and their times are measured as they are said to be."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_prior

import invdiff
from invdiff.errors import InputWarning, UsageError
from invdiff.evaluation.speed import Call, CompileTime, Recorder, alternate, replay
from invdiff.files.images import centre
from invdiff.machine.device import check_compiler, choose_precision, memory_format, precisions
from invdiff.priors.network import NetworkPrior
from invdiff.problem.simulation import degrade
from invdiff.restoration.api import restore
from invdiff.scores.metrics import psnr

CPU = torch.device("cpu")
LOSS = 0.02
"""dB of PSNR: what a fast path may cost, by the documentation."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("speed") / "tiny")


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    from skimage import data

    pictures = [torch.from_numpy(picture).permute(2, 0, 1) / 255 for picture in (data.astronaut(), data.chelsea())]
    return torch.stack([centre(picture, 96) for picture in pictures]).contiguous()


@pytest.fixture(scope="module")
def plain() -> NetworkPrior:
    """The path that all others are compared with: float32, planes one after the other, autograd's own modes."""
    prior = invdiff.load_prior("natural", device="cpu", precision="fp32")
    prior.network.to(memory_format=torch.contiguous_format)
    return prior


@pytest.fixture(scope="module")
def fast() -> NetworkPrior:
    return invdiff.load_prior("natural", device="cpu", precision="bf16")


def test_denoising_loses_nothing_by_bfloat16(photographs, plain, fast):
    for sigma in (0.02, 0.1, 0.5, 1.0):
        y = degrade(photographs, "identity", noise=sigma)
        with torch.no_grad():
            loss = psnr(plain.denoise(y, sigma), photographs) - psnr(fast.denoise(y, sigma), photographs)
        assert float(loss.abs().max()) < LOSS, f"sigma {sigma}: {loss.tolist()}"


@pytest.mark.parametrize(
    "solver, operator, calls",
    [("diffpir", "gaussian_blur:sigma=2", 6), ("dps", "downsample:factor=4,kernel=bicubic", 3)],
)
def test_restoration_loses_nothing_by_bfloat16(photographs, plain, fast, solver, operator, calls):
    """Few calls with a gradient: a processor without bfloat16 imitates it, at twenty times the price."""
    x = photographs[:, :, 16:80, 16:80]
    y = degrade(x, operator, noise=0.05)
    scores = [psnr(restore(y, operator, 0.05, prior, solver, calls).mean, x).mean() for prior in (plain, fast)]
    assert abs(float(scores[0] - scores[1])) < LOSS


def test_the_comparison_sees_a_coarser_arithmetic(photographs, plain):
    """Weights with 4 bits of mantissa less than bfloat16 has."""
    rough = invdiff.load_prior("natural", device="cpu", precision="fp32")
    with torch.no_grad():
        for parameter in rough.network.parameters():
            mantissa, exponent = torch.frexp(parameter)
            parameter.copy_(torch.ldexp((mantissa * 16).round() / 16, exponent))
        y = degrade(photographs, "identity", noise=0.1)
        loss = psnr(plain.denoise(y, 0.1), photographs) - psnr(rough.denoise(y, 0.1), photographs)
    assert float(loss.max()) > LOSS


def test_the_layout_changes_the_time_alone(photographs, plain):
    prior = invdiff.load_prior("natural", device="cpu", precision="fp32")
    weight = prior.network.conv_in.weight
    assert weight.is_contiguous(memory_format=memory_format(CPU)) and not weight.requires_grad
    x = photographs[:, :, :32, :40]
    with torch.no_grad():
        ours, theirs = prior.denoise(x, 0.1), plain.denoise(x, 0.1)
    assert ours.is_contiguous() and not ours.is_inference()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # a sum of some thousand float32 numbers, reordered


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_reach_the_input_and_nothing_else(tiny, precision):
    prior = invdiff.load_prior(tiny, device="cpu", precision=precision)
    x = torch.rand(1, 3, 18, 20, requires_grad=True)
    (gradient,) = torch.autograd.grad(prior.denoise(x, 0.1).sum(), x)
    assert gradient.shape == x.shape and bool(gradient.abs().max() > 0)
    assert all(not p.requires_grad and p.grad is None for p in prior.network.parameters())
    with torch.no_grad():
        clean = prior.denoise(x, 0.1)
    (2 * x * clean).sum().backward()  # what came without a gradient may still be a constant of somebody's graph
    assert torch.equal(x.grad, 2 * clean)


def test_compilation_serves_calls_without_a_gradient(tiny, monkeypatch):
    calls = []

    def compile(network):
        return lambda *inputs: calls.append(1) or network(*inputs)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("invdiff.priors.network.check_compiler", lambda: None)
    prior = invdiff.load_prior(tiny, device="cpu", precision="fp32", compile=True)
    other = invdiff.load_prior(tiny, device="cpu", precision="fp32")
    assert prior.describe()["compiled"] and "compiled" not in other.describe() and not calls
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(prior.denoise(x, 0.1), other.denoise(x, 0.1)) and len(calls) == 1
    torch.autograd.grad(prior.denoise(x.requires_grad_(), 0.1).sum(), x)
    assert len(calls) == 1


def test_a_traced_network_answers_alike(tiny, monkeypatch):
    """Everything of torch.compile but its C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr("invdiff.priors.network.check_compiler", lambda: None)
    prior = invdiff.load_prior(tiny, device="cpu", precision="fp32", compile=True)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = invdiff.load_prior(tiny, device="cpu", precision="fp32").denoise(x, 0.1)
        torch.testing.assert_close(prior.denoise(x, 0.1), expected, rtol=0, atol=1e-5)


def test_compilation_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"--compile needs a C\+\+ compiler and finds none .* leave --compile out"):
        check_compiler()


def test_precisions_that_the_device_lacks(monkeypatch):
    with pytest.raises(UsageError, match="fp16 has no fast CPU kernels; use --precision bf16 or fp32"):
        choose_precision("fp16", CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UsageError, match="this GPU has no bf16 arithmetic; use --precision fp16 or fp32"):
        choose_precision("bf16", torch.device("cuda"))
    assert choose_precision("auto", torch.device("cuda")) == torch.float32
    assert precisions(torch.device("cuda")) == ["fp32", "fp16"]
    monkeypatch.setattr("invdiff.machine.device._has_bf16", lambda device: False)
    with pytest.warns(InputWarning, match="no bf16 instructions: --precision fp32 is faster here"):
        assert choose_precision("bf16", CPU) == torch.bfloat16
    assert choose_precision("auto", CPU) == torch.float32 and precisions(CPU) == ["fp32"]


def test_timings_alternate_after_a_warm_up():
    order: list[str] = []
    seconds = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU)
    assert order == ["a", "b"] * 3 and [len(times) for times in seconds.values()] == [2, 2]


@pytest.mark.parametrize("solver", ["diffpir", "dps", "mmps:iterations=2"])
def test_the_bare_calls_are_those_of_the_solver(tiny, solver):
    prior = invdiff.load_prior(tiny, device="cpu", precision="fp32")
    y = degrade(torch.rand(2, 3, 18, 20), "gaussian_blur:sigma=1", noise=0.05)
    recorder = Recorder(prior)
    forwards, backwards = [0], [0]

    def forward(module, inputs, output):
        forwards[0] += len(inputs[0])
        if output.sample.requires_grad:
            output.sample.register_hook(lambda _: backwards.__setitem__(0, backwards[0] + 1))

    with prior.network.register_forward_hook(forward):
        solution = restore(y, "gaussian_blur:sigma=1", 0.05, recorder, solver, 3, batch_size=2)
        expected, forwards[0], backwards[0] = (forwards[0], backwards[0]), 0, 0
        assert expected[0] == 2 * solution.nfe and (expected[1] > 0) == (solver != "diffpir")
        replay(prior, (3, 18, 20), recorder.calls)
        assert (forwards[0], backwards[0]) == expected
        replay(prior, (3, 18, 20), [Call(1, True, 0)])
        assert (forwards[0], backwards[0]) != expected


def test_the_break_even_of_compiling():
    assert CompileTime((8, 8), 60.0, 0.5, 0.25).pays_after == 240
    assert CompileTime((8, 8), 60.0, 0.25, 0.25).pays_after is None


def test_bench_says_what_this_machine_does(tiny, capsys):
    from invdiff.cli.bench import bench

    options = ["--prior", str(tiny), "--sizes", "16,18x20", "--batch", "1,2", "--repeats", "1", "--steps", "2"]
    options += ["--device", "cpu", "--precision", "fp32,bf16", "--solver", "diffpir", "--solver", "dps"]
    bench(options, standalone_mode=False)
    text = capsys.readouterr().out
    assert "A 18 x 20 image at 20 calls takes about" in text and "--precision" in text and "2 + 2 backward" in text
    bench([*options, "--json"], standalone_mode=False)
    record = json.loads(capsys.readouterr().out)
    assert [(row["size"], row["batch"]) for row in record["calls"]] == [
        ([16, 16], 1), ([16, 16], 2), ([18, 20], 1), ([18, 20], 2)
    ]  # fmt: skip
    assert all(set(row["seconds"]) == {"fp32", "bf16"} for row in record["calls"])
    diffpir, dps = record["solvers"]
    assert (diffpir["calls"], diffpir["backwards"], dps["calls"], dps["backwards"]) == (2, 0, 2, 2)
    assert diffpir["ratio"] > 0 and "compilation" not in record


@pytest.mark.parametrize(
    "options, words",
    [
        (["--device", "cuda"], "device 'cuda' is not available here; use --device auto"),
        (["--precision", "fp16", "--device", "cpu"], "use --precision bf16 or fp32 on the CPU"),
        (["--precision", "fp8", "--device", "cpu"], "unknown precision 'fp8'"),
        (["--solver", "dds"], "unknown solver 'dds'"),
        (["--solver", "ddrm", "--operator", "gamma"], "ddrm needs a linear operator"),
    ],
)
def test_bench_refuses(options, words, monkeypatch):
    from invdiff.cli.bench import bench

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=words):
        bench(options, standalone_mode=False)


def test_inputs_of_one_kind_run_together_wherever_they_stand():
    from concurrent.futures import Future
    from types import SimpleNamespace

    from invdiff.cli.grouping import HELD, batches

    noise = SimpleNamespace(signal_dependent=False)

    def reading(name: str, side: int):
        future: Future = Future()
        job = SimpleNamespace(key=name)
        problem = SimpleNamespace(y=torch.zeros(1, 1, side, side), operator=None, noise_model=noise)
        future.set_result(SimpleNamespace(job=job, problem=problem))
        return job, future

    def names(readings, size, alone=False):
        return [[m.job.key for m in batch] for batch in batches(readings, size, alone, lambda job, error: None)]

    mixed = [reading(name, side) for name, side in zip("abcdef", (4, 8, 4, 8, 4, 8), strict=True)]
    assert names(mixed, 2) == [["a", "c"], ["b", "d"], ["e"], ["f"]]
    assert names(mixed, 2, alone=True) == [[name] for name in "abcdef"]
    assert names([reading("a", 4), reading("a", 4)], 2) == [["a"], ["a"]]
    different = [reading(str(side), side) for side in range(1, 4 * HELD)]
    waiting = iter(different)
    next(batches(waiting, 2, False, lambda job, error: None))
    assert len(list(waiting)) == len(different) - 2 * HELD  # no more than that were read before one had to go


def test_what_is_read_ahead_and_written_behind_keeps_its_order_and_its_errors():
    from invdiff.machine.threads import Background, prepared

    made: list[int] = []
    results = prepared(lambda k: made.append(k) or 10 // k, [5, 0, 2, 1], 1)
    assert next(results)[1].result() == 2 and len(made) <= 2
    item, failing = next(results)
    with pytest.raises(ZeroDivisionError):
        failing.result()
    assert item == 0 and [future.result() for _, future in results] == [5, 10]
    done: list[int] = []
    with pytest.raises(ZeroDivisionError), Background(2) as behind:
        for k in (1, 2, 0, 4):
            behind.submit(lambda k=k: done.append(10 // k))
    assert done[:2] == [10, 5]
    done.clear()
    with pytest.raises(KeyboardInterrupt), Background(2) as behind:
        behind.submit(done.append, 1)
        raise KeyboardInterrupt
    assert done == [1]
