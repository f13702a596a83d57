"""Which solver is recommended: from a small table whose answers are known, and from the one that is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny import tiny_prior

import invdiff
from invdiff import operators, solvers
from invdiff.cli.main import main
from invdiff.errors import UsageError
from invdiff.evaluation.speed import Recorder
from invdiff.operator.contract import Operator
from invdiff.priors.gaussian import GaussianPrior
from invdiff.restoration import recommendation
from invdiff.restoration.auto import choose
from invdiff.restoration.recommendation import Score, family, recommend, within

SHAPE = (1, 16, 16)
TABLE = (
    Score("blur", 0.01, 20, "diffpir", 20, 3.0, 10 - 3.0, 0.02),
    Score("blur", 0.01, 20, "ddrm", 20, 2.0, 10 - 2.0, 0.01),
    Score("blur", 0.1, 20, "diffpir", 20, 1.0, 10 - 1.0, 0.03),
    Score("blur", 0.1, 20, "ddnm", 20, 1.5, 10 - 1.5, 0.04),
    Score("blur", 0.1, 100, "measurement_sde", 100, 2.5, 10 - 2.5, 0.02),
    Score("inpainting", 0.1, 20, "diffpir", 20, 9.0, 10 - 9.0, 0.02),
    Score("inpainting", 0.1, 20, "ddrm", 20, 8.0, 10 - 8.0, 0.01),
    Score("motion", 0.01, 20, "repaint", 20, 5.0, 5.0, 0.01),
    Score("motion", 0.01, 20, "diffpir", 20, 4.0, 6.0, 0.02),
    Score("denoising", 0.1, 20, "ddnm", 20, 5.0, 10 - 5.0, 0.01),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior(tmp_path_factory.mktemp("prior") / "tiny")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "scores", lambda: TABLE)


def names(spec: str, noise: float, budget: int = 20, aim: str = "psnr") -> list[str]:
    return [solver.name for _, solver in recommend(operators.get(spec), SHAPE, noise, budget, aim)]


def test_best_first_for_each_aim(table: None) -> None:
    assert names("gaussian_blur:sigma=1", 0.01) == ["diffpir", "ddrm"]
    assert names("gaussian_blur:sigma=1", 0.01, aim="sample") == ["ddrm", "diffpir"]
    assert names("gaussian_blur:sigma=1", 0.01, aim="single") == ["ddrm", "diffpir"]
    assert names("gaussian_blur:sigma=1", 0.1, aim="single") == ["diffpir", "ddnm"]


@pytest.mark.parametrize(("noise", "first"), [(0.001, "diffpir"), (0.031, "diffpir"), (0.032, "ddnm"), (0.9, "ddnm")])
def test_the_nearest_noise_level_in_ratio(table: None, noise: float, first: str) -> None:
    assert names("gaussian_blur:sigma=1", noise)[0] == first


def test_every_budget_that_is_not_above_counts(table: None) -> None:
    """More calls are not always better: a run of few calls that scored more is taken where many are allowed."""
    assert names("gaussian_blur:sigma=1", 0.1, 99) == ["ddnm", "diffpir"]
    assert names("gaussian_blur:sigma=1", 0.1, 100) == ["measurement_sde", "ddnm", "diffpir"]
    assert names("gaussian_blur:sigma=1", 0.1, 3) == ["ddnm", "diffpir"]
    for _, solver in recommend(operators.get("gaussian_blur:sigma=1"), SHAPE, 0.1, 100)[1:]:
        assert solver.nfe <= 20


def test_backward_passes_are_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of pigdm takes one, of mmps three. Nothing is cut that another solver's whole run can stand for."""
    lines = [("mmps", 5, 9.0), ("mmps", 10, 9.5), ("pigdm", 10, 8.0), ("pigdm", 20, 8.5), ("diffpir", 20, 1.0)]
    scores = tuple(Score("blur", 0.1, calls, spec, calls, gain, gain, 0.01) for spec, calls, gain in lines)
    monkeypatch.setattr(recommendation, "scores", lambda: scores)

    def runs(budget: int) -> list[tuple[str, int]]:
        found = recommend(operators.get("gaussian_blur:sigma=1"), SHAPE, 0.1, budget)
        return [(solver.name, solver.nfe) for _, solver in found]

    assert runs(40) == [("mmps", 10), ("pigdm", 20), ("diffpir", 20)]
    assert runs(39) == [("mmps", 5), ("pigdm", 10), ("diffpir", 20)]
    assert runs(19) == [("mmps", 4)] and runs(3) == []


