"""How long `invdiff restore` takes to its first network call, over the imports of torch and of the network's class.

    python benchmarks/startup.py [--repeats 5] [--markdown OUT.md]

Each run is a process of its own, from its start to the moment in question, where it ends; seconds of its processor time.
The three take turns; the table has the median of each, and of the ratios turn by turn. The image is 64 x 64: decoding a
large one is no start-up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = "import os, torch\nfrom diffusers import UNet2DModel\nos._exit(0)"
FIRST_CALL = """
import os, sys
from invdiff.cli.main import main
from invdiff.priors.network import NetworkPrior
NetworkPrior.denoise = lambda *_: os._exit(0)
sys.argv = ["invdiff", "restore", sys.argv[1], "-o", sys.argv[1] + ".out.png", "--operator", "gaussian_blur:sigma=2",
            "--noise", "0.05"]
main()
"""
HELP = "import sys\nfrom invdiff.cli.main import main\nsys.argv = ['invdiff', '--help']\nmain()"


def seconds(code: str, *arguments: str) -> float:
    """Processor time of a fresh interpreter that runs this code: on a busy machine wall time is that of others."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    import torch

    from invdiff.files.images import write_image

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "y.png")
        write_image(path, torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))
        for repeat in range(arguments.repeats + 1):
            run = seconds(IMPORTS), seconds(FIRST_CALL, str(path)), seconds(HELP)
            if repeat:  # the first one fills the disk cache
                runs.append(run)
    imports, first, shown = (statistics.median(values) for values in zip(*runs, strict=True))
    ratio = statistics.median(run[1] / run[0] for run in runs)
    lines = [
        "| imports (s) | `invdiff restore` to its first call (s) | ratio | `invdiff --help` (s) |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {imports:.2f} | {first:.2f} | {ratio:.2f} | {shown:.2f} |",
        "",
        f"Processor time, medians of {len(runs)}, torch {torch.__version__}.",
    ]
    text = "\n".join(lines) + "\n"
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
