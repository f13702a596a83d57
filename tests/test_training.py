"""Training: the objective and its draws against formulas, stopping and resuming bit by bit, what is left on disk."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.errors import CheckpointError, InvdiffError, NumericalError, UsageError
from invdiff.schedule import Schedule
from invdiff.training import engine
from invdiff.training.background import StopFlag
from invdiff.training.checkpoint import TrainingState, export_pipeline
from invdiff.training.config import FIXED, TrainingConfig
from invdiff.training.curves import Curves
from invdiff.training.engine import train
from invdiff.training.network import build_network, build_scheduler
from invdiff.training.objective import draw_timesteps, simple_loss
from invdiff.training.validation import SIGMAS, denoising_psnr

CPU = torch.device("cpu")
TINY = {"widths": (8, 16), "groups": 4, "crops": (16,), "pixels": 512, "holdout": 1, "warmup": 0, "steps": 6}


def tiny(**changes):
    return TrainingConfig(**TINY | changes)


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
    from invdiff.priors.loading import load_tensors

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


# The objective


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_timesteps_follow_their_distribution(share):
    schedule, count = Schedule.named("linear", 50), 100_000
    t = draw_timesteps(count, schedule, share, np.random.default_rng(1))
    assert t.dtype == np.int64 and t.min() == 0 and t.max() == 49

    def check(share):
        for k in range(1, 50):  # floor(T u^3) < k exactly when u < (k/T)^(1/3)
            exact = share * (k / 50) ** (1 / 3) + (1 - share) * k / 50
            assert abs((t < k).mean() - exact) <= 5 * math.sqrt(exact * (1 - exact) / count)

    check(share)
    must_fail(check, share + 0.05)


class Recorder(torch.nn.Module):
    """Answers with a given function of (x_t, t), and keeps what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x_t, t):
        self.x_t, self.t = x_t, t
        return type("Output", (), {"sample": self.answer(x_t, t)})()


def test_the_loss_is_that_of_the_noise():
    config = tiny(seed=3)
    schedule = Schedule.named("linear", 1000)
    abar = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    batch = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16)).astype(np.uint8)
    clean = 2 * torch.from_numpy(batch).double() / 255 - 1

    def noise(x_t, t):  # solved for in x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps
        a = abar[t][:, None, None, None]
        return (x_t.double() - a.sqrt() * clean) / (1 - a).sqrt()

    def loss(answer, step=5, config=config):
        recorder = Recorder(answer)
        return float(simple_loss(recorder, batch, schedule, config, step, CPU)), recorder

    def check_zero(value):
        assert value < 1e-7  # float32 x_t, divided by sqrt(1 - abar_0) = 0.01 at worst

    check_zero(loss(noise)[0])
    must_fail(check_zero, loss(lambda x, t: noise(x, t) * math.sqrt(2))[0])
    must_fail(check_zero, loss(lambda x, t: noise(x, torch.clamp(t - 1, min=0)))[0])

    zero, recorder = loss(lambda x, t: torch.zeros_like(x))
    eps = noise(recorder.x_t, recorder.t)
    assert zero == pytest.approx(float(eps.square().mean()), rel=1e-5)
    n = eps.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # moments of N(0, 1)
        assert abs(float((eps**power).mean()) - mean) < 5 * math.sqrt(variance / n)

    again, same = loss(lambda x, t: torch.zeros_like(x))
    assert again == zero and torch.equal(same.x_t, recorder.x_t) and torch.equal(same.t, recorder.t)
    assert loss(lambda x, t: torch.zeros_like(x), step=6)[0] != zero
    assert loss(lambda x, t: torch.zeros_like(x), config=tiny(seed=4))[0] != zero


# One step: EMA, learning rate, clipping


def start_loop(config, report=None):
    network = build_network(config)
    state = TrainingState.start(network, config, Path("nowhere"), CPU, resume=False)
    return engine._Loop(config, state, CPU, torch.float32, report)