@pytest.mark.parametrize("spec", [*solvers.names(), "mmps:iterations=2", "pigdm:transition=heun"])
def test_passes_are_what_a_run_makes(spec: str, tiny: Path) -> None:
    solver = within(spec, 24 if spec == "tds" else 3) or solvers.get(spec, steps=1)
    if spec == "dpir":
        solver = solvers.get(solver, settled=0)  # else it may end before
    prior = Recorder(invdiff.load_prior(tiny, device="cpu", precision="fp32"))
    operator = operators.get("gaussian_blur:sigma=1")
    y = invdiff.degrade(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), operator, noise=0.05)
    invdiff.restore(y, operator, 0.05, prior=prior, solver=solver)
    assert solver.passes == sum(call.images * (1 + call.backwards) for call in prior.calls)


def test_what_the_operator_does_not_offer_is_left_out(table: None) -> None:
    assert names("motion_blur:length=5,angle=30,boundary=circular", 0.01) == ["repaint", "diffpir"]
    assert names("motion_blur:length=5,angle=30,boundary=zero", 0.01) == ["diffpir"]  # no decomposition


def test_families() -> None:
    of = {"identity": "denoising", "gaussian_blur:sigma=1": "blur", "downsample:factor=2": "downsampling"}
    of |= {
        "motion_blur:length=5": "motion",
        "inpaint:keep=0.5": "inpainting",
        "random_subsample:keep=0.5": "inpainting",
        "inpaint:keep=1": "denoising",
        "inpaint:box=15x15": "holes",
        "inpaint:box=4x4": "inpainting",
        "inpaint:keep=0.3": "inpainting",
    }
    for spec, expected in of.items():
        assert family(operators.get(spec), SHAPE) == expected, spec
    rotation = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))[0]
    assert family(operators.Linear(rotation, shape=SHAPE), SHAPE) == "denoising"
    assert family(operators.Linear(rotation[:100], shape=SHAPE), SHAPE) == "other"


