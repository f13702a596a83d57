"""Two runs compared: the cells that they share, image by image, and the settings that differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from invdiff.errors import UsageError
from invdiff.evaluation.report.results import significant
from invdiff.evaluation.report.rows import SCORES, Group, Row, compare
from invdiff.evaluation.store import Run
from invdiff.files.pages.tables import BEST, Block, Column, Entry, Line, Table, csv_text, number
from invdiff.files.pages.tables import interval as interval_text
from invdiff.scores.statistics import Paired, mean_interval

SHARED = ("data", "operator", "noise", "seed", "solver", "steps", "samples", "prior")
"""The settings by which cells of two runs are the same."""

LEGEND = (
    "A and B: means over the images that both have. B - A: mean difference with its 95 % bootstrap interval. {best}: "
    "significant at 5 % in a paired test on these images, each row by itself."
)


@dataclass(frozen=True)
class Pair:
    """A cell of both runs, reduced to the images with equal files that both have finished."""

    title: str
    name: str
    first: Row
    second: Row
    tests: Mapping[str, Paired]  # of second against first, by Score.key


def pairs(a: Run, groups_a: Sequence[Group], b: Run, groups_b: Sequence[Group]) -> tuple[list[Pair], list[str]]:
    """The cells that two runs share, and sentences about what was left out.

    Where each run has a single prior, its name does not matter, so that two priors can be compared.
    Raises UsageError for runs that share no cell.
    """
    alone = len({str(cell["prior"]) for cell in a.cells}) == 1
    alone &= len({str(cell["prior"]) for cell in b.cells}) == 1
    by = SHARED[:-1] if alone else SHARED

    def keyed(groups: Sequence[Group]) -> dict[tuple[str, ...], Row]:
        return {tuple(str(row.cell.get(name)) for name in by): row for group in groups for row in group.rows}

    first, second = keyed(groups_a), keyed(groups_b)
    shared = [key for key in first if key in second]
    if not shared:
        raise UsageError(
            f"{a.folder} and {b.folder} share no cell (same {', '.join(by)}); evaluate one again with the "
            f"settings of the other, for instance: {a.cells[0]['command']}"
        )
    notes, found, changed = [], [], set()
    for key in shared:
        images = first[key].images.keys() & second[key].images.keys()
        same = {i for i in images if first[key].images[i].get("file") == second[key].images[i].get("file")}
        changed |= images - same
        one, two = _cut(first[key], same), _cut(second[key], same)
        tests = {score.key: compare(two.values.get(score.key, {}), one.values.get(score.key, {})) for score in SCORES}
        found.append(Pair(_title(one, by), one.label, one, two, {name: test for name, test in tests.items() if test}))
    if changed:
        notes.append(f"{len(changed)} images have other files in B than in A and were left out: {_some(changed)}")
    for name, mine, theirs in (("A", first, second), ("B", second, first)):
        if others := [f"{row.label} ({_title(row, by)})" for key, row in mine.items() if key not in theirs]:
            notes.append(f"{len(others)} cells are in {name} alone: {_some(others)}")
    return found, notes


def _title(row: Row, by: Sequence[str]) -> str:
    cell = row.cell
    prior = f", prior {cell['prior']}" if "prior" in by else ""
    return f"{cell['data']}, {cell['operator']}, noise {cell['noise']}, seed {cell['seed']}{prior}"


def _some(names: Any, most: int = 5) -> str:
    listed = sorted(names)
    return "; ".join(listed[:most]) + (f"; and {len(listed) - most} more" if len(listed) > most else "")


def _cut(row: Row, images: set[str]) -> Row:
    values = {key: {i: number for i, number in some.items() if i in images} for key, some in row.values.items()}
    values = {key: some for key, some in values.items() if some}
    kept = {image: one for image, one in row.images.items() if image in images}
    scores = {key: mean_interval(list(some.values())) for key, some in values.items()}
    return Row(row.cell, kept, row.failures, values, scores, row.seconds, row.memory)


def table(found: Sequence[Pair]) -> Table:
    """A line for each shared cell: each score in both runs, the difference, its p value, and the seconds."""
    scores = [score for score in SCORES if any(score.key in pair.tests for pair in found)] or [SCORES[0]]
    heads = [Column("images", "images", "images that both have")]
    for score in scores:
        heads += [Column(f"{score.key} {run}", f"{score.title} {run}", score.about) for run in "AB"]
        heads += [Column(f"{score.key} gap", "B - A", "mean difference"), Column(f"{score.key} p", "p", "paired test")]
    heads += [Column(f"seconds {run}", f"s/image {run}", "seconds for each image") for run in "AB"]
    blocks: dict[str, list[Line]] = {}
    for pair in found:
        entries = [number(len(pair.first.images), 0)]
        for score in scores:
            entries += [number(_mean(row, score.key), score.digits) for row in (pair.first, pair.second)]
            entries += _difference(pair.tests.get(score.key), score.digits)
        entries += [significant(pair.first.seconds), significant(pair.second.seconds)]
        commands = f"A: {pair.first.cell['command']}\nB: {pair.second.cell['command']}"
        blocks.setdefault(pair.title, []).append(Line(pair.name, entries, commands))
    return Table("solver", heads, [Block(title, lines) for title, lines in blocks.items()], LEGEND)


def _mean(row: Row, key: str) -> float | None:
    return row.scores[key].mean if key in row.scores else None


def _difference(test: Paired | None, digits: int) -> list[Entry]:
    if test is None:
        return [Entry(), Entry()]
    gap = test.difference
    spread = interval_text(gap.low, gap.high, digits, "+")
    return [
        replace(number(gap.mean, digits, "+"), mark=BEST if test.better else "", spread=spread),
        Entry(f"{test.p_value:.2g}", test.p_value),
    ]


def as_csv(found: Sequence[Pair]) -> str:
    """A line for each shared cell and score, every number unrounded."""
    return csv_text(_records(found))


def _records(found: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    for pair in found:
        for score in SCORES:
            means = [_mean(row, score.key) for row in (pair.first, pair.second)]
            if None in means:
                continue
            test = pair.tests.get(score.key)
            gap = test and test.difference
            yield {
                **{name: pair.first.cell.get(name) for name in SHARED},
                "prior_b": pair.second.cell.get("prior"),
                "score": score.key,
                "images": len(pair.first.images),
                **dict(zip(("a", "b"), means, strict=True)),
                "difference": gap and gap.mean,
                "difference_low": gap and gap.low,
                "difference_high": gap and gap.high,
                "p_value": test and test.p_value,
                "significant": None if test is None else test.better is not None,
                "seconds_a": pair.first.seconds,
                "seconds_b": pair.second.seconds,
            }


def differences(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """(what, in A, in B) for each setting or fact of the two run.json files that is not the same, their cells aside."""
    first, second = (dict(flat({k: v for k, v in run.record.items() if k != "cells"})) for run in (a, b))
    keys = list(dict.fromkeys([*first, *second]))
    return [(k, first.get(k, "-"), second.get(k, "-")) for k in keys if first.get(k) != second.get(k)]


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested data, as (dotted name, text)."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)
