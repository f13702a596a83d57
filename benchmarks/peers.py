"""deepinv's DDRM, DiffPIR and DPS beside ours on the tasks of the documentation.

    python benchmarks/peers.py --data CBSD68 --kernels kernels/Levin09.npz [--limit 20] [--side 256] [--calls 20 100]
        [--solver auto --solver diffpir ...] [--peer diffpir ...] [--markdown OUT.md] [--json OUT.json]

benchmarks/compare_deepinv.py says what is compared, and does a single task.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from compare_deepinv import HEAD, NOTE, PEERS, compare, references

from invdiff import operators
from invdiff.evaluation.measured_folder import read_pictures
from invdiff.files.atomic import atomic_path
from invdiff.files.images import write_json
from invdiff.machine.versions import package_versions
from invdiff.noise import noise_model
from invdiff.restoration.api import resolve_prior


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kernels", type=Path, help="Levin09.npz, for the motion blur k00")
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--noise", default="0.05")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--calls", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--solver", action="append")
    parser.add_argument("--peer", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    prior, noise = resolve_prior(arguments.prior, arguments.device), noise_model(arguments.noise)
    chosen = {
        "Gaussian blur 2": "gaussian_blur:sigma=2",
        "bicubic x4": "downsample:factor=4,kernel=bicubic",
        "70 % masked": "inpaint:keep=0.3",
    }
    if arguments.kernels:
        chosen["motion blur k00"] = f"kernel_blur:kernel={arguments.kernels},key=k00,boundary=circular"
    lines = [f"| task | {' | '.join(HEAD)} |", "|---" * (len(HEAD) + 1) + "|"]
    print("\n".join(lines))
    tasks, count = {}, 0
    for task, spec in chosen.items():
        operator = operators.get(spec)
        pictures = read_pictures(
            arguments.data, operator, noise, prior, crop=arguments.side, limit=arguments.limit
        ).usable
        rows, count = [], len(pictures)
        for row in compare(
            pictures, operator, noise, prior,
            calls=arguments.calls, specs=arguments.solver or ["auto"], peers=arguments.peer,
        ):  # fmt: skip
            rows.append(row)
            if row.psnr:
                lines.append(f"| {task} | {' | '.join(row.cells(references(rows)[row.calls]))} |")
                print(lines[-1], flush=True)
        tasks[task] = {"operator": spec, "rows": [row.record(references(rows)[row.calls]) for row in rows]}
    side = f"middle {arguments.side} x {arguments.side}"
    note = f"{count} images, {side}, noise {arguments.noise}, prior {arguments.prior}. {NOTE}"
    print(note)
    if arguments.markdown:
        with atomic_path(arguments.markdown) as part:
            part.write_text("\n".join([*lines, "", note]) + "\n")
    if arguments.json:
        write_json(arguments.json, {"tasks": tasks, "about": note, "versions": package_versions()})


if __name__ == "__main__":
    main()
