"""Scores of every solver on held-back photographs: the data behind `invdiff solvers recommend` and `--solver auto`.

    python benchmarks/recommend.py --data open-00.tar --data native-00.tar --holdout checkpoints/natural/holdout.json
        [--noise 0.01 0.05 0.2] [--budget 20 100] [--side 96] [--limit 4] [--solver SPEC ...] [--markdown docs/tables]

--holdout names the photographs that no training saw; benchmark sets are not used. Each cell is a family of operators, a noise
level and a budget of network calls for one sample. A solver gets as many steps as the budget pays for. Scores are kept as
soon as they are there (invdiff/restoration/recommendations.json), and what is there is not measured again without --again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import invdiff
from invdiff import operators, solvers
from invdiff.files.atomic import atomic_path
from invdiff.files.images import centre
from invdiff.restoration.api import resolve_prior
from invdiff.restoration.auto import CALLS
from invdiff.restoration.recommendation import AIMS, PIXELWISE, Score, within
from invdiff.scores.comparison import compare
from invdiff.scores.metrics import crps
from invdiff.training.data.decoding import load, to_unit
from invdiff.training.data.entries import find_entries

# Family -> the operator that stands for it.
FAMILIES = {
    "denoising": "identity",
    "blur": "gaussian_blur:sigma=2",
    "motion": "motion_blur:length=9,angle=30,boundary=circular",
    "downsampling": "downsample:factor=4,kernel=bicubic",
    "inpainting": "inpaint:keep=0.3",
    "holes": "inpaint:box=40x40",
    "colour": "grayscale",
    "mixing": "spectral_mixing:matrix=(0.7 0.3 0; 0 0.4 0.6)",
}
# Measured on pictures of twice the side: in small ones a hole sees too little of what it is to continue.
WIDE = ("holes",)
SPATIAL = [kind for kind in FAMILIES if kind not in PIXELWISE]
MATRIX = np.array([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])
# A run of so few levels, which is what a budget leaves to many particles, says nothing about a method.
FEWEST_STEPS = 5
TARGET = Path(__file__).resolve().parents[1] / "invdiff" / "restoration" / "recommendations.json"


def photographs(data: list[str], holdout: Path, side: int, limit: int) -> dict[str, torch.Tensor]:
    """Name -> middle (C, side, side) of the held-back photographs."""
    wanted = set(json.loads(holdout.read_text())["held_back"])
    found = {}
    for entry in find_entries(data):
        if entry.key in wanted and len(found) < limit:
            image = torch.from_numpy(to_unit(load(entry, 3)).transpose(2, 0, 1).copy())
            found[entry.key] = centre(image, side)
    return found


def measure(
    prior: Any, images: dict[str, torch.Tensor], family: str, noise: float, budget: int, spec: str, samples: int
) -> tuple[Score, float] | None:
    """The score of one solver in one cell and its seconds an image; None if it does not fit."""
    operator = (
        operators.get("spectral_mixing", matrix=MATRIX) if family == "mixing" else operators.get(FAMILIES[family])
    )
    solver = within(spec, budget)
    if solver is None or solver.steps < min(FEWEST_STEPS, budget) or solver.unmet(operator):
        return None
    gains: list[float] = []
    singles: list[float] = []
    ranked: list[float] = []
    seconds = 0.0
    for key, x in images.items():
        y = invdiff.degrade(x[None], operator, noise=noise, ids=[key])
        started = time.perf_counter()
        solution = invdiff.restore(
            y, operator, noise, prior=prior, solver=solver, samples=samples, ids=[key], batch_size=samples
        )
        seconds += time.perf_counter() - started
        scored = [compare(y[0], estimate[0], x) for estimate in (solution.mean, *solution.samples)]
        # What is no picture, a mix of channels, is compared with its pseudo-inverse.
        before = scored[0].before or compare(y[0], operator.first_guess(y)[0].clamp(0, 1), x).after
        gains.append(scored[0].after.psnr - before.psnr)
        singles.append(sum(each.after.psnr for each in scored[1:]) / samples - before.psnr)
        ranked.append(float(crps(solution.samples, x[None])))
    means = [round(sum(values) / len(values), digits) for values, digits in ((gains, 3), (singles, 3), (ranked, 5))]
    score = Score(family, noise, budget, spec, solver.nfe, *means)
    return score, seconds / len(images)


def tables(record: dict[str, Any], folder: Path) -> None:
    """solvers.md: one line a solver at the middle noise level and the usual budget; recommendations.md: everything."""
    scores = [Score(**line) for line in record["scores"]]
    levels = sorted({score.noise for score in scores})
    budgets = sorted({score.budget for score in scores})

    def lines(noise: float, budget: int, kinds: list[str]) -> list[str]:
        cells = {(s.solver, s.family): s for s in scores if (s.noise, s.budget) == (noise, budget)}
        best = {
            (kind, aim): max((s.rank(aim) for (_, k), s in cells.items() if k == kind), default=0.0)
            for kind in kinds
            for aim in AIMS
        }

        def cell(solver: str, kind: str) -> str:
            score = cells.get((solver, kind))
            if score is None:
                return "-"
            texts = (f"{score.gain:+.2f}", f"{score.single:+.2f}", f"{1000 * score.crps:.1f}")
            won = [score.rank(aim) == best[kind, aim] for aim in AIMS]
            return " / ".join(mark(text, first) for text, first in zip(texts, won, strict=True))

        head = ["solver", *(f"{kind}: `{record['operators'][kind]}`" for kind in kinds)]
        rows = [
            f"| `{solver}` | " + " | ".join(cell(solver, kind) for kind in kinds) + " |"
            for solver in sorted({name for name, kind in cells if kind in kinds})
        ]
        return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]

    def mark(text: str, best: bool) -> str:
        return f"**{text}**" if best else text

    note = (
        "Gain in PSNR by the mean of the samples, dB / by one sample / CRPS x 1000, smaller is better. "
        f"{record['protocol']}."
    )
    middle = min(levels, key=lambda level: abs(level - 0.05))
    usual = min(budgets, key=lambda budget: abs(budget - CALLS))
    first = [*lines(middle, usual, SPATIAL), "", f"Noise {middle:g}, {usual} network calls a sample. {note}"]
    everything = [note]
    for budget in budgets:
        for noise in levels:
            part = lines(noise, budget, list(FAMILIES))
            if len(part) > 2:
                everything += ["", f"## Noise {noise:g}, {budget} calls", "", *part]
    for name, text in (("solvers", first), ("recommendations", everything)):
        (folder / f"{name}.md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.01, 0.05, 0.2])
    parser.add_argument("--budget", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--family", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--solver", nargs="+", default=solvers.names())
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--markdown", type=Path, help="folder for solvers.md and recommendations.md")
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior)
    sides = {family: arguments.side * (2 if family in WIDE else 1) for family in arguments.family}
    crops = {
        side: photographs(arguments.data, arguments.holdout, side, arguments.limit)
        for side in sorted(set(sides.values()))
    }
    kept = json.loads(arguments.out.read_text())["scores"] if arguments.out.exists() else []
    scores = {(s["family"], s["noise"], s["budget"], s["solver"]): s for s in kept}
    for budget in arguments.budget:
        for noise in arguments.noise:
            for family in arguments.family:
                for spec in arguments.solver:
                    key = (family, noise, budget, spec)
                    if key in scores and not arguments.again:
                        continue
                    try:
                        measured = measure(prior, crops[sides[family]], family, noise, budget, spec, arguments.samples)
                    except invdiff.errors.NumericalError as error:
                        print(f"{key}: {error}", flush=True)
                        continue
                    if measured is None:
                        continue
                    score, seconds = measured
                    scores[key] = asdict(score)
                    cell = f"{family:13s} {noise:5g} {budget:5d} {spec:24s} {score.calls:5d} calls"
                    gains = f"{score.gain:+7.2f} {score.single:+7.2f} dB"
                    print(f"{cell} {gains} CRPS {score.crps:.4f} {seconds:6.1f} s", flush=True)
                    record = {
                        "protocol": f"Middle {arguments.side} x {arguments.side} ({', '.join(WIDE)}: twice the side) of "
                        f"{arguments.limit} held-back photographs, {arguments.samples} samples, prior {arguments.prior}",
                        "operators": FAMILIES,
                        "scores": [scores[name] for name in sorted(scores)],
                    }
                    with atomic_path(arguments.out) as part:
                        part.write_text(json.dumps(record, indent=1) + "\n")
    if arguments.markdown:
        tables(json.loads(arguments.out.read_text()), arguments.markdown)


if __name__ == "__main__":
    main()
