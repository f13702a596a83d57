"""Every registered operator on one photograph: the image, y, the pseudo-inverse, a restoration; and its parameters.

    python benchmarks/gallery.py [--side 128] [--steps 20] [--only NAME ...] [--out docs/gallery.md]

One row of SPECS for each operator: its spec, and the noise of y in [0, 1] units. The guess is `first_guess(y)`, which for a
linear operator is the pseudo-inverse. PSNR is of images clipped to [0, 1]. Pictures of spectra show log magnitudes, other
measurements that are no pictures are stretched to their own range. Phase retrieval is scored by the best of its ambiguities.
Results are kept in a folder named like OUT; rows that --only leaves out keep what stands there.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ambiguity import best_of_ambiguities

import invdiff
from invdiff import operators
from invdiff.cli.demo import shipped_photograph, square
from invdiff.files.atomic import atomic_path
from invdiff.files.images import to_grid, write_image
from invdiff.operator.contract import Operator
from invdiff.restoration.api import resolve_prior
from invdiff.scores.comparison import as_image
from invdiff.scores.metrics import psnr
from invdiff.specs.parameters import declarations

SPECS: dict[str, tuple[str, float]] = {
    "identity": ("identity", 0.1),
    "gaussian_blur": ("gaussian_blur:sigma=2", 0.02),
    "anisotropic_blur": ("anisotropic_blur:sigma=3x1,angle=30", 0.02),
    "defocus_blur": ("defocus_blur:radius=3.5", 0.02),
    "uniform_blur": ("uniform_blur:size=7", 0.02),
    "motion_blur": ("motion_blur:length=9,path=random,seed=1,boundary=circular", 0.02),
    "kernel_blur": ("", 0.02),
    "varying_blur": ("varying_blur:radius=0.5,corner=3,grid=3x3", 0.02),
    "downsample": ("downsample:factor=4,kernel=bicubic", 0.02),
    "inpaint": ("inpaint:strokes=6,width=8", 0.02),
    "random_subsample": ("random_subsample:keep=0.3", 0.02),
    "grayscale": ("grayscale", 0.02),
    "spectral_mixing": ("", 0.02),
    "demosaic": ("demosaic", 0.02),
    "pansharpen": ("pansharpen:factor=4", 0.02),
    "compressed_sensing": ("compressed_sensing:keep=0.25", 0.02),
    "fourier_subsample": ("fourier_subsample:acceleration=4,pattern=radial", 0.02),
    "mri_multicoil": ("mri_multicoil:acceleration=4,coils=4", 0.02),
    "tomography": ("tomography:angles=45", 0.02),
    "linear": ("", 0.02),
    "saturate": ("saturate:gain=1.5", 0.02),
    "gamma": ("gamma", 0.02),
    "quantize": ("quantize:bits=3", 0.02),
    "jpeg": ("jpeg:quality=15", 0.02),
    "phase_retrieval": ("phase_retrieval", 0.02),
}
# Of those that need an array.
ARRAYS = {
    "kernel_blur": lambda: {"kernel": np.outer(np.hanning(9)[1:-1], np.hanning(7)[1:-1]), "normalise": True},
    "spectral_mixing": lambda: {"matrix": np.array([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])},
}


def build(name: str, side: int) -> tuple[Operator, int]:
    """The operator, and the side of the image that it is shown on."""
    if name == "linear":
        small = 32
        matrix = np.random.default_rng(0).standard_normal((small * small, 3 * small * small)) / math.sqrt(small * small)
        return operators.get("linear", matrix=matrix, shape=(3, small, small)), small
    if name in ARRAYS:
        return operators.get(name, **ARRAYS[name]()), side
    return operators.get(SPECS[name][0]), side


def picture(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What to show of a measurement (its shape without batch): itself where it is a picture, in the size of x (3, H, W)."""
    from torch.nn import functional

    seen = as_image(y, tuple(x.shape))
    if seen is None:
        flat = y if y.ndim == 3 else y.flatten()[: math.isqrt(y.numel()) ** 2].reshape(1, math.isqrt(y.numel()), -1)
        if flat.shape[0] == 2 * x.shape[0]:  # real and imaginary parts
            flat = (flat.unflatten(0, (-1, 2)).norm(dim=1) + 1e-3).log()
        plane = flat[:3] if flat.shape[0] == 3 else flat[:1]
        low, high = (float(plane.flatten().quantile(q)) for q in (0.01, 0.99))
        seen = ((plane - low) / max(high - low, 1e-9)).clamp(0, 1).expand(3, -1, -1)
    if seen.shape[1:] != x.shape[1:]:
        seen = functional.interpolate(seen[None], size=x.shape[1:], mode="nearest")[0]
    return seen


