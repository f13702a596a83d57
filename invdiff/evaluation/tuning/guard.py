"""Refuse to tune on a test set: settings searched on its pictures make every number measured on it worthless."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from invdiff.errors import ImageError, UsageError
from invdiff.evaluation.datasets import file_hash
from invdiff.evaluation.suite import Suite, read_suite, shipped_suites
from invdiff.files.images import list_images

KNOWN = {
    *("bsd68", "cbsd68", "bsd100", "set5", "set12", "set14", "kodak", "kodak24", "mcmaster", "urban100", "manga109"),
    *("div2kvalid", "ffhq256", "ffhqval", "ffhq256val", "imagenetval", "imagenet256val", "celebahqval"),
}
"""Names of test sets of the literature, in small letters, letters and digits only."""


def refuse_test_sets(
    folder: str | os.PathLike[str], suites: Sequence[str | os.PathLike[str]] = (), *, allow: bool = False
) -> str | None:
    """Raise UsageError if the folder holds pictures of a test set: with allow, return the reason in words instead.

    A picture counts as one where a folder on its path has the name of a known test set or of a data set of a suite (the
    shipped ones are always included), or where its file equals one in the data of `suites`: files, shipped names, or
    folders of a run of `invdiff evaluate`.
    """
    reason = _test_set(Path(folder), suites)
    if reason is not None and not allow:
        raise UsageError(
            f"data={folder}: {reason}; settings tuned on a test set make its numbers worthless. Take other pictures, or "
            "--allow-test-set"
        )
    return reason


def _test_set(root: Path, suites: Sequence[str | os.PathLike[str]]) -> str | None:
    paths = list_images(root)
    runs = [Path(suite) for suite in suites if Path(suite).is_dir()]
    files = [read_suite(os.fspath(suite)) for suite in suites if not Path(suite).is_dir()]
    names = KNOWN | {
        _plain(Path(data.path).name) for suite in [*files, *map(read_suite, shipped_suites())] for data in suite.data
    }
    for path in paths:
        for part in (*path.absolute().parts[:-1], *path.resolve().parts[:-1]):
            if _plain(part) in names:
                return f"{path} lies in a folder called {part}, the name of a test set"
    known = {digest: image for one in (*map(_of_run, runs), *map(_of_suite, files)) for image, digest in one}
    for path in paths if known else ():
        if (image := known.get(file_hash(path))) is not None:
            return f"{path} is {image}"
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _of_suite(suite: Suite) -> Iterator[tuple[str, str]]:
    """(which image, its hash) of all data of a suite that is there."""
    for data in (data.located((*suite.roots, Path.cwd())) for data in suite.data):
        if not data.missing:
            try:
                yield from (
                    (f"{source.key} of {data.name} in suite {suite.name}", source.content())
                    for source in data.sources()
                )
            except ImageError:
                continue  # a folder without images has no test images


def _of_run(run: Path) -> Iterator[tuple[str, str]]:
    """(which image, its hash) of all results of a run."""
    try:
        lines = (run / "results.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(
            f"suite={run}: is no run of `invdiff evaluate`, which has a results.jsonl ({error})"
        ) from error
    for text in lines:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut short, where the run was killed
        if "image" in line and isinstance(line.get("file"), str):
            yield f"{line['image']} in the run {run}", line["file"]