def test_the_ema_ramps_up():
    network = torch.nn.Linear(1, 1, bias=False)
    state = TrainingState.start(network, tiny(ema=0.25), Path("nowhere"), CPU, resume=False)
    expected = float(network.weight.detach())
    for step, decay in enumerate((1 / 10, 2 / 11, 0.25, 0.25)):  # (1 + step) / (10 + step), at most 0.25
        torch.nn.init.constant_(network.weight, float(step))
        expected = decay * expected + (1 - decay) * step
        state.advance()
        assert float(state.ema.weight) == pytest.approx(expected, rel=1e-5) and state.step == step + 1
    assert not state.ema.weight.requires_grad


def test_learning_rate_warms_up_and_decays():
    seen = []
    loop = start_loop(tiny(lr=0.01, warmup=3, steps=8), seen.append)
    batch = np.full((2, 3, 16, 16), 100, np.uint8)
    for _ in range(8):
        loop.step(batch)
    expected = [0.01 * min(1, (s + 1) / 3) * 0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]
    assert [facts["lr"] for facts in seen] == pytest.approx(expected)
    assert [facts["progress"] for facts in seen] == pytest.approx([s / 8 for s in range(1, 9)])
    assert loop.learning_rate() == pytest.approx(0, abs=1e-12)


def test_gradients_are_clipped():
    def norm(clip):
        loop = start_loop(tiny(clip=clip))
        loop.step(np.full((2, 3, 16, 16), 100, np.uint8))
        gradients = [p.grad.square().sum() for p in loop.state.network.parameters() if p.grad is not None]
        return float(torch.stack(gradients).sum().sqrt())

    assert norm(1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert norm(1e6) > 1e-2


def test_training_learns(photos, tmp_path):
    def gain(lr):
        out = train(tiny(lr=lr, steps=80, ema=0.8), [photos], tmp_path / str(lr), validate_every=8)
        rows = rows_of(out)
        return float(rows[-1]["psnr_50"]) - float(rows[0]["psnr_50"]), float(rows[0]["loss"]) - float(rows[-1]["loss"])

    def check(psnr, loss):
        assert psnr > 3 and loss > 0.1

    check(*gain(3e-3))
    must_fail(check, *gain(1e-12))


# Stopping, resuming, and what is on the disk


@pytest.fixture(scope="module")
def unbroken(photos, tmp_path_factory):
    """Six steps in one go."""
    return train(tiny(), [photos], tmp_path_factory.mktemp("runs") / "unbroken", validate_every=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed_is_the_same_training(photos, tmp_path, unbroken, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    out = train(tiny(), [photos], tmp_path / "out", report=send(number, at=3), validate_every=2)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert saved_state(out)["step"] == 3
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").is_file() and not leftovers(out)
    train(tiny(), [photos], out, resume=True, validate_every=2)
    one, two = saved_state(unbroken), saved_state(out)
    assert one.pop("seconds") > 0 and two.pop("seconds") > 0
    assert_same(one, two)
    one["network"]["conv_in.weight"][0, 0, 0, 0] += 1e-6
    must_fail(assert_same, one, two)
    for name in ("step", "loss", "psnr_50"):
        assert [row[name] for row in rows_of(out)] == [row[name] for row in rows_of(unbroken)], name
    assert not leftovers(out)


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


@pytest.fixture
def saved(tmp_path):
    """(state, folder) with a checkpoint at step 1 and an exported model."""
    config = tiny()
    state = TrainingState.start(build_network(config), config, tmp_path, CPU, resume=False)
    state.advance()
    state.save(tmp_path, 1.0)
    export_pipeline(state.ema, build_scheduler(config), config, tmp_path)
    state.advance()
    return state, tmp_path


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
                export_pipeline(state.ema, build_scheduler(tiny()), tiny(), out)
            state.save(out, 2.0)
        finally:
            die()
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert leftovers(out)
    assert saved_state(out)["step"] == 1
    load_prior(out)
    state.save(out, 2.0)
    export_pipeline(state.ema, build_scheduler(tiny()), tiny(), out)
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
    with pytest.raises(CheckpointError, match=r"cannot write .*state\.pt.*free some space") as caught:
        state.save(out, 2.0)
    assert "\n" not in str(caught.value)
    assert saved_state(out)["step"] == 1 and not leftovers(out)


def test_a_full_disk_leaves_the_old_model(saved, monkeypatch):
    state, out = saved
    before = (out / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(type(state.ema), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(FULL))
    with pytest.raises(CheckpointError, match="No space left"):
        export_pipeline(state.ema, build_scheduler(tiny()), tiny(), out)
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


@pytest.mark.parametrize("name", FIXED)
def test_a_resume_keeps_what_it_must(photos, unbroken, name):
    other = {"channels": 1, "widths": (8, 8), "blocks": 2, "groups": 8, "schedule": "cosine", "schedule_steps": 500}
    other |= {"holdout": 2, "seed": 1}
    with pytest.raises(UsageError) as caught:
        train(tiny(**{name: other[name]}), [photos], unbroken, resume=True)
    message = str(caught.value)
    assert f"{name}={getattr(tiny(), name)!r} (now {other[name]!r})" in message and "\n" not in message
    assert "steps, minutes, lr" in message


def test_a_resume_may_change_the_rest(photos, unbroken, tmp_path):
    import shutil

    out = Path(shutil.copytree(unbroken, tmp_path / "out"))
    changes = {"steps": 8, "minutes": 60, "lr": 1e-3, "weight_decay": 0.5, "weights": {"a": 2}, "crops": (32,)}
    train(tiny(**changes | {"pixels": 1024}), [photos], out, resume=True, validate_every=2)
    state = saved_state(out)
    assert state["step"] == 8 and state["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    assert [row["step"] for row in rows_of(out)] == ["2", "4", "6", "8"]
    assert TrainingConfig.from_dict(json.loads((out / "recipe.json").read_text())).weights == {"a": 2.0}
    stamp = (out / "training" / "state.pt").stat().st_mtime_ns
    train(tiny(steps=8), [photos], out, resume=True)  # its budget is used up
    assert (out / "training" / "state.pt").stat().st_mtime_ns == stamp


def test_states_of_other_networks_and_other_files(tmp_path, saved):
    _, out = saved
    other = tiny(widths=(8, 8))
    with pytest.raises(CheckpointError, match=r"size mismatch for .*") as caught:
        TrainingState.start(build_network(other), other, out, CPU, resume=True)
    assert "\n" not in str(caught.value)
    torch.save({"network": {}}, out / "training" / "state.pt")
    with pytest.raises(CheckpointError, match="it lacks ema, optimizer, step, seconds"):
        TrainingState.start(build_network(tiny()), tiny(), out, CPU, resume=True)


def test_states_of_the_first_version_can_be_resumed(saved):
    """They have no "loss", and no names of the images held back beside them."""
    _, out = saved
    content = saved_state(out)
    del content["loss"]
    torch.save(content, out / "training" / "state.pt")
    state = TrainingState.start(build_network(tiny()), tiny(), out, CPU, resume=True)
    assert state.step == 1 and math.isnan(state.loss)


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


def test_the_columns_of_the_log(unbroken):
    lines = (unbroken / "log.csv").read_text().splitlines()
    assert lines[0] == "step,seconds,loss,psnr_5,psnr_15,psnr_25,psnr_50,psnr_100"
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "4", "6"]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_training(photos, tmp_path, monkeypatch, where):
    def poisoned(network, batch, schedule, config, step, device):
        loss = simple_loss(network, batch, schedule, config, step, device)
        if step == 2:
            # d sqrt(x) / dx is infinite at zero, where the value is still finite.
            return loss * math.nan if where == "loss" else loss + (network.conv_out.bias.sum() * 0).sqrt()
        return loss

    monkeypatch.setattr(engine, "simple_loss", poisoned)
    with pytest.raises(NumericalError, match=rf"training {where} is .* at step 2.*--lr"):
        train(tiny(), [photos], tmp_path / "out", save_minutes=1e-9)
    content = saved_state(tmp_path / "out")
    assert content["step"] == 2 and all(v.isfinite().all() for v in content["network"].values())


# The exported folder


def test_the_exported_folder(unbroken):
    import diffusers
    from safetensors.torch import load_file

    from invdiff.priors import load_prior

    weights = load_file(unbroken / "unet" / "diffusion_pytorch_model.safetensors")
    ema = saved_state(unbroken)["ema"]
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert_same(weights, {name: value.half() for name, value in ema.items()})
    assert TrainingConfig.from_dict(json.loads((unbroken / "recipe.json").read_text())) == tiny()

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


# Settings


BAD_SETTINGS = {
    "channels": (2, "3", True, None),
    "widths": ((), (8, 0), "8,16", 8, (8.5, 16)),
    "blocks": (0, 1.5),
    "groups": (0, 3),
    "schedule": ("linaer", 3),
    "schedule_steps": (0, "many"),
    "crops": ((), (15,), (0,), 16),
    "pixels": (255, 1e9),
    "downscale": (-0.1, 1.1, math.nan, "half"),
    "low_noise": (-0.1, 1.1, math.nan),
    "weights": ({"a": -1}, {"a": "much"}, {"a": math.inf}, 3, {1: 1}),
    "steps": (0, 2.5, True),
    "minutes": (0, -1, math.inf, "long"),
    "lr": (0, -1, math.nan, math.inf, "high"),
    "warmup": (-1,),
    "weight_decay": (-1, math.nan),
    "clip": (0, math.nan),
    "ema": (-0.1, 1.0, math.nan),
    "holdout": (0,),
    "seed": (-1, 0.5),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_is_named(name):
    for value in BAD_SETTINGS[name]:
        with pytest.raises(UsageError, match=rf"(setting {name}=|unknown {name} )") as caught:
            tiny(**{name: value})
        assert "\n" not in str(caught.value)
    assert set(BAD_SETTINGS) == set(TrainingConfig().to_dict())


def test_settings_from_plain_data():
    config = tiny(weights={"a": 2}, minutes=90, schedule="cosine")
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(UsageError, match="Did you mean 'warmup'"):
        TrainingConfig.from_dict({"warm_up": 3})


# Data: what is found


def png(path, colour=(10, 20, 30), size=(32, 32), mode="RGB"):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def pack(path, folder, mode="w"):
    import tarfile

    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=".")
    return path


def test_folders_and_tars(tmp_path):
    from invdiff.training.entries import find_entries

    root = tmp_path / "photos"
    for name in ("b/1.png", "b/deep/2.PNG", "3.jpg", ".hidden/4.png", "b/._5.png"):
        png(root / name)
    (root / "notes.txt").write_text("not an image")
    groups = {"b/1.png": "b", "b/deep/2.PNG": "b", "3.jpg": "photos"}
    entries = find_entries([root])
    assert {e.name: e.group for e in entries} == groups
    assert [e.key for e in entries] == ["photos/3.jpg", "b/1.png", "b/deep/2.PNG"]
    tar = pack(tmp_path / "packed.tar", root)
    packed = find_entries([tar])
    assert {e.name: e.group for e in packed} == groups | {"3.jpg": "packed"}
    assert {e.name: e.read() for e in packed} == {name: (root / name).read_bytes() for name in groups}
    both = tmp_path / "both"
    png(both / "c" / "6.png")
    tar.rename(both / "packed.tar")
    assert len(find_entries([both])) == 4 and len(find_entries([both, str(root)])) == 7
    same = find_entries([root / "b"])[0]
    assert same.name == "1.png" and same.key == "b/1.png"  # as when its folder is given


def test_compressed_archives_are_refused(tmp_path, caplog):
    from invdiff.training.entries import find_entries

    png(tmp_path / "photos" / "1.png")
    packed = pack(tmp_path / "packed.tar.gz", tmp_path / "photos", "w:gz")
    with pytest.raises(InvdiffError, match=r"packed\.tar\.gz.*unpack it"):
        find_entries([packed])
    packed.rename(tmp_path / "photos" / "packed.tar.gz")
    assert len(find_entries([tmp_path / "photos"])) == 1
    assert "packed.tar.gz: unpack it" in caplog.text


def test_data_that_cannot_be_used(tmp_path):
    def refused(words, *sources):
        with pytest.raises(InvdiffError, match=words) as caught:
            train(tiny(), sources, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused("nowhere: no such file", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("empty: no images", tmp_path / "empty")
    (tmp_path / "list.txt").write_text("a.png")
    refused("list.txt: not a folder", tmp_path / "list.txt")
    (tmp_path / "text.tar").write_text("this is no archive " * 100)
    refused("text.tar", tmp_path / "text.tar")
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / "broken" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "broken" / name).write_text("not an image")
    refused("none of the 3 images can be read", tmp_path / "broken")
    one = png(tmp_path / "one" / "1.png").parent
    refused("at least two images", one)
    refused("at least two images", one, one)
    for name in ("1.png", "2.png", "3.png"):
        png(tmp_path / "small" / name, size=(32, 8))
    refused(r"none of the 2 training images .* 2 cannot be read or are too small.*--crop", tmp_path / "small")
    good = png(tmp_path / "good" / "1.png").parent
    with pytest.raises(InvdiffError, match=r"have a side below 64; use smaller crops"):
        train(tiny(crops=(16, 64), pixels=64 * 64), [good, good.parent / "one"], tmp_path / "out")
    png(good / "2.png")
    with pytest.raises(UsageError, match=r"'goood'.*Did you mean 'good'"):
        train(tiny(weights={"goood": 2}), [good], tmp_path / "out")
    with pytest.raises(UsageError, match="every folder has weight zero"):
        train(tiny(weights={"good": 0}), [good], tmp_path / "out")


# Data: what is decoded


def encoded(image, kind="PNG", **options):
    import io

    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(dtype=np.uint8, scale=1):
    return (np.arange(256, dtype=np.float64).reshape(16, 16) * scale).astype(dtype)


def test_every_kind_of_picture_as_colour_and_as_grey(tmp_path):
    from PIL import Image

    from invdiff.images import write_image
    from invdiff.training.photographs import decode

    grey = ramp()
    alpha = Image.fromarray(np.stack([grey, np.full_like(grey, 128)], -1), "LA")
    over_white = np.rint(255 - (255.0 - grey) * 128 / 255)
    palette = Image.fromarray(grey).convert("P")
    clear = Image.new("P", (16, 16), 3)
    clear.putpalette([0] * 768)
    deep = tmp_path / "deep.png"
    write_image(deep, torch.from_numpy(grey / 255.0).float().expand(3, -1, -1), bits=16)
    cases = {
        "grey": (encoded(Image.fromarray(grey)), grey),
        "colour": (encoded(Image.fromarray(np.stack([grey] * 3, -1))), grey),
        "16-bit grey": (encoded(Image.fromarray(ramp(np.uint16, 257))), grey),
        "16-bit grey TIFF": (encoded(Image.fromarray(ramp(np.uint16, 257)), "TIFF"), grey),
        "16-bit colour": (deep.read_bytes(), grey),
        "float TIFF": (encoded(Image.fromarray(ramp(np.float32, 1 / 255)), "TIFF"), grey),
        "1-bit": (encoded(Image.fromarray(grey > 99)), np.where(grey > 99, 255, 0)),
        "grey with alpha": (encoded(alpha), over_white),
        "colour with alpha": (encoded(alpha.convert("RGBA")), over_white),
        "palette": (encoded(palette), grey),
        "palette with a clear colour": (encoded(clear, transparency=3), np.full((16, 16), 255)),
        "CMYK": (encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 155)), "JPEG", quality=100), np.full((16, 16), 100)),
    }
    for name, (data, expected) in cases.items():
        for channels in (1, 3):
            pixels = decode(data, channels)
            assert pixels.dtype == np.uint8 and pixels.shape == (16, 16, channels), name
            assert np.abs(pixels.astype(int) - expected[..., None]).max() <= 1, (name, channels)
    red = decode(encoded(Image.new("RGB", (16, 16), (200, 100, 50))), 1)
    assert abs(int(red[0, 0, 0]) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1
    for image in (Image.fromarray(ramp(np.float32, 1.0)), Image.fromarray(ramp(np.int32, 9))):
        with pytest.raises(InvdiffError, match=r"outside|full scale"):
            decode(encoded(image, "TIFF"), 3)


def test_broken_files_are_skipped_with_a_count(tmp_path, caplog, photos):
    from invdiff.training.entries import find_entries
    from invdiff.training.photographs import Photographs

    picture = next(photos.rglob("*.png"))
    (tmp_path / "text.png").write_text("not an image")
    from PIL import Image

    Image.open(picture).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "truncated.png").write_bytes(picture.read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    png(tmp_path / "small.png", size=(100, 15))
    photographs = Photographs(find_entries([tmp_path]), 3, smallest=16)
    got = {entry.name: photographs.get(index) for index, entry in enumerate(photographs.entries)}
    assert [name for name, pixels in got.items() if pixels is not None] == ["whole.jpg"]
    assert len(photographs.broken) == 5
    for index in range(len(photographs)):
        photographs.get(index)  # warned about once
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5 and "(5 skipped so far)" in lines[-1]
    assert any("small.png: 100x15 is smaller than the crop 16" in line for line in lines)


def fake(colours, size=(32, 32), group="a"):
    """Entries of one colour each, and how often each was read; None makes one that cannot be."""
    from PIL import Image

    from invdiff.training.entries import Entry

    reads = dict.fromkeys(colours, 0)

    def entry(colour, index):
        def read():
            reads[colour] += 1
            return b"" if colour is None else encoded(Image.new("L", size, colour))

        return Entry(f"{index}.png", group, read)

    return [entry(colour, index) for index, colour in enumerate(colours)], reads


def test_the_cache_keeps_to_its_budget():
    from invdiff.training.photographs import Photographs

    entries, reads = fake([1, 2, 3])
    photographs = Photographs(entries, 3, 16, cache_gib=2.5 * 32 * 32 * 3 / 2**30)
    for _ in range(2):
        for index in range(3):
            pixels = photographs.get(index)
            assert pixels is not None and pixels[0, 0, 0] == index + 1
    assert reads == {1: 1, 2: 1, 3: 2}
    assert photographs.get(0, side=33) is None and photographs.get(2, side=33) is None
    assert reads[3] == 2  # its size is known, so nobody decodes it to see


# Data: what is drawn


def sampler(entries, **changes):
    from invdiff.training.data import CropSampler
    from invdiff.training.photographs import Photographs

    config = tiny(**{"channels": 1} | changes)
    return CropSampler(Photographs(entries, config.channels, min(config.crops)), config)


def test_images_are_drawn_by_the_weight_of_their_folder():
    count = 4000
    a, b, c = (
        fake([1, None, 2], group="a")[0],
        fake([3], group="b")[0],
        fake([None, None], group="c")[0],
    )
    batch = sampler(a + b + c, weights={"a": 3, "c": 1e6}, pixels=count * 256).batch(0)
    assert batch.shape == (count, 1, 16, 16) and batch.dtype == np.uint8

    def check(expected):  # c has nothing to draw, so a and b share: 3 to 1, and inside a evenly
        for colour, share in expected.items():
            assert abs((batch[:, 0, 0, 0] == colour).mean() - share) < 5 * math.sqrt(share * (1 - share) / count)

    check({1: 0.375, 2: 0.375, 3: 0.25})
    must_fail(check, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    must_fail(check, {1: 0.25, 2: 0.5, 3: 0.25})
    only = sampler(a + b, weights={"a": 0}).batch(0)
    assert set(np.unique(only)) == {3}


def test_crops_depend_on_the_seed_and_the_step_alone():
    def fresh(seed=0):
        entries = fake([1, None, 2, 5, None, 9])[0]
        entries += fake([None] * 5, group="b")[0] + fake([7] * 5, (20, 20), group="c")[0]
        return sampler(entries, seed=seed, crops=(16, 24), pixels=8 * 256)

    worn = fresh()
    batches = [worn.batch(step) for step in range(8)]  # by now it knows what is broken
    assert {b.shape[-1] for b in batches} == {16, 24}
    for step in (7, 3):
        assert np.array_equal(fresh().batch(step), batches[step])
        assert np.array_equal(worn.batch(step), batches[step])
    assert not all(np.array_equal(fresh(seed=1).batch(step), batches[step]) for step in range(8))
    assert all(7 not in np.unique(b) for b in batches if b.shape[-1] == 24)  # it is too small for those


def test_all_eight_orientations_and_reductions_occur():
    from PIL import Image

    from invdiff.training.entries import Entry

    rows, columns = np.mgrid[:48, :48]
    data = encoded(Image.fromarray((rows * 4 + columns).astype(np.uint8)))  # steps of 4 down and of 1 across
    entries = [Entry("1.png", "a", lambda: data)]

    def steps(downscale):
        batch = sampler(entries, downscale=downscale, pixels=200 * 256).batch(0)[:, 0].astype(int)
        inner = batch[:, 4:-4, 4:-4]
        down = (inner[:, -1] - inner[:, 0]).mean(1) / (inner.shape[1] - 1)
        across = (inner[:, :, -1] - inner[:, :, 0]).mean(1) / (inner.shape[2] - 1)
        return np.stack([down, across], 1)

    plain = {tuple(pair) for pair in np.rint(steps(0)).astype(int).tolist()}
    assert plain == {(4, 1), (4, -1), (-4, 1), (-4, -1), (1, 4), (1, -4), (-1, 4), (-1, -4)}
    factors = np.abs(steps(1)).max(1) / 4
    assert factors.min() < 1.3 and factors.max() > 2.7 and factors.max() < 3.3
    share = (np.abs(steps(0.5)).max(1) > 4.2).mean()
    assert 0.3 < share < 0.7


def test_held_back_images_are_never_learned_from(photos, tmp_path, monkeypatch):
    import shutil

    from PIL import Image

    seen = []

    class Spy(engine.CropSampler):
        def __init__(self, photographs, config):
            seen.append({entry.key for entry in photographs.entries})
            super().__init__(photographs, config)

    monkeypatch.setattr(engine, "CropSampler", Spy)
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    (root / "a" / "broken.png").write_text("never held back")
    config = tiny(holdout=8, seed=2, steps=2)  # of seven images, a fifth is one
    out = train(config, [root, root / "a"], tmp_path / "out", report=send(signal.SIGINT, at=1))
    held = json.loads((out / "training" / "holdout.json").read_text())["held_back"]
    assert held and not seen[0] & set(held) and len(seen[0] | set(held)) == 7 and "a/broken.png" not in held
    for index in range(9):  # the data grows; what was held back stays so
        Image.open(root / "a" / "0.png").save(root / "a" / f"new{index}.png")
    train(config, [root], out, resume=True)
    assert json.loads((out / "training" / "holdout.json").read_text())["held_back"] == held
    assert not seen[1] & set(held) and len(seen[1] | set(held)) == 16
    for key in held:
        (root / key).unlink()
    with pytest.raises(UsageError, match="none of the images held back"):
        train(config, [root], out, resume=True)


def test_the_split_is_random_and_repeatable():
    from invdiff.training.data import split

    entries = fake(list(range(100)))[0]
    learning, held = split(entries, 16, seed=0)
    assert len(held) == 16 and len(learning) == 84
    assert [e.key for e in split(entries, 16, seed=0)[1]] == [e.key for e in held]
    assert [e.key for e in split(entries, 16, seed=1)[1]] != [e.key for e in held]
    assert len(split(entries[:10], 16, seed=0)[1]) == 2
