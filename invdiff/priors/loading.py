"""Trained priors from disk or the Hugging Face hub: every file is checked before it is used, nothing is unpickled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from invdiff.device import choose_device, choose_precision
from invdiff.errors import CheckpointError, UsageError, unknown
from invdiff.priors.base import Prior
from invdiff.priors.bridge import DeepinvPrior, is_deepinv_denoiser
from invdiff.priors.diffusers_folder import DiffusersFolder
from invdiff.priors.network import NetworkPrior
from invdiff.priors.tensor_files import first_line, load_tensors

__all__ = ["describe_checkpoint", "load_prior", "load_tensors", "shipped"]

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_JSON = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "unet/*.json",
    "scheduler/*.json",
    "*.index.json",
)


def shipped() -> list[str]:
    """Names of the checkpoints that come with this package; load_prior takes each."""
    if not CHECKPOINTS.is_dir():
        return []
    return sorted(folder.name for folder in CHECKPOINTS.iterdir() if (folder / "model_index.json").is_file())


def load_prior(source: Any, *, device: torch.device | str = "auto", precision: torch.dtype | str = "auto") -> Prior:
    """A prior from: a shipped name ("natural"), a diffusers folder with a UNet2DModel, a Hugging Face id "owner/name",
    a deepinv Denoiser, or a Prior (returned as it is).

    device: a torch device or a name of invdiff.device.DEVICES; precision: the network's arithmetic, a dtype or "auto"
    (bfloat16 where the hardware has it), "fp32", "bf16", "fp16". Weights are held in float32 whatever they were stored in.
    A shipped name goes before a folder of the same name: write "./natural" for the folder.
    Raises UsageError for a source that is none of these, CheckpointError for one that cannot be used.
    """
    if isinstance(source, Prior):
        return source
    device = choose_device(device) if isinstance(device, str) else torch.device(device)
    if is_deepinv_denoiser(source):
        if precision not in ("auto", "fp32", torch.float32):
            raise UsageError(
                f"precision={precision!r} is for networks loaded from files; a deepinv Denoiser has its own"
            )
        return DeepinvPrior(source).to(device)
    if not isinstance(source, str | Path):
        raise UsageError(
            f"a prior is a name, a folder, a hub id, a deepinv Denoiser or a Prior, got {type(source).__name__}; "
            "wrap a denoiser(x, sigma) of your own in invdiff.priors.DeepinvPrior"
        )
    folder, name = _locate(source)
    dtype = choose_precision(precision, device) if isinstance(precision, str) else precision
    checkpoint = DiffusersFolder.open(folder)
    network = checkpoint.network()
    prior = NetworkPrior(
        network,
        checkpoint.schedule,
        channels=checkpoint.channels,
        prediction=checkpoint.prediction,
        multiple=checkpoint.multiple,
        precision=dtype,
        name=name,
        identity={"path": str(checkpoint.folder), "sha256": checkpoint.sha256()},
    )
    return prior.to(device)


def describe_checkpoint(source: str | Path) -> dict[str, Any]:
    """What `invdiff prior info` prints of a shipped name, a folder or a hub id, as plain data:

    name, path, parameters, size_mib, dtype (as stored), channels, widths, attention, prediction, schedule, steps,
    sigma_min and sigma_max (in [0, 1] units), multiple, flop_per_pixel (of one call at 256 x 256; a multiply-add is
    two), sha256, and recipe where recipe.json is there. Raises CheckpointError as load_prior does.
    """
    folder, name = _locate(source)
    return {"name": name, **DiffusersFolder.open(folder).describe()}


def _locate(source: str | Path) -> tuple[Path, str]:
    """The folder that a name, path or hub id stands for, and what to call it."""
    text = str(source)
    if isinstance(source, str) and text in shipped():
        return CHECKPOINTS / text, text
    path = Path(source).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if path.exists():
        raise CheckpointError(f"{path} is a file; a prior is a diffusers folder (model_index.json, unet/, scheduler/)")
    if isinstance(source, str) and _HUB_ID.fullmatch(text):
        return _download(text), text
    if isinstance(source, Path) or "/" in text or text.startswith((".", "~")):
        raise CheckpointError(f"{text}: no such folder")
    raise unknown("prior", text, shipped(), "Or give a diffusers folder, or a Hugging Face id as owner/name.")


def _download(repository: str) -> Path:
    """The snapshot of a hub repository, from the local cache if it is there; .bin weights if it has no safetensors."""
    from huggingface_hub import snapshot_download

    folder = Path()
    try:
        for kind in ("safetensors", "bin"):
            weights = [f"{prefix}diffusion_pytorch_model*.{kind}" for prefix in ("", "unet/")]
            folder = Path(snapshot_download(repository, allow_patterns=[*_HUB_JSON, *weights]))
            if any(folder.glob(f"**/diffusion_pytorch_model*.{kind}")):
                break
    except Exception as error:  # the client's network errors differ between its versions
        raise CheckpointError(
            f"{repository}: no such folder here, and it cannot be fetched from the Hugging Face hub "
            f"({type(error).__name__}: {first_line(error)}); check the name and the network, "
            "or download it elsewhere and give its folder"
        ) from error
    return folder
