"""Training: the steps against formulas, stopping and resuming bit by bit, what is left on disk, and what goes wrong."""

from __future__ import annotations

import copy
import csv
import errno
import json
import logging
import math
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import CheckpointError, InvdiffError, NumericalError, UsageError
from invdiff.machine.threads import StopFlag
from invdiff.training import engine, learner, optimizers, provenance
from invdiff.training.checkpoint import TrainingState, export_pipeline
from invdiff.training.config import FIXED, TrainingConfig
from invdiff.training.distributed import Processes
from invdiff.training.ema import Averages
from invdiff.training.learner import Learner, MicroBatch, less_memory
from invdiff.training.muon import BatchedStep
from invdiff.training.network import build_network, build_scheduler
from invdiff.training.objective import Objective, draw
from invdiff.training.optimizers import MuonWithAdamW, build_optimizer, rate, set_rate
from invdiff.training.watch.curves import Curves
from invdiff.training.watch.validation import SIGMAS, denoising_psnr

CPU = torch.device("cpu")
TINY = {"widths": (8, 16), "groups": 4, "crops": (16,), "pixels": 512, "holdout": 1, "warmup": 0, "steps": 6}
TINY |= {"precision": "fp32", "validate_every": 1000}


def tiny(**changes):
    return TrainingConfig(**TINY | changes)


def train(*arguments, **options):
    """Pictures have their own tests, and cost more than such a training."""
    return engine.train(*arguments, drawing=None, **options)


def start(config, out="nowhere", *, resume=False):
    """(state, network) of a training that was not begun, or of the one under `out`."""
    network = build_network(config)
    objective = engine.build_objective(config, Schedule.named(config.schedule, config.schedule_steps))
    return TrainingState.start(network, objective, config, Path(out), CPU, resume=resume), network


