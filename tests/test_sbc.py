"""Simulation-based calibration of solvers that are exact, and of twins that are not, under Gaussian priors."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from invdiff.errors import UsageError
from invdiff.exactness import sbc
from invdiff.exactness.problems import image_prior
from invdiff.exactness.sbc import quantities, simulate, uniformity
from invdiff.machine.random import generator
from invdiff.operator.spectral import dense_matrix
from invdiff.operators import get
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.priors.prior import WrappedPrior
from invdiff.problem.problem import Problem
from invdiff.restoration.solution import Solution

SHAPE = (1, 4, 4)
PRIOR = image_prior(SHAPE)
BLUR = get("gaussian_blur:sigma=0.8,size=3")
MATRIX = dense_matrix(BLUR, SHAPE)
SIGMA_Y = 0.1


def exact(
    y: torch.Tensor,
    operator: Any,
    noise: Any,
    prior: GaussianMixturePrior,
    solver: Any,
    steps: int | None,
    samples: int,
    seed: int,
    *,
    ids: list[str],
    batch_size: int,
    assumed: float = 1.0,
    shift: float = 0.0,
    deaf: bool = False,
) -> Solution:
    """In the place of `restore`: samples of p(x | y), with a noise level that is wrong by a factor, moved, or without y."""
    drawn = []
    for row, key in zip(y, ids, strict=True):
        posterior = prior if deaf else prior.posterior(MATRIX, row, assumed * noise)
        drawn.append(posterior.sample(samples, generator(seed, key, 1)) + shift)
    residual = torch.ones(samples, len(y))
    return Solution(torch.stack(drawn, 1), residual, 1, 0.0, seed, noise, operator.settings(), {"name": "exact"}, {})


def by(monkeypatch: pytest.MonkeyPatch, seed: int = 0, draws: int = 200, **twin: Any) -> sbc.Simulation:
    monkeypatch.setattr(sbc, "restore", partial(exact, **twin))
    return simulate(PRIOR, BLUR, SIGMA_Y, "mmps", draws=draws, seed=seed)


def test_exact_samples_pass_as_often_as_the_level_says(monkeypatch) -> None:
    found = [by(monkeypatch, seed, draws=60) for seed in range(25)]
    # a false alarm in 100; three in 25 have a probability of 2 in 1000
    assert sum(not simulation.calibrated for simulation in found) < 3
    each = [quantity for simulation in found for quantity in simulation.quantities.values()]
    assert np.mean([quantity.p_value < 0.05 for quantity in each]) < 0.09
    spreads = [(quantity.spread - 1) / quantity.spread_error for quantity in each]
    biases = [quantity.bias / quantity.bias_error for quantity in each]
    for values in (spreads, biases):  # 10 quantities of 25 runs, which depend on each other within a run
        assert abs(np.mean(values)) < 4 / 25**0.5 and 0.75 < np.std(values) < 1.25


@pytest.mark.parametrize("factor", [1 / 1.5, 1.5])
def test_a_wrong_noise_level_is_seen(monkeypatch, factor: float) -> None:
    """Too low a level makes the samples too narrow."""
    simulation = by(monkeypatch, assumed=factor)
    assert not simulation.calibrated and simulation.p_value < 1e-4
    spreads = [simulation.quantities[f"pixel {k}"].spread for k in (1, 2, 3)]
    assert (np.mean(spreads) > 1.1) if factor < 1 else (np.mean(spreads) < 0.9)


def test_samples_that_are_too_large_are_seen(monkeypatch) -> None:
    brightness = by(monkeypatch, shift=0.02).quantities["brightness"]
    assert brightness.p_value < 1e-4 and brightness.bias < -5 * brightness.bias_error


def test_only_the_likelihood_sees_samples_of_the_prior(monkeypatch) -> None:
    simulation = by(monkeypatch, deaf=True)
    deaf = simulation.quantities.pop("log likelihood")  # type: ignore[attr-defined]
    assert deaf.p_value < 1e-20 and simulation.calibrated


def test_solvers_themselves() -> None:
    """mmps with second-order steps is exact for a Gaussian up to rounding, in the limit of steps; dps is not."""
    run = partial(simulate, PRIOR, "identity", SIGMA_Y, draws=60, sigma_max=10)
    good = run("mmps:transition=dpmpp,iterations=12", 60)
    bad = run("dps", 60)
    assert good.calibrated and not bad.calibrated and bad.p_value < 1e-20
    assert good.about["solver"]["steps"] == 60 and good.about["noise"] == "gaussian:sigma=0.1"


def test_the_numbers_of_one_quantity() -> None:
    """Ranks 0 .. 3 of three samples, each with a place inside of it; bins of five draws at least."""
    ranks, places = np.array([0, 3, 3, 1, 2] * 4), np.linspace(0, 0.95, 20)
    found = uniformity(ranks, 3, places)
    u = (ranks + places) / 4
    assert found.counts == (4, 4, 4, 8) and found.ranks == tuple(ranks)
    assert found.chi_square == pytest.approx(sum((c - 5) ** 2 / 5 for c in found.counts))
    assert found.chi_square_p == pytest.approx(stats.chi2.sf(found.chi_square, 3))
    ordered = np.sort(u)
    steps = np.arange(20) / 20
    assert found.ks == pytest.approx(max((ordered - steps).max(), (steps + 0.05 - ordered).max()))
    assert found.bias == pytest.approx(u.mean() - 0.5)
    assert found.spread == pytest.approx(12 * np.mean((u - 0.5) ** 2))


def test_errors_and_band_are_those_of_uniform_numbers() -> None:
    rng = np.random.default_rng(0)
    found = [uniformity(rng.integers(0, 20, 50), 19, rng.random(50)) for _ in range(400)]
    assert np.std([one.bias for one in found]) == pytest.approx(found[0].bias_error, rel=0.15)
    assert np.std([one.spread for one in found]) == pytest.approx(found[0].spread_error, rel=0.15)
    low, high = sbc._band(50, 10)
    inside = np.mean([low <= count <= high for one in found for count in one.counts])
    assert len(found[0].counts) == 10 and 0.94 < inside < 0.99  # counts are whole numbers: a little more than 95 %
    assert np.mean([one.p_value < 0.05 for one in found]) < 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5


def test_quantities_by_hand() -> None:
    x = torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = Problem.from_clean(x, "identity", 0.1)
    found = {name: f(x, problem) for name, f in quantities((3, 2, 2)).items()}
    assert all(values.shape == (2,) and values.dtype == torch.float64 for values in found.values())
    a = x[1].numpy()
    assert found["brightness"][1] == pytest.approx(a.mean())
    assert found["contrast"][1] == pytest.approx(a.var())
    assert found["total variation"][1] == pytest.approx(
        np.abs(np.diff(a, axis=1)).sum() + np.abs(np.diff(a, axis=2)).sum()
    )
    density = stats.norm(a, 0.1).logpdf(problem.y[1].numpy()).sum()
    assert found["log likelihood"][1] == pytest.approx(density)
    assert float(found["pixel 1"][1]) in a.flatten().tolist()
    assert len({float(found[f"pixel {k}"][1]) for k in (1, 2, 3)}) == 3
    torch.testing.assert_close(quantities((3, 2, 2))["projection 1"](2 * x, problem), 2 * found["projection 1"])


def test_a_draw_is_the_same_in_any_company() -> None:
    run = partial(simulate, PRIOR, BLUR, SIGMA_Y, "ddrm", 3, samples=4, sigma_max=10)
    done: list[None] = []
    many = run(draws=14, advance=lambda: done.append(None))
    assert len(done) == 14
    few = run(draws=10, batch_size=1)
    for name, found in few.quantities.items():
        assert many.quantities[name].ranks[:10] == found.ranks


def test_a_prior_without_samples_of_its_own_is_sampled_by_diffusion() -> None:
    prior = WrappedPrior(PRIOR)
    prior.denoise = PRIOR.denoise  # type: ignore[method-assign]
    found = simulate(
        prior, "identity", 0.1, "ddrm", 3, shape=SHAPE, draws=10, samples=2, sampler="ddim", sampler_steps=4
    )
    assert found.about["sampler"] == "ddim" and found.about["shape"] == [1, 4, 4]
    with pytest.raises(UsageError, match=r"images of any size; give shape=\(C, H, W\)"):
        simulate(prior, "identity", 0.1, "ddrm")


def test_the_record_is_plain_and_the_table_tells(monkeypatch) -> None:
    simulation = by(monkeypatch, draws=20, shift=0.1)
    record = json.loads(json.dumps(simulation.record(), allow_nan=False))
    assert record["draws"] == 20 and record["samples"] == 19 and record["calibrated"] is False
    assert sum(record["quantities"]["brightness"]["counts"]) == 20 and len(record["band"]) == 2
    lines = simulation.lines()
    assert len(lines) == 12 and lines[1].startswith("brightness") and lines[-1].endswith("not the posterior")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"draws": 9}, "at least 10 draws and 2 samples of each, got draws=9, samples=19"),
        ({"samples": 1}, "got draws=100, samples=1"),
        (
            {"solver": "tds:particles=8", "samples": 12},
            "the 8 particles of a run .* samples=12 must be a multiple of 8",
        ),
        ({"solver": "dps", "size": 3}, "unknown parameter of dps 'size'"),
        ({"noise": "auto"}, "auto"),
        ({"noise": 0}, "noise must be more than 0"),
    ],
)
def test_unusable_arguments_are_refused(settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbc, "_images", lambda *_: pytest.fail("images were drawn before the arguments were checked"))
    with pytest.raises(UsageError, match=words):
        simulate(**{"prior": PRIOR, "operator": BLUR, "noise": SIGMA_Y, "solver": "ddrm", **settings})
