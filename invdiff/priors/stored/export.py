"""Write a checkpoint as a clean diffusers folder: unet/, scheduler/, model_index.json, a model card, and the documents
that lie beside the source (licence, training recipe, pictures of the card).

`diffusers.DDPMPipeline.from_pretrained`, `deepinv.models.DiffusersDenoiserWrapper` and `invdiff.load_prior` read it.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError, UsageError, unknown
from invdiff.files.atomic import atomic_folder
from invdiff.machine.versions import package_versions
from invdiff.priors.stored.diffusers_folder import STATISTICS, Checkpoint, first_few, read_scheduler
from invdiff.priors.stored.environment import explain_import_failure
from invdiff.priors.stored.hub import commit_of
from invdiff.priors.stored.tensor_files import pipeline_index, save_network

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What is copied from the top of the source folder, beside the pictures that its model card shows.
_DOCUMENTS = ("README.md", "LICENSE*", "recipe.*", "log.csv", "provenance.json", STATISTICS)


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

    precision: "fp32", "bf16", "fp16", or None for the one it is stored in (float32 where the weights differ in theirs);
    shard_mib: split the weights into files of at most this many MiB; name: what a new model card
    calls it; provenance: written as provenance.json; overwrite: replace a diffusers folder that is there.
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
    _round_weights(network, PRECISIONS[precision] if precision else _stored_dtype(state), checkpoint)
    with atomic_folder(out) as part:
        # Without a limit, diffusers' own (10 GB) would stand.
        save_network(network, part / "unet", max_shard_size=shard_mib * 2**20 if shard_mib else 2**62)
        _write_scheduler(checkpoint, part)
        _copy_documents(checkpoint.path, part)
        if provenance is not None:
            _write_json(part / "provenance.json", provenance)
        if not (part / "README.md").exists():
            (part / "README.md").write_text(model_card(checkpoint, network, name), encoding="utf-8")
    return out


def check_target(out: Path, overwrite: bool) -> None:
    """Raise UsageError unless `out` can be written: it does not exist, is an empty folder, or is a diffusers folder and
    `overwrite` is true."""
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
    settings, commit = getattr(checkpoint, "settings", None), commit_of(checkpoint.path)
    return {
        "source": source,
        "format": checkpoint.format,
        "files": [path.name for path in checkpoint.weights],
        "sha256": checkpoint.sha256(),
        **({"commit": commit} if commit else {}),
        **({"config": settings} if settings else {}),
        "versions": package_versions(),
    }


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


def _stored_dtype(state: dict[str, torch.Tensor]) -> torch.dtype:
    kinds = {value.dtype for value in state.values() if value.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(PRECISIONS.values()) else torch.float32


def _round_weights(network: Any, dtype: torch.dtype, checkpoint: Checkpoint) -> None:
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


def _copy_documents(source: Path, part: Path) -> None:
    """Copy the model card, its pictures, licence and recipe from the top of a source folder; a single file has none."""
    if not source.is_dir():
        return
    documents = {path for pattern in _DOCUMENTS for path in source.glob(pattern)}
    card = source / "README.md"
    if card.is_file():
        linked = re.findall(r"\]\(([\w.-]+)\)", card.read_text(encoding="utf-8", errors="replace"))
        documents |= {source / link for link in linked}
    for path in documents:
        if path.is_file():
            shutil.copyfile(path, part / path.name)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
