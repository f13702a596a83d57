"""The results of a validation: tables, text for a terminal, and plain data for JSON."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from invdiff.exactness.measures import LIMIT, MEASURES, REPEATS, Score, significant
from invdiff.exactness.problems import FAMILIES, GAUSSIAN, MIXTURE, TOYS
from invdiff.exactness.running import EXACT, SCORE, Measured, Row
from invdiff.files.pages.tables import BEST, OFF, Block, Column, Entry, Line, Table, plain

TITLES = {
    GAUSSIAN: "Gaussian prior",
    MIXTURE: "Gaussian mixture of 25 components",
    TOYS: "Mixtures in the plane",
}
FLOOR = "wasserstein"
"""The measure whose sampling floor the tables show."""
COLUMNS = {
    **MEASURES,
    "floor": "the Wasserstein distance of as many exact samples, below which no sampler can fall",
    SCORE: "ancestral steps with the exact E[x_0 | x, y] from the exact start: what finitely many levels alone cost",
    "calls": "network calls of one run; 9x100 where a run of 100 particles makes 9 calls for each",
    "verdict": f"exact: no score is more than {LIMIT:g} standard errors off those of exact samples (mean and standard "
    f"deviation of {REPEATS} sets); else the score that is the most standard errors off. * or red marks every such score",
}
NOTHING = Entry("-")


def text(measured: Sequence[Measured]) -> str:
    """The whole report: a table for each case (one table for all cells of the mixture), a summary, a legend."""
    parts = []
    for family, found in by_family(measured).items():
        parts.append(f"== {TITLES[family]} ==")
        for table, of in tables(family, found):
            parts.append("\n".join([plain(table), *(f"  {failure}" for failure in failures(of))]))
    parts.append(plain(summary(measured)))
    legend = [textwrap.fill(f"{name:<12} {about}", 118, subsequent_indent=" " * 13) for name, about in COLUMNS.items()]
    return "\n\n".join([*parts, "\n".join(legend)]) + "\n"


def by_family(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """The cases of each family that has any."""
    found = {family: [part for part in measured if part.case.family == family] for family in FAMILIES}
    return {family: parts for family, parts in found.items() if parts}


def tables(family: str, found: Sequence[Measured]) -> list[tuple[Table, Sequence[Measured]]]:
    """The tables of one family, each with the cases that it shows."""
    return [(mixture_table(found), found)] if family == MIXTURE else [(case_table(part), [part]) for part in found]


def failures(measured: Sequence[Measured]) -> list[str]:
    """Why solvers gave no result."""
    return sorted({f"{row.solver}: {row.failure}" for part in measured for row in part.rows if row.failure})


def case_table(part: Measured) -> Table:
    """One case: a line for each solver, under what was asked."""
    case, yardstick = part.case, part.yardsticks[0]
    told = yardstick.directions["measured"].shape[1]
    facts = [f"{told} of {yardstick.problem.size} directions measured", f"{case.samples} samples"]
    facts += [f"{case.steps} noise levels"] + ([f"{len(part.yardsticks)} problems"] if len(part.yardsticks) > 1 else [])
    *names, last = MEASURES
    columns = [
        Column(name, name, COLUMNS.get(name, "")) for name in (*names, "floor", last, "calls", "seconds", "verdict")
    ]
    title = f"{case.family} {case.label}: {', '.join(facts)}"
    return Table("solver", columns, [Block(title, [Line(row.solver, _entries(row)) for row in part.rows])])


def _entries(row: Row) -> list[Entry]:
    *scores, last = (_scored(row.scores.get(name)) for name in MEASURES)
    cost, verdict = [NOTHING, NOTHING], Entry(row.verdict, mark=BEST if row.verdict == "exact" else "")
    if not (row.solver == EXACT or row.failure):
        cost = [Entry(calls(row), row.calls), Entry(f"{row.seconds:.1f}", row.seconds)]
    return [*scores, _floor(row), last, *cost, Entry("") if row.solver == EXACT else verdict]


def calls(row: Row) -> str:
    """Network calls of a run: 100, or 9x100 for 100 particles."""
    return str(row.calls) if row.population == 1 else f"{row.calls / row.population:g}x{row.population}"


def _scored(score: Score | None) -> Entry:
    if score is None:
        return NOTHING
    exact = f"exact samples: {significant(score.floor)} +- {score.error:.2g}"
    about = f"{exact}; {score.deviation:.1f} standard errors off"
    return Entry(significant(score.value), score.value, "" if score.exact else OFF, about=about)


def _floor(row: Row | None) -> Entry:
    if row is None or FLOOR not in row.scores:
        return NOTHING
    return Entry(significant(row.scores[FLOOR].floor), row.scores[FLOOR].floor)


def mixture_table(measured: Sequence[Measured]) -> Table:
    """Sliced Wasserstein distances, a column for each (d, dy), a line for each solver and number of steps."""
    groups = list(dict.fromkeys(part.case.group for part in measured))
    steps = sorted({part.case.steps for part in measured})
    cell = {(part.case.group, part.case.steps, row.solver): row for part in measured for row in part.rows}
    lines = []
    for solver in dict.fromkeys(row.solver for part in measured for row in part.rows):
        for count in steps[:1] if solver == EXACT else steps:
            found = [cell.get((group, count, solver)) for group in groups]
            if solver == EXACT:
                lines.append(Line(solver, [Entry(""), *map(_floor, found)]))
                continue
            costs = sorted({calls(row) for row in found if row is not None and not row.failure})
            scores = [_scored(None if row is None else row.scores.get(FLOOR)) for row in found]
            lines.append(Line(solver, [Entry(", ".join(costs) or "-"), *scores]))
    counts = dict.fromkeys(f"{len(part.yardsticks)} at {part.case.group.replace(',', ', ')}" for part in measured)
    about = f"{measured[0].case.samples} samples, mean of the problems ({'; '.join(counts)})"
    title = f"sliced Wasserstein distance for each d, dy; in the first line its floor\n{about}"
    columns = [Column(name, name, COLUMNS.get(name, "d, dy")) for name in ("calls", *groups)]
    return Table("solver", columns, [Block(title, lines)])


def summary(measured: Sequence[Measured]) -> Table:
    """A line for each solver over all cases of a family: how often exact, and medians."""
    shown = {family: ("mean", "measured", "unmeasured") if family == GAUSSIAN else () for family in by_family(measured)}
    columns = []
    for family, names in shown.items():
        columns.append(Column(family, family, f"{TITLES[family]}: on how many of the cases exact"))
        columns += [Column(f"{family} {name}", name, f"median: {MEASURES[name]}") for name in names]
        columns.append(Column(f"{family} W1", "W1/floor", "median of the Wasserstein distance over its floor"))
        columns.append(Column(f"{family} coverage", "coverage", f"median: {MEASURES['coverage']}"))
    lines = []
    for solver in dict.fromkeys(row.solver for part in measured for row in part.rows if row.solver != EXACT):
        entries = []
        for family, names in shown.items():
            rows = [r for part in by_family(measured)[family] for r in part.rows if r.solver == solver]
            exact = sum(row.verdict == "exact" for row in rows)
            found = [row.scores for row in rows if row.scores]
            entries.append(Entry(f"{exact} of {len(rows)}", exact) if rows else NOTHING)
            entries += [_median([scores[name].value for scores in found if name in scores]) for name in names]
            entries.append(_median([scores[FLOOR].value / scores[FLOOR].floor for scores in found]))
            entries.append(_median([scores["coverage"].value for scores in found]))
        lines.append(Line(solver, entries))
    title = "== Summary: on how many cases exact, and medians of the scores =="
    legend = f"Red, below: more than {LIMIT:g} standard errors off what exact samples score; point at a number to see theirs."
    return Table("solver", columns, [Block(title, lines)], legend)


def _median(values: Sequence[float]) -> Entry:
    return Entry(significant(statistics.median(values)), statistics.median(values)) if values else NOTHING


def record(measured: Sequence[Measured], skipped: Sequence[tuple[str, str]], about: dict[str, Any]) -> dict[str, Any]:
    """Everything as plain data. skipped: operators left out, with the reason; about: command, seed, versions."""
    facts = {"measures": dict(MEASURES), "limit": LIMIT, "exact_sets": REPEATS, "cases": list(map(_case, measured))}
    return {**about, **facts, "skipped": [{"name": name, "reason": reason} for name, reason in skipped]}


def _case(part: Measured) -> dict[str, Any]:
    case = part.case
    return {
        "family": case.family,
        "label": case.label,
        "operator": case.operator.settings(),
        "steps": case.steps,
        "samples": case.samples,
        "dimension": part.yardsticks[0].problem.size,
        "sigma_y": [yardstick.problem.problem.sigma_y for yardstick in part.yardsticks],
        "directions": {name: basis.shape[1] for name, basis in part.yardsticks[0].directions.items()},
        "solvers": list(map(_row, part.rows)),
    }


def _row(row: Row) -> dict[str, Any]:
    names = {"value": "value", "exact_samples": "floor", "standard_error": "error", "standard_errors_off": "deviation"}
    return {
        "solver": row.solver,
        "settings": row.settings,
        "verdict": row.verdict if row.solver != EXACT else "",
        "failure": row.failure or None,
        "calls": row.calls,
        "population": row.population,
        "seconds": round(row.seconds, 3),
        "scores": {name: {k: getattr(score, v) for k, v in names.items()} for name, score in row.scores.items()},
        "each_problem": row.each,
    }
