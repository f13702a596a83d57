"""What a training leaves on disk: the state to resume from, and the diffusers folder that everyone reads."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError
from invdiff.files.atomic import atomic_path, explained
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.priors.stored.diffusers_folder import STATISTICS
from invdiff.priors.stored.tensor_files import load_tensors, pipeline_index, save_network
from invdiff.training.config import TrainingConfig
from invdiff.training.ema import Averages
from invdiff.training.optimizers import build_optimizer


def state_path(out: Path) -> Path:
    """Where the state to resume from lies."""
    return out / "training" / "state.pt"


@dataclass
class TrainingState:
    """The network, the averages of its weights, what is learned beside it, the optimiser, and how far they have come."""

    network: torch.nn.Module
    averages: Averages
    objective: torch.nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    loss: float = math.nan
    """Training loss, averaged over about the last fifty steps; for the log."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of float16's gradient scaler; empty in other precisions."""
    watch: dict[str, Any] = field(default_factory=dict)
    """State of the logs."""

    @classmethod
    def start(
        cls,
        network: torch.nn.Module,
        objective: torch.nn.Module,
        config: TrainingConfig,
        out: Path,
        device: torch.device,
        *,
        resume: bool,
    ) -> TrainingState:
        """A fresh state, or the one saved under `out`. Raises CheckpointError if there is none to resume."""
        optimizer = build_optimizer(network, list(objective.parameters()), config)
        state = cls(network, Averages(network, config.ema), objective, optimizer)
        if resume:
            state._load(state_path(out), device)
        return state

    def advance(self) -> None:
        """After the optimiser moved: take the weights into the averages, and count the step."""
        self.averages.update(self.network, self.step)
        self.step += 1

    def save(self, out: Path, seconds: float) -> None:
        """Write everything to `out/training/state.pt`, replacing the previous one only when complete.

        Raises CheckpointError where it cannot be written; the previous one is then intact.
        """
        content = {
            "network": self.network.state_dict(),
            "ema": self.averages.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": seconds,
            "loss": self.loss,
            "scaler": self.scaler,
            "watch": self.watch,
        }
        with replacing(state_path(out)) as temporary:
            torch.save(content, temporary)

    def _load(self, path: Path, device: torch.device) -> None:
        if not path.exists():
            raise CheckpointError(f"{path}: nothing to resume; leave out --resume to start a new training")
        content = load_tensors(path, device)
        needed = ("network", "ema", "optimizer", "step", "seconds")
        missing = [key for key in needed if key not in content] if isinstance(content, dict) else needed
        if missing:
            raise CheckpointError(f"{path}: not the state of a training, it lacks {', '.join(missing)}")
        try:
            self.network.load_state_dict(content["network"])
            self.averages.load_state_dict(content["ema"])
            self.objective.load_state_dict(content.get("objective", {}))
            self.optimizer.load_state_dict(content["optimizer"])
        except (KeyError, ValueError, RuntimeError) as error:
            # The first line of torch's message only says that there is something; the next ones say what.
            lines = [line.strip() for line in str(error).strip().splitlines()]
            details = "; ".join([*lines[1:3], f"{len(lines) - 3} more"] if len(lines) > 3 else lines[-2:])
            raise CheckpointError(f"{path} does not fit the network of these settings: {details}") from error
        self.step, self.seconds = int(content["step"]), float(content["seconds"])
        self.loss = float(content.get("loss", math.nan))
        self.scaler = dict(content.get("scaler", {}))
        self.watch = dict(content.get("watch", {}))


def replacing(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A temporary path that takes the place of `path` when the block ends. Raises CheckpointError for a failed write."""
    return atomic_path(path, CheckpointError, durable=True)


def write_recipe(config: TrainingConfig, path: Path) -> None:
    """Write the settings as JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")


def export_pipeline(
    network: Any, scheduler: Any, config: TrainingConfig, out: Path, statistics: GaussianImages | None = None
) -> Path:
    """Write unet/ (float16 safetensors), scheduler/, model_index.json, recipe.json, and the statistics of the images, if
    any; returns `out`.

    All are complete before any replaces the one before. `diffusers.DDPMPipeline.from_pretrained(out)` reads it.
    """
    import diffusers

    part = out / "export.part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        with explained(out, CheckpointError):
            save_network(copy.deepcopy(network).half(), part / "unet")
            scheduler.save_pretrained(part / "scheduler")
            write_recipe(config, part / "recipe.json")
            if statistics is not None:
                text = json.dumps(statistics.to_dict(), indent=2) + "\n"
                (part / STATISTICS).write_text(text, encoding="utf-8")
            (part / "model_index.json").write_text(
                json.dumps(pipeline_index(diffusers.__version__), indent=2) + "\n", encoding="utf-8"
            )
            # The index goes last: a first export that is cut short is no model yet.
            pieces = sorted((p for p in part.rglob("*") if p.is_file()), key=lambda p: p.name == "model_index.json")
            for piece in pieces:
                target = out / piece.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(piece, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out