def test_an_operator_of_no_family_gets_the_mean_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the solvers that were measured in every family: one that was left out somewhere may not win by that."""
    lines = [
        ("blur", "diffpir", 1.0),
        ("inpainting", "diffpir", 5.0),
        ("blur", "ddnm", 2.0),
        ("inpainting", "ddnm", 3.0),
    ]
    lines += [("inpainting", "dps", 99.0)]
    scores = tuple(Score(kind, 0.1, 20, spec, 20, gain, gain / 2, 0.01) for kind, spec, gain in lines)
    monkeypatch.setattr(recommendation, "scores", lambda: scores)
    matrix = operators.Linear(torch.randn(9, 256, generator=torch.Generator().manual_seed(0)), shape=SHAPE)
    found = recommend(matrix, SHAPE, 0.1)
    assert [(score.solver, score.gain, score.single) for score, _ in found] == [
        ("diffpir", 3.0, 1.5),
        ("ddnm", 2.5, 1.25),
    ]


@pytest.mark.parametrize("name", solvers.names())
@pytest.mark.parametrize("budget", [7, 20, 101])
def test_a_budget_is_used_and_kept(name: str, budget: int) -> None:
    solver = within(name, budget)
    if solver is None:
        assert solvers.get(name, steps=1).nfe > budget
        return
    assert solver.nfe <= budget < solvers.get(solver, steps=solver.steps + 1).nfe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, 0), "at least one network call, got 0"),
        ((0.0, 20), "noise must be more than 0"),
        ((0.1, 20, "best"), "'best'.*psnr"),
    ],
)
def test_impossible_questions_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recommend(operators.get("identity"), SHAPE, *arguments)


def test_auto_takes_the_first(table: None) -> None:
    blur = operators.get("gaussian_blur:sigma=1")
    assert choose(blur, SHAPE, 0.1).spec == solvers.get("diffpir", steps=20).spec
    assert choose(blur, SHAPE, 0.1, several=True).spec == solvers.get("ddnm", steps=20).spec
    assert choose(blur, SHAPE, 0.1, 7, several=True).spec == solvers.get("ddnm", steps=7).spec
    y = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    prior = GaussianPrior(torch.full(SHAPE, 0.5), 0.05)
    assert invdiff.restore(y, blur, 0.1, prior=prior, steps=5).solver["name"] == "diffpir"
    assert invdiff.restore(y, blur, 0.1, prior=prior, steps=5, samples=2).solver["name"] == "ddnm"
    assert invdiff.restore(y, blur, 0.1, prior=prior, steps=5).nfe == 5


def test_auto_takes_no_point_estimate_for_several_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [Score("blur", 0.1, 20, "dpir", 20, 9.0, 9.0, 0.01), Score("blur", 0.1, 20, "diffpir", 20, 8.0, 8.0, 0.02)]
    monkeypatch.setattr(recommendation, "scores", lambda: tuple(lines))
    blur = operators.get("gaussian_blur:sigma=1")
    assert choose(blur, SHAPE, 0.1).name == "dpir" and choose(blur, SHAPE, 0.1, several=True).name == "diffpir"


@pytest.mark.parametrize("noise, calls", [(0.01, 20), (0.05, 3), (0.05, 20), (0.2, 5)])
@pytest.mark.parametrize(
    "operator, kind",
    [
        (operators.get("spectral_mixing", matrix=np.array([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])), "mixing"),
        (operators.get("grayscale"), "colour"),
        (operators.get("inpaint:box=24x24"), "holes"),
        (operators.get("inpaint:keep=0.3"), "inpainting"),
    ],
)
def test_mixes_colours_holes_and_pixels_are_chosen_for_by_their_own_measurements(
    operator: Operator, kind: str, noise: float, calls: int
) -> None:
    """What is best for one of them loses decibels on another."""
    assert recommendation.family(operator, (3, 64, 64)) == kind
    chosen = choose(operator, (3, 64, 64), noise, calls)
    lines = [s for s in recommendation.scores() if (s.family, s.noise) == (kind, noise)]
    runs = [(s, recommendation.within(s.solver, s.budget)) for s in lines]
    best = max(s.single for s, run in runs if run and run.passes <= calls and not run.unmet(operator))
    assert best == max(s.single for s, run in runs if run == chosen)


def test_the_best_differ_between_families_that_look_alike() -> None:
    mixed = operators.get("spectral_mixing", matrix=np.array([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]]))
    pixels = operators.get("inpaint:keep=0.3")
    assert choose(mixed, (3, 64, 64), 0.2).name != "dpir" and choose(pixels, (3, 64, 64), 0.2).name == "dpir"


def test_auto_without_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommendation, "scores", lambda: ())
    assert choose(operators.get("inpaint"), SHAPE, 0.1).name == "diffpir"


@pytest.mark.parametrize(
    ("spec", "single", "several"),
    [("jpeg", "dpir", "tmpd"), ("gamma", "dpir", "diffpir"), ("saturate", "fast_dips", "fast_dips")],
)
def test_auto_for_operators_that_are_not_linear(spec: str, single: str, several: str) -> None:
    """The best of docs/tables/nonlinear.md for noise 0.05, and the best of those that draw."""
    assert choose(operators.get(spec), SHAPE, 0.1).spec == solvers.get(single, steps=20).spec
    assert choose(operators.get(spec), SHAPE, 0.1, 7, several=True).name == several


def test_families_that_are_not_linear_are_ranked_by_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        ("tone", "daps", 3.0),
        ("tone", "dpir", 5.0),
        ("phase", "daps", 4.0),
        ("phase", "dpir", 1.0),
        ("phase", "diffpir", 9.0),
    ]
    scores = [Score(kind, 0.1, 20, spec, 20, None, gain, None) for kind, spec, gain in lines]
    monkeypatch.setattr(recommendation, "scores", lambda: (*TABLE, *scores))
    assert names("gamma", 0.1) == names("gamma", 0.1, aim="single") == ["dpir", "daps"]
    assert names("gamma", 0.1, aim="sample") == [] and names("phase_retrieval", 0.1)[0] == "diffpir"

    class Unmeasured(type(operators.get("gamma"))):
        family = "other"

    # Of no measured family: the mean over those that are not linear, of the solvers measured in all of them.
    found = recommend(Unmeasured(), SHAPE, 0.1)
    assert [(s.family, s.solver, s.gain, s.single) for s, _ in found] == [
        ("nonlinear", "daps", None, 3.5),
        ("nonlinear", "dpir", None, 3.0),
    ]


def test_the_shipped_table_is_complete_and_true_to_the_registry() -> None:
    scores = recommendation.scores()
    cells = {(score.family, score.noise, score.budget) for score in scores}
    spatial = {"denoising", "blur", "motion", "downsampling", "inpainting", "holes"}
    nonlinear = set(recommendation.NONLINEAR)
    assert spatial | set(recommendation.PIXELWISE) | nonlinear == {score.family for score in scores}
    assert 20 in {score.budget for score in scores}
    assert min(score.noise for score in scores) <= 0.01 and max(score.noise for score in scores) >= 0.2
    for kind, noise, budget in cells:
        specs = {s.solver for s in scores if (s.family, s.noise, s.budget) == (kind, noise, budget)}
        # More calls were measured of those that use them best.
        if kind in nonlinear:
            assert {"daps", "fast_dips", "mmps"} <= specs and ({"diffpir", "dpir", "dps"} <= specs or budget != 20)
            continue
        assert {"diffpir", "dpir"} <= specs and ({"dps", "pigdm"} <= specs or budget != 20 or kind == "holes"), (
            kind,
            noise,
            budget,
        )
    for score in scores:
        solver = within(score.solver, score.budget)
        assert solver is not None and solver.nfe == score.calls <= score.budget, score


def test_command() -> None:
    run = CliRunner().invoke
    result = run(main, ["solvers", "recommend", "--operator", "gaussian_blur:sigma=2", "--noise", "12.75/255"])
    assert result.exit_code == 0, result.output
    best = recommend(operators.get("gaussian_blur:sigma=2"), (3, 96, 96), 0.05)[0][1]
    assert f"--solver {best.spec}" in result.output and "blur, noise 0.05" in result.output
    more = run(main, ["solvers", "recommend", "--operator", "inpaint", "--noise", "0.05", "--all", "--aim", "sample"])
    assert more.exit_code == 0 and len(more.output.splitlines()) > 7
    curve = run(main, ["solvers", "recommend", "--operator", "gamma", "--noise", "0.05"])
    assert curve.exit_code == 0 and "tone, noise 0.05" in curve.output and "Example: --solver dpir" in curve.output
    spread = run(main, ["solvers", "recommend", "--operator", "gamma", "--noise", "0.05", "--aim", "sample"])
    assert spread.exit_code == 2 and "use --aim single" in spread.stderr
    wrong = run(main, ["solvers", "recommend", "--operator", "inpaint", "--noise", "0.05", "--shape", "3x"])
    assert wrong.exit_code != 0
