"""Ways to run the network: seconds of a call over those of plain float32, and what each costs in PSNR.

    python benchmarks/network_call.py [--prior natural] [--size 256] [--batch 1] [--compile] [--markdown OUT.md]

Every way makes the same call in turn, in one process; the table has the median and the median ratio to the first. PSNR
loss: the largest difference to float32 over the photographs of scikit-image (central 128 x 128), of one denoising at each of
SIGMAS and of a restoration of 20 calls. The profile is of the default way.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from skimage import data

from invdiff.evaluation.speed import alternate, median_ratio, time_compilation
from invdiff.files.images import centre
from invdiff.machine.device import choose_device, precisions
from invdiff.priors import load_prior
from invdiff.priors.network import NetworkPrior
from invdiff.problem.simulation import degrade
from invdiff.restoration.api import restore
from invdiff.scores.metrics import psnr

SIGMAS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
WARM = 5
"""Calls before the clock starts: a CUDA graph is made at the fourth with a shape."""
RESTORATIONS = [("diffpir", "gaussian_blur:sigma=2"), ("diffpir", "downsample:factor=4"), ("dps", "inpaint:keep=0.4")]


@dataclass
class Way:
    """A prior, whose network is called in some arithmetic and layout, and what autograd keeps of it."""

    prior: NetworkPrior
    mode: Callable[[], torch.inference_mode | torch.no_grad] = torch.inference_mode
    own: bool = False
    """Whether the prior calls the network its own way."""
    exact: bool = False
    """Whether float32 is kept from being TF32 (torch's default for convolutions on a GPU)."""

    def call(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        prior = self.prior
        if self.own:
            with self.mode():
                return prior.call_network(x, t)
        dtype = next(prior.network.parameters()).dtype
        torch.backends.cudnn.allow_tf32 = not self.exact
        half = prior.precision != torch.float32
        with self.mode(), torch.autocast(x.device.type, prior.precision if half else torch.bfloat16, enabled=half):
            return prior.network(x.to(dtype), t).sample


def ways(name: str, device: torch.device, half: str) -> dict[str, Way]:
    def prior(precision: str, layout: torch.memory_format, compile: bool | None = False) -> NetworkPrior:
        found = load_prior(name, device=device, precision=precision, compile=compile)
        assert isinstance(found, NetworkPrior)
        found.network.to(memory_format=layout)
        return found

    planes, last = torch.contiguous_format, torch.channels_last
    found = {
        "float32 (eager)": Way(prior("fp32", planes), torch.no_grad),
        "float32, channels last": Way(prior("fp32", last)),
        f"{half} autocast": Way(prior(half, planes)),
        f"{half} autocast, channels last, no_grad": Way(prior(half, last), torch.no_grad),
        f"{half} autocast, channels last": Way(prior(half, last)),
    }
    dtype = found[f"{half} autocast"].prior.precision
    once = copy.deepcopy(found[f"{half} autocast, channels last"])
    for module in once.prior.network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.to(dtype)
    whole = copy.deepcopy(found["float32, channels last"])
    whole.prior.network.to(dtype)
    found |= {
        f"{half} autocast, channels last, weights cast once": once,
        f"{half} throughout, channels last": whole,
    }
    if device.type == "cuda":
        found["float32 without TF32"] = Way(found["float32 (eager)"].prior, exact=True)
        found[f"{half}, fused kernels, CUDA graphs"] = Way(prior(half, last, None), own=True)
    return found


def gradient(way: Way, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    clean = way.prior.denoise(leaf, 0.1)
    return torch.autograd.grad(clean, leaf, torch.ones_like(clean))[0]


def scores(prior: NetworkPrior, photographs: torch.Tensor) -> list[float]:
    """PSNR of each denoising and restoration, image by image."""
    found = []
    for sigma in SIGMAS:
        y = degrade(photographs, "identity", noise=sigma).to(prior.device)
        with torch.no_grad():
            found += psnr(prior.denoise(y, sigma).cpu(), photographs).tolist()
    for solver, operator in RESTORATIONS:
        y = degrade(photographs, operator, noise=0.05)
        found += psnr(restore(y, operator, 0.05, prior, solver, 20).mean, photographs).tolist()
    return found


def profile(way: Way, x: torch.Tensor, t: torch.Tensor, calls: int = 3) -> list[str]:
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU, *([activity.CUDA] if x.device.type == "cuda" else [])]
    with torch.profiler.profile(activities=kinds) as profiler:
        for _ in range(calls):
            way.call(x, t)
    events = profiler.key_averages()

    def own(event: torch.autograd.profiler_util.FunctionEventAvg) -> float:
        return event.self_device_time_total if x.device.type == "cuda" else event.self_cpu_time_total

    total = sum(map(own, events))
    top = sorted(events, key=own, reverse=True)[:8]
    rows = [f"| `{event.key}` | {own(event) / calls / 1000:.1f} | {100 * own(event) / total:.0f} % |" for event in top]
    return ["| kernel | ms a call | share |", "|---|---|---|", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="natural")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--photographs", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    half = "bf16" if "bf16" in precisions(device) else "fp16"
    every = ways(arguments.prior, device, half)
    default = f"{half}, fused kernels, CUDA graphs" if device.type == "cuda" else f"{half} autocast, channels last"
    pictures = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()][: arguments.photographs]
    photographs = torch.stack([centre(torch.from_numpy(p).permute(2, 0, 1) / 255, 128) for p in pictures])

    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    t = torch.full((arguments.batch,), 50.0, device=device)
    plain, *others = every
    for way in every.values():
        for _ in range(WARM):
            way.call(x, t)
    times = alternate({n: lambda w=w: w.call(x, t) for n, w in every.items()}, arguments.repeats, device)  # type: ignore[misc]
    head = ["| way | s a call | times as fast | PSNR loss, dB |", "|---|---|---|---|"]
    lines = [*head, f"| {plain} | {statistics.median(times[plain]):.4f} | 1.00 | |"]
    reference = scores(every[plain].prior, photographs)
    scored = {default, *(name for name in others if "throughout" in name or name == f"{half} autocast")}
    for name in others:
        loss = ""
        if name in scored:  # the other ways are other layouts of the same arithmetic
            found = scores(every[name].prior, photographs)
            loss = f"{max(abs(a - b) for a, b in zip(reference, found, strict=True)):.4f}"
        ratio = median_ratio(times[plain], times[name])
        lines.append(f"| {name} | {statistics.median(times[name]):.4f} | {ratio:.2f} | {loss} |")
        print(lines[-1], flush=True)
    both = {name: every[name] for name in (plain, default)}
    times = alternate({n: lambda w=w: gradient(w, x) for n, w in both.items()}, arguments.repeats, device)  # type: ignore[misc]
    lines += ["", "With the gradient to the input:", "", "| way | s a call | times as fast |", "|---|---|---|"]
    for name, seconds in times.items():
        lines.append(f"| {name} | {statistics.median(seconds):.4f} | {median_ratio(times[plain], seconds):.2f} |")
    if arguments.compile:
        compiled = load_prior(arguments.prior, device=device, precision=half, compile=True)
        assert isinstance(compiled, NetworkPrior)
        found = time_compilation(every[default].prior, compiled, (arguments.size,) * 2, arguments.repeats)
        pays = "it never pays" if found.pays_after is None else f"it pays after {found.pays_after:,} calls"
        lines += [
            "",
            f"`torch.compile`: {found.seconds:.0f} s for the first call, then {found.compiled:.4f} s a call in place of "
            f"{found.eager:.4f}: {pays}.",
        ]
    lines += ["", f"Where the time of the default ({default}) goes:", "", *profile(every[default], x, t)]
    side = 8192 if device.type == "cuda" else 2048
    a = torch.randn(side, side, device=device, dtype=every[default].prior.precision)
    (product,) = alternate({"matmul": lambda: a @ a}, arguments.repeats, device).values()
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        every[plain].call(x, t)
    work, rate = counter.get_total_flops() / 1e9, 2 * side**3 / statistics.median(product) / 1e9
    lines += [
        "",
        f"A call is {work:.1f} GFLOP; a {half} matrix product of {side} x {side} runs at {rate:.0f} GFLOP/s here, at "
        f"which the call would take {work / rate:.3f} s.",
        "",
        f"{arguments.size} x {arguments.size}, batch {arguments.batch}, {device.type} ({torch.get_num_threads()} threads), "
        f"torch {torch.__version__}, medians of {arguments.repeats}. Largest PSNR difference over {len(pictures)} "
        f"photographs, noise levels {', '.join(map(str, SIGMAS))}, and "
        f"{', '.join(f'{solver} on {operator}' for solver, operator in RESTORATIONS)}, one sample each.",
    ]
    text = "\n".join(lines) + "\n"
    if arguments.markdown:
        arguments.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
