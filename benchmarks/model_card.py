"""Write the model card of a trained prior: README.md, curve.png and samples.png inside its folder.

    python benchmarks/model_card.py checkpoints/natural --data-table docs/natural-data.md --story docs/natural-training.md
        --scores docs/tables/denoising.md --invariance docs/tables/size_invariance*.md [--recipes docs/tables/recipes.md]

The numbers come from the folder itself (recipe.json, log.csv, the weights) and from the tables that benchmarks/denoising.py,
benchmarks/size_invariance.py and benchmarks/recipes.py wrote; the words on data, licences and how the training went from the
files of --data-table and --story.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

from invdiff.files.images import to_grid, write_image
from invdiff.priors import load_prior
from invdiff.priors.stored.diffusers_folder import STATISTICS
from invdiff.priors.stored.loading import describe_checkpoint
from invdiff.samplers.generation import sample

# CBSD68, colour, PSNR in dB. Published: the figure of color results of github.com/cszn/DPIR (Zhang et al. 2021).
TARGETS = {15: 34.0, 25: 31.3, 50: 28.1}
PUBLISHED = {
    "CBM3D": {15: 33.52, 25: 30.71, 50: 27.38},
    "FFDNet": {15: 33.87, 25: 31.21, 50: 27.96},
    "DRUNet": {15: 34.30, 25: 31.69, 50: 28.51},
}
SAMPLING: dict[str, Any] = {"sampler": "dpmpp", "steps": 30, "seed": 0}

HIGH_NOISE = """Above sigma 2, `invdiff` takes a Gaussian model of the training photographs (`image_statistics.json`) in
place of the network, whose error, multiplied by sigma, is there larger than the picture. Programs that do not know that
file draw samples in glaring colours. Restoration starts at sigma 2."""

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
| noise | {schedule} schedule, T = {steps}, {prediction} prediction, sigma {low:.4f} to {high:.1f} on [0, 1] |

## Denoising

One call of `denoise` on whole images of CBSD68 (never trained on), noise level known:

{scores}

Against the targets of this checkpoint and published denoisers; DRUNet has 32 million weights:

{targets}

Size invariance (GroupNorm averages over the input): the same central window inside larger and larger crops.

{invariance}

Unconditional samples of 64 x 64, the first eight of seed 0 ({sampling}):

![samples](samples.png)

{high_noise}

## Training

{story}

`recipe.json` holds every setting, `log.csv` the curve of the last stage: training loss (running mean) and denoising PSNR at
sigma x 255 = 5, 15, 25, 50, 100 on {holdout} photographs that were held back. {updates} steps in all;
{minutes:.1f} minutes.

![validation PSNR over steps](curve.png)

Held-back photographs are held back by file; some of the native-scale crops show the same scenes as other training files.

{recipes}## Data and licences

{data}

The weights are released under the licence of this repository (MIT). The photographs keep their own licences and are not
part of it.
"""


COMPARED = """### What mattered

Short trainings that differ from the recipe in one thing, at equal compute (`benchmarks/recipes.py`):

"""


def draw_curve(rows: list[dict[str, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2), dpi=90)
    steps = [int(row["step"]) for row in rows]
    for key in [key for key in rows[0] if re.fullmatch(r"psnr_\d+", key)]:
        axes.plot(steps, [float(row[key]) for row in rows], label=f"sigma {key[5:]}/255")
    axes.set_xlabel("step")
    axes.set_ylabel("validation PSNR (dB)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncol=3)
    figure.tight_layout()
    figure.savefig(path)


def targets_table(scores: str) -> str:
    """The rows of TARGETS, from the table that benchmarks/denoising.py wrote."""
    reached = {
        int(level): float(value) for level, value in re.findall(r"^\| (\d+) \| [\d.]+ \| ([\d.]+) \|", scores, re.M)
    }
    lines = [f"| sigma x 255 | reached | target | {' | '.join(PUBLISHED)} |", "|---" * (3 + len(PUBLISHED)) + "|"]
    for level, target in TARGETS.items():
        others = " | ".join(f"{values[level]:.2f}" for values in PUBLISHED.values())
        lines.append(f"| {level} | {reached[level]:.2f} | {target:.1f} | {others} |")
    return "\n".join(lines)


def draw_samples(folder: Path) -> None:
    prior = load_prior(folder)
    images = sample(prior, (prior.channels or 3, 64, 64), 8, batch_size=8, **SAMPLING)
    write_image(folder / "samples.png", to_grid(images, columns=8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name in ("--data-table", "--story", "--scores"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--invariance", type=Path, nargs="+", required=True)
    parser.add_argument("--recipes", type=Path, help="left out: the card has no such table")
    arguments = parser.parse_args()

    folder: Path = arguments.folder
    recipe = json.loads((folder / "recipe.json").read_text())
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    facts = describe_checkpoint(folder)
    draw_curve(rows, folder / "curve.png")
    draw_samples(folder)
    scores = arguments.scores.read_text().strip()
    text = CARD.format(
        name=folder.name,
        widths="-".join(map(str, recipe["widths"])),
        blocks=recipe["blocks"],
        groups=recipe["groups"],
        channels=recipe["channels"],
        schedule=recipe["schedule"],
        steps=recipe["schedule_steps"],
        prediction=recipe["prediction"],
        holdout=recipe["holdout"],
        parameters=facts["parameters"] / 1e6,
        size=facts["size_mib"],
        flops=facts["flop_per_pixel"] / 1e6,
        low=facts["sigma_min"],
        high=facts["sigma_max"],
        scores=scores,
        targets=targets_table(scores),
        invariance="\n\n".join(path.read_text().strip() for path in arguments.invariance),
        high_noise=HIGH_NOISE if (folder / STATISTICS).exists() else "",
        sampling=", ".join(f"{key} {value}" for key, value in SAMPLING.items()),
        story=arguments.story.read_text().strip("\n"),
        recipes=f"{COMPARED}{arguments.recipes.read_text().strip()}\n\n" if arguments.recipes else "",
        minutes=float(rows[-1]["seconds"]) / 60,
        updates=rows[-1]["step"],
        data=arguments.data_table.read_text().strip(),
    )
    (folder / "README.md").write_text(text)


if __name__ == "__main__":
    main()