def must_fail(check, *arguments):
    """The mutation twin: the same check has to notice a wrong value."""
    with pytest.raises(AssertionError):
        check(*arguments)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six smooth pictures of 40 x 48 pixels: photos/a/0..2.png and photos/b/3..5.png."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data") / "photos"
    rows, columns = np.mgrid[:40, :48]
    for index in range(6):
        planes = [127 + 90 * np.sin(rows / (4 + index + c) + columns / (6 + c)) for c in range(3)]
        path = root / "ab"[index // 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(path)
    return root


def saved_state(out):
    from invdiff.priors.stored.tensor_files import load_tensors

    return load_tensors(out / "training" / "state.pt")


def rows_of(out):
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def leftovers(out):
    return [path for path in out.rglob("*") if ".part" in path.name]


def send(number, at):
    """A report callback that sends this process a signal after step `at`."""

    def report(facts):
        if facts["step"] == at:
            os.kill(os.getpid(), number)

    return report


def assert_same(one, two):
    """Equal to the last bit, at any depth."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two


# One step: averages, learning rate, clipping, optimisers


def test_the_averages_ramp_up():
    network = torch.nn.Linear(1, 1, bias=False)
    averages = Averages(network, (0.25, 0.125))
    expected = dict.fromkeys((0.25, 0.125), float(network.weight.detach()))
    for step in range(4):  # (1 + step) / (10 + step) = 1/10, 2/11, 1/4, 4/13, at most the decay itself
        torch.nn.init.constant_(network.weight, float(step))
        averages.update(network, step)
        for decay, module in averages.modules.items():
            now = min(decay, (1 + step) / (10 + step))
            expected[decay] = now * expected[decay] + (1 - now) * step
            assert float(module.weight) == pytest.approx(expected[decay], rel=1e-5)
            assert not module.weight.requires_grad


def test_the_best_average_is_chosen_and_new_decays_go_on_from_the_nearest():
    network = torch.nn.Linear(1, 1)
    averages = Averages(network, (0.9, 0.99, 0.999))
    assert averages.choose({0.9: 30.0, 0.99: 31.5, 0.999: 31.0}) == 0.99
    assert averages.exported is averages.modules[0.99]
    assert averages.choose({0.9: 31.0, 0.99: 31.0, 0.999: 31.0}) == 0.9  # nothing gained by a longer memory
    averages.choose({0.9: 30.0, 0.99: 31.5, 0.999: 31.0})
    for decay, module in averages.modules.items():
        torch.nn.init.constant_(module.weight, decay)
    other = Averages(network, (0.99, 0.9995, 0.5))
    other.load_state_dict(averages.state_dict())
    got = {decay: float(module.weight) for decay, module in other.modules.items()}
    assert got == pytest.approx({0.99: 0.99, 0.9995: 0.999, 0.5: 0.9}) and other.best == 0.99
    without = Averages(network, (0.5,))
    without.load_state_dict(averages.state_dict())
    assert without.best == 0.5


def test_learning_rate_warms_up_and_decays(photos, tmp_path):
    seen = []
    train(tiny(lr=0.01, warmup=3, steps=8), [photos], tmp_path / "out", report=seen.append)
    expected = [0.01 * min(1, (s + 1) / 3) * 0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]
    end = seen.pop()
    assert (end["step"], end["progress"]) == (8, 1)
    assert [facts["lr"] for facts in seen] == pytest.approx(expected)
    assert [facts["progress"] for facts in seen] == pytest.approx([s / 8 for s in range(1, 9)])
    assert end["images_per_second"] > 0 and end["remaining"] == 0


@pytest.mark.parametrize(
    "decay, values",
    [
        ("cosine", {0: 1, 0.5: 0.5, 0.75: 0.5 * (1 - math.sqrt(0.5)), 1: 0}),
        ("linear", {0: 1, 0.5: 0.5, 0.75: 0.25, 1: 0}),
        ("constant", {0: 1, 0.5: 1, 0.8: 1, 0.9: 0.5, 1: 0, 1.5: 0}),
    ],
)
def test_shapes_of_the_learning_rate(decay, values):
    config = tiny(decay=decay, cooldown=0.2)
    assert {p: rate(config, 10, p) for p in values} == pytest.approx(values, abs=1e-12)
    assert rate(tiny(decay=decay, warmup=100), 24, 0.0) == 0.25
    assert rate(tiny(decay="constant", cooldown=0), 10, 1.0) == 1.0


def micro_batch(count=2, side=16, step=0):
    schedule = Schedule.named("linear", 1000)
    crops = np.random.default_rng(step).integers(0, 256, (count, 3, side, side)).astype(np.uint8)
    return MicroBatch(crops, draw(0, step, range(count), count, (3, side, side), schedule, 0.5))


def start_learner(config):
    """A learner whose gradients stay in place after a step."""
    state, _ = start(config)
    one = Learner(config, state, state.objective, Processes(CPU, torch.float32, config.accumulate))
    one.optimizer.zero_grad = lambda: None
    return one


def test_gradients_are_clipped():
    def norms(clip):
        one = start_learner(tiny(clip=clip))
        outcome = one.step([micro_batch()], 1.0)
        gradients = [p.grad.square().sum() for p in one.state.network.parameters()]
        return outcome.read()[1], float(torch.stack(gradients).sum().sqrt())

    before, after = norms(1e-3)
    assert after == pytest.approx(1e-3, rel=1e-3) and before > 1e-2
    assert norms(1e6) == pytest.approx((before, before), rel=1e-4)


def test_micro_batches_are_averaged():
    parts = [micro_batch(step=k) for k in range(3)]
    one = start_learner(tiny(accumulate=3, clip=1e6))
    outcome = one.step(parts, 1.0)
    gradients, losses = [], []
    for part in parts:
        single = start_learner(tiny(clip=1e6))
        losses.append(single.step([part], 1.0).read()[0])
        gradients.append(single.state.network.conv_in.weight.grad)
    got = one.state.network.conv_in.weight.grad

    def check(mean):  # float32: three sums of a few thousand terms
        assert float((got - mean).norm() / mean.norm()) < 1e-5

    check(sum(gradients) / 3)
    must_fail(check, sum(gradients) / 2)
    loss, _, errors = outcome.read()
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert outcome.t.tolist() == np.concatenate([part.draws.t for part in parts]).tolist() and len(errors) == 6


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gradient_scaler_changes_nothing_but_skips_infinities(optimizer):
    """Scaled by a power of two and back, every bit of a float32 gradient is the same."""
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("needs torch 2.9")

    def learned(scaler):
        config = tiny(optimizer=optimizer, clip=0.1)
        state, _ = start(config)
        processes = Processes(CPU, torch.float32)
        processes.accelerator.scaler = scaler
        one = Learner(config, state, state.objective, processes)
        if scaler:  # what accelerate sets for fp16, which it refuses on a CPU; after the network, which stays float32
            processes.accelerator.native_amp, processes.accelerator.state._mixed_precision = True, "fp16"
        return one, [one.step([micro_batch(step=step)], 1.0) for step in range(2)]

    plain, outcomes = learned(None)
    scaled, others = learned(torch.amp.GradScaler("cpu", init_scale=2.0**10))
    for one, two in zip(outcomes, others, strict=True):
        (loss, norm, _), (other_loss, other_norm, _) = one.read(), two.read()
        assert loss == other_loss and norm == pytest.approx(other_norm, rel=1e-6)
    assert scaled.scaled and not plain.scaled and scaled.state.scaler["scale"] == 2.0**10
    assert_same(scaled.state.network.state_dict(), plain.state.network.state_dict())
    before = copy.deepcopy(scaled.state.network.state_dict())
    scaled.state.objective.losses = lambda output, *rest: output.flatten(1).mean(1) * math.inf
    assert not math.isfinite(scaled.step([micro_batch()], 1.0).read()[1])
    assert_same(scaled.state.network.state_dict(), before)
    assert scaled.state.scaler["scale"] == 2.0**9


def gradients_like(network, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in network.parameters()]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
def test_muon_moves_the_inner_matrices_and_adamw_the_rest():
    """The same steps with torch's two optimisers on flattened copies."""
    config = tiny(optimizer="muon", lr=0.01, muon_lr=0.02, weight_decay=0.1)
    network = build_network(config)
    extra = torch.nn.Parameter(torch.ones(3))
    names = [name for name, _ in network.named_parameters()]
    inner = [p.ndim > 1 and not n.startswith(("conv_in", "conv_out")) for n, p in network.named_parameters()]
    assert 10 < sum(inner) < len(inner) - 10
    ours_all, inner = [*network.parameters(), extra], [*inner, False]
    copies = [p.detach().clone().flatten(1 if m else 0) for p, m in zip(ours_all, inner, strict=True)]
    copies = [torch.nn.Parameter(tensor) for tensor in copies]
    flat = [c for c, m in zip(copies, inner, strict=True) if m]
    rest = [c for c, m in zip(copies, inner, strict=True) if not m]
    muon = torch.optim.Muon(flat, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    other = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    ours = build_optimizer(network, [extra], config)
    for step in range(3):
        for group in (*muon.param_groups, *other.param_groups):
            group["lr"] = (0.02 if group in muon.param_groups else 0.01) * (1 - step / 4)
        assert set_rate(ours, config, 1 - step / 4) == pytest.approx(0.01 * (1 - step / 4))
        gradients = [*gradients_like(network, step), torch.ones(3)]
        for parameter, copied, gradient in zip(ours_all, copies, gradients, strict=True):
            parameter.grad, copied.grad = gradient, gradient.reshape(copied.shape).clone()
        ours.share_gradients()
        ours.step()
        muon.step()
        other.step()
        ours.zero_grad()
        assert all(p.grad is None for p in ours_all)
    for name, got, expected in zip([*names, "extra"], ours_all, copies, strict=True):
        assert torch.allclose(got.flatten(), expected.flatten(), rtol=1e-5, atol=1e-6), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
def test_muon_takes_all_matrices_at_once_as_one_after_the_other():
    """Tall, wide and square ones, in two batches, padded; a few steps, so that the momentum counts. bfloat16 inside."""
    shapes = [(16, 144), (144, 16), (24, 24), (8, 200), (30, 150)]
    generator = torch.Generator().manual_seed(0)
    one, other = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    muons = [torch.optim.Muon(p, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw") for p in (one, other)]
    together = BatchedStep(muons[0])
    for step in range(4):
        for group in (*muons[0].param_groups, *muons[1].param_groups):
            group["lr"] = 0.1 / (1 + step)
        for a, b in zip(one, other, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        before = [p.detach().clone() for p in one]
        together()
        muons[1].step()
        with torch.no_grad():
            for a, b, start in zip(one, other, before, strict=True):
                assert float((a - b).norm() / (b - start).norm()) < 0.03  # 2e-2 of the update is bfloat16's
                b.copy_(a)
    states = [[m.state[p]["momentum_buffer"] for p in m.param_groups[0]["params"]] for m in muons]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*states, strict=True))
    one[0].grad = None
    kept = one[0].detach().clone()
    together()
    assert torch.equal(one[0], kept)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs torch 2.9")
def test_muon_moves_a_network_that_was_moved():
    """Moving a network (also to "cpu:0") gives its parameters new memory, which the matrices have to share again."""
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(4, 2, 3))
    optimizer = MuonWithAdamW([m.weight for m in network], [[m.bias for m in network]], tiny(optimizer="muon"))
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(network.state_dict())
    optimizer.share_gradients()
    optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_muon_needs_a_new_torch(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UsageError, match=r"torch 2\.9 or newer, this is .*--set optimizer=adamw"):
        build_optimizer(torch.nn.Linear(2, 2), [], tiny(optimizer="muon"))


def test_training_learns(photos, tmp_path):
    def gain(lr):
        out = train(tiny(lr=lr, steps=80, ema=0.8, validate_every=8), [photos], tmp_path / str(lr))
        rows = rows_of(out)
        return float(rows[-1]["psnr_50"]) - float(rows[0]["psnr_50"]), float(rows[0]["loss"]) - float(rows[-1]["loss"])

    def check(psnr, loss):
        assert psnr > 3 and loss > 0.1

    check(*gain(3e-3))
    must_fail(check, *gain(1e-12))


def test_a_budget_of_minutes_ends_the_training(photos, tmp_path, monkeypatch):
    """A second of the clock passes each time it is asked; what remains is for the validation, which happens once."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(optimizers.time, "monotonic", lambda: next(ticks))
    seen = []
    config = tiny(minutes=0.5, steps=10**6, lr=0.01, decay="linear", validate_every=1)
    out = train(config, [photos], tmp_path / "out", report=seen.append)
    end = seen.pop()
    assert (end["step"], end["progress"], end["remaining"]) == (seen[-1]["step"], 1, 0) and 3 < end["step"] < 30
    rates = [facts["lr"] for facts in seen]
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(0.01, rel=0.2)
    assert rates[-1] < 0.3 * rates[0] and len(rows_of(out)) == end["step"]


# Stopping, resuming, and what is on the disk


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    """Six steps in one go."""
    return train(tiny(validate_every=2), [photos], tmp_path_factory.mktemp("runs") / "unbroken")


RICH = {"optimizer": "muon", "ema": (0.5, 0.9), "accumulate": 2, "crops": (16, 24), "pixels": 1152}
RICH |= {"weighting": "uncertainty", "prediction": "v_prediction", "decay": "constant"}


@pytest.mark.parametrize("number, changes", [(signal.SIGINT, {}), (signal.SIGTERM, RICH)], ids=["plain", "rich"])
def test_stopped_and_resumed_is_the_same_training(photos, tmp_path, unbroken, number, changes):
    config = tiny(validate_every=2, **changes)
    whole = train(config, [photos], tmp_path / "whole") if changes else unbroken
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    out = train(config, [photos], tmp_path / "out", report=send(number, at=3))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert saved_state(out)["step"] == 3
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").is_file() and not leftovers(out)
    train(config, [photos], out, resume=True)
    one, two = saved_state(whole), saved_state(out)
    assert one.pop("seconds") > 0 and two.pop("seconds") > 0
    assert_same(one, two)
    one["network"]["conv_in.weight"][0, 0, 0, 0] += 1e-6
    must_fail(assert_same, one, two)
    for name in ("step", "loss", "psnr_50"):
        assert [row[name] for row in rows_of(out)] == [row[name] for row in rows_of(whole)], name
    assert not leftovers(out)
    if changes:
        assert float(one["objective"]["uncertainty.coefficients"].abs().max()) > 0
        columns = {f"psnr_ema_{decay}" for decay in (0.5, 0.9)}
        assert columns <= rows_of(out)[-1].keys() and rows_of(out)[-1]["ema"] in ("0.5", "0.9")
        exported = json.loads((out / "provenance.json").read_text())["exported"]
        assert exported == {"step": 6, "ema": one["ema"]["best"], "compared": [0.5, 0.9]}


def test_the_second_signal_interrupts_at_once(photos, tmp_path):
    def report(facts):
        os.kill(os.getpid(), signal.SIGINT)
        assert facts["step"] == 1
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was swallowed")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), [photos], tmp_path / "out", report=report)
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "out" / "training" / "state.pt").exists()
    train(tiny(steps=1), [photos], tmp_path / "out")  # nothing was saved, so this needs no --resume


def test_the_flag_leaves_other_threads_alone():
    import threading

    errors = []

    def enter():
        try:
            with StopFlag() as stop:
                assert not stop
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


def test_a_launcher_may_pass_on_the_signal_once_more():
    with StopFlag(patient=True) as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop


@pytest.fixture
def saved(tmp_path):
    """(state, folder) with a checkpoint at step 1 and an exported model."""
    config = tiny()
    state, _ = start(config)
    state.advance()
    state.save(tmp_path, 1.0)
    export(state, tmp_path)
    state.advance()
    return state, tmp_path


def export(state, out):
    export_pipeline(state.averages.exported, build_scheduler(tiny()), tiny(), out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("moment", ["writing", "renaming", "exporting"])
def test_a_kill_leaves_the_last_complete_checkpoint(saved, moment):
    from invdiff.priors import load_prior

    state, out = saved
    child = os.fork()
    if child == 0:  # every way out of here is a kill

        def die(*arguments, **keywords):
            os.kill(os.getpid(), signal.SIGKILL)

        def half(content, path):
            Path(path).write_bytes(b"PK half of it")
            die()

        try:
            if moment == "writing":
                torch.save = half
            else:
                os.replace = die
            if moment == "exporting":
                export(state, out)
            state.save(out, 2.0)
        finally:
            die()
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert leftovers(out)
    assert saved_state(out)["step"] == 1
    load_prior(out)
    state.save(out, 2.0)
    export(state, out)
    assert saved_state(out)["step"] == 2 and not leftovers(out)


FULL = OSError(errno.ENOSPC, "No space left on device")
TORCH_FULL = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")


@pytest.mark.parametrize("error", [FULL, TORCH_FULL], ids=["python", "torch"])
def test_a_full_disk_leaves_the_old_checkpoint(saved, monkeypatch, error):
    state, out = saved

    def full(content, path):
        Path(path).write_bytes(b"PK half of it")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*state\.pt.*Free some space") as caught:
        state.save(out, 2.0)
    assert "\n" not in str(caught.value)
    assert saved_state(out)["step"] == 1 and not leftovers(out)


def test_a_full_disk_leaves_the_old_model(saved, monkeypatch):
    state, out = saved
    before = (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(type(state.network), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(FULL))
    with pytest.raises(CheckpointError, match="No space left"):
        export(state, out)
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before and not leftovers(out)


def test_other_errors_of_saving_are_not_called_a_full_disk(saved, monkeypatch):
    state, out = saved
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        state.save(out, 2.0)


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_an_output_that_is_a_file(photos, tmp_path, inside):
    (tmp_path / "file").write_text("something")
    with pytest.raises(InvdiffError, match="file"):
        train(tiny(), [photos], tmp_path / "file" / inside)
    assert (tmp_path / "file").read_text() == "something"


def test_an_output_that_holds_something(photos, tmp_path, unbroken):
    with pytest.raises(UsageError, match="already holds a training; continue it with --resume"):
        train(tiny(), [photos], unbroken)
    export_pipeline(build_network(tiny()), build_scheduler(tiny()), tiny(), tmp_path / "prior")
    with pytest.raises(UsageError, match="already holds a prior"):
        train(tiny(), [photos], tmp_path / "prior")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(tiny(), [photos], tmp_path / "prior", resume=True)


OTHER = {"channels": 1, "widths": (8, 8), "blocks": 2, "groups": 8, "schedule": "cosine", "schedule_steps": 500}
OTHER |= {"prediction": "sample", "weighting": "edm", "value_range": (0, 2), "optimizer": "muon", "init": "natural"}
OTHER |= {"holdout": 2, "seed": 1}


@pytest.mark.parametrize("name", FIXED)
def test_a_resume_keeps_what_it_must(photos, unbroken, name):
    with pytest.raises(UsageError) as caught:
        train(tiny(**{name: OTHER[name]}), [photos], unbroken, resume=True)
    message = str(caught.value)
    other = getattr(tiny(**{name: OTHER[name]}), name)
    assert f"{name}={getattr(tiny(), name)!r} (now {other!r})" in message and "\n" not in message
    assert "steps, minutes, lr" in message


def test_a_resume_may_change_the_rest(photos, unbroken, tmp_path, caplog):
    import shutil

    out = Path(shutil.copytree(unbroken, tmp_path / "out"))
    changes = {"steps": 8, "minutes": 60, "lr": 1e-3, "weight_decay": 0.5, "weights": {"a": 2}, "crops": (32,)}
    changes |= {"ema": (0.9, 0.999), "pixels": 1024, "validate_every": 2}
    with caplog.at_level(logging.INFO, "invdiff"):
        train(tiny(**changes), [photos], out, resume=True)
    assert "lr 0.0004 -> 0.001" in caplog.text and "ema (0.999,) -> (0.9, 0.999)" in caplog.text
    state = saved_state(out)
    assert state["step"] == 8 and state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert set(state["ema"]["modules"]) == {"0.9", "0.999"}
    assert [row["step"] for row in rows_of(out)] == ["2", "4", "6", "8"]
    assert TrainingConfig.from_dict(json.loads((out / "recipe.json").read_text())).weights == {"a": 2.0}
    stamp = (out / "training" / "state.pt").stat().st_mtime_ns
    train(tiny(steps=8, ema=(0.9, 0.999)), [photos], out, resume=True)  # its budget is used up
    assert (out / "training" / "state.pt").stat().st_mtime_ns == stamp


def test_states_of_other_networks_and_other_files(tmp_path, saved):
    _, out = saved
    with pytest.raises(CheckpointError, match=r"size mismatch for .*") as caught:
        start(tiny(widths=(8, 8)), out, resume=True)
    assert "\n" not in str(caught.value)
    torch.save({"network": {}}, out / "training" / "state.pt")
    with pytest.raises(CheckpointError, match="it lacks ema, optimizer, step, seconds"):
        start(tiny(), out, resume=True)


def test_states_of_the_first_version_can_be_resumed(photos, tmp_path, unbroken):
    """They have one average without its decay, and neither an objective nor the state of the logs."""
    config = tiny(validate_every=2)
    out = train(config, [photos], tmp_path / "out", report=send(signal.SIGINT, at=3))
    content = saved_state(out)
    old = {key: content[key] for key in ("network", "optimizer", "step", "seconds", "loss", "scaler")}
    torch.save(old | {"ema": content["ema"]["modules"]["0.999"]}, out / "training" / "state.pt")
    recipe = json.loads((out / "recipe.json").read_text())
    first = ("channels", "widths", "blocks", "groups", "schedule", "schedule_steps", "crops", "pixels", "downscale")
    first += ("low_noise", "weights", "steps", "minutes", "lr", "warmup", "weight_decay", "clip", "holdout", "seed")
    (out / "recipe.json").write_text(json.dumps({key: recipe[key] for key in first} | {"ema": 0.999}))
    (out / "provenance.json").unlink()
    train(config, [photos], out, resume=True)
    one, two = saved_state(unbroken), saved_state(out)
    for key in ("network", "ema", "optimizer", "step", "loss"):
        assert_same(one[key], two[key])


def test_the_log_drops_rows_beyond_the_checkpoint(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n2,0.5\n4,0.4\n6,0.3\n8,")
    curves = Curves(path, step=5)
    curves.append({"step": 6, "loss": 0.25})
    assert path.read_text().splitlines() == ["step,loss", "2,0.5", "4,0.4", "6,0.25"]
    Curves(path, step=6).append({"step": 8, "loss": 0.2})
    assert path.read_text().splitlines() == ["step,loss", "2,0.5", "4,0.4", "6,0.25", "8,0.2"]
    Curves(path, step=4).append({"step": 7, "loss": 0.3})  # validated at other steps than the killed run
    assert path.read_text().splitlines() == ["step,loss", "2,0.5", "4,0.4", "7,0.3"]
    Curves(path, step=0).append({"step": 2, "loss": 1})  # a new training
    assert path.read_text().splitlines() == ["step,loss", "2,1"]


def poison(monkeypatch, where, at):
    """Make the loss, or only its gradient, infinite or NaN at the micro-step number `at`."""
    losses, calls = Objective.losses, iter(range(10**6))

    def poisoned(self, output, *arguments):
        values = losses(self, output, *arguments)
        if next(calls) == at:
            # d sqrt(x) / dx is infinite at zero, where the value is still finite.
            return values * math.nan if where == "loss" else values + (output.sum() * 0).sqrt()
        return values

    monkeypatch.setattr(Objective, "losses", poisoned)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_training(photos, tmp_path, monkeypatch, where):
    poison(monkeypatch, where, at=2)
    out = tmp_path / "out"
    with pytest.raises(NumericalError) as caught:
        train(tiny(save_minutes=1e-9), [photos], out)
    said = str(caught.value)
    assert f"training {where} is nan at step 2; the last good checkpoint is {out}/training/state.pt of step 2" in said
    assert "--resume" in said and "--lr" in said and "\n" not in said
    content = saved_state(out)
    assert content["step"] == 2 and all(v.isfinite().all() for v in content["network"].values())


def test_what_is_not_finite_before_the_first_checkpoint(photos, tmp_path, monkeypatch):
    poison(monkeypatch, "loss", at=1)
    with pytest.raises(NumericalError, match="is nan at step 1; no checkpoint was saved yet: start again"):
        train(tiny(), [photos], tmp_path / "out")
    monkeypatch.undo()
    out = train(tiny(steps=2), [photos], tmp_path / "out")
    poison(monkeypatch, "loss", at=0)
    with pytest.raises(NumericalError, match=r"at step 2; the last good checkpoint is .* of step 2"):
        train(tiny(), [photos], out, resume=True)


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "python", "cpu"])
def test_out_of_memory_proposes_batch_and_accumulation(photos, tmp_path, monkeypatch, error):
    def full(self, *arguments):
        raise error

    monkeypatch.setattr(Objective, "noisy", full)
    with pytest.raises(InvdiffError) as caught:
        train(tiny(accumulate=3, pixels=1024), [photos], tmp_path / "out")
    assert "out of memory at step 0, on cpu; use --set pixels=512 --set accumulate=6" in str(caught.value)
    proposed = tiny(accumulate=6, pixels=512)
    assert proposed.pixels * proposed.accumulate == 1024 * 3
    monkeypatch.setattr(Objective, "noisy", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny(), [photos], tmp_path / "other")


def test_less_memory_where_a_batch_is_one_crop():
    config = tiny(crops=(16, 24, 32), pixels=1024)
    assert "--set crops=16,24" in less_memory(config, (1, 3, 32, 32))
    assert "--widths" in less_memory(config, (1, 3, 16, 16))


# Compiled


class Broken(torch.nn.Module):
    """What torch.compile returns where there is no compiler: it fails when it is called."""

    def forward(self, *arguments):
        from torch._dynamo.exc import TorchDynamoException

        raise TorchDynamoException("no C++ compiler\nhere")


def test_training_goes_on_where_it_cannot_be_compiled(photos, tmp_path, monkeypatch, unbroken, caplog):
    monkeypatch.setattr(learner, "compiled", lambda network, config: Broken())
    out = train(tiny(compile=True, validate_every=2), [photos], tmp_path / "out")
    assert_same(saved_state(out)["network"], saved_state(unbroken)["network"])
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == ["torch.compile failed, training goes on without it (no C++ compiler)"]


@pytest.mark.slow
def test_a_compiled_training_is_the_same_training(photos, tmp_path, monkeypatch):
    """Traced as for a compiler, with kernels that are torch's own: writing them takes minutes."""
    compile = torch.compile
    traced = []

    def trace(network, **options):
        traced.append(network)
        return compile(network, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", trace)
    small = {"widths": (8,), "steps": 3, "crops": (8, 16)}
    states = []
    for compiled in (True, False):
        states.append(saved_state(train(tiny(**small, compile=compiled), [photos], tmp_path / str(compiled))))
    assert len(traced) == 1
    assert_same(states[0]["network"], states[1]["network"])


# What a training starts from, and what is told about it


def test_a_training_starts_from_a_prior(photos, tmp_path, unbroken):
    changes = {"init": str(unbroken), "lr": 1e-12, "steps": 1, "seed": 5}
    out = train(tiny(**changes), [photos], tmp_path / "out")
    given = {name: value.half() for name, value in saved_state(unbroken)["ema"]["modules"]["0.999"].items()}
    for key in (saved_state(out)["network"], saved_state(out)["ema"]["modules"]["0.999"]):
        for name, value in key.items():
            assert torch.allclose(value, given[name].float(), atol=1e-9), name
    origin = json.loads((out / "provenance.json").read_text())["sessions"][0]["init"]
    assert origin["source"] == str(unbroken) and len(origin["sha256"]) == 64
    train(tiny(**changes | {"steps": 2}), [photos], out, resume=True)
    assert saved_state(out)["step"] == 2


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"widths": (8, 8), "blocks": 2},
            r"does not fit widths=\(8, 8\), blocks=2; .*--set widths=8,16 --set blocks=1",
        ),
        ({"groups": 8, "channels": 1}, "--set channels=3 --set groups=4"),
        ({"prediction": "sample"}, "--set prediction=epsilon"),
        ({"schedule": "cosine"}, "noise schedule is not schedule='cosine' with schedule_steps=1000"),
        ({"schedule_steps": 500}, "schedule_steps=500"),
    ],
)
def test_a_prior_to_start_from_has_to_fit(tmp_path, photos, unbroken, changes, words):
    with pytest.raises(UsageError, match=words) as caught:
        train(tiny(init=str(unbroken), **changes), [photos], tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_prior_with_other_layers_is_no_start(tmp_path, photos):
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    export_pipeline(network, build_scheduler(tiny()), tiny(), tmp_path / "prior")
    with pytest.raises(UsageError, match="its layers are others"):
        train(tiny(init=str(tmp_path / "prior")), [photos], tmp_path / "out")


def test_each_session_is_recorded(photos, tmp_path):
    out = train(tiny(), [photos], tmp_path / "out", report=send(signal.SIGINT, at=2))
    train(tiny(lr=1e-3), [photos], out, resume=True)
    content = json.loads((out / "provenance.json").read_text())
    one, two = content["sessions"]
    assert [(s["first_step"], s["last_step"]) for s in (one, two)] == [(0, 2), (2, 6)]
    assert one["settings"] == json.loads(json.dumps(tiny().to_dict())) and two["settings"]["lr"] == 1e-3
    assert one["seed"] == 0 and one["data"] == [str(photos)] and one["init"] is None
    assert one["versions"]["torch"] == torch.__version__ and {"invdiff", "diffusers", "numpy"} <= one["versions"].keys()
    assert one["device"].startswith("cpu (") and one["processes"] == 1 and one["precision"] == "float32"
    assert one["started"] <= one["saved"] <= two["started"] <= two["saved"] and one["command"]
    assert content["exported"] == {"step": 6, "ema": 0.999, "compared": [0.999]}
    assert provenance.earlier_data(out) == (str(photos),) and provenance.earlier_data(tmp_path) == ()


def test_the_commit_is_that_of_the_packages_own_repository(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(("git", "-C", tmp_path, *identity, *arguments), check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert provenance.git_state(package) is None
    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("needs git")
    git("commit", "--allow-empty", "-m", "nothing")
    assert provenance.git_state(package) is None  # an environment inside somebody's repository
    git("add", "package")
    git("commit", "-m", "the package")
    state = provenance.git_state(package)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (package / "new.py").write_text("")
    assert provenance.git_state(package) == {"commit": state["commit"], "dirty": True}


# The exported folder


def test_the_exported_folder(unbroken):
    import diffusers
    from safetensors.torch import load_file

    from invdiff.priors import load_prior

    weights = load_file(unbroken / "unet" / "diffusion_pytorch_model.safetensors")
    ema = saved_state(unbroken)["ema"]["modules"]["0.999"]
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert_same(weights, {name: value.half() for name, value in ema.items()})
    assert TrainingConfig.from_dict(json.loads((unbroken / "recipe.json").read_text())) == tiny(validate_every=2)

    network = build_network(tiny())
    network.load_state_dict(ema)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(x, torch.tensor([500])).sample
        got = load_prior(unbroken).network(x, torch.tensor([500])).sample
    difference = float((got - expected).norm() / expected.norm())
    assert 0 < difference < 10 * 2**-11  # each weight is off by at most 2^-11 of itself

    pipeline = diffusers.DDPMPipeline.from_pretrained(unbroken)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, 16, 16, 3) and np.isfinite(images).all()


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "quadratic", "cosine"])
def test_the_exported_scheduler_has_the_schedule_of_the_training(name):
    exported = build_scheduler(tiny(schedule=name, schedule_steps=100)).alphas_cumprod
    np.testing.assert_allclose(exported, Schedule.named(name, 100).alphas_bar, rtol=1e-4)


