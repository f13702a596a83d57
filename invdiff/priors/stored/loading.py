"""Loading trained priors from disk or the Hugging Face hub. Every file is checked before use, and nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError, UsageError, unknown
from invdiff.machine.device import choose_device, choose_precision
from invdiff.priors.deepinv_denoiser import DeepinvPrior, is_deepinv_denoiser
from invdiff.priors.network import NetworkPrior
from invdiff.priors.prior import Prior
from invdiff.priors.stored.adm_settings import Config
from invdiff.priors.stored.diffusers_folder import Checkpoint, DiffusersFolder
from invdiff.priors.stored.hub import HUB_ID, fetch

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def shipped() -> list[str]:
    """The names of the checkpoints that come with this package, which load_prior takes."""
    if not CHECKPOINTS.is_dir():
        return []
    return sorted(folder.name for folder in CHECKPOINTS.iterdir() if (folder / "model_index.json").is_file())


def load_prior(
    source: Any,
    *,
    device: torch.device | str = "auto",
    precision: torch.dtype | str = "auto",
    compile: bool | None = None,
) -> Prior:
    """A prior from: a shipped name ("natural"), a diffusers folder with a UNet2DModel, a guided-diffusion (ADM) file
    ("model.pt"), a Hugging Face id "owner/name", a deepinv Denoiser, or a Prior (returned as it is).

    device: a torch device or a name of invdiff.machine.device.DEVICES; precision: the network's arithmetic, a dtype or "auto"
    (bfloat16 where the hardware has it), "fp32", "bf16", "fp16". Weights are held in float32 whatever they were stored in.
    compile: whether torch compiles the network, which takes a minute; `invdiff bench --compile` says when it pays. None:
    it does not, but a CUDA device runs fused kernels and CUDA graphs. False: neither, plain torch.
    A shipped name goes before a folder of the same name: write "./natural" for the folder.
    Raises UsageError for a source that is none of these, CheckpointError for one that cannot be used.
    """
    if isinstance(source, Prior):
        return source
    device = choose_device(device) if isinstance(device, str) else torch.device(device)
    if is_deepinv_denoiser(source):
        if precision not in ("auto", "fp32", torch.float32) or compile:
            given = "compile=True" if compile else f"precision={precision!r}"
            raise UsageError(f"{given} is for networks loaded from files; a deepinv Denoiser has its own")
        return DeepinvPrior(source).to(device)
    if not isinstance(source, str | Path):
        raise UsageError(
            f"a prior is a name, a folder, a file, a hub id, a deepinv Denoiser or a Prior, got {type(source).__name__}; "
            "wrap a denoiser(x, sigma) of your own in invdiff.priors.DeepinvPrior"
        )
    dtype = choose_precision(precision, device) if isinstance(precision, str) else precision
    checkpoint, name = open_checkpoint(source)
    return network_prior(checkpoint, name, device=device, precision=dtype, compile=compile)


def network_prior(
    checkpoint: Checkpoint,
    name: str,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    compile: bool | None = None,
) -> NetworkPrior:
    """The prior of an opened checkpoint."""
    prior = NetworkPrior(
        checkpoint.network(),
        checkpoint.schedule,
        channels=checkpoint.channels,
        prediction=checkpoint.prediction,
        multiple=checkpoint.multiple,
        precision=precision,
        compile=compile,
        high_noise=checkpoint.statistics(),
        name=name,
        identity={"path": str(checkpoint.path), "sha256": checkpoint.sha256()},
    )
    return prior.to(device)


def describe_checkpoint(source: str | Path) -> dict[str, Any]:
    """What `invdiff prior info` prints of a shipped name, a folder, a file or a hub id, as plain data:

    name, path, format, parameters, size_mib, dtype (as stored), channels, widths, attention, prediction, schedule,
    steps, sigma_min and sigma_max (in [0, 1] units), multiple, flop_per_pixel (of one call at 256 x 256; a multiply-add
    is two), sha256; recipe and provenance where these files are there; config of a guided-diffusion file.
    Raises CheckpointError as load_prior does.
    """
    checkpoint, name = open_checkpoint(source)
    return {"name": name, **checkpoint.describe()}


def open_checkpoint(source: str | Path, config: Config = None) -> tuple[Checkpoint, str]:
    """The checkpoint that a name, path or hub id stands for, and its name.

    config: settings of a guided-diffusion file, see `invdiff.priors.stored.adm_settings.read_settings`.
    Raises UsageError and CheckpointError as load_prior does, and UsageError if a config is given for anything else.
    """
    path, name = _locate(source)
    if path.is_file():
        from invdiff.priors.stored.adm import AdmFile

        return AdmFile.open(path, config), name
    if config:
        raise UsageError(f"{source}: only a guided-diffusion file takes a config; a diffusers folder brings its own")
    return DiffusersFolder.open(path), name


def _locate(source: str | Path) -> tuple[Path, str]:
    """The folder or file that a name, path or hub id stands for, and its name."""
    text = str(source)
    if isinstance(source, str) and text in shipped():
        return CHECKPOINTS / text, text
    path = Path(source).expanduser()
    if path.is_dir():
        return path, path.resolve().name
    if path.exists():
        if path.suffix not in _FILES:
            raise CheckpointError(
                f"{path} is a file; a prior is a diffusers folder (model_index.json, unet/, scheduler/) or a "
                f"guided-diffusion state dict ({', '.join(_FILES)})"
            )
        return path, path.stem
    if isinstance(source, str) and HUB_ID.fullmatch(text) and path.suffix not in _FILES:
        return fetch(text), text
    if isinstance(source, Path) or "/" in text or text.startswith((".", "~")) or path.suffix in _FILES:
        raise CheckpointError(f"{text}: no such {'file' if path.suffix in _FILES else 'folder'}")
    raise unknown(
        "prior", text, shipped(), "Or give a diffusers folder, a .pt file, or a Hugging Face id as owner/name."
    )
