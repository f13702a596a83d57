"""Several processes (gloo, on the CPU) train what one would, stop together, and write everything once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.training.config import TrainingConfig
from invdiff.training.engine import train

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")

ROOT = Path(__file__).resolve().parents[1]
TINY = {"widths": (8, 16), "groups": 4, "crops": (16, 32), "pixels": 1024, "holdout": 1, "warmup": 0, "steps": 6}
TINY |= {"precision": "fp32", "validate_every": 3}
# Everything that has a state of its own.
RICH = {"optimizer": "muon", "ema": (0.5, 0.9), "weighting": "uncertainty"}
RICH |= {} if hasattr(torch.optim, "Muon") else {"optimizer": "adamw"}

# What every process of the distributed trainings does: all of them in one go, because starting costs seconds.
WORKER = """
import json, os, signal, sys
from pathlib import Path
from invdiff.training import engine
from invdiff.training.config import TrainingConfig
from invdiff.training.distributed import is_main, leave, Processes

root = Path(sys.argv[1])
replace, writes = os.replace, []
os.replace = lambda *paths: (writes.append(str(paths[1])), replace(*paths))
rates = engine.rate

for name, job in json.loads((root / "jobs.json").read_text()).items():
    def rate(config, step, progress):
        if step == job.get("stop_at") and not is_main():  # a signal to one process stops all
            os.kill(os.getpid(), signal.SIGTERM)
        return rates(config, step, progress)

    engine.rate, losses = rate, {}
    config = TrainingConfig.from_dict(job["config"])
    engine.train(config, [root / "photos"], root / name, drawing=None, report=lambda f: losses.update({f["step"]: f["loss"]}))
    if is_main():
        (root / f"{name}.json").write_text(json.dumps(list(losses.values())))
    else:
        assert not losses
(root / f"writes-{os.environ['RANK']}.json").write_text(json.dumps(writes))
leave()
"""


def launch(processes: int, *arguments: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """The arguments of a Python command, run by torchrun in several processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *map(str, arguments)], env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with pictures and the results of the trainings in two processes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("distributed")
    (root / "photos").mkdir()
    rows, columns = np.mgrid[:40, :48]
    for index in range(6):
        planes = [127 + 90 * np.sin(rows / (4 + index + c) + columns / (6 + c)) for c in range(3)]
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(root / "photos" / f"{index}.png")
    jobs = {"plain": {"config": TINY}, "rich": {"config": TINY | RICH}}
    jobs["stopped"] = {"config": TINY | RICH, "stop_at": 3}
    (root / "jobs.json").write_text(json.dumps(jobs))
    (root / "worker.py").write_text(WORKER)
    launch(2, root / "worker.py", root)
    return root


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As each of the two processes has: another number of threads adds in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(root: Path, name: str, resume: bool = False, **changes: object) -> tuple[dict, list[float]]:
    """(state, losses) of a training in this process, on the same pictures."""
    losses: dict[int, float] = {}
    config = TrainingConfig(**TINY | changes)

    def report(facts):
        losses[facts["step"]] = facts["loss"]

    train(config, [root / "photos"], root / name, resume=resume, drawing=None, report=report)
    return state_of(root, name), list(losses.values())


def state_of(root: Path, name: str) -> dict:
    from invdiff.priors.stored.tensor_files import load_tensors

    state = load_tensors(root / name / "training" / "state.pt")
    del state["seconds"], state["watch"]  # the logs see the crops of the main process alone
    return state


def tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in tensors(value)]


def check_equal(one: dict, two: dict) -> None:
    assert len(tensors(one)) == len(tensors(two)) > 100
    assert all(torch.equal(left, right) for left, right in zip(tensors(one), tensors(two), strict=True))


def test_two_processes_learn_what_one_does_with_twice_the_batch(root):
    state, losses = alone(root, "whole", pixels=2048)
    two, curve = state_of(root, "plain"), json.loads((root / "plain.json").read_text())

    def check_losses(curve):  # sums of 6144 float32 errors in another order, through six steps
        assert np.allclose(curve, losses, rtol=1e-5, atol=0)

    def check_weights(state):
        # A weight moves by at most lr = 4e-4 a step (AdamW); rounding changes the direction of one whose gradient is
        # little more than rounding itself, and no other.
        moved = [
            float((a - b).abs().max()) for a, b in zip(tensors(two["network"]), tensors(state["network"]), strict=True)
        ]
        assert max(moved) < 0.1 * 4e-4

    assert len(curve) == 6
    check_losses(curve)
    check_weights(state)
    single, other = alone(root, "half")  # one process with the batch of one of the two
    for check, value in ((check_losses, other), (check_weights, single)):
        with pytest.raises(AssertionError):
            check(value)


def test_two_processes_learn_what_two_micro_steps_do(root):
    """(g_1 + g_2) / 2 is the same number whoever adds: every bit is the same, also of Muon, of two averages and of the
    objective's own parameters."""
    state, losses = alone(root, "accumulated", accumulate=2, **RICH)
    two = state_of(root, "rich")
    check_equal(two, state)
    assert json.loads((root / "rich.json").read_text()) == pytest.approx(losses, rel=1e-6)
    two["network"]["conv_in.weight"][0, 0, 0, 0] += 1e-6
    with pytest.raises(AssertionError):
        check_equal(two, state)


def test_a_signal_to_one_process_stops_all_and_any_number_goes_on(root):
    assert state_of(root, "stopped")["step"] == 4  # it came in the step from 3 to 4
    state, _ = alone(root, "stopped", resume=True, accumulate=2, **RICH)
    check_equal(state_of(root, "rich"), state)
    sessions = json.loads((root / "stopped" / "provenance.json").read_text())["sessions"]
    assert [session["processes"] for session in sessions] == [2, 1]


def test_the_main_process_alone_writes(root):
    first, second = (json.loads((root / f"writes-{rank}.json").read_text()) for rank in range(2))
    names = [Path(path).name for path in first]
    assert second == []
    assert names.count("state.pt") == 3 and names.count("holdout.json") == 3
    assert len((root / "rich" / "log.csv").read_text().splitlines()) == 1 + 2


def test_the_command_in_two_processes(root):
    settings = [f"--set={key}={','.join(map(str, np.atleast_1d(value)))}" for key, value in TINY.items()]
    arguments = ["--data", root / "photos", "--out", root / "command", "--device", "cpu", *settings]
    done = launch(2, "-m", "invdiff", "train", *arguments)
    assert done.stdout.count("6 steps; try: invdiff sample") == 1
    assert done.stderr.count("2 processes") == 1 and done.stderr.count("step 6 ") == 1
    check_equal(state_of(root, "command"), state_of(root, "plain"))
