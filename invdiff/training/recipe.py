"""Recipes: one file (YAML, TOML or JSON) that says how a training goes. Those in invdiff/recipes are known by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.errors import UsageError, unknown
from invdiff.specs.settings import parse_yaml, read_settings
from invdiff.training.config import TrainingConfig

FOLDER = Path(__file__).parents[1] / "recipes"
SETTINGS = {item.name: str(item.type) for item in dataclasses.fields(TrainingConfig)}
# What a recipe may hold beside the settings; the command line's --data and --out go before them.
OTHERS = ("description", "data", "out")


@dataclass(frozen=True)
class Recipe:
    """The settings that a file gives (the others keep their defaults), and what to train on, where the result goes."""

    source: str
    settings: Mapping[str, Any]
    data: tuple[str, ...] = ()
    out: str | None = None
    description: str = ""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with this package."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def read_recipe(source: str | Path) -> Recipe:
    """The recipe of a file (by its suffix .yaml, .yml, .toml or .json) or of a shipped name, checked.

    Raises UsageError that names the file and, where there is one, the faulty key: unknown, given twice, of a wrong type.
    """
    path = shipped_recipes().get(str(source)) or Path(source).expanduser()
    if not path.suffix and not path.exists():
        raise unknown("recipe", str(source), shipped_recipes(), "Or give a .yaml, .toml or .json file.")
    content = read_settings(path, "a recipe")
    return check_recipe(content, str(path))


def check_recipe(content: Any, source: str) -> Recipe:
    """The recipe in plain data; `source` names where it is from in the errors."""
    if not isinstance(content, Mapping) or not content:
        raise UsageError(
            f"{source}: holds no settings; a recipe is a list of `setting: value`, for instance `lr: 2e-4`"
        )
    known = [*SETTINGS, *OTHERS]
    for key in content:
        if key not in known:
            raise unknown(f"setting in {source}:", str(key), known)
    settings = {key: value for key, value in content.items() if key in SETTINGS}
    try:
        TrainingConfig.from_dict(settings)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from error
    data = content.get("data", ())
    data = (data,) if isinstance(data, str) else data
    if not isinstance(data, list | tuple) or not all(isinstance(item, str) for item in data):
        raise UsageError(f"{source}: data={data!r}: must be a list of folders or files")
    for key in ("out", "description"):
        if not isinstance(content.get(key, ""), str):
            raise UsageError(f"{source}: {key}={content[key]!r}: must be text")
    return Recipe(source, settings, tuple(data), content.get("out"), content.get("description", ""))


def overridden(settings: Mapping[str, Any], assignments: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The settings with `key=value` texts of a command line over them: ("lr", "2e-4"), ("widths", "32,64"),
    ("weights.native", "2"), ("minutes", "none"). Raises UsageError for a key that is not a setting."""
    result = dict(settings)
    for key, text in assignments:
        name, dot, inner = key.partition(".")
        if name not in SETTINGS:
            raise unknown("setting in --set:", name, SETTINGS)
        if dot and "Mapping" not in SETTINGS[name]:
            raise UsageError(f"--set {key}={text}: {name} has no parts; write {name}={text}")
        try:
            value = _value(text, SETTINGS[name])
        except ValueError as error:
            raise UsageError(f"--set {key}={text}: {' '.join(str(error).split())}") from error
        result[name] = {**result.get(name, {}), inner: value} if dot else value
    return result


def _value(text: str, kind: str) -> Any:
    """What a text of the command line means for a setting of this type."""
    if "None" in kind and text.strip().lower() == "none":
        return None
    if kind.startswith("str"):
        return text.strip()
    if kind.startswith("tuple") and not text.strip().startswith("["):
        text = f"[{text}]"
    return parse_yaml(text)
