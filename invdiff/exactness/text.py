"""The results of a validation as text for a terminal, and as plain data for JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from invdiff.exactness.measures import LIMIT, MEASURES, REPEATS, Score, significant
from invdiff.exactness.problems import FAMILIES, GAUSSIAN, MIXTURE, Case
from invdiff.exactness.running import EXACT, SCORE, Measured, Row

COLUMNS = ("mean", "measured", "unmeasured", "covariance", "wasserstein", "coverage")
TITLES = {
    GAUSSIAN: "Gaussian prior",
    MIXTURE: "Gaussian mixture of 25 components",
    "toys": "Mixtures in the plane",
}
_FLOOR = "wasserstein"

LEGEND = [
    *(f"{name:<12} {text}" for name, text in MEASURES.items()),
    f"{'floor':<12} the Wasserstein distance of as many exact samples: what no sampler can fall below",
    f"{SCORE:<12} ancestral steps with the exact E[x_0 | x, y] from the exact start: what finitely many levels alone cost",
    f"{'calls':<12} network calls of one run; 9x100 where a run of 100 particles makes 9 calls for each",
    f"{'verdict':<12} exact: no score is more than {LIMIT:g} standard errors off those of exact samples (mean and standard",
    f"{'':<12} deviation of {REPEATS} sets); else the score that is the most standard errors off. * marks every such score.",
]


def text(measured: Sequence[Measured]) -> str:
    """The whole report: a table for each case (the mixture in one table of all cells), a summary, a legend."""
    parts = []
    for family in FAMILIES:
        found = [part for part in measured if part.case.family == family]
        if found:
            parts.append(f"== {TITLES[family]} ==")
        parts += [block(part) for part in found if family != MIXTURE]
        if family == MIXTURE and found:
            parts.append(mixture_table(found))
    parts.append(summary(measured))
    return "\n\n".join([*parts, "\n".join(LEGEND)]) + "\n"


def heading(part: Measured) -> str:
    """What was asked, in one line."""
    case, yardstick = part.case, part.yardsticks[0]
    told = yardstick.directions["measured"].shape[1]
    facts = [f"{told} of {yardstick.problem.size} directions measured", f"{case.samples} samples"]
    facts += [f"{case.steps} noise levels"] + ([f"{len(part.yardsticks)} problems"] if len(part.yardsticks) > 1 else [])
    return f"{case.family} {case.label}: {', '.join(facts)}"


def block(part: Measured) -> str:
    """One case: a line for each solver."""
    head = ("solver", *COLUMNS[:5], "floor", "coverage", "calls", "seconds", "verdict")
    rows = [cells(row) for row in part.rows]
    failures = [f"  {row.solver}: {row.failure}" for row in part.rows if row.failure]
    return "\n".join([heading(part), aligned(head, rows, left=(0, 10)), *failures])


def cells(row: Row) -> list[str]:
    """One line of a table."""
    scores = [marked(row.scores.get(name)) for name in COLUMNS]
    floor = significant(row.scores[_FLOOR].floor) if _FLOOR in row.scores else "-"
    exact = row.solver == EXACT
    cost = ["-", "-"] if exact or row.failure else [calls(row), f"{row.seconds:.1f}"]
    return [row.solver, *scores[:5], floor, scores[5], *cost, "" if exact else row.verdict]


def calls(row: Row) -> str:
    """Network calls of a run: 100, or 9x100 for 100 particles."""
    if row.population == 1:
        return str(row.calls)
    return f"{row.calls / row.population:g}x{row.population}"


def marked(score: Score | None) -> str:
    return "-" if score is None else f"{significant(score.value)}{' ' if score.exact else '*'}"


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns under a rule, numbers to the right, the columns of `left` to the left."""
    widths = [max(len(line[k]) for line in [head, *rows]) for k in range(len(head))]

    def line(parts: Sequence[str]) -> str:
        return "  ".join(
            part.ljust(width) if k in left else part.rjust(width)
            for k, (part, width) in enumerate(zip(parts, widths, strict=True))
        ).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def mixture_table(measured: Sequence[Measured]) -> str:
    """Sliced Wasserstein distances, a column for each (d, dy), a line for each solver and number of steps."""
    groups = list(dict.fromkeys(part.case.group for part in measured))
    steps = sorted({part.case.steps for part in measured})
    cell = {(part.case.group, part.case.steps, row.solver): row for part in measured for row in part.rows}
    solvers = list(dict.fromkeys(row.solver for part in measured for row in part.rows))
    lines = []
    for solver in solvers:
        for count in steps[:1] if solver == EXACT else steps:
            found = [cell.get((group, count, solver)) for group in groups]
            costs = {calls(row) for row in found if row is not None and not row.failure}
            scores = ["-" if row is None or row.failure else marked(row.scores[_FLOOR]) for row in found]
            if solver == EXACT:
                scores = [significant(row.scores[_FLOOR].floor) if row else "-" for row in found]
            lines.append([solver, "" if solver == EXACT else ", ".join(sorted(costs)) or "-", *scores])
    counts = dict.fromkeys(f"{len(part.yardsticks)} at {part.case.group.replace(',', ', ')}" for part in measured)
    about = f"{measured[0].case.samples} samples, mean of the problems ({'; '.join(counts)})"
    failures = sorted({f"  {row.solver}: {row.failure}" for part in measured for row in part.rows if row.failure})
    table = aligned(("solver", "calls", *groups), lines)
    title = f"sliced Wasserstein distance for each d, dy; in the first line its floor\n{about}"
    return "\n".join([title, table, *failures])


