"""The Gaussian-mixture benchmark: sliced Wasserstein-1 distance of posterior samples to exact ones, and the sampling floor.

    python benchmarks/mixtures.py [--quick] [--solvers NAME ...] [--dimensions 8 80 800] [--steps 20 100] [--problems 20]
                                  [--particles 1000] [--results mixtures.jsonl] [--markdown docs/tables/mixtures.md]

The problems are those of invdiff/exactness/mixture.py; the rows are METHODS below. Every result is appended
to the file of results as it is made, and what stands there is not computed again, so that a run can be stopped and
continued. The table holds mean +- 1.96 standard deviations / sqrt(problems). --quick: d = 8, three problems.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from invdiff import solvers
from invdiff.errors import InvdiffError
from invdiff.exactness.measures import SLICES, sliced_wasserstein
from invdiff.exactness.mixture import LAST, MEASURED, SIGMA_MAX, UNIT, mixture_problem, schedule
from invdiff.exactness.problems import ExactProblem
from invdiff.machine.random import Draws, generator
from invdiff.priors.prior import CountedPrior
from invdiff.solvers.solver import Solver

FLOOR = "exact samples"
DIMENSIONS, STEPS, PROBLEMS, SAMPLES = (8, 80, 800), (20, 100), 20, 1000
DROWNED = 1e-2
"""The sqrt(abar) from which on the paper's noise levels are no longer even in sqrt(abar)."""


def exact(case: ExactProblem, purpose: str, count: int = SAMPLES) -> torch.Tensor:
    """(count, d) exact samples; `purpose` names their random numbers."""
    return case.posterior.sample(count, generator(0, f"{case.name}/exact/{purpose}", 0))


def score(case: ExactProblem, samples: torch.Tensor) -> float:
    """Sliced Wasserstein-1 distance of samples (count, d) to as many exact ones, in the paper's unit.

    The directions are always the same ones, so that two samplers are compared in the same directions.
    """
    draws = generator(0, f"{case.name}/slices", 0)
    directions = torch.randn(samples.shape[1], SLICES, generator=draws, dtype=torch.float64)
    return UNIT * sliced_wasserstein(samples, exact(case, "reference", len(samples)), directions)


def floor(case: ExactProblem, count: int = SAMPLES) -> float:
    """What exact samples score."""
    return score(case, exact(case, "floor", count))


def singular_values(case: ExactProblem) -> np.ndarray:
    """(dy,) singular values of A, the largest first."""
    return torch.linalg.svdvals(case.matrix).numpy()


def paper_levels(case: ExactProblem, steps: int) -> list[float]:
    """The paper's noise levels in [0, 1] units, decreasing: see `paper_times`."""
    abar = schedule()
    tau = case.problem.sigma_y * UNIT / singular_values(case)
    return [float(np.sqrt(1 / abar[t] - 1)) / UNIT for t in paper_times(steps, tau)[::-1] if t > 0]


def paper_times(steps: int, tau: np.ndarray) -> list[int]:
    """The paper's `steps` times t, increasing from 0 to 999, for the noise levels tau (its unit) of the measured directions.

    Even in sqrt(abar) down to sqrt(abar) < 0.01, with the times whose noise is that of a measured direction among them; what
    is left of `steps` is spread evenly over the rest.
    """
    abar = schedule()
    root, last = np.sqrt(abar), len(abar) - 1
    noise = 1 / abar - 1
    met = {int(np.abs(noise - value**2).argmin()) for value in tau} - {0}
    end = int(np.argmax(root < DROWNED))
    increase = (root[0] - root[end]) / max(1, steps - 1 - len(met))
    times = [0]
    for t in range(1, end):
        if root[times[-1]] - root[t] >= increase or t in met:
            times.append(t)
    times = times[: steps - 1]
    rest = np.linspace(end, last, steps - len(times)).round().astype(int) if len(times) < steps - 1 else [last]
    return [*times, *map(int, rest)]


def log_levels(steps: int) -> list[float]:
    """Noise levels even in log sigma from the paper's first one to LAST, in [0, 1] units."""
    return list(np.geomspace(SIGMA_MAX, LAST, steps)) if steps > 1 else [SIGMA_MAX]


@dataclass(frozen=True, eq=False)
class Run:
    """samples (count, d); nfe: network calls for each of them; seconds; diagnostics: name -> (moves,)."""

    samples: torch.Tensor
    nfe: float
    seconds: float
    diagnostics: Mapping[str, torch.Tensor]


def run_solver(solver: Solver, case: ExactProblem, levels: Sequence[float], seed: int = 0, count: int = SAMPLES) -> Run:
    """`count` samples of a solver that walks these levels: one population of particles, or as many independent runs.

    A population that is larger gives evenly spaced members of it.
    """
    rows = count if solver.population == 1 else 1
    problem = case.problem.rows([0] * rows)
    draws = Draws([generator(seed, case.name, k) for k in range(rows)], problem.image_shape, problem.y)
    counted = CountedPrior(case.prior, count)
    diagnostics: dict[str, list[torch.Tensor]] = {}
    begin = time.perf_counter()
    move = None
    with torch.no_grad():
        for move in solver.walk(problem, counted, levels, draws):
            for name, values in move.diagnostics.items():
                diagnostics.setdefault(name, []).append(values.mean())
    if move is None:
        raise RuntimeError(f"{solver.name}: no move for {len(levels)} levels")
    samples = move.x if move.population is None else move.population[0]
    if len(samples) > count:
        samples = samples[torch.linspace(0, len(samples) - 1, count).round().long()]
    collected = {name: torch.stack(values) for name, values in diagnostics.items()}
    return Run(samples, counted.images / count, time.perf_counter() - begin, collected)


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean and 1.96 standard deviations over sqrt(n), values that are not finite left out."""
    finite = np.asarray([value for value in values if np.isfinite(value)])
    if not len(finite):
        return float("nan"), float("nan")
    return float(finite.mean()), float(1.96 * finite.std() / len(finite) ** 0.5)


@dataclass(frozen=True)
class Row:
    """A row of the table. spec: (steps, particles) -> the solver's spec; own: with levels even in log sigma and the exact
    start at p_T instead of the paper's levels and N(0, I)."""

    spec: Callable[[int, int], str]
    own: bool = False

    def levels(self, case: ExactProblem, steps: int) -> list[float]:
        return log_levels(steps) if self.own else paper_levels(case, steps)


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
        return {"distance": floor(case)}
    row = METHODS[label]
    initial = "prior" if row.own else "noise"
    solver = solvers.get(row.spec(steps, particles), steps=steps, initial=initial)
    found = run_solver(solver, case, row.levels(case, steps))
    ess = found.diagnostics.get("ess")
    return {
        "distance": score(case, found.samples),
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
