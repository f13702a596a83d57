"""Test sets are for testing: settings that were searched on one make every number measured on it worthless."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from invdiff.errors import ImageError, UsageError
from invdiff.evaluation.pictures import file_hash
from invdiff.images import list_images
from invdiff.settings_files import read_settings

KNOWN = {
    *("bsd68", "cbsd68", "bsd100", "set5", "set12", "set14", "kodak", "kodak24", "mcmaster", "urban100", "manga109"),
    *("div2kvalid", "ffhq256", "ffhqval", "ffhq256val", "imagenetval", "imagenet256val", "celebahqval"),
}
"""Names of test sets of the literature, in small letters, without marks."""


def refuse_test_sets(
    folder: str | os.PathLike[str], suites: Sequence[str | os.PathLike[str]] = (), *, allow: bool = False
) -> str | None:
    """Raise UsageError if the folder holds pictures of a test set: with allow, return the reason in words instead.

    That is, as far as can be seen: a folder on the way to an image has the name of a known test set, or an image has the
    content of one in the data of a suite: a suite file (YAML, TOML or JSON), or the folder of a run of `invdiff evaluate`.
    """
    reason = _test_set(Path(folder), [Path(suite) for suite in suites])
    if reason is not None and not allow:
        raise UsageError(
            f"data={folder}: {reason}; settings tuned on a test set make its numbers worthless. Take other pictures, or "
            "--allow-test-set"
        )
    return reason


def _test_set(root: Path, suites: Sequence[Path]) -> str | None:
    paths = list_images(root)
    for path in paths:
        for part in (*path.absolute().parts[:-1], *path.resolve().parts[:-1]):
            if re.sub(r"[^a-z0-9]", "", part.lower()) in KNOWN:
                return f"{path} lies in a folder called {part}, the name of a test set"
    for suite in suites:
        hashes = {digest: image for image, digest in _hashes(suite)}
        for path in paths if hashes else ():
            if (image := hashes.get(file_hash(path))) is not None:
                return f"{path} is {image} in the data of {suite}"
    return None


def _hashes(suite: Path) -> Iterator[tuple[str, str]]:
    """(which image, its hash) of all data of a suite or run."""
    if suite.is_dir():
        try:
            lines = (suite / "results.jsonl").read_text(encoding="utf-8").splitlines()
            content = json.loads((suite / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"suite={suite}: is no run of `invdiff evaluate` ({error})") from error
        # The last line may be cut short, where the run was killed.
        yield from ((line["image"], line["file"]) for line in map(_line, lines) if isinstance(line.get("file"), str))
    else:
        content = read_settings(suite, "a suite")
    for path in _folders(content.get("data") if isinstance(content, dict) else None):
        place = suite.parent / Path(path).expanduser()
        if place.exists():
            try:
                yield from ((str(image), file_hash(image)) for image in list_images(place))
            except ImageError:
                continue  # a folder without images has no test images


def _line(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and "image" in found else {}


def _folders(data: Any) -> Iterator[str]:
    """The paths in the data of a suite: texts, at any depth; of an entry that has a path, that one."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        yield from _folders(data["path"]) if "path" in data else _each(data.values())
    elif isinstance(data, list):
        yield from _each(data)


def _each(entries: Iterable[Any]) -> Iterator[str]:
    for entry in entries:
        yield from _folders(entry)
