"""The Gaussian-mixture benchmark: its definition, its yardstick, and what the solvers must reach on it."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mixtures import floor, log_levels, paper_levels, paper_times, run_solver, score, singular_values, summary
from scipy.stats import wasserstein_distance

from invdiff import solvers
from invdiff.exactness.measures import sliced_wasserstein
from invdiff.exactness.mixture import MEASURED, SIGMA_MAX, mixture_problem, schedule

CELLS = [(d, dy) for d in (8, 80) for dy in MEASURED]


@pytest.mark.parametrize(("d", "dy"), CELLS)
def test_problem_is_the_papers_in_our_units(d: int, dy: int) -> None:
    """Written down once more in the paper's unit, from our A and y: the exact posterior is the same."""
    case = mixture_problem(d, dy, 0)
    A = case.problem.operator.A(torch.eye(d, dtype=torch.float64)).numpy().T
    values = np.linalg.svd(A, compute_uv=False)
    np.testing.assert_allclose(values, singular_values(case), rtol=1e-9)
    sigma_y, y = 2 * case.problem.sigma_y, 2 * case.problem.y[0].numpy() - A.sum(1)  # y = (y' + A 1) / 2
    assert 0 < sigma_y < values.max() <= 1
    means = np.array([np.tile([-8.0 * i, -8.0 * j], d // 2) for i in range(-2, 3) for j in range(-2, 3)])
    np.testing.assert_allclose(2 * case.prior.means.numpy() - 1, means, atol=1e-9)
    S = sigma_y**2 * np.eye(dy) + A @ A.T
    gain, residual = A.T @ np.linalg.inv(S), y - means @ A.T
    log_w = np.log(case.prior.weights.numpy()) - 0.5 * np.einsum("ki,ij,kj->k", residual, np.linalg.inv(S), residual)
    weights = np.exp(log_w - log_w.max())
    np.testing.assert_allclose(case.posterior.weights.numpy(), weights / weights.sum(), atol=1e-8)
    np.testing.assert_allclose(2 * case.posterior.means.numpy() - 1, means + residual @ gain.T, atol=1e-6)
    np.testing.assert_allclose(4 * case.posterior.component_covariance(0).numpy(), np.eye(d) - gain @ A, atol=1e-9)


def test_schedule_is_the_papers() -> None:
    abar = schedule()
    assert len(abar) == 1000 and abar[0] == 1
    np.testing.assert_allclose([abar[1], abar[-1]], [0.98, 4.08e-5], rtol=2e-3)
    case = mixture_problem(8, 1, 0)
    levels = np.array(paper_levels(case, 20))
    np.testing.assert_allclose(levels[0], SIGMA_MAX)
    # sqrt(abar) of DDPM on [0, 1] is the benchmark's
    np.testing.assert_allclose(
        1 / np.sqrt(1 + 4 * levels[-1] ** 2), np.sqrt(abar[np.abs(abar - 1 / (1 + 4 * levels[-1] ** 2)).argmin()])
    )


@pytest.mark.parametrize("steps", [2, 20, 100])
@pytest.mark.parametrize("tau", [[0.3], [0.05, 2.0, 7.0]])
def test_paper_times(steps: int, tau: list[float]) -> None:
    """`steps` increasing times from 0 to 999, even in sqrt(abar) but for the directions' own levels, which are among them."""
    times = paper_times(steps, np.array(tau))
    assert times[0] == 0 and times[-1] == 999 and len(times) <= steps and sorted(set(times)) == times
    root = np.sqrt(schedule())
    if steps == 2:
        return
    noise = 1 / root**2 - 1
    met = [int(np.abs(noise - value**2).argmin()) for value in tau]
    assert set(met) <= set(times)
    drops = [root[a] - root[b] for a, b in itertools.pairwise(times) if b not in met and root[b] >= 0.01]
    aim = (1 - 0.01) / (steps - 1 - len(set(met)))
    step = np.abs(np.diff(root)).max()  # from one time to the next
    assert all(aim - step < drop < aim + step for drop in drops)


def test_sliced_wasserstein_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b, directions = rng.normal(size=(50, 3)), rng.normal(size=(50, 3)) + 0.4, rng.normal(size=(3, 7))
    units = directions / np.linalg.norm(directions, axis=0)
    expected = np.mean([wasserstein_distance(a @ u, b @ u) for u in units.T])
    ours = sliced_wasserstein(*(torch.from_numpy(part) for part in (a, b, directions)))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_floor_is_that_of_exact_samples() -> None:
    """The sampling floor of the definition at d = 8: 0.26 +- 0.06, 0.15 +- 0.08 and 0.06 +- 0.01 for dy = 1, 2, 4."""
    for dy, mean, error in ((1, 0.26, 0.06), (2, 0.15, 0.08), (4, 0.06, 0.01)):
        found, ours = summary([floor(mixture_problem(8, dy, index)) for index in range(10)])
        assert abs(found - mean) < error + ours, (dy, found, ours)


def test_summary() -> None:
    mean, error = summary([1.0, 2.0, 3.0, float("nan")])
    assert mean == 2 and abs(error - 1.96 * np.sqrt(2 / 3) / np.sqrt(3)) < 1e-12
    assert all(np.isnan(summary([float("nan")])))


def test_run_solver() -> None:
    """Independent runs and populations give as many samples as asked for, the same for the same seed."""
    case = mixture_problem(8, 2, 0)
    levels = log_levels(5)
    for spec in ("pigdm:initial=prior", "mcg_diff:particles=40,initial=prior", "mcg_diff:particles=60,initial=noise"):
        solver = solvers.get(spec, steps=5)
        found, again = (run_solver(solver, case, levels, seed=1, count=40) for _ in range(2))
        other = run_solver(solver, case, levels, seed=2, count=40)
        assert found.samples.shape == (40, 8) and torch.equal(found.samples, again.samples)
        assert not torch.equal(found.samples, other.samples)
        assert found.nfe == 5 * max(1, solver.population / 40)


@pytest.mark.parametrize(("dy", "target"), [(1, 0.7), (2, 0.5), (4, 0.2)])
def test_the_best_solver_reaches_its_target(dy: int, target: float) -> None:
    """Three problems of the cell (8, dy) at 100 steps and 1000 particles; all 20 are in docs/tables/mixtures.md."""
    solver = solvers.get("tds:spread=0.5,initial=prior,steps=100,particles=1000")
    cases = [mixture_problem(8, dy, index) for index in range(3)]
    scores = [score(case, run_solver(solver, case, log_levels(100)).samples) for case in cases]
    assert np.mean(scores) < target, scores


def test_without_weights_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation twin: the same particles, never resampled, miss the target where one measured value decides the mode."""
    from invdiff.solvers import particles

    def identity(log_weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.arange(log_weights.shape[1]).expand_as(log_weights)

    monkeypatch.setattr(particles, "systematic", identity)
    solver = solvers.get("tds:spread=0.5,initial=prior,steps=50,particles=1000")
    cases = [mixture_problem(8, 1, index) for index in range(3)]
    scores = [score(case, run_solver(solver, case, log_levels(50)).samples) for case in cases]
    assert np.mean(scores) > 0.7, scores


def test_benchmark_script_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A second run computes nothing again and prints the same table."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "mixtures.py"
    spec = importlib.util.spec_from_file_location("benchmark_mixtures", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_mixtures", script)
    spec.loader.exec_module(script)
    results, page = tmp_path / "r.jsonl", tmp_path / "t.md"
    arguments = ["--dimensions", "8", "--steps", "3", "--problems", "1", "--particles", "20", "--solvers", "MCGdiff"]
    monkeypatch.setattr(sys, "argv", ["mixtures.py", *arguments, "--results", str(results), "--markdown", str(page)])
    script.main()
    first, kept = page.read_text(), results.read_text()
    assert len(kept.splitlines()) == 6 and "| MCGdiff | 3 |" in first and "exact samples" in first
    monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("computed again"))
    script.main()
    assert page.read_text() == first and results.read_text() == kept
