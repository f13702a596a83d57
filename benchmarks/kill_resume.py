"""kill -9 at random moments of a short training: does every one resume, and do the weights end up the same?

    python benchmarks/kill_resume.py [--kills 20] [--steps 60] [--optimizer muon] [--out DIR] [--seed 0]

A training runs once without interruption. Then the same one, saved after every step, is killed at random moments between
its start and its end; after each kill its files are loaded, and `--resume` goes on. In the end every tensor of the two
states (weights, averages, optimiser) is compared bit by bit. A training that ends between two kills is compared as well,
and the next one begun. Exit code 1 if anything differs or does not resume.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from invdiff.priors import load_prior
from invdiff.priors.stored.tensor_files import load_tensors

ROOT = Path(__file__).resolve().parents[1]
STARTED = "training on "


def write_pictures(folder: Path, count: int = 6) -> Path:
    """Smooth colour pictures of 64 x 64."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:64, :64]
    for index in range(count):
        planes = [127 + 90 * np.sin(rows / (4 + index + c) + columns / (6 + c)) for c in range(3)]
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def command(data: Path, out: Path, steps: int, optimizer: str, resume: bool) -> list[str]:
    """The training: the smallest network, a checkpoint after every step."""
    settings = {"widths": "8,16", "groups": 4, "crops": "16,32", "pixels": 2048, "holdout": 1, "precision": "fp32"}
    settings |= {"optimizer": optimizer, "ema": "0.9,0.99", "accumulate": 2, "steps": steps, "save_minutes": 1e-6}
    settings |= {"validate_every": max(1, steps // 2)}
    pairs = [f"--set={key}={value}" for key, value in settings.items()]
    paths = ["--data", str(data), "--out", str(out), *(["--resume"] if resume else [])]
    return [sys.executable, "-m", "invdiff", "train", "--device", "cpu", *paths, *pairs]


class Training:
    """A training in a process of its own, from the moment on at which its steps begin."""

    def __init__(self, arguments: list[str]) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stderr is not None
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith(STARTED):
                break

    def finish(self) -> None:
        """Wait for its end. Raises RuntimeError with what it said if it failed."""
        self._end()
        if self.process.returncode:
            raise RuntimeError("".join(self.lines))

    def kill(self) -> bool:
        """kill -9. False if it was at its end already."""
        self.process.send_signal(signal.SIGKILL)
        self._end()
        return self.process.returncode == -signal.SIGKILL

    def _end(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr
        self.process.wait()


def differences(one: Any, two: Any, name: str = "state") -> Iterator[str]:
    """Names of the tensors and numbers that are not the same to the last bit."""
    if isinstance(one, torch.Tensor):
        if not torch.equal(one, two):
            yield name
    elif isinstance(one, dict):
        for key in dict.fromkeys([*one, *two]):
            if key in one and key in two:
                yield from differences(one[key], two[key], f"{name}.{key}")
            else:
                yield f"{name}.{key}"
    elif isinstance(one, list | tuple):
        if len(one) != len(two):
            yield name
        for index, (left, right) in enumerate(zip(one, two, strict=False)):
            yield from differences(left, right, f"{name}.{index}")
    elif one != two and not (one != one and two != two):  # NaN is like NaN
        yield name


def state_of(out: Path) -> dict[str, Any]:
    """The state to resume from. Raises CheckpointError if it cannot be loaded."""
    return load_tensors(out / "training" / "state.pt")


def compare(whole: Path, broken: Path) -> bool:
    """Whether two finished trainings have the same state; print what is not."""
    one, two = state_of(whole), state_of(broken)
    for state in (one, two):
        del state["seconds"]
    wrong = list(differences(one, two))
    if wrong:
        print(f"{broken.name} is not {whole.name}: {len(wrong)} differ, {', '.join(wrong[:5])}")
    return not wrong


def check(out: Path) -> str:
    """What a kill left under `out`, all of which has to load."""
    if not (out / "training" / "state.pt").exists():
        return "before its first checkpoint"
    if (out / "model_index.json").exists():
        load_prior(out)
    return f"the checkpoint of step {state_of(out)['step']} loads"


def run(kills: int, steps: int, optimizer: str, folder: Path, seed: int) -> bool:
    """Print what happens; whether all went well."""
    data, whole, broken = write_pictures(folder / "data"), folder / "whole", folder / "broken-0"
    training = Training(command(data, whole, steps, optimizer, False))
    started = time.monotonic()
    training.finish()
    length = time.monotonic() - started
    rng, same, killed = np.random.default_rng(seed), True, False
    done = resumed = anew = finished = 0
    while done < kills or killed:
        resume = (broken / "training" / "state.pt").exists()
        resumed, anew = resumed + (killed and resume), anew + (killed and not resume)
        training = Training(command(data, broken, steps, optimizer, resume))
        killed = False
        if done < kills:
            moment = rng.uniform(0, length / kills)
            time.sleep(moment)
            killed = training.kill()
        if killed:
            done += 1
            print(f"kill {done}: after {moment:.2f} s of training; {check(broken)}", flush=True)
        else:  # the end of the training, which may come before the last kill: then the next one follows
            training.finish()
            same &= compare(whole, broken)
            finished += 1
            broken = folder / f"broken-{finished}"
    verdict = "the same as without, bit by bit" if same else "NOT the same as without"
    print(f"{kills} kills: {resumed} resumed, {anew} came before the first checkpoint; final state {verdict}")
    return same and resumed + anew == kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--optimizer", default="muon" if hasattr(torch.optim, "Muon") else "adamw")
    parser.add_argument("--out", type=Path, help="keep the files here (default: a temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        sys.exit(0 if run(options.kills, options.steps, options.optimizer, folder, options.seed) else 1)


if __name__ == "__main__":
    main()
