"""Every physics of deepinv as an operator of ours: what it measures, how right its adjoint and prox_l2 are, its solvers.

    python benchmarks/deepinv_catalogue.py [--markdown docs/tables/deepinv.md]

Protocol: small images (tests/deepinv_physics.py), float32, random vectors. Adjoint: |<A x, v> - <x, A^T v>| / (|A x| |v|)
of deepinv's A_adjoint; prox: |A^T (A x - y) + x - z| / |z| of its own prox_l2, where it has one. Bold: above 1e-4 and 1e-3,
where ours stand in.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import deepinv  # noqa: E402
import torch  # noqa: E402
from deepinv_physics import BUILDERS, NOT_BUILT, ONE_AT_A_TIME  # noqa: E402

from invdiff import solvers  # noqa: E402
from invdiff.operator.deepinv_physics import as_operator  # noqa: E402


def number(error: float, limit: float) -> str:
    text = "fails" if error == float("inf") else f"{error:.0e}"
    return text if error <= limit else f"**{text}**"


def row(name: str, groups: dict[tuple[str, ...], str]) -> str:
    make, shape = BUILDERS[name]
    physics: Any = make()
    op: Any = as_operator(physics, shape)
    measured = op._example
    several = not isinstance(measured, torch.Tensor)
    kind = "several tensors" if several else "complex" if measured.is_complex() else "real"
    adjoint = number(op.adjoint_error(shape), 1e-4) if op.linear else ""
    own = op.linear and type(physics).prox_l2 is not deepinv.physics.LinearPhysics.prox_l2
    prox = number(op.prox_error(shape), 1e-3) if own else ""
    able = tuple(solver for solver in solvers.names() if not solvers.get(solver).unmet(op))
    letter = groups.setdefault(able, "ABCDEFGH"[len(groups)])
    cells = [name, "yes" if op.linear else "no", kind, "yes" if op.has_svd else "", adjoint, prox, letter]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    groups: dict[tuple[str, ...], str] = {}
    lines = [f"deepinv {deepinv.__version__}", ""]
    lines += ["| physics | linear | y | SVD used | adjoint | own prox | solvers |", "|" + "---|" * 7]
    lines += [row(name, groups) for name in BUILDERS]
    lines += [""] + [f"- {letter}: {', '.join(able) or 'none'}" for able, letter in groups.items()]
    lines += ["", f"Only one image at a time: {', '.join(ONE_AT_A_TIME)}."]
    lines += ["", "Not built:", ""] + [f"- {name}: {reason}" for name, reason in NOT_BUILT.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
