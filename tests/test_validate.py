"""`invdiff validate`: its measures against closed forms, what it must flag, and the command with its files."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from invdiff import operators, solvers
from invdiff.cli.main import main
from invdiff.errors import UsageError
from invdiff.exactness import batteries, dense, page, problems, running
from invdiff.exactness import text as report
from invdiff.exactness.dense import Preconditioned
from invdiff.exactness.measures import (
    MEASURES,
    Score,
    Yardstick,
    average,
    significant,
    sliced_wasserstein,
    verdict,
)  # fmt: skip
from invdiff.exactness.mixture import LAST, SIGMA_MAX, mixture_cases, mixture_problem
from invdiff.exactness.problems import TOYS_2D, ExactProblem, exact_problem, gaussian_case, toy_case
from invdiff.machine.random import Draws, generator
from invdiff.operator.contract import Operator
from invdiff.operator.linalg import solve
from invdiff.operator.spectral import dense_matrix
from invdiff.priors.mixture import GaussianMixturePrior
from invdiff.priors.prior import Prior
from invdiff.problem.problem import Problem
from invdiff.solvers.solver import Move, Solver

COUNT = 800


def gaussian() -> ExactProblem:
    return gaussian_case("downsample", 0, 10, COUNT).make()[0]


def two_modes() -> ExactProblem:
    """Modes at -1 and 1 along the second axis, which y does not tell apart."""
    prior = GaussianMixturePrior(torch.tensor([[[[0.0, -1.0]]], [[[0.0, 1.0]]]]), torch.tensor(0.04))
    operator = operators.get("linear", matrix=torch.tensor([[1.0, 0.0]], dtype=torch.float64), shape=(1, 1, 2))
    return exact_problem("two modes", operator, prior, torch.tensor([[0.1]], dtype=torch.float64), 0.1)


@pytest.fixture(scope="module")
def yardsticks() -> dict[str, Yardstick]:
    moons = toy_case("moons", 10, COUNT).make()[0]
    return {p.name: Yardstick(p, COUNT, 0) for p in (gaussian(), two_modes(), moons)}


NAMES = ("gaussian/downsample", "two modes", "toys/moons")


@pytest.mark.parametrize("name", NAMES)
def test_exact_samples_pass_as_exact(yardsticks: dict[str, Yardstick], name: str) -> None:
    """Ten further sets of exact samples: each score lies within 5 standard errors of those that made the floor."""
    for trial in range(10):
        scores = yardsticks[name].scores(yardsticks[name].exact(f"trial {trial}"))
        assert verdict(scores) == "exact", {key: score.deviation for key, score in scores.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [2**0.25, 2**-0.25])
def test_a_variance_off_by_root_two_is_flagged(yardsticks: dict[str, Yardstick], name: str, factor: float) -> None:
    yardstick = yardsticks[name]
    samples = yardstick.mean + factor * (yardstick.exact("trial") - yardstick.mean)
    scores = yardstick.scores(samples)
    for measure in ("measured", "unmeasured"):
        assert not scores[measure].exact
        assert scores[measure].value == pytest.approx(factor**2, abs=5 * factor**2 * scores[measure].error)
    assert verdict(scores) != "exact" and scores["mean"].exact


@pytest.mark.parametrize("name", NAMES)
def test_a_shifted_mean_is_flagged(yardsticks: dict[str, Yardstick], name: str) -> None:
    yardstick = yardsticks[name]
    scores = yardstick.scores(yardstick.exact("trial") + 0.3 * yardstick.std)
    assert not scores["mean"].exact and not scores["wasserstein"].exact and verdict(scores) != "exact"
    assert scores["mean"].value == pytest.approx(0.3, abs=5 / math.sqrt(COUNT))
    assert scores["covariance"].exact and scores["unmeasured"].exact


def test_a_wrong_mode_weight_is_flagged(yardsticks: dict[str, Yardstick]) -> None:
    """Modes 0.5 and 0.5 drawn as 0.6 and 0.4: an error of the mean of 0.2 along an axis of deviation 1.02."""
    yardstick = yardsticks["two modes"]
    posterior = yardstick.problem.posterior
    wrong = GaussianMixturePrior(
        posterior.means, torch.stack([posterior.component_covariance(k) for k in range(2)]), [0.6, 0.4]
    )
    scores = yardstick.scores(wrong.sample(COUNT, generator(1, "wrong", 0)))
    assert not scores["mean"].exact and not scores["wasserstein"].exact
    assert scores["mean"].value == pytest.approx(0.2 / 1.02 / math.sqrt(2), abs=5 / math.sqrt(2 * COUNT))
    assert scores["measured"].exact


def test_the_floor_is_the_one_of_closed_form(yardsticks: dict[str, Yardstick]) -> None:
    """For a Gaussian posterior the scores of n exact samples have known moments; each within 5 of its own errors."""
    yardstick = yardsticks["gaussian/downsample"]
    C, n, repeats = yardstick.covariance, COUNT, 24
    assert yardstick.floor["mean"] ** 2 + yardstick.error["mean"] ** 2 == pytest.approx(1 / n, rel=0.15)
    wishart = math.sqrt(float(C.trace() ** 2 + (C @ C).trace()) / (n - 1))  # root of E ||S - C||_F^2
    assert yardstick.floor["covariance"] == pytest.approx(wishart / float(C.norm()), rel=0.03)
    for name, basis in yardstick.directions.items():
        inside = basis.mT @ C @ basis
        error = math.sqrt(2 / (n - 1) * float((inside @ inside).trace())) / float(inside.trace())
        assert yardstick.floor[name] == pytest.approx(1, abs=5 * error / math.sqrt(repeats))
        assert yardstick.error[name] == pytest.approx(error, rel=5 / math.sqrt(2 * repeats))
    assert yardstick.floor["coverage"] == pytest.approx(0.9, abs=0.01)


def test_the_sliced_wasserstein_distance_is_scipys(yardsticks: dict[str, Yardstick]) -> None:
    """And a pure shift m along one axis costs |u m| in each direction u."""
    from scipy.stats import wasserstein_distance

    yardstick = yardsticks["two modes"]
    samples, directions = yardstick.exact("trial"), (yardstick.slices / yardstick.slices.norm(dim=0)).numpy()
    a, b = yardstick.reference.numpy(), samples.numpy()
    expected = np.mean([wasserstein_distance(a @ u, b @ u) for u in directions.T])
    assert yardstick.values(samples)["wasserstein"] == pytest.approx(expected, rel=1e-9)
    shifted = yardstick.reference + torch.tensor([0.7, 0], dtype=torch.float64)
    assert yardstick.values(shifted)["wasserstein"] == pytest.approx(0.7 * np.abs(directions[0]).mean(), rel=1e-9)


def test_directions_are_those_that_y_tells_of() -> None:
    problem = gaussian()
    found = problem.directions()
    together = torch.cat(list(found.values()), 1)
    torch.testing.assert_close(together.mT @ together, torch.eye(64, dtype=torch.float64))
    assert found["measured"].shape[1] == 16  # the means of blocks of 2 x 2
    assert (problem.matrix @ found["unmeasured"]).abs().max() < 1e-12
    # A measurement as noisy as the prior is wide tells nothing.
    prior, y = problem.prior, torch.zeros(1, 64, dtype=torch.float64)
    loud = operators.get("linear", matrix=torch.eye(64, dtype=torch.float64), shape=(1, 8, 8))
    assert exact_problem("loud", loud, prior, y, 9.0).directions()["measured"].shape[1] == 0


@pytest.mark.parametrize("spec", ["downsample", "inpaint", "grayscale", "linear"])
def test_the_posterior_is_the_one_of_the_measurement(spec: str) -> None:
    """Against dense numpy: mu + C A^T (A C A^T + sigma_y^2 I)^-1 (y - A mu), also where pixels are masked."""
    problem = gaussian_case(spec, 3, 10, 50).make()[0]
    A = dense_matrix(problem.problem.operator, problem.prior.shape).numpy()
    mu, C = problem.prior.mean().flatten().numpy(), problem.prior.covariance().numpy()
    y = problem.problem.y.flatten().numpy()
    gain = C @ A.T @ np.linalg.inv(A @ C @ A.T + problem.problem.sigma_y**2 * np.eye(len(A)))
    np.testing.assert_allclose(problem.posterior.mean().flatten().numpy(), mu + gain @ (y - A @ mu), atol=1e-9)
    np.testing.assert_allclose(problem.posterior.covariance().numpy(), C - gain @ A @ C, atol=1e-9)
    residual = y - A @ problem.posterior.mean().flatten().numpy()
    assert np.sqrt((residual**2).mean()) < 2 * problem.problem.sigma_y


def test_the_mixture_is_the_benchmarks() -> None:
    """Its problems, one of each number, its levels, and distances in its unit."""
    problem = mixture_problem(8, 2, 1)
    mean = problem.prior.mean()
    torch.testing.assert_close(problem.matrix @ mean, problem.problem.operator.A(mean[None])[0])
    yardstick = Yardstick(problem, 200, 0)
    samples = yardstick.exact("trial")
    plain = sliced_wasserstein(yardstick.reference, samples, yardstick.slices)
    assert yardstick.values(samples)["wasserstein"] == pytest.approx(2 * plain)
    cases = mixture_cases({8: 2}, (20, 100), 50, 3)
    assert [case.label for case in cases] == [f"d=8 dy={dy} steps={n}" for dy in (1, 2, 4) for n in (20, 100)]
    assert [made.name for made in cases[0].make()] == ["mixtures/8/1/6", "mixtures/8/1/7"]
    solver = running.configured("pigdm", cases[0])
    assert (
        solver.levels(problem.problem, problem.prior) == pytest.approx(list(np.geomspace(SIGMA_MAX, LAST, 20)))
        and solver.initial == "prior"
    )


def test_the_mixture_table_has_every_cell(tmp_path: Path) -> None:
    """Solvers start from the noised prior, and a particle method is one population of as many samples as are compared."""
    arguments = [*TINY, "--solver", "pigdm", "--solver", "mcg_diff", "--problem", "mixture"]
    output = succeed(*arguments, "--json", tmp_path / "v.json").stdout
    assert re.search(r"^solver +calls +8,1 +8,2 +8,4$", output, re.M)
    assert re.search(r"^exact samples +[\d.]+ +[\d.]+ +[\d.]+$", output, re.M)
    assert re.search(r"^mcg_diff +2x40 +\S+ ", output, re.M) and re.search(r"^pigdm +2 +\S+ ", output, re.M)
    cases = json.loads((tmp_path / "v.json").read_text())["cases"]
    assert [case["label"] for case in cases] == [f"d=8 dy={dy} steps=2" for dy in (1, 2, 4)]
    settings = cases[0]["solvers"][2]["settings"]
    assert settings["initial"] == "prior" and settings["sigma_max"] == pytest.approx(SIGMA_MAX)


def test_averages_of_problems() -> None:
    parts = [{"mean": Score(1.0, 0.5, 0.3)}, {"mean": Score(3.0, 0.7, 0.4)}]
    found = average(parts)["mean"]
    assert (found.value, found.floor, found.error) == (2.0, pytest.approx(0.6), pytest.approx(0.25))
    assert found.deviation == pytest.approx(1.4 / 0.25)
    assert average([{"mean": parts[0]["mean"], "measured": parts[0]["mean"]}, parts[1]]).keys() == {"mean"}


def test_a_distance_below_the_floor_is_no_fault_and_nan_is() -> None:
    assert Score(0.0, 1.0, 0.01).exact and not Score(2.0, 1.0, 0.01).exact
    assert not Score(0.0, 1.0, 0.01, two_sided=True).exact
    assert not Score(math.nan, 1.0, 0.01).exact and not Score(math.inf, 1.0, 0.01).exact


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0123, "0.0123"), (0.5, "0.500"), (1.234, "1.23"), (56.78, "56.8"), (1e7, "1e+07"), (2e-6, "2e-06")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert significant(value) == text


@dataclass(frozen=True)
class Oracle(Solver):
    """Draws from the posterior itself, stretched by `factor`; `particles` at a time."""

    name = "oracle"
    consistent: ClassVar[bool] = False  # its samples are of the posterior, and stay as they are
    factor: float = 1.0
    particles: int = 1
    posterior: Any = None

    @property
    def population(self) -> int:
        return self.particles

    def walk(self, problem: Problem, prior: Prior, levels: Sequence[float], noise: Draws) -> Iterator[Move]:
        prior.denoise(torch.zeros(len(problem.y), *problem.image_shape, dtype=torch.float64), 1.0)
        x = noise.sample(self.posterior.sample, self.particles)
        x = self.posterior.mean() + self.factor * (x - self.posterior.mean())
        population = x.unflatten(0, (-1, self.particles))
        first = population[:, 0]
        yield Move(1.0, 0.0, first, first, first, population if self.particles > 1 else None)


@pytest.mark.parametrize("particles", [1, 30])
@pytest.mark.parametrize("factor", [1.0, 2**0.25])
def test_a_solver_that_draws_from_the_posterior_is_exact(
    monkeypatch: pytest.MonkeyPatch, particles: int, factor: float
) -> None:
    """Through the whole of a validation; the twin with a variance off by sqrt(2) is not."""
    case = gaussian_case("inpaint", 0, 10, COUNT)
    solver = Oracle(factor=factor, particles=particles, posterior=case.make()[0].posterior)
    monkeypatch.setattr(running, "configured", lambda spec, case: solver)
    (measured,) = running.validate(["oracle"], [case])
    exact, _, row = measured.rows
    assert exact.solver == running.EXACT and exact.verdict == "exact"
    assert (row.verdict == "exact") == (factor == 1.0), row.scores
    assert (row.population, row.calls) == (particles, 1)


def test_the_exact_score_gets_exact_with_more_levels() -> None:
    """Its error is that of the levels alone: the variance falls short by a share that shrinks like 1 / levels."""
    short = {}
    for steps in (25, 100, 400):
        case = gaussian_case("downsample", 0, steps, COUNT)
        yardsticks = [Yardstick(problem, COUNT, 0) for problem in case.make()]
        row = running.score_row(case, yardsticks, 0)
        short[steps] = 1 - row.scores["unmeasured"].value
        assert row.calls == steps
    slope = math.log(short[25] / short[100]) / math.log(4)
    assert 0.6 < slope < 1.3, short
    assert short[400] < short[100] / 2


def test_a_run_that_diverges_is_a_line_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    case = gaussian_case("identity", 0, 10, 50)
    posterior = case.make()[0].posterior
    broken = Oracle(factor=math.nan, posterior=posterior)
    monkeypatch.setattr(running, "configured", lambda spec, case: broken)
    (measured,) = running.validate(["oracle"], [case])
    assert measured.rows[2].verdict == "no result" and "NaN" in measured.rows[2].failure
    assert "oracle: NaN or infinity at step 1" in report.text([measured])
    assert "NaN or infinity" in page.page([measured], [], ABOUT)


ABOUT = {"command": "invdiff validate", "seed": 0, "seconds": 1.0, "versions": {"torch": "2"}}


def test_noise_of_a_batch_at_once() -> None:
    """Standard normal, different in every row, the same for the same generator, of any shape."""
    like = torch.zeros(1, dtype=torch.float64)
    first = running.JointDraws(generator(0, "a", 0), 400, (1, 4, 4), like)
    draws, more = first(), first.normal(3)
    assert draws.shape == (400, 1, 4, 4) and more.shape == (400, 3) and first.uniform(2).shape == (400, 2)
    assert abs(float(draws.mean())) < 5 / math.sqrt(6400) and abs(float(draws.var()) - 1) < 5 * math.sqrt(2 / 6400)
    assert (draws[0] != draws[1]).all()
    assert torch.equal(draws, running.JointDraws(generator(0, "a", 0), 400, (1, 4, 4), like)())


def test_every_operator_is_a_case_or_left_out_with_a_reason() -> None:
    cases, skipped = batteries.plan(["gaussian"], quick=True)
    assert {case.label for case in cases} | {name for name, _ in skipped} == set(operators.names())
    assert {case.operator.name for case in cases} >= {
        "identity",
        "downsample",
        "inpaint",
        "kernel_blur",
        "linear",
        "grayscale",
    }
    assert all(reason for _, reason in skipped)


def test_an_operator_that_is_not_linear_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, eq=False)
    class Clip(Operator):
        name = "clip"
        linear = False

    monkeypatch.setattr(operators, "get", lambda spec, **_: Clip())
    with pytest.raises(UsageError, match="clip is not linear, so its posterior has no closed form"):
        problems.build_operator("clip")


@pytest.mark.parametrize("wrong", [False, True])
def test_operators_without_a_decomposition_are_solved_alike_in_fewer_iterations(
    monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    operator, shape = problems.build_operator("varying_blur")
    assert isinstance(operator, Preconditioned) and not operator.has_svd and operator.spec.startswith("varying_blur")
    v = torch.randn(3, *shape, generator=generator(0, "data", 0), dtype=torch.float64)
    counts = []
    monkeypatch.setattr(
        "invdiff.operator.linalg.solve", lambda *given, **named: counts.append(found := solve(*given, **named)) or found
    )
    if wrong:  # the twin: another matrix takes iterations, and gives the same answer all the same
        monkeypatch.setattr(dense, "dense_matrix", lambda of, shape: 0 * dense_matrix(of, shape))
    own, fast = operator.of.solve_data(v, 300.0, 1.0), operator.solve_data(v, 300.0, 1.0)
    assert (own - fast).norm() < 1e-9 * own.norm()
    assert counts[0].iterations > 20
    assert (counts[1].iterations > 5) == wrong


def test_specs_keep_their_own_steps() -> None:
    case = gaussian_case("identity", 0, 7, 50)
    assert running.configured("pigdm", case).steps == 7
    assert running.configured("pigdm:steps=3,eta=0.5", case).steps == 3
    assert solvers.get("pigdm").steps not in (3, 7)


@pytest.mark.parametrize("name", list(TOYS_2D))
def test_the_plotted_density_is_the_posterior(name: str) -> None:
    """It integrates to one over the window, and its moments are the posterior's."""
    problem = toy_case(name, 5, 50).make()[0]
    (left, right, bottom, top), density, prior = page.densities(problem)
    cell = (right - left) * (top - bottom) / (page.GRID - 1) ** 2
    assert float(density.sum()) * cell == pytest.approx(1, abs=0.01)
    assert float(prior.sum()) * cell == pytest.approx(1, abs=0.01)
    ticks = np.linspace(left, right, page.GRID)
    centre = [float((density.sum(axis) * ticks).sum() / density.sum()) for axis in (0, 1)]
    np.testing.assert_allclose(centre, problem.posterior.mean().flatten().numpy(), atol=0.005)
    ends = page.observed_line(problem)
    np.testing.assert_allclose(problem.matrix[0].numpy() @ ends, float(problem.problem.y), atol=1e-9)


