"""kill -9 in the middle of a training: the script that measures it, with few kills, and its comparison."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "kill_resume.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signals")
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.full)])
def test_killed_trainings_resume_and_end_the_same(kills):
    arguments = (sys.executable, SCRIPT, "--kills", str(kills), "--steps", "10", "--seed", "3")
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    counts = re.fullmatch(
        rf"{kills} kills: (\d) resumed, (\d) came before .*; final state the same as without, bit by bit", last
    )
    assert counts and int(counts[1]) + int(counts[2]) == kills, done.stdout
    assert done.stdout.count("kill ") == kills


def test_the_comparison_notices_any_difference():
    spec = importlib.util.spec_from_file_location("kill_resume", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    state = {"network": {"w": torch.ones(3)}, "optimizer": [{"step": 2, "groups": (0.9, None)}], "loss": math.nan}

    def found(change):
        other = copy.deepcopy(state)
        change(other)
        return list(script.differences(state, other))

    assert found(lambda other: None) == []
    assert found(lambda other: other["network"]["w"][1].add_(1e-7)) == ["state.network.w"]
    assert found(lambda other: other["optimizer"][0].update(step=3)) == ["state.optimizer.0.step"]
    assert found(lambda other: other["optimizer"].append(1)) == ["state.optimizer"]
    assert found(lambda other: other.pop("network")) == ["state.network"]
    assert found(lambda other: other.update(loss=1.0)) == ["state.loss"]
