"""All tables of a GPU, one script after the other, each within its share of the time.

    python benchmarks/gpu_tables.py --data photos.tar [--minutes 5] [--out docs/tables] [--tests]

Writes network-gpu-B.md, overhead-gpu-B.md (batches of 1 and 16), training-step-gpu.md and folder-gpu.md to --out. What does
not end in its share is stopped, and the next one begins: rented minutes are not spent on one of them; so is what fails, and
the script with it, at the end. --tests runs the tests that need a GPU, last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


# Share of the time, arguments of Python; TABLE stands for --markdown and the table's name.
JOBS = [
    (1.0, "benchmarks/network_call.py --device cuda --batch 16 --repeats 11 --photographs 1 TABLE:network-gpu-16"),
    (1.0, "benchmarks/overhead.py --device cuda --batch 16 --steps 20 --repeats 3 TABLE:overhead-gpu-16"),
    (1.0, "benchmarks/training_step.py --device cuda --seconds 4 DATA TABLE:training-step-gpu"),
    (0.7, "benchmarks/network_call.py --device cuda --batch 1 --repeats 21 --photographs 1 TABLE:network-gpu-1"),
    (0.7, "benchmarks/overhead.py --device cuda --batch 1 --steps 20 --repeats 5 TABLE:overhead-gpu-1"),
    (0.6, "benchmarks/folder.py --device cuda --images 64 --side 256 --steps 10 TABLE:folder-gpu"),
]
TESTS = (1.5, "-m pytest -m gpu -q -p no:cacheprovider --maxfail 5 tests")


def jobs(data: list[str], out: Path, tests: bool) -> list[tuple[float, list[str]]]:
    found = []
    for share, line in [*JOBS, *([TESTS] if tests else [])]:
        words: list[str] = []
        for word in line.split():
            kind, _, name = word.partition(":")
            if kind == "TABLE":
                words += ["--markdown", str(out / f"{name}.md")]
            else:
                words += [part for path in data for part in ("--data", path)] if kind == "DATA" else [word]
        found.append((share, words))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tables")
    parser.add_argument("--tests", action="store_true")
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    data = [str(Path(path).resolve()) for path in arguments.data]
    todo = jobs(data, arguments.out.resolve(), arguments.tests)
    ends = time.monotonic() + 60 * arguments.minutes
    failed = []
    while todo:
        share, words = todo[0]
        left = (ends - time.monotonic()) * share / sum(each for each, _ in todo)
        print(f"--- {' '.join(words[:8])} ({left:.0f} s)", flush=True)
        try:
            if subprocess.run([sys.executable, *words], cwd=ROOT, timeout=max(5.0, left), check=False).returncode:
                failed.append(" ".join(words))
        except subprocess.TimeoutExpired:
            print("stopped: its time is over", flush=True)
        todo.pop(0)
    if failed:
        raise SystemExit("failed:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
