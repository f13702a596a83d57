"""What `invdiff tune` gained, from the presets it wrote: one line each, and the command that made it.

python benchmarks/tuning.py PRESET.yaml [PRESET.yaml ...] --markdown docs/tables/tuning.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from invdiff.files.atomic import atomic_path
from invdiff.restoration.presets import Preset
from invdiff.solvers import load_preset

HEAD = (
    *("operator", "noise", "defaults", "found", "better"),
    *("gain where searched (95 %)", "images", "gain on pictures held back (95 %)", "images", "trials", "given up"),
)


def gain(part: dict[str, Any] | None) -> tuple[str, str]:
    if part is None:
        return "-", "-"
    low, high = part["interval"] or (float("nan"), float("nan"))
    return f"{part['gain']:+.2f} ({low:+.2f} to {high:+.2f})", str(len(part["images"]))


def line(preset: Preset) -> str:
    about, search, scores = preset.tuned_for, preset.search, preset.scores
    cells = (
        f"`{about['operator']}`", f"`{about['noise']}`", f"`{search['default']}`", f"`{search['tuned']}`",
        "yes" if preset.better else "no", *gain(scores["searched_on"]), *gain(scores.get("held_back")),
        str(search["trials"]), str(search["pruned"]),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    presets = [load_preset(path) for path in arguments.presets]
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|", *map(line, presets), ""]
    lines += ["Gains in the metric's unit (dB for PSNR). Made by:", ""]
    lines += [f"    {preset.command}" for preset in presets]
    print("\n".join(lines))
    if arguments.markdown:
        with atomic_path(arguments.markdown) as part:
            part.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