TINY = ("--quick", "--steps", "2", "--samples", "40")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object) -> Result:
    result = invoke("validate", *arguments)
    assert result.exit_code == 0, result.output
    return result


def test_one_solver_on_one_operator(tmp_path: Path) -> None:
    """Table, JSON and HTML of the same run; the JSON repeats itself but for the seconds."""
    files = ["--json", tmp_path / "a" / "v.json", "--html", tmp_path / "v.html"]
    output = succeed(*TINY, "--solver", "diffpir", "--operator", "downsample", *files).stdout
    assert "gaussian downsample: 16 of 64 directions measured, 40 samples, 2 noise levels" in output
    lines = [line.split() for line in output.splitlines() if line.startswith(("diffpir", "exact samples"))]
    assert len(lines) == 3 and lines[0][:2] == ["exact", "samples"] and lines[1][8] == "2"
    assert len(re.findall("^exact score ", output, re.M)) == 3
    assert max(map(len, output.splitlines())) <= 140
    content = json.loads((tmp_path / "a" / "v.json").read_text())
    assert content["command"].endswith(
        "validate --solver diffpir --operator downsample --quick --steps 2 --samples 40 --seed 0"
    )
    (case,) = content["cases"]
    assert (case["family"], case["label"], case["steps"], case["samples"]) == ("gaussian", "downsample", 2, 40)
    assert (
        case["directions"] == {"measured": 16, "unmeasured": 48} and case["operator"]["spec"] == "downsample:factor=2"
    )
    exact, score, row = case["solvers"]
    assert score["solver"] == running.SCORE and score["calls"] == 2
    assert exact["solver"] == running.EXACT and row["solver"] == "diffpir" and row["settings"]["steps"] == 2
    assert row["scores"].keys() == MEASURES.keys() and row["calls"] == 2 and row["population"] == 1
    assert row["scores"]["mean"].keys() == {"value", "exact_samples", "standard_error", "standard_errors_off"}
    assert {"torch", "invdiff", "python"} <= content["versions"].keys() and content["seed"] == 0
    text = (tmp_path / "v.html").read_text()
    assert "diffpir" in text and "src=" not in text.replace('src="data:', "") and "href=" not in text
    again = tmp_path / "again.json"
    succeed(*TINY, "--solver", "diffpir", "--operator", "downsample", "--json", again)
    for stored in (content, repeated := json.loads(again.read_text())):
        stored["cases"][0]["solvers"][1]["seconds"] = stored["cases"][0]["solvers"][2]["seconds"] = 0
    assert repeated["cases"] == content["cases"]
    succeed(*TINY, "--solver", "diffpir", "--operator", "downsample", "--json", again, "--seed", "1")
    other = json.loads(again.read_text())["cases"][0]["solvers"][2]["scores"]
    assert other["mean"]["value"] != row["scores"]["mean"]["value"]


