"""A solution on disk: where it lies and what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.solution import Solution


def solution() -> Solution:
    samples = torch.rand(2, 3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    residual = torch.tensor([[1.0, 1.1, 0.9], [1.2, 0.8, 1.0]])
    return Solution(samples, residual, 10, 1.25, 7, 0.05, {"name": "identity"}, {"name": "ddrm"}, {"name": "gaussian"})


@pytest.mark.parametrize(
    ("given", "written"),
    [("run", "run.npz"), ("run.npz", "run.npz"), ("run.v1", "run.v1.npz"), ("v1.2/run.0.05", "v1.2/run.0.05.npz")],
)
def test_save_round_trip(tmp_path: Path, given: str, written: str) -> None:
    (tmp_path / given).parent.mkdir(exist_ok=True)
    made = solution()
    made.save(tmp_path / given)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [written]
    with np.load(tmp_path / written, allow_pickle=False) as file:
        for name in ("samples", "mean", "std", "residual"):
            assert np.array_equal(file[name], getattr(made, name).numpy()), name
        records = json.loads(str(file["provenance"]))
    assert records == [made.provenance(image) for image in range(3)]
    assert records[1]["residual"] == [1.1, 0.8] and records[1]["seed"] == 7
