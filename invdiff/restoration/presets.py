"""Presets: a solver with settings that were searched for one problem, as a YAML file that `invdiff tune` writes.

kind: invdiff preset
format: 1
solver: diffpir
settings: {steps: 20, lam: 0.43, zeta: 0.8}
better: true            whether these settings beat the defaults; if not, they are the defaults
tuned_for: {operator: ..., noise: ..., prior: {name: ..., sha256: ...}, data: {...}, metric: psnr, ...}
scores, search          what was measured, image by image, and how the search went
command, versions       what repeats it
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invdiff import solvers
from invdiff.errors import UsageError, unknown
from invdiff.solvers.solver import Solver
from invdiff.specs.settings import read_settings

KIND, FORMAT = "invdiff preset", 1
REQUIRED = ("kind", "format", "solver", "settings", "better", "tuned_for")
OTHERS = ("scores", "search", "command", "versions")
TUNED_FOR = ("operator", "noise", "prior", "data", "metric", "samples", "seed")


@dataclass(frozen=True)
class Preset:
    """A solver, and what its settings were searched for. better: whether they beat the defaults there.

    tuned_for: operator and noise as specs, prior (see `identity`), data, metric, samples, seed; scores, search, command,
    versions: for people. path, sha256: of the file, if it was read from one.
    """

    solver: Solver
    better: bool
    tuned_for: Mapping[str, Any]
    scores: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    sha256: str = ""

    def remarks(self, operator: str, noise: str, prior: Mapping[str, Any], solver: Solver) -> list[str]:
        """What differs from what the preset was made for, a sentence each.

        operator, noise: specs; prior: what its `describe()` says; solver: the one that runs.
        """
        used = {"operator": operator, "noise": noise, "prior": identity(prior)}
        changed = [f"the preset {self.path} holds {self.solver.spec}, this is {solver.spec}"]
        return (changed if solver != self.solver else []) + [
            f"the preset {self.path or self.solver.name} was tuned for {name} {_brief(self.tuned_for[name])}, "
            f"this is {_brief(value)}"
            for name, value in used.items()
            if self.tuned_for[name] != value
        ]

    def record(self) -> dict[str, Any]:
        """What a provenance record says of the preset that was used."""
        return {"path": self.path, "sha256": self.sha256, "better": self.better, "tuned_for": dict(self.tuned_for)}

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        settings = {key: value for key, value in self.solver.settings().items() if key != "name" and value is not None}
        return {
            "kind": KIND,
            "format": FORMAT,
            "solver": self.solver.name,
            "settings": settings,
            "better": self.better,
            "tuned_for": dict(self.tuned_for),
            "scores": dict(self.scores),
            "search": dict(self.search),
            "command": self.command,
            "versions": dict(self.versions),
        }

    def save(self, path: str | Path) -> None:
        """Write the YAML file, whole or not at all. Raises UsageError unless PATH ends in .yaml or .yml."""
        import yaml

        from invdiff.files.atomic import atomic_path

        if Path(path).suffix.lower() not in (".yaml", ".yml"):
            raise UsageError(f"a preset is a .yaml file, got {path}")
        with atomic_path(path) as part:
            text = yaml.dump(self.to_dict(), Dumper=_dumper(), sort_keys=False, width=100, allow_unicode=True)
            part.write_text(text, encoding="utf-8")


def identity(prior: Mapping[str, Any]) -> dict[str, Any]:
    """What tells priors apart, of a prior's `describe()`: name and hash of the weights, or all of it where it has none."""
    keys = [key for key in ("name", "sha256") if key in prior]
    return {key: prior[key] for key in keys} if "sha256" in keys else dict(prior)


def load_preset(path: str | os.PathLike[str]) -> Preset:
    """The preset in a file, whose `solver` is ready to run.

    Raises UsageError that names the file and the key: not a preset, of another format, an unknown or missing key, a
    solver that is not here, settings that it does not take.
    """
    path = Path(path).expanduser()
    content = read_settings(path, "a preset")
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise UsageError(f"{path}: is no preset; `invdiff tune` makes one, with `kind: {KIND}` in its first line")
    if content.get("format") != FORMAT:
        raise UsageError(
            f"{path}: format={content.get('format')!r}, but this invdiff reads format {FORMAT}; make the preset again "
            "with `invdiff tune`, or use the version of invdiff that wrote it"
        )
    for key in content:
        if key not in (*REQUIRED, *OTHERS):
            raise unknown(f"key in {path}:", str(key), (*REQUIRED, *OTHERS))
    _require(path, "", content, REQUIRED)
    for key in ("settings", "tuned_for", "scores", "search", "versions"):
        if not isinstance(content.get(key, {}), Mapping):
            raise UsageError(f"{path}: {key}={content[key]!r}: must be a list of `name: value`")
    if not isinstance(content["better"], bool):
        raise UsageError(f"{path}: better={content['better']!r}: must be true or false")
    for key in content["tuned_for"]:
        if key not in TUNED_FOR:
            raise unknown(f"key of tuned_for in {path}:", str(key), TUNED_FOR)
    _require(path, "tuned_for.", content["tuned_for"], TUNED_FOR)
    try:
        if not isinstance(content["solver"], str) or ":" in content["solver"]:
            raise UsageError(f"solver={content['solver']!r}: must be a name; its values stand under `settings`")
        solver = solvers.get(content["solver"], **{str(key): value for key, value in content["settings"].items()})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    kept = {key: content[key] for key in OTHERS if key in content}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Preset(solver, content["better"], content["tuned_for"], **kept, path=str(path), sha256=digest)


@functools.cache
def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Puts quotes around texts such as 12e3 too: a number for YAML 1.2, which we read, but not for PyYAML."""

    def text(dumper: Any, value: str) -> Any:
        style = '"' if re.fullmatch(r"[-+.0-9eE]+", value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


def _require(path: Path, prefix: str, content: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    missing = [f"{prefix}{key}" for key in keys if key not in content]
    if missing:
        raise UsageError(f"{path}: lacks {', '.join(missing)}; make the preset again with `invdiff tune`")


def _brief(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    if "sha256" in value:
        return f"{value.get('name', '')} ({str(value['sha256'])[:12]})".strip()
    return ", ".join(f"{key} {part}" for key, part in value.items())
