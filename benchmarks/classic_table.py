"""The table of the suite `classic` for the documentation, from the folder of its run.

    invdiff evaluate classic --data DATA --out runs/classic [--limit N]
    python benchmarks/classic_table.py runs/classic [--out docs/tables/classic.md]

A line for each operator and noise, a column for each data set: PSNR of the measurement -> of the restoration, SSIM, and the
number of images, over those that are in the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from invdiff.evaluation.store import load
from invdiff.evaluation.summary import Summary, summaries
from invdiff.files.atomic import atomic_path


def entry(row: Summary | None) -> str:
    if row is None or not row.images:
        return "-"
    whole = f"{row.text('before_psnr', 2)} -> **{row.text('psnr', 2)}**, {row.text('ssim', 3)}"
    return f"{whole} ({row.images})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--out", type=Path, default=Path("docs/tables/classic.md"))
    arguments = parser.parse_args()

    run = load(arguments.run)
    rows = {(row.cell["operator"], row.cell["noise"], row.cell["data"]): row for row in summaries(run)}
    sets = list(dict.fromkeys(key[2] for key in rows))
    tasks = list(dict.fromkeys(key[:2] for key in rows))
    lines = [f"| operator | noise | {' | '.join(sets)} |", "|---" * (len(sets) + 2) + "|"]
    for operator, noise in tasks:
        cells = " | ".join(entry(rows.get((operator, noise, name))) for name in sets)
        lines.append(f"| `{operator.replace('{data}/', '')}` | {noise} | {cells} |")
    cell = run.cells[0]
    versions = run.record["versions"]
    whole = ", ".join(f"{name} has {run.record['data'][name]['images']}" for name in sets)
    lines += [
        "",
        f"PSNR of the measurement -> of the restoration in dB, SSIM (images, the first of each set; {whole}). Solver "
        f"`{cell['solver']}` with {cell['steps']} calls, prior {cell['prior']}, one sample, seed {cell['seed']}, invdiff "
        f"{versions['invdiff']}, torch {versions['torch']}.",
        *(f"- {text}" for text in run.record["protocol_text"]),
    ]
    with atomic_path(arguments.out) as part:
        part.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
