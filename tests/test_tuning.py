"""`invdiff tune`: the space it searches, its scores, stopping and going on, what it refuses, and the presets it writes."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import invdiff
from invdiff import operators, solvers
from invdiff.cli.main import main
from invdiff.errors import UsageError
from invdiff.evaluation.measured_folder import Picture, Pictures
from invdiff.evaluation.tuning import guard as sets
from invdiff.evaluation.tuning import outcome, search, space
from invdiff.files.images import write_image
from invdiff.noise import noise_model
from invdiff.priors import GaussianPrior
from invdiff.problem.problem import Problem
from invdiff.scores.metrics import crps
from invdiff.specs.parameters import declarations

SHAPE = (1, 12, 12)
BLUR = operators.get("gaussian_blur:sigma=1")
NOISE = noise_model(0.1)


def gaussian() -> GaussianPrior:
    """Smooth images: a covariance that falls off with the distance of two pixels."""
    place = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")).flatten(1).T
    covariance = 0.04 * torch.exp(-torch.cdist(place, place) / 4)
    return GaussianPrior(torch.full(SHAPE, 0.5), covariance)


def pictures(count: int = 4) -> Pictures:
    truths = gaussian().sample(count, torch.Generator().manual_seed(1)).float()
    found = []
    for k, truth in enumerate(truths):
        y = invdiff.degrade(truth[None], BLUR, NOISE, ids=[f"{k}.png"])[0]
        found.append(Picture(f"{k}.png", f"{k:016x}", truth, y))
    return Pictures(Path("photos"), tuple(found))


def judge(**changes: Any) -> search.Judge:
    return replace(search.Judge(BLUR, NOISE, gaussian()), **changes)


def tuned(solver: str = "diffpir", trials: int = 12, count: int = 4, **options: Any) -> outcome.Outcome:
    chosen, fixed = outcome.prepare(solver, 4, options.pop("fixed", {}))
    rules = judge(**{key: options.pop(key) for key in ("metric", "samples", "seed") if key in options})
    return outcome.tune(rules, pictures(count), chosen, trials=trials, fixed=fixed, **options)


def dimensions(solver: str, fixed: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> dict[str, space.Dimension]:
    """The whole space, with what is searched only where it is asked for, unless `only` says."""
    problem = Problem.from_measurement(pictures().usable[0].y[None], BLUR, NOISE)
    found = {d.name: d for d in space.space(solvers.get(solver), problem, gaussian(), fixed, only)}
    for name in [d.name for d in declarations(solvers.REGISTRY[solver.partition(":")[0]])] if not only else ():
        with contextlib.suppress(UsageError):  # fixed, or not of this solver
            found |= {d.name: d for d in space.space(solvers.get(solver), problem, gaussian(), fixed, [name])}
    return found


# --- the space ---


def test_the_space_follows_the_declarations() -> None:
    found = dimensions("diffpir")
    assert "steps" not in found
    assert (found["zeta"].low, found["zeta"].high, found["zeta"].log) == (0, 1, False)
    assert (found["lam"].low, found["lam"].high) == pytest.approx((0.15, 15)) and found["lam"].log
    assert found["spacing"].choices == ("timestep", "quadratic", "log")
    assert found["sigma_min"].default == pytest.approx(gaussian().sigma_min)
    # A Gaussian prior can be sampled; only methods with a conditional mean take a sampler's transition.
    assert found["initial"].choices == ("measurement", "noise", "prior")
    assert "transition" not in dimensions("dps") and "transition" in found
    assert (dimensions("mmps")["iterations"].low, dimensions("mmps")["iterations"].high) == (1, 12)
    assert (dimensions("fast_dips")["budget"].low, dimensions("fast_dips")["budget"].high) == (0, 1)


@pytest.mark.parametrize("name", solvers.names())
def test_every_end_of_the_space_is_allowed(name: str) -> None:
    declared = {d.name: d for d in declarations(solvers.REGISTRY[name])}
    for dimension in dimensions(name).values():
        values = dimension.choices or (dimension.low, dimension.high)
        for value in values:
            declared[dimension.name].convert(int(value) if dimension.whole else value, name)


@pytest.mark.parametrize("name", solvers.names())
def test_no_setting_takes_more_calls_than_the_defaults(name: str) -> None:
    solver = solvers.get(name, steps=40)
    for dimension in dimensions(name).values():
        for value in dimension.choices or (dimension.low, dimension.high):
            try:
                changed = space.with_settings(solver, {dimension.name: int(value) if dimension.whole else value})
            except UsageError:
                continue  # one step alone costs more
            assert changed.nfe <= solver.nfe
    # The twin: settings of several calls a step, with as many steps.
    assert solvers.get("daps:steps=40,ode_steps=4").nfe > solvers.get("daps:steps=40").nfe


def test_only_and_fix_narrow_the_space() -> None:
    assert list(dimensions("diffpir", only=("lam",))) == ["lam"]
    problem = Problem.from_measurement(pictures().usable[0].y[None], BLUR, NOISE)
    usual = [d.name for d in space.space(solvers.get("diffpir"), problem, gaussian())]
    assert usual == ["sigma_max", "sigma_min", "zeta", "lam"]
    assert "lam" not in dimensions("diffpir", fixed=("lam",))
    with pytest.raises(UsageError, match=r"to search: 'lamb'. Did you mean 'lam'"):
        dimensions("diffpir", only=("lamb",))
    with pytest.raises(UsageError, match="diffpir has nothing to tune besides"):
        dimensions("diffpir", fixed=tuple(dimensions("diffpir")))


# --- the search ---


def test_gains_are_those_of_the_best_settings_over_the_defaults() -> None:
    result = tuned()
    assert result.better and len(result.found.trials) == 12 and result.held_back is None
    assert all(value == 0 for value in outcome.Part(1, result.found.defaults, result.found.defaults).gains.values())

    def by_hand(solver: Any, picture: Picture) -> float:
        solution = invdiff.restore(picture.y[None], BLUR, NOISE, gaussian(), solver, ids=[picture.key])
        difference = (solution.mean[0] * 255).clamp(0, 255).round() / 255 - (
            picture.truth.clamp(0, 1) * 255
        ).round() / 255
        return -10 * math.log10(float(difference.double().square().mean()))

    for picture in result.pictures.usable:
        gain = by_hand(result.tuned, picture) - by_hand(solvers.get("diffpir:steps=4"), picture)
        assert gain == pytest.approx(result.searched.gains[picture.key], abs=1e-4)  # float32 images
    assert result.searched.gain == max(
        t.gain for t in result.found.trials if t.state == "complete" and t.gain is not None
    )


def test_less_crps_is_a_gain() -> None:
    result = tuned(metric="crps", samples=3, trials=3, count=3)
    rules, best = (
        result.judge,
        max((t for t in result.found.trials if t.state == "complete"), key=lambda t: t.gain or 0),
    )
    assert rules.gain({"a": 0.1}, {"a": 0.3}) == pytest.approx(0.2)
    assert judge().gain({"a": 0.1}, {"a": 0.3}) == pytest.approx(-0.2)  # the twin: PSNR
    solver = solvers.get(best.solver)
    for picture in result.pictures.usable:
        solution = invdiff.restore(picture.y[None], BLUR, NOISE, gaussian(), solver, samples=3, ids=[picture.key])
        assert best.scores[picture.key] == pytest.approx(float(crps(solution.samples, picture.truth[None])), rel=1e-5)
    with pytest.raises(UsageError, match="samples=1: crps takes at least 2"):
        judge(metric="crps")


def test_the_seed_decides() -> None:
    first, again, other = tuned(trials=5), tuned(trials=5), tuned(trials=5, seed=1)
    assert [t.settings for t in first.found.trials] == [t.settings for t in again.found.trials]
    assert first.preset().to_dict() == again.preset().to_dict()
    assert [t.settings for t in first.found.trials] != [t.settings for t in other.found.trials]


def without_times(result: outcome.Outcome) -> list[Any]:
    return [replace(trial, seconds=0.0) for trial in result.found.trials]


def test_a_search_that_was_stopped_goes_on_as_the_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuned(trials=14, journal=tmp_path / "whole.journal")
    journal = tmp_path / "stopped.journal"
    for calls in (5, 17, 30):  # Ctrl-C among the defaults, then inside of trials
        original, left = search.Judge.scores, [calls]

        def interrupted(self: Any, *arguments: Any, original: Any = original, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return original(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(search.Judge, "scores", interrupted)
            with pytest.raises(KeyboardInterrupt):
                tuned(trials=14, journal=journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":6,"trial')  # what kill -9 leaves
    resumed = tuned(trials=14, journal=journal)
    assert without_times(resumed) == without_times(whole)
    assert resumed.preset().to_dict() == whole.preset().to_dict()
    known = len(journal.read_bytes())
    assert without_times(tuned(trials=14, journal=journal)) == without_times(whole)
    assert len(tuned(trials=15, journal=journal).found.trials) == 15 and len(journal.read_bytes()) > known


def test_a_killed_trial_is_tried_again(tmp_path: Path) -> None:
    import optuna

    journal = tmp_path / "killed.journal"
    whole = tuned(trials=4)
    tuned(trials=2, journal=journal)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    optuna.load_study(study_name="tune", storage=storage).ask()  # and nothing told
    assert without_times(tuned(trials=4, journal=journal)) == without_times(whole)


def test_the_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    tuned(trials=1, journal=tmp_path / "a.journal")
    with pytest.raises(UsageError, match=r"belongs to a search of seed 0; choose another -o, or --restart"):
        tuned(trials=1, journal=tmp_path / "a.journal", seed=1)


def test_poor_trials_stop_early() -> None:
    trials = tuned(trials=30, count=6).found.trials
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned and all(2 <= len(trial.scores) < 6 for trial in pruned)
    assert all(len(trial.scores) == 6 for trial in trials if trial.state == "complete")
    # Given up on the pictures that were seen: below the median of the finished trials there.
    first = pruned[0]
    earlier = [t for t in trials[: first.number - 1] if t.state == "complete"]
    defaults = tuned(trials=1, count=6).found.defaults

    def seen(trial: search.Trial) -> float:
        return float(np.mean([trial.scores[key] - defaults[key] for key in first.scores]))

    assert seen(first) < np.median([0.0, *map(seen, earlier)])


def test_impossible_trials_are_counted_and_harm_nothing() -> None:
    chosen, _ = outcome.prepare("diffpir", 4, {"sigma_min": 0.5})
    low = space.Dimension("sigma_max", 0.6, low=0.01, high=0.49)
    found = search.search(judge(), chosen, [low], pictures().usable, trials=3, setup={})
    assert [trial.state for trial in found.trials] == ["impossible"] * 3 and found.best is None
    assert "sigma_min=0.5 is above sigma_max" in found.trials[0].error
    some = space.Dimension("sigma_max", 0.6, low=0.1, high=1.0)
    states = [
        trial.state for trial in search.search(judge(), chosen, [some], pictures().usable, trials=8, setup={}).trials
    ]
    assert {"impossible", "complete"} <= set(states)


def test_a_gain_that_is_gone_on_held_back_pictures_is_none() -> None:
    result = tuned(trials=6, count=8)
    assert result.held_back is not None and len(result.held_back.gains) == 2 and len(result.searched.gains) == 6
    worse = outcome.Part(1, result.held_back.defaults, dict.fromkeys(result.held_back.defaults, 0.0))
    preset = replace(result, held_back=worse).preset()
    assert not preset.better and preset.solver == solvers.get("diffpir:steps=4")
    better = outcome.Part(1, result.held_back.defaults, dict.fromkeys(result.held_back.defaults, 99.0))
    assert replace(result, held_back=better).preset().solver == result.tuned


@pytest.mark.parametrize(
    "solver, steps, fixed, words",
    [
        ("auto", 4, {}, "name the solver to tune"),
        ("diffpr", 4, {}, "unknown solver 'diffpr'. Did you mean 'diffpir'"),
        ("diffpir", 4, {"lamb": "1"}, "unknown parameter of diffpir 'lamb'"),
        ("diffpir", 4, {"steps": "5"}, "steps of diffpir is given twice"),
        ("diffpir:lam=1", 4, {"lam": "2"}, "lam of diffpir is given twice"),
        ("diffpir", 4, {"zeta": "2"}, "zeta='2' must be >= 0 and <= 1"),
    ],
)
def test_wrong_solvers_and_settings_are_refused(solver: str, steps: int, fixed: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        outcome.prepare(solver, steps, fixed)


def test_a_solver_that_cannot_use_the_operator_is_refused() -> None:
    chosen, fixed = outcome.prepare("ddrm", 4, {})
    rules = replace(judge(), operator=operators.get("gamma"))
    with pytest.raises(UsageError, match="ddrm needs a linear operator"):
        outcome.tune(rules, pictures(), chosen, fixed=fixed)


# --- test sets ---


def photo(path: Path, seed: int, side: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)))
    return path


@pytest.mark.parametrize("name", ["CBSD68/a.png", "set_14/a.png", "more/Kodak24/a.png", "FFHQ-256/val/a.png"])
def test_folders_named_like_a_test_set_are_refused(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "data" / name, 0)
    with pytest.raises(UsageError, match="the name of a test set"):
        sets.refuse_test_sets(tmp_path / "data")
    assert "test set" in (sets.refuse_test_sets(tmp_path / "data", allow=True) or "")


def test_a_link_to_a_test_set_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "set5" / "a.png", 0)
    (tmp_path / "mine").symlink_to(tmp_path / "set5")
    with pytest.raises(UsageError, match="set5"):
        sets.refuse_test_sets(tmp_path / "mine")


@pytest.mark.parametrize("faces", ["{path: held, crop: 8}", "held"])
def test_pictures_of_a_suite_are_refused_by_content_or_folder(tmp_path: Path, faces: str) -> None:
    photo(tmp_path / "held" / "a.png", 0)
    mine = photo(tmp_path / "mine" / "renamed.png", 0).parent
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"data: {{faces: {faces}}}\noperators: [identity]\nnoises: [0.05]\n")
    assert sets.refuse_test_sets(mine) is None
    with pytest.raises(UsageError, match=r"renamed.png is a of faces in suite suite"):
        sets.refuse_test_sets(mine, [suite])
    photo(mine / "renamed.png", 1)
    assert sets.refuse_test_sets(mine, [suite]) is None
    with pytest.raises(UsageError, match="a folder called held, the name of a test set"):
        sets.refuse_test_sets(tmp_path / "held", [suite])


def test_pictures_of_a_run_are_refused_by_their_content(tmp_path: Path) -> None:
    from hashlib import sha256

    mine = photo(tmp_path / "mine" / "b.png", 0)
    (tmp_path / "run").mkdir()
    line = {"cell": "0", "image": "a", "file": sha256(mine.read_bytes()).hexdigest()[:16]}
    (tmp_path / "run" / "results.jsonl").write_text(json.dumps(line) + '\n{"cell": "0", "ima')
    with pytest.raises(UsageError, match=r"b\.png is a in the run"):
        sets.refuse_test_sets(mine.parent, [tmp_path / "run"])
    with pytest.raises(UsageError, match="is no run of"):
        sets.refuse_test_sets(mine.parent, [tmp_path / "mine"])


# --- the command, and what restore makes of a preset ---


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from invdiff.training.checkpoint import export_pipeline
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network, build_scheduler

    config = TrainingConfig(widths=(8, 16), groups=4, crops=(16,), pixels=256)
    folder = tmp_path_factory.mktemp("prior")
    return export_pipeline(build_network(config), build_scheduler(config), config, folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a.png", "b.png", "more/a.png")):
        photo(tmp_path / "photos" / name, index)
    return tmp_path


TASK = ["--operator", "gaussian_blur:sigma=1", "--noise", "0.05"]
COMMAND = ["tune", "--data", "photos", *TASK, "--solver", "diffpir", "--steps", 2, "--trials", 3, "-o", "p.yaml"]
EXACT = ["--precision", "fp32", "--device", "cpu"]


def test_tune_writes_a_preset_that_restore_reads(folder: Path, tiny: Path) -> None:
    result = invoke(*COMMAND, *EXACT, "--prior", tiny)
    assert result.exit_code == 0, result.output
    assert "more/a.png" in result.stdout and "written: p.yaml" in result.stdout and Path("p.journal").exists()
    preset = solvers.load_preset("p.yaml")
    assert preset.tuned_for["data"]["images"] == 3 and preset.tuned_for["operator"] == "gaussian_blur:sigma=1"
    before = Path("p.yaml").read_bytes()
    words = shlex.split(preset.command)
    assert invoke(*words[1:], *EXACT).exit_code == 0  # nothing left to try
    assert Path("p.yaml").read_bytes() == before

    options = ["restore", "photos/a.png", "-o", "x.png", *TASK, *EXACT, "--prior", tiny]
    result = invoke(*options, "--preset", "p.yaml")
    notes = [line for line in result.stderr.splitlines() if "the measurement is not fitted" not in line]
    assert result.exit_code == 0 and "note" not in "".join(notes), result.output  # two steps fit nothing
    record = json.loads(Path("x.png.json").read_text())
    assert record["preset"]["sha256"] == preset.sha256 and record["preset"]["better"] is preset.better
    assert record["preset"]["tuned_for"] == json.loads(json.dumps(preset.tuned_for))
    assert {"name": "diffpir", **preset.to_dict()["settings"]}.items() <= record["solver"].items()
    assert "--preset" not in record["command"]  # the settings are spelled out, so the file may be gone
    image = Path("x.png").read_bytes()
    Path("p.yaml").unlink()
    assert invoke(*shlex.split(record["command"])[1:]).exit_code == 0 and Path("x.png").read_bytes() == image


def test_restore_tells_where_a_preset_does_not_fit(folder: Path, tiny: Path) -> None:
    assert invoke(*COMMAND, *EXACT, "--prior", tiny).exit_code == 0
    options = ["--noise", 0.1, "--operator", "gaussian_blur:sigma=1", *EXACT, "--prior", tiny, "--preset", "p.yaml"]
    result = invoke("restore", "photos/a.png", "-o", "x.png", *options, "--steps", 3)
    assert result.exit_code == 0, result.output
    assert "was tuned for noise gaussian:sigma=0.05, this is gaussian:sigma=0.1" in result.stderr
    assert "the preset p.yaml holds diffpir:steps=2" in result.stderr
    assert "tuned for operator" not in result.stderr and "tuned for prior" not in result.stderr
    notes = json.loads(Path("x.png.json").read_text())["input"]["notes"]
    assert any("tuned for noise" in note for note in notes)
    result = invoke("restore", "photos/a.png", "-o", "x.png", *options, "--solver", "dps")
    assert result.exit_code == 2 and "--preset and --solver are both given" in result.output


def test_a_corrupt_picture_is_told_and_the_others_are_used(folder: Path, tiny: Path) -> None:
    Path("photos/bad.png").write_bytes(Path("photos/a.png").read_bytes()[:60])
    result = invoke(*COMMAND, *EXACT, "--prior", tiny)
    assert result.exit_code == 1 and "bad.png" in result.stderr and solvers.load_preset("p.yaml")
    assert solvers.load_preset("p.yaml").tuned_for["data"]["images"] == 3


def test_a_test_set_is_refused_and_marked(folder: Path, tiny: Path) -> None:
    Path("photos").rename("Set5")
    words = ["Set5" if word == "photos" else word for word in COMMAND]
    result = invoke(*words, *EXACT, "--prior", tiny)
    assert result.exit_code == 2 and "--allow-test-set" in result.output and not Path("p.yaml").exists()
    result = invoke(*words, *EXACT, "--prior", tiny, "--allow-test-set")
    assert result.exit_code == 0 and "warning" in result.stderr
    assert "Set5" in solvers.load_preset("p.yaml").tuned_for["data"]["test_set"]


@pytest.mark.parametrize(
    "change, words",
    [
        (["--solver", "diffpr"], "unknown solver"),
        (["--fix", "lamb=1"], "unknown parameter of diffpir 'lamb'. Did you mean 'lam'"),
        (["--operator", "blurr"], "unknown operator"),
        (["--noise", "-1"], "noise"),
        (["--noise", "0"], "noise must be more than 0"),
        (["--metric", "crps", "--samples", "1"], "at least 2 samples"),
        (["--data", "nowhere"], "no such file"),
        (["--data", "photos/a.png"], "is a file; name a folder"),
        (["--data", "empty"], "no images in empty"),
        (["--data", "photos/more"], "1 of 1 images can be used; give at least 2"),
        (["--metric", "ssim", "--crop", "10"], "at least 11 x 11"),
        (["-o", "p.json"], "a preset is a .yaml file"),
        (["-o", "photos.yaml"], "is a folder"),
        (["-o", "mine.yaml"], "exists and is no preset"),
        (["--suite", "photos"], "is no run of"),
        (["--suite", "none.yaml"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line(folder: Path, tiny: Path, change: list[str], words: str) -> None:
    Path("empty").mkdir()
    Path("photos.yaml").mkdir()
    Path("mine.yaml").write_text("notes: mine")
    result = invoke(*COMMAND, *EXACT, "--prior", tiny, *change)
    line = result.stderr.strip().splitlines()[-1]
    assert result.exit_code in (1, 2) and line.startswith("Error: ") and words in line and "bug" not in line
    assert Path("mine.yaml").read_text() == "notes: mine"


def test_without_optuna_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    result = invoke(*COMMAND)
    assert result.exit_code == 2 and "pip install 'invdiff[tune]'" in result.output


# --- preset files ---


def saved(path: Path, **changes: Any) -> Path:
    import yaml

    content = tuned(trials=1, count=2).preset("invdiff tune ...").to_dict() | changes
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not ...}))
    return path


def test_a_preset_keeps_everything(tmp_path: Path) -> None:
    made = tuned(trials=6).preset("invdiff tune --data photos")
    made.save(tmp_path / "p.yaml")
    read = solvers.load_preset(tmp_path / "p.yaml")
    assert read.solver == made.solver and read.to_dict() == made.to_dict()
    numbers = {"fingerprint": "12345e6789012345", "path": "007"}  # numbers for YAML 1.2
    odd = replace(made, tuned_for={**made.tuned_for, "data": {**made.tuned_for["data"], **numbers}})
    odd.save(tmp_path / "odd.yaml")
    assert solvers.load_preset(tmp_path / "odd.yaml").tuned_for["data"] == odd.tuned_for["data"]
    with pytest.raises(UsageError, match=r"a preset is a \.yaml file"):
        made.save(tmp_path / "p.json")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"kind": "invdiff evaluate"}, "is no preset"),
        ({"format": 2}, "format=2, but this invdiff reads format 1"),
        ({"sover": "dps"}, "unknown key in .* 'sover'. Did you mean 'solver'"),
        ({"solver": "diffpr"}, "unknown solver 'diffpr'. Did you mean 'diffpir'"),
        ({"solver": "diffpir:lam=1"}, "must be a name"),
        ({"solver": ...}, "lacks solver"),
        ({"settings": {"lamb": 1}}, "unknown parameter of diffpir 'lamb'"),
        ({"settings": {"lam": -1}}, "lam=-1 must be > 0"),
        ({"settings": [1]}, "settings=.* must be a list of"),
        ({"better": "perhaps"}, "must be true or false"),
        ({"tuned_for": {"operator": "identity"}}, "lacks tuned_for.noise, tuned_for.prior"),
        ({"tuned_for": {"operater": "identity"}}, "key of tuned_for .* 'operater'"),
    ],
)
def test_a_wrong_preset_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        solvers.load_preset(saved(tmp_path / "p.yaml", **changes))
    assert "p.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content, words", [("", "is no preset"), ("a: [", "not valid YAML"), ("- 1", "is no preset")])
def test_a_file_that_is_no_preset_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(UsageError, match=words):
        solvers.load_preset(tmp_path / "p.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        solvers.load_preset(tmp_path / "none.yaml")
