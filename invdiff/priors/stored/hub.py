"""Priors on the Hugging Face hub: fetch a repository's checkpoint. The client is huggingface_hub's.

Its own settings hold: the token of `hf auth login` or HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from invdiff.errors import CheckpointError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SETTINGS = (
    "model_index.json", "config.json", "scheduler_config.json", "unet/*.json", "scheduler/*.json", "*.index.json",
    "recipe.json", "README.md", "LICENSE*",
)  # fmt: skip
# Class names, because the client's network errors come from another library in each of its major versions.
_UNREACHABLE = ("Connect", "Timeout", "Offline", "LocalEntryNotFound", "IncompleteSnapshot", "MaxRetry", "gaierror")


def fetch(repository: str) -> Path:
    """The snapshot of a hub repository, from the local cache if it is there; .bin weights if it has no safetensors.

    Raises CheckpointError, in one line, if it cannot be had: no network, no such repository, no permission.
    """
    from huggingface_hub import snapshot_download

    try:
        with _quiet_client():
            for kind in ("safetensors", "bin"):
                weights = [f"{prefix}diffusion_pytorch_model*.{kind}" for prefix in ("", "unet/")]
                folder = Path(snapshot_download(repository, allow_patterns=[*_SETTINGS, *weights]))
                if any(folder.glob(f"**/diffusion_pytorch_model*.{kind}")):
                    break
            return folder
    except Exception as error:
        reason, fix = _reason_and_fix(error)
        raise CheckpointError(
            f"{repository}: no such folder here, and it cannot be fetched from the Hugging Face hub ({reason}); {fix}"
        ) from error


def commit_of(folder: Path) -> str | None:
    """The commit of a fetched snapshot, which the cache keeps in its folder's name; None for any other folder."""
    path = folder.resolve()
    return path.name if path.parent.name == "snapshots" else None


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """Silences the client's warnings about each retry, and its progress bars unless standard error is a terminal."""
    from huggingface_hub import utils

    leave_bars = sys.stderr.isatty() or utils.are_progress_bars_disabled()
    before = utils.logging.get_verbosity()
    utils.logging.set_verbosity_error()
    if not leave_bars:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(before)
        if not leave_bars:
            utils.enable_progress_bars()


def _reason_and_fix(error: Exception) -> tuple[str, str]:
    """What an error of the client says, in one line, and what to do about it."""
    kind, status = type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or first_line(error)
    reason = f"{kind}: {said}" if status is None else f"HTTP {status}: {said.splitlines()[0]}"
    login = "`hf auth login` or HF_TOKEN"
    if kind == "RepositoryNotFoundError":
        # The hub answers 401 or 404 alike, so as not to tell which private repositories there are.
        return reason, f"check the name; if it is private or gated, log in with {login}"
    if status in (401, 403, 404):
        return reason, f"the token is not valid or may not read this: use one that may, with {login}"
    offline = status is None and any(name in kind for name in _UNREACHABLE)
    network = "the network (and that HF_HUB_OFFLINE is not set)" if offline else "the network"
    return reason, f"check the name and {network}, or download it elsewhere and give its folder"
