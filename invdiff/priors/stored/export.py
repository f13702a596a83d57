"""Write a checkpoint as a clean diffusers folder: unet/, scheduler/, model_index.json, its papers and a model card.

`diffusers.DDPMPipeline.from_pretrained`, `deepinv.models.DiffusersDenoiserWrapper` and `invdiff.load_prior` read it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError, UsageError, unknown
from invdiff.machine.versions import __version__
from invdiff.priors.stored.diffusers_folder import STATISTICS, Checkpoint, first_few, read_scheduler
from invdiff.priors.stored.environment import explain_import_failure, installed
from invdiff.priors.stored.hub import commit_of
from invdiff.priors.stored.tensor_files import pipeline_index, save_network

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What is carried over from the top of a folder; with it, the pictures that its model card shows.
_PAPERS = ("README.md", "LICENSE*", "recipe.*", "log.csv", "provenance.json", STATISTICS)


def write_folder(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    name: str,
    precision: str | None = None,
    shard_mib: int | None = None,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the checkpoint as a diffusers folder, whole or not at all; returns `out`.

    precision: "fp32", "bf16", "fp16", or None for the one it is stored in (float32 if it is a mixture);
    shard_mib: split the weights into files of at most this many MiB; name: what the model card calls it where the
    source has none; provenance: written as provenance.json; overwrite: replace a diffusers folder that is there.
    Raises UsageError for an `out` that is in use, CheckpointError for weights that the precision cannot hold and for a
    disk that cannot be written.
    """
    out = Path(out).expanduser()
    check_target(out, overwrite)
    if precision is not None and precision not in PRECISIONS:
        raise unknown("precision of weights", precision, PRECISIONS)
    if shard_mib is not None and shard_mib < 1:
        raise UsageError(f"shard_mib must be 1 or more, got {shard_mib}")
    state = checkpoint.state_dict()
    network = checkpoint.network(state)
    _narrow(network, PRECISIONS[precision] if precision else _stored(state), checkpoint)
    # realpath, so that a link to a folder keeps being one.
    target = Path(os.path.realpath(out))
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with _explained(out):
        try:
            part.mkdir(parents=True)
            # Without a limit, diffusers' own (10 GB) would stand.
            limit = shard_mib * 2**20 if shard_mib else 2**62
            save_network(network, part / "unet", max_shard_size=limit)
            _write_scheduler(checkpoint, part)
            _copy_papers(checkpoint.path, part)
            if provenance is not None:
                _write_json(part / "provenance.json", provenance)
            if not (part / "README.md").exists():
                (part / "README.md").write_text(model_card(checkpoint, network, name), encoding="utf-8")
            _replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return out


def check_target(out: Path, overwrite: bool) -> None:
    """Raise UsageError unless `out` is free: no file, and no folder with content, but for a diffusers folder that may
    be overwritten."""
    if out.is_file():
        raise UsageError(f"{out} is a file; give a folder that does not exist yet")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} is not empty; give another folder, or replace this one with --overwrite")
    if not (out / "model_index.json").is_file():
        raise UsageError(f"{out} is not a diffusers folder (it has no model_index.json), so it is not replaced")


def provenance_of(checkpoint: Checkpoint, source: str) -> dict[str, Any]:
    """Where a checkpoint came from, as plain data: the source as given, its hash, commit and settings, versions."""
    facts: dict[str, Any] = {"source": source, "format": checkpoint.format}
    facts["files"] = [path.name for path in checkpoint.weights]
    facts["sha256"] = checkpoint.sha256()
    if commit := commit_of(checkpoint.path):
        facts["commit"] = commit
    if settings := getattr(checkpoint, "settings", None):
        facts["config"] = settings
    facts["versions"] = {"invdiff": __version__} | {name: installed(name) for name in ("torch", "diffusers")}
    return facts


