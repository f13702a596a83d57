"""provenance.json: what made a prior. One session for each run of the command: versions, device, command, dates, steps."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError
from invdiff.machine.versions import __version__
from invdiff.priors.stored.tensor_files import read_json
from invdiff.training.checkpoint import replacing
from invdiff.training.config import TrainingConfig
from invdiff.training.distributed import Processes

PACKAGES = ("diffusers", "accelerate", "numpy")


class Provenance:
    """The sessions of a training, those before a resume included, and which weights were exported."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.sessions: list[dict[str, Any]] = []
        if resume and path.is_file():
            self.sessions = list(read_json(path).get("sessions", []))

    def start(
        self,
        config: TrainingConfig,
        data: Sequence[str | Path],
        *,
        step: int,
        processes: Processes,
        precision: torch.dtype,
        origin: dict[str, Any] | None,
    ) -> None:
        """Begin a session at `step`. origin: which weights it started from, where they are not random."""
        self.sessions.append(
            {
                "started": now(),
                "command": shlex.join(sys.argv),
                "settings": config.to_dict(),
                "seed": config.seed,
                "data": [str(Path(source).expanduser().absolute()) for source in data],
                "init": origin,
                "first_step": step,
                "device": describe_device(processes.device),
                "processes": processes.count,
                "precision": str(precision).removeprefix("torch."),
                "versions": {
                    "python": platform.python_version(),
                    "invdiff": __version__,
                    "torch": torch.__version__,
                }
                | {name: metadata.version(name) for name in PACKAGES},
                "git": git_state(Path(__file__).parent),
            }
        )

    def write(self, step: int, seconds: float, exported: dict[str, Any]) -> None:
        """Bring the running session up to date. exported: which average of the weights the folder holds."""
        self.sessions[-1] |= {"saved": now(), "last_step": step, "seconds_in_all": round(seconds, 1)}
        content = {"exported": exported, "sessions": self.sessions}
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def earlier_data(out: Path) -> tuple[str, ...]:
    """The data of the last session in `out`, empty where nothing is recorded."""
    try:
        sessions = read_json(out / "provenance.json").get("sessions", [])
        return tuple(sessions[-1]["data"])
    except (CheckpointError, LookupError, TypeError):
        return ()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def describe_device(device: torch.device) -> str:
    """The device and what is behind it: the name of the GPU, or how many threads compute."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)"


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the repository that `folder` is a tracked part of; None for an installed copy."""

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An environment inside somebody's repository is no part of it.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
