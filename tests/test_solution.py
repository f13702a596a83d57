"""A solution on disk: where it lies and what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import invdiff
from invdiff.errors import UsageError
from invdiff.priors.gaussian import GaussianPrior
from invdiff.problem.problem import Problem
from invdiff.restoration.api import FIRST_SAMPLES, MOST_SAMPLES, residuals
from invdiff.restoration.solution import Solution


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


@pytest.mark.parametrize("q", [0.0, 0.05, 0.5, 0.77, 1.0])
def test_quantiles_are_numpys(q: float) -> None:
    samples = torch.rand(7, 2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    several = Solution(samples, torch.ones(7, 2), 10, 1.0, 0, 0.05, {}, {}, {})
    np.testing.assert_allclose(several.quantile(q).numpy(), np.quantile(samples.numpy(), q, axis=0), atol=1e-12)
    assert torch.equal(solution().quantile(0.0), solution().samples.min(0).values)


def test_a_quantile_outside_the_unit_interval_is_refused() -> None:
    with pytest.raises(UsageError, match="between 0 and 1, got 5"):
        solution().quantile(5)


def automatic(tolerance: float, **settings: object) -> Solution:
    """Samples whose deviation is known: x_0 ~ N(1/2, 0.04) seen through noise of 1, so about 0.2 at every pixel."""
    prior = GaussianPrior(torch.full((1, 8, 8), 0.5, dtype=torch.float64), 0.04)
    y = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    return invdiff.restore(
        y, "identity", 1.0, prior=prior, solver="pigdm", steps=10, samples="auto", tolerance=tolerance, **settings
    )


def test_automatic_samples_stop_at_the_tolerance() -> None:
    found = automatic(0.05)
    n = len(found.samples)
    assert FIRST_SAMPLES < n < MOST_SAMPLES and n % FIRST_SAMPLES == 0
    assert (found.standard_error <= 0.05).all()
    earlier = found.samples[: n - FIRST_SAMPLES].var(0).flatten(1).mean(1).sqrt() / (n - FIRST_SAMPLES) ** 0.5
    assert (earlier > 0.05).any()  # it could not have stopped before
    fixed = invdiff.restore(
        torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64),
        "identity",
        1.0,
        prior=GaussianPrior(torch.full((1, 8, 8), 0.5, dtype=torch.float64), 0.04),
        solver="pigdm",
        steps=10,
        samples=n,
        batch_size=5,
    )
    assert torch.equal(fixed.samples, found.samples)


def test_automatic_samples_end_at_the_most() -> None:
    assert len(automatic(1e-6).samples) == MOST_SAMPLES
    assert len(automatic(10.0).samples) == FIRST_SAMPLES


@pytest.mark.parametrize("samples", [0, -1, 1.5, "many"])
def test_impossible_sample_counts_are_refused(samples: object) -> None:
    prior = GaussianPrior(torch.full((1, 8, 8), 0.5, dtype=torch.float64), 0.04)
    with pytest.raises(UsageError, match='at least 1, or "auto"'):
        invdiff.restore(torch.zeros(1, 1, 8, 8), "identity", 0.1, prior=prior, samples=samples)


def test_an_impossible_tolerance_is_refused() -> None:
    with pytest.raises(UsageError, match="tolerance must be more than 0"):
        automatic(0.0)


def test_residuals_are_computed_on_the_device_in_parts() -> None:
    """ "cpu:0" is to torch another device than "cpu"."""
    problem = Problem.from_clean(
        torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)), "inpaint:keep=0.5", 0.1
    )
    samples = torch.rand(2, 5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    here = residuals(problem, samples, torch.device("cpu"), 2)
    assert here.shape == (2, 5)
    torch.testing.assert_close(residuals(problem, samples, torch.device("cpu:0"), 2), here)
