"""Time of a restoration over the time of its bare network calls.

    python benchmarks/overhead.py [--prior natural] [--size 256] [--steps 20] [--repeats 5] [--markdown OUT.md]

A: `restore` with `steps` calls, start to end (data steps, noise, finiteness checks, residual). B: `steps` bare calls
of the same network on the same shape in the same precision. A and B alternate in one process; the table has the median
of each and of the ratios pair by pair.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

import invdiff
from invdiff.device import autocast
from invdiff.priors.network import NetworkPrior
from invdiff.restoration import resolve_prior

CASES = [
    ("diffpir", "gaussian_blur:sigma=2"),
    ("diffpir", "gaussian_blur:sigma=2,boundary=circular"),
    ("diffpir", "motion_blur:length=15,angle=30"),
    ("diffpir", "downsample:factor=4,kernel=bicubic"),
    ("diffpir", "inpaint:keep=0.4"),
    ("ddrm", "gaussian_blur:sigma=2"),
    ("ddnm", "downsample:factor=4,kernel=bicubic"),
]


def bare_calls(prior: NetworkPrior, shape: tuple[int, ...], steps: int) -> None:
    x, t = torch.zeros(1, *shape, device=prior.device), torch.full((1,), 50.0, device=prior.device)
    with torch.no_grad(), autocast(prior.device, prior.precision):
        for _ in range(steps):
            prior.network(x, t)
    if prior.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device, arguments.precision)
    shape = (prior.channels, arguments.size, arguments.size)
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    head = ["| solver | operator | restore (s) | bare calls (s) | ratio | s per call |", "|---|---|---|---|---|---|"]
    print("\n".join(head))
    rows = []
    for solver, operator in CASES:
        y = invdiff.degrade(x, operator, noise=0.05)
        ours, bare = [], []
        for repeat in range(arguments.repeats + 1):
            start = time.perf_counter()
            invdiff.restore(y, operator, 0.05, prior=prior, solver=solver, steps=arguments.steps)
            middle = time.perf_counter()
            bare_calls(prior, shape, arguments.steps)
            end = time.perf_counter()
            if repeat:  # the first pair warms up
                ours.append(middle - start)
                bare.append(end - middle)
        ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
        a, b = statistics.median(ours), statistics.median(bare)
        rows.append(f"| {solver} | `{operator}` | {a:.2f} | {b:.2f} | {ratio:.3f} | {b / arguments.steps:.3f} |")
        print(rows[-1], flush=True)
    note = (
        f"{arguments.size} x {arguments.size}, batch 1, {arguments.steps} calls, {prior.device.type} "
        f"({torch.get_num_threads()} threads), {prior.describe()['precision']}, torch {torch.__version__}, "
        f"medians of {arguments.repeats}."
    )
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*head, *rows, "", note]) + "\n")
    print(note)


if __name__ == "__main__":
    main()
