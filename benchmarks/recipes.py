"""What matters in a recipe, at equal compute: short trainings that differ from one recipe in one thing each.

    python benchmarks/recipes.py --recipe natural --data open-00.tar --data native-00.tar --score DIR
        --out runs/recipes [--steps 300] [--pixels 16384] [--only NAME ...] [--markdown OUT.md]

Every training gets the floating-point operations that --steps steps of the recipe itself cost, so a smaller network takes
more steps. Its learning rate falls to zero at the end. The score is the denoising PSNR of centre crops of --score, which
nothing here trains on. A training that is finished is not run again: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from invdiff.files.atomic import atomic_path
from invdiff.files.images import centre, list_images, read_image
from invdiff.machine.device import choose_device
from invdiff.priors import load_prior
from invdiff.priors.stored.diffusers_folder import flop_per_pixel
from invdiff.training.config import TrainingConfig
from invdiff.training.engine import train
from invdiff.training.network import build_network
from invdiff.training.recipe import read_recipe
from invdiff.training.watch.validation import denoising_psnr

# The last two are levels at which a sampler decides about light and colour of the whole picture.
SIGMAS = (15 / 255, 25 / 255, 50 / 255, 1.0, 10.0)
# What is compared -> name -> settings that differ from the recipe's.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "chance": {"another seed": {"seed": 1}},
    "optimiser": {
        "adamw, lr 1e-3": {"optimizer": "adamw", "lr": 1e-3},
        "adamw, lr 2e-3": {"optimizer": "adamw", "lr": 2e-3},
    },
    "prediction": {
        "x_0, equal weight": {"prediction": "sample", "weighting": "sample"},
        "x_0, simple weight": {"prediction": "sample", "weighting": "simple"},
        "v": {"prediction": "v_prediction", "weighting": "velocity"},
        "v, simple weight": {"prediction": "v_prediction", "weighting": "simple"},
        "v (EDM preconditioning), EDM weight": {"prediction": "v_prediction", "weighting": "edm"},
    },
    "weighting": {
        "min-SNR-5": {"weighting": "min_snr"},
        "learned uncertainty": {"weighting": "uncertainty"},
        "variational bound": {"weighting": "vlb"},
    },
    "noise levels": {"uniform t": {"low_noise": 0.0}, "low noise 0.9": {"low_noise": 0.9}},
    "crops": {"128": {"crops": [128]}, "64, 96, 128": {"crops": [64, 96, 128]}},
    "network": {
        "32-64-128-256": {"widths": [32, 64, 128, 256]},
        "40-80-128": {"widths": [40, 80, 128]},
        "56-72": {"widths": [56, 72]},
        "24-64-128, two blocks": {"widths": [24, 64, 128], "blocks": 2},
    },
    "data": {
        "no reduction": {"downscale": 0.0},
        "always reduced": {"downscale": 1.0},
        "no native crops": {"weights": {"native": 0.0}},
        "native crops alone": {
            "weights": dict.fromkeys(("clothing", "grocery", "budgie", "deepin", "elementary", "stunning"), 0.0)
        },
    },
}


def cost(config: TrainingConfig) -> float:
    """Floating-point operations of one call on one pixel."""
    return flop_per_pixel(build_network(config), config.channels, config.downsampling)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="natural")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--score", required=True)
    parser.add_argument("--side", type=int, default=160, help="side of the crops that are scored")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pixels", type=int, default=16384)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", help="names of variants; default: all")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    short = {"steps": arguments.steps, "minutes": None, "pixels": arguments.pixels, "crops": [64], "warmup": 30}
    short |= {"decay": "cosine", "ema": [0.98], "accumulate": 1, "compile": False, "init": None}
    short |= {"validate_every": 10**9, "save_minutes": 1e6, "holdout": 1}
    base = dict(read_recipe(arguments.recipe).settings) | short
    budget = cost(TrainingConfig.from_dict(base)) * arguments.steps
    device = choose_device(arguments.device)
    paths = list_images([arguments.score])[: arguments.limit]
    images = [centre(read_image(path).tensor, arguments.side) for path in paths]
    rows = ["| compared | variant | steps | MFLOP/px | 15 | 25 | 50 | 255 | 2550 |", "|---" * 9 + "|"]
    cases = [("", "the recipe", {})]
    cases += [(topic, name, change) for topic, named in VARIANTS.items() for name, change in named.items()]
    for topic, name, change in cases:
        if arguments.only and name not in arguments.only:
            continue
        settings = base | {key: value for key, value in change.items() if key != "weights"}
        settings["weights"] = dict(base.get("weights", {})) | change.get("weights", {})
        config = TrainingConfig.from_dict(settings)
        flops = cost(config)
        config = TrainingConfig.from_dict(settings | {"steps": max(1, round(budget / flops))})
        out = arguments.out / "".join(letter if letter.isalnum() else "-" for letter in f"{topic}-{name}").strip("-")
        result = out / "score.json"
        if not result.exists():
            resume = (out / "training" / "state.pt").exists()
            seen: list[float] = []
            report = lambda facts, seen=seen: seen.append(facts["progress"])  # noqa: E731
            train(config, arguments.data, out, resume=resume, device=device, drawing=None, report=report)
            if seen and seen[-1] < 1:
                parser.exit(130, f"stopped in {out}; the same command goes on\n")
            scores = denoising_psnr(load_prior(out, device=device), images, SIGMAS)
            with atomic_path(result) as temporary:
                temporary.write_text(json.dumps(list(scores.values())))
        scores = json.loads(result.read_text())
        cells = [topic, name, str(config.steps), f"{flops / 1e6:.2f}", *(f"{value:.2f}" for value in scores)]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    note = (
        f"PSNR in dB at noise x 255 on {len(images)} crops of {arguments.side} x {arguments.side}; batches of "
        f"{arguments.pixels} pixels, the same floating-point operations each."
    )
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*rows, "", note]) + "\n")


if __name__ == "__main__":
    main()
