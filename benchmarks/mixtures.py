"""The Gaussian-mixture benchmark: sliced Wasserstein-1 distance of posterior samples to exact ones, and the sampling floor.

    python benchmarks/mixtures.py [--quick] [--solvers NAME ...] [--dimensions 8 80 800] [--steps 20 100] [--problems 20]
                                  [--particles 1000] [--results mixtures.jsonl] [--markdown docs/tables/mixtures.md]

The problems are those of invdiff/exactness/mixture_benchmark.py; the rows are METHODS below. Every result is appended
to the file of results as it is made, and what stands there is not computed again, so that a run can be stopped and
continued. The table holds mean +- 1.96 standard deviations / sqrt(problems). --quick: d = 8, three problems.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from invdiff import solvers
from invdiff.errors import InvdiffError
from invdiff.exactness.mixture_benchmark import (
    DIMENSIONS,
    MEASURED,
    PROBLEMS,
    STEPS,
    MixtureProblem,
    log_levels,
    mixture_problem,
    run_solver,
    summary,
)

FLOOR = "exact samples"


@dataclass(frozen=True)
class Row:
    """A row of the table. spec: of the solver, given (steps, particles); own: levels even in log sigma and the exact start
    at p_T, in the place of the paper's levels and N(0, I)."""

    spec: Callable[[int, int], str]
    own: bool = False

    def levels(self, case: MixtureProblem, steps: int) -> list[float]:
        return log_levels(steps) if self.own else case.paper_levels(steps)


def eta(steps: int) -> float:
    """The paper's, for its two numbers of steps."""
    return 0.6 if steps <= 20 else 0.85


METHODS = {
    # The paper's DPS: step 0.1 grad ||r||^2 / ||r||, which is twice that times grad ||r||, whatever the number of steps.
    "DPS": Row(lambda steps, _: f"dps:weight={0.2 * max(steps, 1) / 1000:g},limit=1e9"),
    "PiGDM": Row(lambda steps, _: f"pigdm:eta={eta(steps)}"),
    "PiGDM, Tweedie's weight": Row(lambda steps, _: "pigdm:transition=ancestral"),
    "MMPS": Row(lambda steps, _: "mmps:iterations=4"),
    "MCGdiff": Row(lambda steps, n: f"mcg_diff:eta={eta(steps)},particles={n}"),
    "FPS-SMC": Row(lambda _, n: f"fps_smc:particles={n}"),
    "TDS": Row(lambda _, n: f"tds:particles={n}"),
    "TDS, spread 0.5": Row(lambda _, n: f"tds:spread=0.5,particles={n}"),
    "MMPS, own levels": Row(lambda steps, _: "mmps:iterations=4", own=True),
    "MCGdiff, own levels": Row(lambda _, n: f"mcg_diff:particles={n}", own=True),
    "FPS-SMC, own levels": Row(lambda _, n: f"fps_smc:particles={n}", own=True),
    "TDS, own levels": Row(lambda _, n: f"tds:particles={n}", own=True),
    "TDS, spread 0.5, own levels": Row(lambda _, n: f"tds:spread=0.5,particles={n}", own=True),
}


def measure(label: str, d: int, dy: int, steps: int, index: int, particles: int) -> dict[str, object]:
    """One result: the distance, and what it cost."""
    case = mixture_problem(d, dy, index)
    if label == FLOOR:
        return {"distance": case.floor()}
    row = METHODS[label]
    initial = "prior" if row.own else "noise"
    solver = solvers.get(row.spec(steps, particles), steps=steps, initial=initial)
    found = run_solver(solver, case, row.levels(case, steps))
    ess = found.diagnostics.get("ess")
    return {
        "distance": case.score(found.samples),
        "spec": solver.spec,
        "nfe": found.nfe,
        "seconds": round(found.seconds, 3),
        **({} if ess is None else {"ess": round(float(ess.min()), 1)}),
    }


def key(label: str, d: int, dy: int, steps: int, index: int, particles: int) -> str:
    return "/".join(map(str, (label, d, dy, "-" if label == FLOOR else steps, index, particles)))


def table(results: dict[str, dict], labels: list[str], arguments: argparse.Namespace) -> str:
    cells = [(d, dy) for d in arguments.dimensions for dy in MEASURED]
    head = [
        "method",
        "steps",
        *(f"{d}, {dy}" for d, dy in cells),
        "seconds at d = " + ", ".join(map(str, arguments.dimensions)),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for label in [FLOOR, *labels]:
        for steps in arguments.steps if label != FLOOR else [0]:
            row = [label, str(steps) if steps else ""]
            seconds = {d: [] for d in arguments.dimensions}
            for d, dy in cells:
                parts = (
                    results.get(key(label, d, dy, steps, i, arguments.particles)) for i in range(arguments.problems)
                )
                found = [part for part in parts if part is not None]
                mean, error = summary([part["distance"] for part in found])
                missing = "" if len(found) == arguments.problems else f" ({len(found)})"
                row.append(f"{mean:.2f} ± {error:.2f}{missing}" if found else "")
                seconds[d] += [part["seconds"] for part in found if "seconds" in part]
            row.append(", ".join(f"{sum(s) / len(s):.1f}" if s else "" for s in seconds.values()).strip(", "))
            lines.append("| " + " | ".join(row) + " |")
    note = (
        f"Sliced Wasserstein-1 distance of 1000 samples to 1000 exact ones (100 directions), for (d, dy); mean over "
        f"{arguments.problems} problems ± 1.96 standard deviations / sqrt(n); a smaller number of problems in brackets. "
        f"Particle methods: {arguments.particles} particles. Own levels: even in log sigma, started from the noised prior; "
        "else the paper's levels, started from N(0, I). Seconds for 1000 samples, one thread. "
        "Regenerate with `python benchmarks/mixtures.py`."
    )
    return "\n".join([*lines, "", note]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--solvers", nargs="+", metavar="NAME", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--dimensions", nargs="+", type=int, default=list(DIMENSIONS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--problems", type=int, default=PROBLEMS)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--results", type=Path, default=Path("mixtures.jsonl"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--measured", action="store_true", help="make the table of what is in --results already")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.dimensions, arguments.problems = [8], 3

    results: dict[str, dict] = {}
    if arguments.results.exists():
        lines = (json.loads(line) for line in arguments.results.read_text().splitlines() if line.strip())
        results = {line["key"]: line for line in lines}
    for index in range(0 if arguments.measured else arguments.problems):
        for d in arguments.dimensions:
            for dy in MEASURED:
                for label in [FLOOR, *arguments.solvers]:
                    for steps in arguments.steps if label != FLOOR else [0]:
                        name = key(label, d, dy, steps, index, arguments.particles)
                        if name in results:
                            continue
                        try:
                            found = measure(label, d, dy, steps, index, arguments.particles)
                        except InvdiffError as error:
                            print(f"{name}: {error}", flush=True)
                            continue
                        results[name] = {"key": name, **found}
                        with open(arguments.results, "a") as file:
                            file.write(json.dumps(results[name]) + "\n")
        print(f"problem {index + 1} of {arguments.problems}", flush=True)
    text = table(results, arguments.solvers, arguments)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