def summary(measured: Sequence[Measured]) -> str:
    """A line for each solver over all cases of a family: how often exact, and medians."""
    families = [family for family in FAMILIES if any(part.case.family == family for part in measured)]
    head = ["solver"]
    for family in families:
        head += [family, *(("mean", "measured", "unmeasured") if family == GAUSSIAN else ()), "W1/floor", "coverage"]
    solvers = list(dict.fromkeys(row.solver for part in measured for row in part.rows if row.solver != EXACT))
    lines = []
    for solver in solvers:
        line = [solver]
        for family in families:
            rows = [r for part in measured if part.case.family == family for r in part.rows if r.solver == solver]
            line.append(f"{sum(row.verdict == 'exact' for row in rows)} of {len(rows)}" if rows else "-")
            for name in ("mean", "measured", "unmeasured") if family == GAUSSIAN else ():
                line.append(_median([row.scores[name].value for row in rows if name in row.scores]))
            found = [row.scores[_FLOOR] for row in rows if _FLOOR in row.scores]
            line.append(_median([score.value / score.floor for score in found]))
            line.append(_median([row.scores["coverage"].value for row in rows if "coverage" in row.scores]))
        lines.append(line)
    title = "== Summary: on how many cases exact, and medians of the scores =="
    return "\n".join([title, aligned(head, lines)])


def _median(values: Sequence[float]) -> str:
    return significant(statistics.median(values)) if values else "-"


def record(measured: Sequence[Measured], skipped: Sequence[tuple[str, str]], about: dict[str, Any]) -> dict[str, Any]:
    """Everything as plain data. about: what the command was; skipped: operators and why."""
    return {
        **about,
        "measures": dict(MEASURES),
        "limit": LIMIT,
        "exact_sets": REPEATS,
        "cases": [
            {
                **_case(part.case),
                "dimension": part.yardsticks[0].problem.size,
                "sigma_y": [yardstick.problem.problem.sigma_y for yardstick in part.yardsticks],
                "directions": {name: basis.shape[1] for name, basis in part.yardsticks[0].directions.items()},
                "solvers": [_row(row) for row in part.rows],
            }
            for part in measured
        ],
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped],
    }


def _case(case: Case) -> dict[str, Any]:
    return {
        "family": case.family,
        "label": case.label,
        "operator": case.operator.settings(),
        "steps": case.steps,
        "samples": case.samples,
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "solver": row.solver,
        "settings": row.settings,
        "verdict": row.verdict if row.solver != EXACT else "",
        "failure": row.failure or None,
        "calls": row.calls,
        "population": row.population,
        "seconds": round(row.seconds, 3),
        "scores": {
            name: {
                "value": score.value,
                "exact_samples": score.floor,
                "standard_error": score.error,
                "standard_errors_off": score.deviation,
            }
            for name, score in row.scores.items()
        },
        "each_problem": row.each,
    }