def model_card(checkpoint: Checkpoint, network: Any, name: str) -> str:
    """A short README.md in the hub's form, for checkpoints that come without one."""
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    widths = "-".join(map(str, checkpoint.widths))
    images = {1: "grey", 3: "colour"}.get(checkpoint.channels, f"{checkpoint.channels}-channel")
    return f"""---
library_name: diffusers
tags: [diffusion, unconditional, denoising, inverse-problems]
---

# {name}

An unconditional diffusion prior for {images} images: a `UNet2DModel` of {parameters:.1f} million parameters,
widths {widths}, {"with" if checkpoint.attention else "without"} attention.

| | |
|---|---|
| prediction | {checkpoint.prediction} |
| noise schedule | {checkpoint.schedule_name}, {len(checkpoint.schedule)} steps |
| images inside the network | [-1, 1] |

    import invdiff
    prior = invdiff.load_prior("PATH OR OWNER/NAME")     # prior.denoise(x, sigma), x in [0, 1]

    from diffusers import DDPMPipeline
    pipeline = DDPMPipeline.from_pretrained("PATH OR OWNER/NAME")

What it was trained on, and under which licence its weights may be used, has to be added here by whoever knows.
"""


def _stored(state: dict[str, torch.Tensor]) -> torch.dtype:
    kinds = {value.dtype for value in state.values() if value.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(PRECISIONS.values()) else torch.float32


def _narrow(network: Any, dtype: torch.dtype, checkpoint: Checkpoint) -> None:
    """The network's weights in this dtype, in place. Raises CheckpointError where a weight is too large for it."""
    limit = torch.finfo(dtype).max
    large = [name for name, value in network.named_parameters() if float(value.detach().abs().max()) > limit]
    if large:
        raise CheckpointError(
            f"{checkpoint.path}: weights beyond {limit:g}, the largest number of {str(dtype).removeprefix('torch.')}: "
            f"{first_few(large)}; use --precision bf16 or fp32"
        )
    # torch's own: the network's warns about layers that other models keep in float32.
    torch.nn.Module.to(network, dtype)


def _write_scheduler(checkpoint: Checkpoint, part: Path) -> None:
    """The training process as a DDPMScheduler, whatever sampler the source names."""
    with explain_import_failure():
        from diffusers import DDPMScheduler
        from diffusers import __version__ as diffusers_version

    config = {key: value for key, value in checkpoint.scheduler.items() if not key.startswith("_")}
    DDPMScheduler.from_config(config).save_pretrained(part / "scheduler")
    path = part / "scheduler" / "scheduler_config.json"
    schedule, prediction = read_scheduler(path, json.loads(path.read_text(encoding="utf-8")))
    if schedule != checkpoint.schedule or prediction != checkpoint.prediction:
        raise CheckpointError(
            f"{checkpoint.path}: its scheduler cannot be written as a DDPMScheduler of this diffusers"
        )
    _write_json(part / "model_index.json", pipeline_index(diffusers_version))


def _copy_papers(source: Path, part: Path) -> None:
    """The model card, its pictures, licence and recipe, from the top of a folder; of a file there are none."""
    if not source.is_dir():
        return
    papers = {path for pattern in _PAPERS for path in source.glob(pattern)}
    card = source / "README.md"
    if card.is_file():
        linked = re.findall(r"\]\(([\w.-]+)\)", card.read_text(encoding="utf-8", errors="replace"))
        papers |= {source / link for link in linked}
    for path in papers:
        if path.is_file():
            shutil.copyfile(path, part / path.name)


def _replace(part: Path, target: Path) -> None:
    """Put the finished folder in its place; the older one is removed only then."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(part, target)
    except BaseException:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _explained(out: Path) -> Iterator[None]:
    """A failed write, by Python or by safetensors, as one CheckpointError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        fix = "free some space there, or choose another folder" if full else "choose a folder you may write to"
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot write {out}: {reason}; {fix}. What was there is intact") from error