def test_the_page_shows_the_samples_over_the_density(tmp_path: Path) -> None:
    from PIL import Image

    succeed(*TINY, "--solver", "pigdm", "--problem", "toys", "--html", tmp_path / "toys.html", "-q")
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', (tmp_path / "toys.html").read_text())
    assert len(found) == len(TOYS_2D)
    for text in found:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)
        assert pixels.shape[1] > 400 and pixels.std() > 5
        dots = (pixels[..., 0] > 150) & (pixels[..., 1] < 110) & (pixels[..., 2] < 90)
        shade = (pixels[..., 2] > 180) & (pixels[..., 0] < 140)
        assert dots.sum() > 40 and shade.sum() > 100


def test_the_full_list_of_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a choice every family is there; --operator leaves the Gaussian one."""
    cases, _ = batteries.plan(quick=True)
    assert {case.family for case in cases} == set(problems.FAMILIES)
    cases, _ = batteries.plan(operators=["downsample:factor=4", "downsample:factor=4"])
    assert [case.label for case in cases] == ["downsample:factor=4"] and cases[0].steps == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--solver", "difpir"], "unknown solver 'difpir'. Did you mean 'diffpir'?"),
        (["--solver", "diffpir:zet=1"], "Did you mean 'zeta'?"),
        (["--operator", "downsampel"], "unknown operator 'downsampel'. Did you mean 'downsample'?"),
        (["--operator", "downsample:factor=3"], "downsample:factor=3 cannot take 8 x 8 images"),
        (["--operator", "downsample", "--problem", "toys"], "--operator chooses among the gaussian problems"),
        (["--problem", "toy"], "is not one of"),
        (["--samples", "3"], "20"),
        (["--json", "folder"], "cannot write folder: it is a folder"),
        (["--json", "a.json", "--html", "a.json"], "both name a.json"),
        (["--json", "other.json"], "other.json exists and was not written by this command"),
        (["--html", "other.json/x.html"], "is no folder that you may write to"),
        (["--json", "/proc/x.json"], "cannot write /proc/x.json"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("other.json").write_text("{}")
    monkeypatch.setattr(running, "measure", lambda *_, **__: pytest.fail("computed before the arguments were checked"))
    result = invoke("validate", *arguments)
    assert result.exit_code in (1, 2) and words in result.stderr, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("Error: ")
    assert sorted(path.name for path in Path().iterdir()) == ["folder", "other.json"]


def test_a_solver_that_can_use_no_chosen_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers.REGISTRY["ddrm"], "needs", frozenset({"linear", "svd"}))
    without = "motion_blur:length=3,angle=30,boundary=reflect"
    result = invoke("validate", *TINY, "--solver", "diffpir", "--solver", "ddrm", "--operator", without)
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
    assert "ddrm needs a singular value decomposition, which motion_blur" in result.stderr
    assert "solvers that work: " in result.stderr and "diffpir" in result.stderr
    case = gaussian_case(without, 0, 2, 40)
    assert running.able(["ddrm", "diffpir"], case) == ["diffpir"]


def test_ctrl_c_leaves_the_older_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, made = tmp_path / "v.json", tmp_path / "v.html"
    arguments = [*TINY, "--solver", "diffpir", "--operator", "identity", "--json", target]
    succeed(*arguments)
    before = target.read_bytes()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for owner, name in ((running, "measure"), (page, "page")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            result = invoke("validate", *arguments, "--html", made)
        assert result.exit_code == 130 and "interrupted" in result.stderr
        assert target.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["v.json"]


def test_the_list_of_solvers_says_what_each_takes() -> None:
    listing = invoke("solvers", "list").stdout
    head, _, *lines = listing.splitlines()
    assert head.split() == ["solver", "method", "needs", "calls", "transition", "particles", "nonlinear"]
    start = {name: head.index(name) for name in head.split()}
    cell = {
        line.split()[0]: {name: line[column:].split("  ")[0].strip() for name, column in start.items()}
        for line in lines
        if line and line.split()[0] in solvers.names() and not line.startswith(" ")
    }
    assert cell.keys() == set(solvers.names())
    for name, cls in solvers.REGISTRY.items():
        assert (cell[name]["transition"] == "any") == cls.interchangeable, name
        assert (cell[name]["nonlinear"] == "yes") == ("linear" not in cls.needs), name
        assert (cell[name]["particles"] != "-") == (solvers.get(name).population > 1), name
        assert cell[name]["needs"].split(", ")[0].rstrip(",") == sorted(cls.needs)[0], name
    assert cell["diffpir"] | {"method": ""} == {
        "solver": "diffpir",
        "method": "",
        "needs": "differentiable",
        "calls": "20",
        "transition": "any",
        "particles": "-",
        "nonlinear": "yes",
    }
