"""Time of a restoration over the time of its bare network calls.

    python benchmarks/overhead.py [--prior natural] [--size 256] [--steps 20] [--repeats 5] [--only SOLVER ...]
        [--markdown OUT.md]

A: `restore`, start to end (data steps, noise, finiteness checks, residual). B: the same calls of the same network on the
same shapes in the same precision, with the same backward passes to its input, and nothing else. A and B alternate in one
process; the table has the median of each and of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from invdiff.evaluation.speed import time_solver
from invdiff.priors.network import NetworkPrior
from invdiff.restoration.api import resolve_prior

CASES = [
    ("diffpir", "gaussian_blur:sigma=2"),
    ("diffpir", "gaussian_blur:sigma=2,boundary=circular"),
    ("diffpir", "motion_blur:length=15,angle=30"),
    ("diffpir", "downsample:factor=4,kernel=bicubic"),
    ("diffpir", "inpaint:keep=0.4"),
    ("ddrm", "gaussian_blur:sigma=2"),
    ("ddnm", "downsample:factor=4,kernel=bicubic"),
    ("dps", "gaussian_blur:sigma=2"),
    ("dps", "inpaint:keep=0.4"),
    ("pigdm", "gaussian_blur:sigma=2"),
    ("mmps", "gaussian_blur:sigma=2"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", nargs="+", metavar="SOLVER", help="the cases of these solvers")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device, arguments.precision)
    assert isinstance(prior, NetworkPrior)
    size, steps = (arguments.size, arguments.size), arguments.steps
    head = [
        "| solver | operator | restore (s) | bare calls (s) | ratio | calls | backward |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(head))
    rows = []
    for solver, operator in CASES:
        if arguments.only and solver not in arguments.only:
            continue
        run = time_solver(prior, solver, operator, size, arguments.batch, steps, arguments.repeats)
        rows.append(
            f"| {run.solver} | `{operator}` | {run.seconds:.3g} | {run.bare:.3g} | {run.ratio:.3f} | {run.calls} "
            f"| {run.backwards} |"
        )
        print(rows[-1], flush=True)
    note = (
        f"{arguments.size} x {arguments.size}, batch {arguments.batch} (seconds for one image), {steps} calls, "
        f"{prior.device.type} ({torch.get_num_threads()} threads), {prior.describe()['precision']}, torch "
        f"{torch.__version__}, medians of {arguments.repeats}."
    )
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*head, *rows, "", note]) + "\n")
    print(note)


if __name__ == "__main__":
    main()
