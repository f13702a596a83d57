"""PSNR of restorations through operators that are not linear: the measurement's own first guess, auto, each able solver.

    python benchmarks/nonlinear.py [--operator SPEC ...] [--noise 0.05 0.02] [--budget 20 100] [--solver SPEC ...]
        [--restarts 1 4 8] [--record FILE] [--markdown docs/tables] [--recommend invdiff/restoration/recommendations.json]

Protocol: the prior on three 64 x 64 crops of scikit-image's photographs, one sample each, PSNR of clipped, unrounded images
averaged over them. A solver gets as many steps as the budget of network calls pays for. For phase retrieval the best of the
ambiguities counts (invdiff/scores/ambiguity.py). Cells are kept in the record as soon as they are there, and what is
there is not measured again. --restarts: auto on phase retrieval, the best residual of so many seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path

import skimage.data
import torch
from ambiguity import best_of_ambiguities

import invdiff
from invdiff import operators, solvers
from invdiff.errors import NumericalError
from invdiff.files.atomic import atomic_path
from invdiff.operator.contract import Operator
from invdiff.priors.prior import Prior
from invdiff.restoration.api import resolve_prior
from invdiff.restoration.auto import choose
from invdiff.restoration.recommendation import Score, within
from invdiff.scores.metrics import psnr
from invdiff.solvers.solver import Solver

CROPS = {"astronaut": (20, 170), "chelsea": (80, 110), "coffee": (150, 250)}
SIDE = 64
OPERATORS = ["saturate", "gamma", "gamma:exponent=0.45", "quantize", "jpeg", "phase_retrieval"]
FIRST_GUESS, AUTO = "first guess", "auto"


def photographs() -> torch.Tensor:
    """(3, 3, SIDE, SIDE) in [0, 1]."""
    crops = [getattr(skimage.data, name)()[top : top + SIDE, left : left + SIDE] for name, (top, left) in CROPS.items()]
    return torch.stack([torch.from_numpy(crop).permute(2, 0, 1).float() / 255 for crop in crops])


def able(operator: Operator) -> list[str]:
    """The solvers that take the operator; of particles, one that is not resampled."""
    specs = [name if solvers.get(name).population == 1 else f"{name}:particles=1" for name in solvers.names()]
    return [spec for spec in specs if not solvers.get(spec).unmet(operator)]


def quality(x: torch.Tensor, truth: torch.Tensor, family: str) -> torch.Tensor:
    """PSNR of each image, (B,)."""
    x = x.clamp(0, 1) if family != "phase" else best_of_ambiguities(x, truth).clamp(0, 1)
    return psnr(x, truth)


def restored(spec: str, noise: float, solver: Solver, prior: Prior, seed: int = 0) -> tuple:
    """(PSNR of each photograph, residual of each). Raises NumericalError where the method diverges."""
    operator, x, ids = operators.get(spec), photographs(), list(CROPS)
    y = invdiff.degrade(x, operator, noise=noise, ids=ids)
    solution = invdiff.restore(y, operator, noise, prior=prior, solver=solver, ids=ids, batch_size=len(ids), seed=seed)
    return quality(solution.samples[0], x, operator.family), solution.residual[0]


def measure(spec: str, noise: float, budget: int, name: str, prior: Prior) -> str:
    """One cell of the table."""
    operator, x = operators.get(spec), photographs()
    if name == FIRST_GUESS:
        y = invdiff.degrade(x, operator, noise=noise, ids=list(CROPS))
        return f"{float(quality(operator.first_guess(y), x, operator.family).mean()):.2f}"
    solver = choose(operator, tuple(x.shape[1:]), noise, budget) if name == AUTO else within(name, budget)
    if solver is None:
        return "-"
    try:
        found, _ = restored(spec, noise, solver, prior)
    except NumericalError:
        return "diverges"
    value = f"{float(found.mean()):.2f}"
    return f"{value} (`{solver.name}`)" if name == AUTO else value


def table(record: dict[str, str]) -> list[str]:
    """Rows: noise, calls and solver; columns: operators."""
    cells = {tuple(json.loads(key)): value for key, value in record.items()}
    columns = list(dict.fromkeys(key[0] for key in cells))
    lines = [
        f"| noise | calls | solver | {' | '.join(f'`{spec}`' for spec in columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for noise, budget, name in dict.fromkeys(key[1:] for key in cells):
        values = [cells.get((spec, noise, budget, name), "-") for spec in columns]
        title = name if name in (FIRST_GUESS, AUTO) else f"`{name}`"
        lines.append(f"| {noise:g} | {budget if name != FIRST_GUESS else ''} | {title} | {' | '.join(values)} |")
    return lines


def recommended(record: dict[str, str]) -> list[Score]:
    """For `solver="auto"`: the gain of each solver over the first guess, averaged over the operators of a family, where it
    was measured on all of them and diverged on none."""
    cells = {tuple(json.loads(key)): value for key, value in record.items()}
    kin: dict[str, list[str]] = {}
    for spec in dict.fromkeys(key[0] for key in cells):
        kin.setdefault(operators.get(spec).family, []).append(spec)
    scores = []
    for noise, budget, name in dict.fromkeys(key[1:] for key in cells if key[3] not in (FIRST_GUESS, AUTO)):
        for family, specs in kin.items():
            values = [cells.get((spec, noise, budget, name), "-") for spec in specs]
            if set(values) & {"-", "diverges"}:
                continue
            guesses = [float(cells[spec, noise, 0, FIRST_GUESS]) for spec in specs]
            gain = statistics.mean(float(v) - g for v, g in zip(values, guesses, strict=True))
            solver = within(name, budget)
            assert solver is not None
            scores.append(Score(family, noise, budget, name, solver.nfe, None, round(gain, 3), None))
    return scores


def restart_table(noises: list[float], budget: int, counts: list[int], prior: Prior) -> list[str]:
    """Phase retrieval by the solver that auto takes for several samples, from several seeds: mean PSNR of the best residual
    of n, and of the best image of n."""
    operator = operators.get("phase_retrieval")
    lines = ["| noise | solver | restarts | least residual | best image |", "|---" * 5 + "|"]
    for noise in noises:
        solver = choose(operator, (3, SIDE, SIDE), noise, budget, several=True)
        runs = [restored("phase_retrieval", noise, solver, prior, seed) for seed in range(max(counts))]
        for count in counts:
            scores, residuals = (torch.stack([run[k] for run in runs[:count]]) for k in (0, 1))
            chosen = scores.gather(0, residuals.argmin(0, keepdim=True)).mean()
            best = statistics.mean(scores.max(0).values.tolist())
            lines.append(f"| {noise:g} | `{solver.spec}` | {count} | {float(chosen):.2f} | {best:.2f} |")
    return lines


def keep_scores(scores: list[Score], target: Path) -> None:
    """In the place of the scores of these families in recommendations.json."""
    whole = json.loads(target.read_text())
    replaced = {score.family for score in scores}
    lines = [line for line in whole["scores"] if line["family"] not in replaced] + [asdict(score) for score in scores]
    whole["scores"] = sorted(lines, key=lambda line: (line["family"], line["noise"], line["budget"], line["solver"]))
    with atomic_path(target) as path:
        path.write_text(json.dumps(whole, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--operator", nargs="+", default=OPERATORS)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.05, 0.02])
    parser.add_argument("--budget", type=int, nargs="+", default=[20])
    parser.add_argument("--solver", nargs="+")
    parser.add_argument("--restarts", type=int, nargs="+")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--record", type=Path, default=Path("nonlinear.json"))
    parser.add_argument("--markdown", type=Path, help="folder for nonlinear.md, or restarts.md")
    parser.add_argument(
        "--recommend", type=Path, metavar="FILE", help="invdiff/restoration/recommendations.json, for auto"
    )
    arguments = parser.parse_args()
    prior = resolve_prior(arguments.prior, arguments.device)
    if arguments.restarts:
        lines, name = restart_table(arguments.noise, arguments.budget[0], arguments.restarts, prior), "restarts"
    else:
        record = json.loads(arguments.record.read_text()) if arguments.record.is_file() else {}
        for noise in arguments.noise:
            for budget in arguments.budget:
                for spec in arguments.operator:
                    names = [AUTO, *(arguments.solver or able(operators.get(spec)))]
                    asked = [[spec, noise, 0, FIRST_GUESS], *([spec, noise, budget, name] for name in names)]
                    for key in map(json.dumps, asked):
                        if key not in record:
                            record[key] = measure(*json.loads(key), prior)
                            print(key, record[key], flush=True)
                            with atomic_path(arguments.record) as path:
                                path.write_text(json.dumps(record, indent=1))
        lines, name = table(record), "nonlinear"
        if arguments.recommend:
            keep_scores(recommended(record), arguments.recommend)
    print("\n".join(lines))
    if arguments.markdown:
        (arguments.markdown / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
