"""Settings files: YAML, TOML and JSON read into plain data, by the same rules for every format."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from invdiff.errors import UsageError


def read_settings(path: Path, kind: str) -> Any:
    """The plain data in a file whose suffix says the format. kind: what the file is, such as "a recipe", for the errors.

    Raises UsageError, which names the file, where it cannot be read or does not follow its format.
    """
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise UsageError(f"{path}: {kind} is a file that ends in {', '.join(_PARSERS)}")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # of every parser, and of bytes that are no UTF-8
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error


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
