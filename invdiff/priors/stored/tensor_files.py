"""Tensor files and JSON files of checkpoints, read without executing anything that they contain."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError, first_line

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """The content of a `.safetensors` (dict of tensors), `.pt`, `.pth`, `.bin` or `.ckpt` file, on a device.

    Pickled code is never run. Raises CheckpointError, in one line, for a file that is missing, truncated, no tensor
    file, or holds other objects than tensors and plain data.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a file of tensors")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _load_safetensors(path, device)
    if path.suffix in _TORCH_SUFFIXES:
        return _load_torch(path, device)
    raise CheckpointError(f"{path}: not a tensor file (known: .safetensors, {', '.join(_TORCH_SUFFIXES)})")


def _load_safetensors(path: Path, device: torch.device | str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(device))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated, or not a safetensors file ({first_line(error)})") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from error


def _load_torch(path: Path, device: torch.device | str) -> Any:
    try:
        return torch.load(path, map_location=device, weights_only=True)  # noqa: TID251  this is where it is allowed
    except Exception as error:  # torch raises six kinds of its own, of the pickle module and of zip files
        raise CheckpointError(f"{path}: {_what_is_wrong(path, error)}") from error


def _what_is_wrong(path: Path, error: Exception) -> str:
    """Why torch refused a file, judged by its first bytes; torch's own message advises to switch the safety off."""
    if isinstance(error, OSError):
        return f"cannot be read ({first_line(error)})"
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" and not zipfile.is_zipfile(path):
        return "truncated or damaged"
    refused = type(error).__name__ == "UnpicklingError" or "TorchScript" in str(error)
    if refused and (start == b"PK" or start[:1] == b"\x80"):
        return "contains more than tensors; convert it to safetensors"
    return "damaged, or not a torch file"


def save_network(network: Any, folder: Path, **options: Any) -> None:
    """Write a diffusers network, config.json and safetensors, with the permissions that the umask gives.

    safetensors itself writes files that only their owner can read, which is of no use on shared storage.
    """
    network.save_pretrained(folder, safe_serialization=True, **options)
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~mask)


def pipeline_index(version: str) -> dict[str, Any]:
    """model_index.json of a UNet2DModel with a DDPMScheduler, written by this version of diffusers."""
    index: dict[str, Any] = {"_class_name": "DDPMPipeline", "_diffusers_version": version}
    return index | {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({first_line(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
