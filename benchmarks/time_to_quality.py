"""Network calls and time to the best PSNR that any of deepinv's solvers reaches, and PSNR against calls for both.

    python benchmarks/time_to_quality.py --data CBSD68 --kernels kernels/Levin09.npz [--limit 4] [--side 128]
        [--calls 5 10 20 50] [--peer-calls 5 10 20 50 100 1000] [--solver auto ...] [--results OUT.json]
        [--markdown OUT.md] [--plot OUT.png]

The same network, measurements and images for all; deepinv's DDRM, DiffPIR and DPS with their defaults but for the number of
steps. For each task: the best mean PSNR of deepinv's, and the run of ours that takes the least time to come within 0.05 dB of
it or above. Seconds are processor time on a CPU, which other programs do not stretch, else wall time: of the whole
call, medians over images. Results are kept in --results as they come, and what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from compare_deepinv import PEERS, compare

from invdiff import operators
from invdiff.evaluation.measured_folder import Picture, read_pictures
from invdiff.files.atomic import atomic_path
from invdiff.files.images import write_json
from invdiff.noise import noise_model
from invdiff.priors.prior import Prior
from invdiff.restoration.api import resolve_prior

TOLERANCE = 0.05  # dB
TASKS = {
    "denoising": "identity",
    "Gaussian blur 2": "gaussian_blur:sigma=2",
    "bicubic x4": "downsample:factor=4,kernel=bicubic",
    "70 % masked": "inpaint:keep=0.3",
}
Results = dict[str, dict[str, Any]]


def measure(prior: Prior, picture: Picture, task: str, method: str, calls: int, noise: float) -> dict[str, Any] | None:
    """PSNR, seconds and calls of one method on one picture; None where it cannot be used."""
    theirs = method.startswith("deepinv ")
    clock = time.process_time if prior.device.type == "cpu" else time.perf_counter
    rows = compare(
        [picture], operators.get(TASKS[task]), noise_model(noise), prior, calls=[calls],
        specs=[] if theirs else [method], peers=[method.removeprefix("deepinv ")] if theirs else [],
    )  # fmt: skip
    next(rows)  # the measurement
    started = clock()
    row = next(rows)
    seconds = clock() - started
    if not row.psnr:
        return None
    (psnr,) = row.psnr.values()
    return {"psnr": psnr, "seconds": seconds, "calls": row.made, "method": row.method}


def mean(results: Results, task: str, method: str, calls: int, keys: list[str]) -> tuple[float, float, int, str] | None:
    """PSNR (mean), seconds (median), calls made and name, once all pictures have a result."""
    found = [results.get(f"{task}|{method}|{calls}|{key}") for key in keys]
    if not all(found):
        return None
    each = [one for one in found if one]
    seconds = statistics.median(one["seconds"] for one in each)
    return statistics.fmean(one["psnr"] for one in each), seconds, each[0]["calls"], each[0]["method"]


Curve = list[tuple[int, str, float, float]]
"""(calls made, method, PSNR, seconds) of every budget."""


def curves(results: Results, task: str, arguments: argparse.Namespace, keys: list[str]) -> tuple[Curve, Curve]:
    """Ours and deepinv's."""

    def points(methods: list[str], budgets: list[int]) -> Curve:
        known = [(method, mean(results, task, method, calls, keys)) for method in methods for calls in budgets]
        return [(one[2], one[3], one[0], one[1]) for _, one in known if one]

    peers = [f"deepinv {name}" for name in PEERS]
    return points(arguments.solver, arguments.calls), points(peers, arguments.peer_calls)


