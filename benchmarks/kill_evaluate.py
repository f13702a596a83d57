"""kill -9 at random moments of an evaluation: is what the resumed runs leave the same, byte by byte, as without a kill?

    python benchmarks/kill_evaluate.py [--kills 20] [--batch-size 2] [--seed 0] [--prior DIR] [--keep DIR]

An evaluation runs once without interruption. Then the same one is begun, killed at a random moment and begun again with the
same command, as often as asked for, and in the end left alone. The lines of both results.jsonl are sorted and compared. An
evaluation that ends before its kill is compared as well, and a new one begun. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from invdiff.images import write_image

ROOT = Path(__file__).resolve().parents[1]


def command(folder: Path, prior: str, out: Path, batch_size: int) -> list[str]:
    """Nine images, one of them broken, under two operators."""
    words = [
        sys.executable,
        "-m",
        "invdiff",
        "evaluate",
        "--data",
        str(folder / "images"),
        "--out",
        str(out),
        "--quiet",
    ]
    words += [
        "--operator",
        "gaussian_blur:sigma=1",
        "--operator",
        "inpaint:keep=0.5",
        "--noise",
        "0.05",
        "--steps",
        "4",
    ]
    words += ["--solver", "diffpir", "--prior", prior, "--samples", "2", "--calibration", "--device", "cpu"]
    return [*words, "--precision", "fp32", "--batch-size", str(batch_size), "--pictures", "1"]


def write_images(folder: Path, count: int = 8) -> None:
    """Smooth colour pictures of two sizes, and a file that is none."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    for index in range(count):
        planes = [0.5 + 0.3 * torch.sin(rows / (3 + index + c) + columns / 4.0) for c in range(3)]
        write_image(folder / "images" / f"{index}.png", torch.stack(planes)[:, : 32 if index % 3 else 24])
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")


def run(words: list[str], seconds: float | None = None) -> tuple[bool, float]:
    """Whether the command came to its end before `seconds`, when it is killed, and how long it took."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False, time.perf_counter() - started
    if process.returncode != 1:  # one image is broken, and the exit code says so
        raise RuntimeError(f"exit code {process.returncode}: {errors}")
    return True, time.perf_counter() - started


def sorted_lines(out: Path) -> list[bytes]:
    """The lines of the results."""
    return sorted((out / "results.jsonl").read_bytes().splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--keep", type=Path, help="leave the folders here")
    arguments = parser.parse_args()

    draws = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        write_images(folder)
        whole = folder / "whole"
        _, seconds = run(command(folder, arguments.prior, whole, arguments.batch_size))
        expected = sorted_lines(whole)
        print(f"without a kill: {len(expected)} results in {seconds:.1f} s")
        kills, ended, same, out = 0, 0, True, folder / "killed-0"
        while kills < arguments.kills or not ended:
            limit = draws.uniform(0.2, 1.05) * seconds if kills < arguments.kills else None
            finished, _ = run(command(folder, arguments.prior, out, arguments.batch_size), limit)
            if not finished:
                kills += 1
                found = sorted_lines(out) if (out / "results.jsonl").exists() else []
                print(f"kill {kills}: {len(found)} lines", flush=True)
                continue
            ended += 1
            equal = sorted_lines(out) == expected
            same = same and equal
            print(f"ended: {'the same' if equal else 'DIFFERENT'}")
            out = folder / f"killed-{ended}"
    verdict = "every store the same as without, byte by byte" if same else "stores differ"
    print(f"{kills} kills, {ended} evaluations ended; {verdict}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