@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction"])
def test_the_exported_scheduler_has_the_prediction_of_the_training(name, tmp_path):
    from invdiff.priors import load_prior

    config = tiny(prediction=name)
    export_pipeline(build_network(config), build_scheduler(config), config, tmp_path)
    assert load_prior(tmp_path).prediction == name


def test_the_seed_decides_the_weights_and_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    one, two, other = (build_network(tiny(seed=seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(one, two)
    must_fail(assert_same, one, other)


# Validation


def test_denoising_psnr_is_that_of_skimage():
    from skimage.metrics import peak_signal_noise_ratio

    class Identity:
        device = CPU
        seen: list[torch.Tensor] = []  # noqa: RUF012

        def denoise(self, x, sigma):
            self.seen.append(x)
            return x

    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.random((3, h, w), dtype=np.float32)) for h, w in ((16, 20), (24, 8))]
    scores = denoising_psnr(Identity(), images)
    assert list(scores) == list(SIGMAS) and len(Identity.seen) == 2 * len(SIGMAS)
    for index, sigma in enumerate(SIGMAS):
        noisy = [Identity.seen[i * len(SIGMAS) + index][0].clamp(0, 1).double().numpy() for i in range(2)]
        exact = [
            peak_signal_noise_ratio(x.double().numpy(), y, data_range=1) for x, y in zip(images, noisy, strict=True)
        ]
        assert scores[sigma] == pytest.approx(np.mean(exact), abs=1e-4)
    assert denoising_psnr(Identity(), images) == scores
    assert denoising_psnr(Identity(), images, seed=1) != scores
