"""Recipes: one file (YAML, TOML or JSON) that says how a training goes. Those in invdiff/recipes are known by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invdiff.errors import UsageError, unknown
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
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise UsageError(f"{path}: a recipe is a file that ends in {', '.join(_PARSERS)}")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # also of bytes that are no UTF-8, and of every parser
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
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


def parse_yaml(text: str) -> Any:
    """A YAML document by the rules of YAML 1.2 (2e-4 is a number, `no` is a word). Raises ValueError."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # a SafeLoader: plain data only
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error


@functools.cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads scalars by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#1032-tag-resolution), and refuses
        a key given twice; PyYAML's own rules are those of YAML 1.1, where 2e-4 is a word and `no` is false."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  that is how PyYAML takes them

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            pairs = [
                (self.construct_object(key, True), self.construct_object(value, True)) for key, value in node.value
            ]
            return _without_doubles(pairs)

    scalars = {
        "null": (r"~|null|Null|NULL|", "~nN", None),
        "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", None),
        "int": (r"[-+]?[0-9]+", "-+0123456789", int),
        "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789", float),
    }
    for name, (pattern, first, construct) in scalars.items():
        tag = f"tag:yaml.org,2002:{name}"
        starts = [*first, ""] if name == "null" else list(first)
        Loader.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), starts)
        if construct:
            Loader.add_constructor(tag, lambda loader, node, construct=construct: construct(node.value))
    return Loader


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from error


def _parse_toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not valid TOML: {error}") from error


def _without_doubles(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in pairs:
        if isinstance(key, list | dict):
            raise ValueError(f"a key cannot be {key!r}")
        if key in result:
            raise ValueError(f"{key!r} is given twice")
        result[key] = value
    return result


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
    ".toml": _parse_toml,
    ".json": _parse_json,
}
