"""Write the model card of a trained prior: README.md and curve.png inside its folder.

    python benchmarks/model_card.py checkpoints/natural --data-table TABLE.md --scores SCORES.md
        --invariance INVARIANCE.md --command "invdiff train ..."

The numbers come from the folder itself (recipe.json, log.csv, the weights) and from the tables that
benchmarks/denoising.py and benchmarks/size_invariance.py wrote; the text on data and licences from TABLE.md.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from invdiff.priors.loading import describe_checkpoint

CARD = """---
license: mit
library_name: diffusers
tags: [diffusion, denoising, inverse-problems, image-restoration, unconditional]
---

# {name}

A small unconditional DDPM prior for photographs, for `invdiff` (`invdiff.load_prior("{name}")`) and for anything that
reads diffusers folders. Fully convolutional: it takes any image size. It is a prior for restoration, not a picture
generator: large structure that no measurement tells is beyond a network of this size.

| | |
|---|---|
| network | `UNet2DModel`, widths {widths}, {blocks} residual block(s) a level, no attention, GroupNorm with {groups} groups |
| parameters | {parameters:.2f} million, {size:.1f} MiB in float16 |
| cost | {flops:.2f} MFLOP a pixel and call (multiply and add counted as two) |
| images | {channels} channels, [-1, 1] inside, [0, 1] through `invdiff` |
| noise | {schedule} schedule, T = {steps}, epsilon prediction, sigma {low:.4f} to {high:.1f} on [0, 1] |

## Denoising

One call of `denoise` on whole images of CBSD68 (never trained on), noise level known:

{scores}

Size invariance (GroupNorm averages over the input): the same central window, noise 25/255, inside larger and larger crops.

{invariance}

## Training

    {command}

{hours:.2f} hours of wall time, {updates} steps of {pixels} pixels each. `recipe.json` holds every setting, `log.csv` the
curve: training loss (running mean) and denoising PSNR at sigma x 255 = 5, 15, 25, 50, 100 on {holdout} photographs that were
held back.

![validation PSNR over steps](curve.png)

Held-back photographs are held back by file; some of the native-scale crops show the same scenes as other training files.

## Data and licences

{data}

The weights are released under the licence of this repository (MIT). The photographs keep their own licences and are not
part of it.
"""


def draw_curve(rows: list[dict[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=90)
    steps = [int(row["step"]) for row in rows]
    for key in [key for key in rows[0] if key.startswith("psnr_")]:
        axes.plot(steps, [float(row[key]) for row in rows], label=f"sigma {key[5:]}/255")
    axes.set_xlabel("step")
    axes.set_ylabel("validation PSNR (dB)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncol=3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-table", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--invariance", type=Path, required=True)
    parser.add_argument("--command", required=True)
    arguments = parser.parse_args()

    folder: Path = arguments.folder
    recipe = json.loads((folder / "recipe.json").read_text())
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    facts = describe_checkpoint(folder)
    draw_curve(rows, folder / "curve.png")
    text = CARD.format(
        name=folder.name,
        widths="-".join(map(str, recipe["widths"])),
        blocks=recipe["blocks"],
        groups=recipe["groups"],
        channels=recipe["channels"],
        schedule=recipe["schedule"],
        steps=recipe["schedule_steps"],
        pixels=recipe["pixels"],
        holdout=recipe["holdout"],
        parameters=facts["parameters"] / 1e6,
        size=facts["size_mib"],
        flops=facts["flop_per_pixel"] / 1e6,
        low=facts["sigma_min"],
        high=facts["sigma_max"],
        scores=arguments.scores.read_text().strip(),
        invariance=arguments.invariance.read_text().strip(),
        command=arguments.command,
        hours=float(rows[-1]["seconds"]) / 3600,
        updates=rows[-1]["step"],
        data=arguments.data_table.read_text().strip(),
    )
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    main()