def score(name: str, image: torch.Tensor, x: torch.Tensor) -> float:
    if name == "phase_retrieval":
        image = best_of_ambiguities(image, x)
    return float(psnr(image.clamp(0, 1), x)[0])


def show(name: str, prior: Any, side: int, steps: int, folder: Path) -> dict[str, Any]:
    """Measure, invert and restore; writes the strip of four pictures. What the page tells of it."""
    operator, side = build(name, side)
    noise = SPECS[name][1]
    x = square(shipped_photograph(), side, 3)[None]
    y = invdiff.degrade(x, operator, noise=noise, ids=[name])
    with torch.no_grad():
        guess = operator.first_guess(y)
    solution = invdiff.restore(y, operator, noise, prior=prior, steps=steps, ids=[name])
    before, after = score(name, guess, x), score(name, solution.mean, x)
    strip = to_grid(
        [x[0], picture(y[0], x[0]), guess[0].clamp(0, 1), solution.mean[0].clamp(0, 1)],
        ["x", "y", f"guess {before:.1f} dB", f"restored {after:.1f} dB"],
    )
    write_image(folder / f"{name}.png", strip)
    return {
        "spec": operator.spec, "noise": noise, "shape": list(y.shape[1:]), "side": side,
        "before": before, "after": after, "solver": solution.solver["name"], "nfe": solution.nfe, "svd": operator.has_svd,
    }  # fmt: skip


def page(found: dict[str, dict[str, Any]], folder: str, steps: int) -> str:
    lines = [
        "# Operators, one by one",
        "",
        f"Made by `benchmarks/gallery.py`: the prior `natural`, `solver=auto` with {steps} network calls, one sample. From "
        "left to right: the image x, the measurement y (spectra as log magnitudes), the guess from y alone (the "
        "pseudo-inverse, if A is linear), the restoration.",
        "",
        "| operator | y of a 3 x 128 x 128 image | noise | SVD | guess, dB | restored, dB | gain | solver, calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        shape = " x ".join(map(str, row["shape"]))
        note = "" if row["side"] == 128 else f" (of 3 x {row['side']} x {row['side']})"
        svd = "yes" if row["svd"] else "-"
        scores = f"{row['before']:.2f} | {row['after']:.2f} | {row['after'] - row['before']:+.2f}"
        lines.append(
            f"| [`{name}`](#{name}) | {shape}{note} | {row['noise']} | {svd} | {scores} | {row['solver']}, {row['nfe']} |"
        )
    for name, row in found.items():
        cls = operators.REGISTRY[name]
        lines += [
            "",
            f"## {name}",
            "",
            " ".join((cls.__doc__ or "").split("\n\n")[0].split()),
            "",
            f"`{row['spec']}`",
            "",
        ]
        lines += [f"![{name}]({folder}/{name}.png)", ""]
        declared = declarations(cls)
        if declared:
            lines += ["| parameter | kind | unit | allowed | default | what it is |", "|---|---|---|---|---|---|"]
        for d in declared:
            default = "required" if d.required else "-" if d.default is None else str(d.default)
            kind = d.kind_name.replace("|", " or ")
            lines.append(
                f"| `{d.name}` | {kind} | {d.unit} | {d.allowed} | {default} | {d.help.replace('|', ' or ')} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(SPECS), default=list(SPECS))
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery.md"))
    arguments = parser.parse_args()
    prior, folder = resolve_prior(arguments.prior, "auto"), arguments.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "results.json"
    found = json.loads(record.read_text()) if record.exists() else {}
    for name in arguments.only:
        found[name] = show(name, prior, arguments.side, arguments.steps, folder)
        print(
            f"{name:18s} {found[name]['before']:6.2f} -> {found[name]['after']:6.2f} dB  {found[name]['solver']}",
            flush=True,
        )
        with atomic_path(record) as part:
            part.write_text(json.dumps({key: found[key] for key in SPECS if key in found}, indent=1) + "\n")
    ordered = {key: found[key] for key in SPECS if key in found}
    arguments.out.write_text(page(ordered, folder.name, arguments.steps))


if __name__ == "__main__":
    main()
