"""deepinv's DDRM, DiffPIR and DPS beside ours: the same network, operators, measurements and number of network calls.

    python benchmarks/peers.py --data CBSD68 --kernels kernels/Levin09.npz [--limit 20] [--side 256] [--calls 20 100]
        [--solver auto --solver diffpir ...] [--peer diffpir ...] [--markdown OUT.md]

Every method gets y from `invdiff.degrade`; deepinv's get the prior as a Denoiser, and have their defaults but for the number
of steps. PSNR of clipped images against the truth, averaged over images; seconds are of the whole call, network included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import invdiff
from invdiff import operators
from invdiff.evaluation.comparison import compare
from invdiff.images import centre, list_images, read_image
from invdiff.operator import Operator
from invdiff.restoration import resolve_prior
from invdiff.sampling import CountedPrior

Peer = Callable[[Any, Any, torch.Tensor, int], torch.Tensor]


def ddrm(denoiser: Any, physics: Any, y: torch.Tensor, calls: int) -> torch.Tensor:
    from deepinv.sampling import DDRM

    return DDRM(denoiser, sigmas=np.linspace(1, 0, calls))(y, physics, seed=1)


def diffpir(denoiser: Any, physics: Any, y: torch.Tensor, calls: int) -> torch.Tensor:
    from deepinv.optim.data_fidelity import L2
    from deepinv.sampling import DiffPIR

    sigma = float(physics.noise_model.sigma)
    return DiffPIR(denoiser, L2(), sigma=sigma, max_iter=calls)(y, physics, seed=1)


def dps(denoiser: Any, physics: Any, y: torch.Tensor, calls: int) -> torch.Tensor:
    from deepinv.sampling import DPS

    return DPS(denoiser, num_steps=calls, dtype=torch.float32)(y, physics, seed=1)


PEERS: dict[str, Peer] = {"ddrm": ddrm, "diffpir": diffpir, "dps": dps}


def as_physics(operator: Operator, shape: tuple[int, ...], noise: float) -> Any:
    import deepinv

    physics = operator.to_deepinv(shape)
    physics.noise_model = deepinv.physics.GaussianNoise(noise)
    return physics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kernels", type=Path, help="Levin09.npz, for the motion blur k00")
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--calls", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--solver", action="append")
    parser.add_argument("--peer", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    prior = resolve_prior(arguments.prior, arguments.device)
    names = list_images([arguments.data])[: arguments.limit]
    images = {path.name: centre(read_image(path).tensor, arguments.side).to(prior.device)[None] for path in names}
    chosen = {
        "Gaussian blur 2": "gaussian_blur:sigma=2",
        "bicubic x4": "downsample:factor=4,kernel=bicubic",
        "70 % masked": "inpaint:keep=0.3",
    }
    if arguments.kernels:
        chosen["motion blur k00"] = f"kernel_blur:kernel={arguments.kernels},key=k00,boundary=circular"
    head = ["| task | method | calls asked | calls made | PSNR | s/image |", "|---|---|---|---|---|---|"]
    rows: list[str] = []
    print("\n".join(head))

    def tell(task: str, method: str, calls: int, made: int, scores: list[float], seconds: list[float]) -> None:
        mean, time_each = statistics.fmean(scores), statistics.median(seconds)
        rows.append(f"| {task} | {method} | {calls} | {made} | {mean:.2f} | {time_each:.1f} |")
        print(rows[-1], flush=True)

    for task, spec in chosen.items():
        operator = operators.get(spec)
        measured = {key: invdiff.degrade(x, operator, arguments.noise, ids=[key]) for key, x in images.items()}
        before = [compare(measured[key][0], x[0], x[0]).before for key, x in images.items()]
        tell(task, "measurement", 0, 0, [score.psnr for score in before if score is not None], [0.0])
        for calls in arguments.calls:
            for solver in arguments.solver or ["auto"]:
                scores, seconds, made = [], [], 0
                for key, x in images.items():
                    started = time.perf_counter()
                    solution = invdiff.restore(
                        measured[key], operator, arguments.noise, prior=prior, solver=solver, steps=calls, ids=[key]
                    )
                    seconds.append(time.perf_counter() - started)
                    made = solution.nfe
                    scores.append(compare(measured[key][0], solution.mean[0], x[0]).after.psnr)
                label = f"`{solver}`" if solver != "auto" else f"auto (`{solution.solver['name']}`)"
                tell(task, label, calls, made, scores, seconds)
            for name in arguments.peer:
                scores, seconds, made = [], [], 0
                for key, x in images.items():
                    counted = CountedPrior(prior)
                    physics = as_physics(operator, tuple(x.shape[1:]), arguments.noise).to(prior.device)
                    if name == "ddrm" and not hasattr(physics, "mask"):
                        break  # it takes a DecomposablePhysics with a mask of singular values only
                    started = time.perf_counter()
                    restored = PEERS[name](counted.to_deepinv(), physics, measured[key], calls)
                    seconds.append(time.perf_counter() - started)
                    made = counted.calls
                    scores.append(compare(measured[key][0], restored[0].float(), x[0]).after.psnr)
                if scores:
                    tell(task, f"deepinv {name}", calls, made, scores, seconds)
    size = f"middle {arguments.side} x {arguments.side}"
    note = f"{len(images)} images, {size}, noise {arguments.noise:g}, prior {arguments.prior}."
    print(note)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join([*head, *rows, "", note]) + "\n")


if __name__ == "__main__":
    main()
