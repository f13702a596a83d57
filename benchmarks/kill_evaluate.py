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

from invdiff.files.images import write_image

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


def run(words: list[str], out: Path, lines: int | None = None, delay: float = 0.0) -> bool:
    """Whether the command came to its end; else it was killed `delay` seconds after its results had so many lines."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while lines is not None and process.poll() is None:
        if len(sorted_lines(out)) >= lines:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    _, errors = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return False
    if process.returncode != 1:  # one image is broken, and the exit code says so
        raise RuntimeError(f"exit code {process.returncode}: {errors}")
    return True


def sorted_lines(out: Path) -> list[bytes]:
    """The lines of the results."""
    path = out / "results.jsonl"
    return sorted(path.read_bytes().splitlines()) if path.exists() else []


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
        run(command(folder, arguments.prior, whole, arguments.batch_size), whole)
        expected = sorted_lines(whole)
        print(f"without a kill: {len(expected)} results")
        kills, ended, same, out = 0, 0, True, folder / "killed-0"
        while kills < arguments.kills or out.exists():
            there = len(sorted_lines(out))
            # Soon after what is there, so that an evaluation is killed several times before its end.
            target = draws.randint(there, min(there + 6, len(expected))) if kills < arguments.kills else None
            target = None if there == len(expected) else target
            words = command(folder, arguments.prior, out, arguments.batch_size)
            if not run(words, out, target, draws.expovariate(20)):
                kills += 1
                print(f"kill {kills}: {len(sorted_lines(out))} lines", flush=True)
                continue
            ended += 1
            equal = sorted_lines(out) == expected
            same = same and equal
            print(f"ended: {'the same' if equal else 'DIFFERENT'}", flush=True)
            out = folder / f"killed-{ended}"
    verdict = "every store the same as without, byte by byte" if same else "stores differ"
    print(f"{kills} kills, {ended} evaluations ended; {verdict}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
