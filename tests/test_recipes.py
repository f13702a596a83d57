"""Settings and recipes: what is read from YAML, TOML, JSON and the command line, and what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from invdiff.cli.main import main
from invdiff.cli.training_progress import describe
from invdiff.errors import UsageError
from invdiff.training.config import TrainingConfig
from invdiff.training.recipe import FOLDER, check_recipe, overridden, parse_yaml, read_recipe, shipped_recipes

ROOT = Path(__file__).resolve().parents[1]
TINY: dict[str, Any] = {"widths": (8, 16), "groups": 4, "crops": (16,), "pixels": 512, "holdout": 1, "warmup": 0}


def tiny(**changes):
    return TrainingConfig(**TINY | changes)


# Settings


BAD_SETTINGS = {
    "channels": (0, "3", True, None),
    "widths": ((), (8, 0), "8,16", 8, (8.5, 16)),
    "blocks": (0, 1.5),
    "groups": (0, 3),
    "schedule": ("linaer", 3),
    "schedule_steps": (0, "many"),
    "prediction": ("eps", None, 1),
    "weighting": ("min-snr", None),
    "gamma": (0, math.nan),
    "sigma_data": (0, "half"),
    "crops": ((), (15,), (0,), 16),
    "pixels": (255, 1e9),
    "accumulate": (0, 1.5, True),
    "downscale": (-0.1, 1.1, math.nan, "half"),
    "orientations": ("mirror", 8),
    "value_range": ((1, 0), (0,), (0, 1, 2), 3, "0,1", (0, math.inf)),
    "low_noise": (-0.1, 1.1, math.nan),
    "weights": ({"a": -1}, {"a": "much"}, {"a": math.inf}, 3, {1: 1}),
    "steps": (0, 2.5, True),
    "minutes": (0, -1, math.inf, "long"),
    "optimizer": ("adam", None),
    "lr": (0, -1, math.nan, math.inf, "high"),
    "muon_lr": (0, math.inf),
    "warmup": (-1,),
    "decay": ("exponential", 0.5),
    "feed": ["device", 1],
    "cooldown": (-0.1, 1.1),
    "weight_decay": (-1, math.nan),
    "clip": (0, math.nan),
    "ema": (-0.1, 1.0, math.nan, (), (0.9, 0.9), (0.9, 1.0), "0.9", {"0.9": 1}),
    "precision": ("float32", None),
    "compile": (1, "yes", None),
    "init": (3, ["natural"]),
    "validate_every": (0, 0.5),
    "save_minutes": (0, math.nan),
    "holdout": (0,),
    "seed": (-1, 0.5),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_is_named(name):
    for value in BAD_SETTINGS[name]:
        with pytest.raises(UsageError, match=rf"(setting {name}=|unknown {name} )") as caught:
            tiny(**{name: value})
        assert "\n" not in str(caught.value)
    assert set(BAD_SETTINGS) == set(TrainingConfig().to_dict())


def test_settings_from_plain_data():
    config = tiny(weights={"a": 2}, minutes=90, schedule="cosine", value_range=(-1000, 2000), ema=(0.9, 0.99))
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert tiny(ema=0.99).ema == (0.99,)  # recipes of the first version have one number
    with pytest.raises(UsageError, match="Did you mean 'warmup'"):
        TrainingConfig.from_dict({"warm_up": 3})


# Files


YAML = """
# What I trained with
description: my microscope
data: [images, more.tar]
out: runs/mine
lr: 2e-4
muon_lr: .5e-2
widths: [8, 16]
groups: 4
crops: [16]
minutes: null
weights: {a: 2, b: .5}
ema: [0.99, 0.999]
compile: true
orientations: none
value_range: [-1.0e+3, 2000]
"""
TOML = """
description = "my microscope"
data = ["images", "more.tar"]
out = "runs/mine"
lr = 2e-4
muon_lr = 0.5e-2
widths = [8, 16]
groups = 4
crops = [16]
weights = {a = 2, b = 0.5}
ema = [0.99, 0.999]
compile = true
orientations = "none"
value_range = [-1000.0, 2000]
"""
EXPECTED = {"lr": 2e-4, "muon_lr": 5e-3, "widths": (8, 16), "groups": 4, "crops": (16,), "weights": {"a": 2, "b": 0.5}}
EXPECTED |= {"ema": (0.99, 0.999), "compile": True, "orientations": "none", "value_range": (-1000, 2000)}


def as_json() -> str:
    return json.dumps({"description": "my microscope", "data": ["images", "more.tar"], "out": "runs/mine"} | EXPECTED)


@pytest.mark.parametrize("suffix, text", [("yaml", YAML), ("yml", YAML), ("toml", TOML), ("json", as_json())])
def test_the_three_kinds_of_file_say_the_same(tmp_path, suffix, text):
    path = tmp_path / f"recipe.{suffix}"
    path.write_text(text)
    recipe = read_recipe(path)
    assert TrainingConfig.from_dict(recipe.settings) == TrainingConfig(**EXPECTED)
    assert (recipe.data, recipe.out, recipe.description) == (("images", "more.tar"), "runs/mine", "my microscope")


def test_one_source_of_data_needs_no_list(tmp_path):
    (tmp_path / "a.yaml").write_text("data: images\nlr: 1e-3")
    assert read_recipe(tmp_path / "a.yaml").data == ("images",)


SCALARS = {
    "2e-4": 2e-4, "1E+3": 1000.0, "-.5": -0.5, "12": 12, "+3": 3, "007": 7, "1_000": "1_000", "1:30": "1:30",
    "no": "no", "on": "on", "true": True, "False": False, "null": None, "~": None, "2026-01-02": "2026-01-02",
    "'2e-4'": "2e-4", "0x10": "0x10", "e5": "e5", ".": ".",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_yaml_is_read_by_the_rules_of_1_2(text):
    """https://yaml.org/spec/1.2.2/#1032-tag-resolution, with decimal whole numbers alone."""
    value = parse_yaml(f"key: {text}")["key"]
    assert value == SCALARS[text] and type(value) is type(SCALARS[text])


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.yaml", "learning_rate: 1", r"a\.yaml.*'learning_rate'.*Available: .*lr"),
        ("a.yaml", "warm_up: 1", "Did you mean 'warmup'"),
        ("a.yaml", "lr: fast", r"a\.yaml: training setting lr='fast': must be a finite number"),
        ("a.toml", 'steps = "many"', r"a\.toml: training setting steps='many': must be a whole number"),
        ("a.json", '{"widths": [8, "16"]}', r"a\.json: training setting widths=.*must be a list of whole numbers"),
        ("a.yaml", "decay: exponential", r"a\.yaml: unknown decay 'exponential'.*cosine"),
        ("a.yaml", "lr: 1\nlr: 2", r"a\.yaml: 'lr' is given twice"),
        ("a.json", '{"lr": 1, "lr": 2}', r"a\.json: 'lr' is given twice"),
        ("a.toml", "lr = 1\nlr = 2", r"a\.toml: not valid TOML"),
        ("a.yaml", "lr: [1", r"a\.yaml: not valid YAML: .*line 1"),
        ("a.yaml", "[8]: 1", r"a\.yaml: a key cannot be \[8\]"),
        ("a.yaml", "lr: !!python/object/apply:os.getcwd []", r"a\.yaml: not valid YAML: could not determine"),
        ("a.json", "lr: 1", r"a\.json: not valid JSON"),
        ("a.yaml", "- lr", "holds no settings"),
        ("a.yaml", "", "holds no settings"),
        ("a.yaml", "3: 4", "unknown setting in .*'3'"),
        ("a.yaml", "data: 3\nlr: 1", r"a\.yaml: data=3: must be a list"),
        ("a.yaml", "data: [1]\nlr: 1", r"a\.yaml: data=\[1\]"),
        ("a.yaml", "out: [x]\nlr: 1", r"a\.yaml: out=\['x'\]: must be text"),
        ("a.txt", "lr: 1", r"a\.txt: a recipe is a file that ends in \.yaml"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_recipe(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"lr: \xff")
    for name, words in (("nowhere.yaml", "No such file"), ("folder.yaml", "directory"), ("bytes.yaml", "utf-8")):
        with pytest.raises(UsageError, match=rf"{name}: .*{words}") as caught:
            read_recipe(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"unknown recipe 'natrual'\. Did you mean 'natural'"):
        read_recipe("natrual")


# Shipped recipes


def test_the_shipped_recipes_are_whole():
    assert set(shipped_recipes()) == {"natural", "grey", "small-cpu", "large-gpu"}
    for name, path in shipped_recipes().items():
        recipe = read_recipe(name)
        assert recipe == read_recipe(path) and path.parent == FOLDER
        assert recipe.description.endswith(".") and not recipe.data and not recipe.out
        TrainingConfig.from_dict(recipe.settings)


def test_natural_is_what_made_the_checkpoint():
    stored = json.loads((ROOT / "checkpoints" / "natural" / "recipe.json").read_text())
    assert TrainingConfig.from_dict(read_recipe("natural").settings) == TrainingConfig.from_dict(stored)


@pytest.mark.parametrize("name", ["natural", "grey", "small-cpu", "large-gpu"])
def test_shipped_networks_are_small(name):
    """At most 20 MiB in 16 bits, and 1.0 MFLOP a pixel and call."""
    from invdiff.priors.stored.diffusers_folder import flop_per_pixel
    from invdiff.training.network import build_network

    config = TrainingConfig.from_dict(read_recipe(name).settings)
    network = build_network(config)

    def check(factor=1.0):
        assert factor * 2 * sum(p.numel() for p in network.parameters()) <= 20 * 2**20
        assert factor * flop_per_pixel(network, config.channels, config.downsampling) <= 1.0e6

    check()
    with pytest.raises(AssertionError):
        check(10)
    assert (config.channels == 1) == (name == "grey")
    if name == "small-cpu":
        assert config.minutes == 20 and config.crops == (64,)
    if name == "large-gpu":
        assert config.minutes == 30 and config.pixels == 2**20 and config.precision == "bf16"


# The command line


def test_assignments_go_over_a_recipe():
    settings = {"lr": 1e-3, "weights": {"a": 1.0, "b": 1.0}, "minutes": 5.0}
    pairs = {"lr": "2e-4", "widths": "32,64", "crops": "[64, 96]", "ema": "0.9", "weights.a": "3", "minutes": "none"}
    pairs |= {"compile": "true", "orientations": "none", "init": "007", "value_range": "-1e3,2000"}
    got = overridden(settings, pairs.items())
    assert got == {
        "lr": 2e-4, "widths": [32, 64], "crops": [64, 96], "ema": [0.9], "weights": {"a": 3, "b": 1.0}, "minutes": None,
        "compile": True, "orientations": "none", "init": "007", "value_range": [-1000.0, 2000],
    }  # fmt: skip
    assert settings["weights"] == {"a": 1.0, "b": 1.0}
    assert overridden({}, [("weights", "{a: 2}")]) == {"weights": {"a": 2}}
    TrainingConfig.from_dict(overridden({}, [("widths", "8"), ("crops", "16"), ("init", "none")]))


@pytest.mark.parametrize(
    "key, text, words",
    [
        ("learning_rate", "1", "unknown setting in --set: 'learning_rate'"),
        ("lr.x", "1", "lr has no parts; write lr=1"),
        ("weights", "{a: ", "--set weights={a: : not valid YAML"),
    ],
)
def test_assignments_that_cannot_be_read(key, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        overridden({}, [(key, text)])
    assert "\n" not in str(caught.value)


def test_a_recipe_json_of_a_training_is_a_recipe():
    config = tiny(weights={"a": 2}, minutes=90)
    assert TrainingConfig.from_dict(check_recipe(json.loads(json.dumps(config.to_dict())), "x").settings) == config


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs `invdiff train ...` in an empty folder up to the training itself; returns what that was asked for."""
    from invdiff.training import engine

    monkeypatch.chdir(tmp_path)
    calls = []

    def train(config, data, out, **options):
        calls.append((config, tuple(data), str(out), options))
        options["report"]({"step": 3, "loss": 0.5, "lr": 1e-3, "progress": 1.0} | dict.fromkeys(SPEED, math.nan))

    monkeypatch.setattr(engine, "train", train)

    def run(*arguments):
        result = CliRunner().invoke(main, ["train", "--device", "cpu", *map(str, arguments)])
        assert not result.exit_code, result.output
        return calls.pop()

    return run


SPEED = ("images_per_second", "remaining")


def refused(*arguments) -> str:
    result = CliRunner().invoke(main, ["train", "--device", "cpu", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


def test_options_win_over_the_recipe_and_the_recipe_over_defaults(asked):
    Path("mine.yaml").write_text("data: [images]\nout: there\nlr: 2e-4\nseed: 3\nprecision: bf16\nsave_minutes: 1")
    config, data, out, options = asked("mine.yaml")
    assert (config.lr, config.seed, config.warmup, config.precision) == (2e-4, 3, 200, "bf16")
    assert (data, out, options["resume"]) == (("images",), "there", False)
    config, data, out, _ = asked("mine.yaml", "--lr", "1e-3", "--data", "a", "--data", "b", "-o", "here", "--ema", "0.5",
                                 "--ema", "0.9", "--set", "steps=7", "--set", "weights.x=2", "--precision", "auto",
                                 "--save-minutes", "2", "--init", "natural")  # fmt: skip
    assert (config.lr, config.seed, config.ema, config.steps, config.weights) == (1e-3, 3, (0.5, 0.9), 7, {"x": 2})
    assert (config.precision, config.save_minutes, config.init) == ("auto", 2, "natural")
    assert (data, out) == (("a", "b"), "here")
    assert asked("--data", "a", "--out", "b", "--minutes", "90")[0] == TrainingConfig(minutes=90)
    assert asked("--recipe", "mine.yaml")[0].seed == 3
    small = asked("small-cpu", "--data", "a", "--out", "b")[0]
    assert small == TrainingConfig.from_dict(read_recipe("small-cpu").settings)


def test_a_resume_goes_on_with_its_own_settings_and_data(asked):
    Path("out").mkdir()
    Path("out/recipe.json").write_text(json.dumps(tiny(lr=1e-3, steps=5).to_dict()))
    Path("out/provenance.json").write_text(json.dumps({"sessions": [{"data": ["/before"]}, {"data": ["/first"]}]}))
    config, data, _, options = asked("--out", "out", "--resume", "--steps", "9")
    assert config == tiny(lr=1e-3, steps=9) and data == ("/first",) and options["resume"]
    Path("mine.yaml").write_text("out: out\nlr: 2e-3\ndata: images")
    config, data, _, _ = asked("mine.yaml", "--resume")
    assert config == tiny(lr=2e-3, steps=5) and data == ("images",)
    assert asked("--out", "out", "--resume", "--data", "other")[1] == ("other",)


def test_wrong_usage_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("lr: 2e-4")
    both = ("--data", "a", "--out", "b")
    assert "'natural'" in refused("natrual", *both)
    assert "nowhere.yaml" in refused("nowhere.yaml", *both)
    assert "given twice" in refused("mine.yaml", "--recipe", "mine.yaml", *both)
    assert "--lr" in refused("mine.yaml", "--lr", "0", *both)
    assert "--set lr=... is given twice" in refused("--lr", "1e-3", "--set", "lr=2e-3", *both)
    assert "--set lr=... is given twice" in refused("--set", "lr=1", "--set", "lr=2", *both)
    assert "--set weights.a=... is given twice" in refused("--weight", "a=1", "--set", "weights.a=2", *both)
    assert "Did you mean 'steps'" in refused("--set", "step=3", *both)
    assert "training setting lr='fast'" in refused("--set", "lr=fast", *both)
    assert "--data" in refused("--out", "b") and "--out" in refused("--data", "a")


def test_an_absent_gpu_is_one_line(tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["train", "--data", "a", "--out", "b", "--device", "cuda"])
    assert result.exit_code == 2 and "device 'cuda' is not available here" in result.stderr
    result = CliRunner().invoke(
        main, ["train", "--data", "a", "--out", "b", "--device", "cpu", "--set", "precision=fp16"]
    )
    assert result.exit_code == 2 and "fp16 has no fast CPU kernels" in result.stderr


def test_list_and_help_show_the_recipes():
    listed = CliRunner().invoke(main, ["train", "--list"])
    helped = CliRunner().invoke(main, ["train", "--help"])
    assert listed.exit_code == helped.exit_code == 0
    for name in shipped_recipes():
        assert name in listed.output and name in helped.output


def test_the_line_of_facts():
    facts = {"step": 12, "loss": 0.03215, "lr": 4e-4, "images_per_second": 52.4, "remaining": 3725.2}
    assert describe(facts) == "step 12, loss 0.0321, learning rate 0.0004, 52.4 images/s, 1:02:05 left"
    assert describe(facts | dict.fromkeys(SPEED, math.nan)) == "step 12, loss 0.0321, learning rate 0.0004"


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(TrainingConfig().to_dict())