def table(results: Results, arguments: argparse.Namespace, keys: list[str], note: str) -> str:
    """Both targets, a line a task, and all curves."""
    lines = [
        "| task | deepinv's best | PSNR | calls | s | ours as good | PSNR | calls | s | calls / | time / |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    every = ["", "| task | method | calls | PSNR | s |", "|---|---|---|---|---|"]
    for task in TASKS:
        ours, theirs = curves(results, task, arguments, keys)
        known = {(c, m): (p, s) for c, m, p, s in [*sorted(ours), *sorted(theirs)]}
        every += [f"| {task} | {m} | {c} | {p:.2f} | {s:.2f} |" for (c, m), (p, s) in known.items()]
        if not ours or not theirs:
            continue
        goal = max(psnr for _, _, psnr, _ in theirs)
        calls, method, psnr, seconds = min(
            (one for one in theirs if one[2] >= goal - TOLERANCE), key=lambda one: one[3]
        )
        left = f"| {task} | {method.removeprefix('deepinv ')} | {psnr:.2f} | {calls} | {seconds:.1f} "
        good = [one for one in ours if one[2] >= goal - TOLERANCE]
        if not good:
            best = max(ours, key=lambda one: one[2])
            lines.append(f"{left}| not reached: `{best[1]}` | {best[2]:.2f} | {best[0]} | {best[3]:.1f} | - | - |")
            continue
        made, name, found, spent = min(good, key=lambda one: one[3])
        ratios = f"{calls / made:.1f} | {seconds / spent:.1f}"
        lines.append(f"{left}| `{name}` | {found:.2f} | {made} | {spent:.1f} | {ratios} |")
    return "\n".join([*lines, *every, "", note]) + "\n"


def plot(results: Results, arguments: argparse.Namespace, keys: list[str], path: Path) -> None:
    """PSNR against network calls, a panel a task."""
    from matplotlib.figure import Figure

    names = [*arguments.solver, *(f"deepinv {name}" for name in PEERS)]
    figure = Figure(figsize=(4 * len(TASKS), 3.6), dpi=100, layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        for points, style in zip(curves(results, task, arguments, keys), ("-o", "--s"), strict=True):
            for group in dict.fromkeys(name.partition(" (")[0] for _, name, _, _ in points):
                mine = sorted((c, p) for c, name, p, _ in points if name.partition(" (")[0] == group)
                colour = f"C{names.index(group)}"  # the same in all panels, where some methods are missing
                axes.plot(*zip(*mine, strict=True), style, color=colour, label=group, markersize=4)
        axes.set(title=task, xlabel="network calls", ylabel="PSNR (dB)", xscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    with atomic_path(path) as part:
        figure.savefig(part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kernels", type=Path, help="Levin09.npz, for the motion blur k00")
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--peer-calls", type=int, nargs="+", default=[5, 10, 20, 50, 100, 1000])
    parser.add_argument("--solver", nargs="+", default=["auto"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=Path("runs/time_to_quality.json"))
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device)
    if arguments.kernels:
        TASKS["motion blur k00"] = f"kernel_blur:kernel={arguments.kernels},key=k00,boundary=circular"
    results: Results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    ours = [(solver, calls) for calls in arguments.calls for solver in arguments.solver]
    theirs = [(f"deepinv {name}", calls) for calls in arguments.peer_calls for name in PEERS]
    keys: list[str] = []
    for method, calls in sorted([*ours, *theirs], key=lambda one: one[1]):  # what is cheap comes first
        for task, spec in TASKS.items():
            pictures = read_pictures(
                arguments.data, operators.get(spec), noise_model(arguments.noise), prior, limit=arguments.limit,
                crop=arguments.side,
            ).usable  # fmt: skip
            keys = [picture.key for picture in pictures]
            for picture in pictures:
                name = f"{task}|{method}|{calls}|{picture.key}"
                if name in results:
                    continue
                measured = measure(prior, picture, task, method, calls, arguments.noise)
                results[name] = measured or {}
                write_json(arguments.results, results)
            if one := mean(results, task, method, calls, keys):
                print(f"{task:16s} {one[3]:24s} {one[2]:5d} calls {one[0]:6.2f} dB {one[1]:8.2f} s", flush=True)
    unit = "processor seconds" if prior.device.type == "cpu" else "seconds"
    note = (
        f"{len(keys)} images, middle {arguments.side} x {arguments.side}, noise {arguments.noise:g}, "
        f"prior {arguments.prior}, "
        f"{prior.device.type} ({torch.get_num_threads()} threads); s: {unit}, median over images; calls: as made."
    )
    text = table(results, arguments, keys, note)
    print(text)
    if arguments.markdown:
        with atomic_path(arguments.markdown) as part:
            part.write_text(text)
    if arguments.plot:
        plot(results, arguments, keys, arguments.plot)


if __name__ == "__main__":
    main()
