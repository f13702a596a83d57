"""What a training leaves on disk: the state to resume from, and the diffusers folder that everyone reads."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invdiff.errors import CheckpointError, UsageError
from invdiff.training.config import TrainingConfig


@dataclass
class TrainingState:
    """The network, its EMA, the optimiser, and how far they have come."""

    network: torch.nn.Module
    ema: torch.nn.Module
    optimizer: torch.optim.Optimizer
    decay: float
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def start(
        cls, network: torch.nn.Module, config: TrainingConfig, out: Path, device: torch.device, *, resume: bool
    ) -> TrainingState:
        """A fresh state, or the one saved under `out`. Raises CheckpointError if there is none to resume."""
        ema = copy.deepcopy(network).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        state = cls(network, ema, optimizer, config.ema)
        if resume:
            state._load(out / "training" / "state.pt", device)
        return state

    def advance(self) -> None:
        """One EMA update; the decay ramps up as (1 + step) / (10 + step), so early averages forget the start."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        update = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        with torch.no_grad():
            update(list(self.ema.parameters()), list(self.network.parameters()), self.step)
        self.step += 1

    def save(self, out: Path, seconds: float) -> None:
        """Write everything to `out/training/state.pt`, replacing the previous one only when complete."""
        folder = out / "training"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "state.pt.part"
        content = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": seconds,
        }
        torch.save(content, temporary)
        os.replace(temporary, folder / "state.pt")

    def _load(self, path: Path, device: torch.device) -> None:
        from invdiff.priors.loading import load_tensors

        if not path.exists():
            raise CheckpointError(f"{path}: nothing to resume; leave out --resume to start a new training")
        content = load_tensors(path, device)
        try:
            self.network.load_state_dict(content["network"])
            self.ema.load_state_dict(content["ema"])
            self.optimizer.load_state_dict(content["optimizer"])
        except (KeyError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(f"{path} does not fit these settings ({first}); resume with those of its recipe.json") from error
        self.step, self.seconds = int(content["step"]), float(content["seconds"])


def export_pipeline(network: Any, scheduler: Any, config: TrainingConfig, out: Path) -> Path:
    """Write unet/ (float16 safetensors), scheduler/, model_index.json and recipe.json; returns `out`.

    Each piece is complete before it replaces the one before. `diffusers.DDPMPipeline.from_pretrained(out)` reads it.
    """
    import diffusers

    part = out / "export.part"
    shutil.rmtree(part, ignore_errors=True)
    half = copy.deepcopy(network).half()
    half.save_pretrained(part / "unet", safe_serialization=True)
    scheduler.save_pretrained(part / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (part / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (part / "recipe.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    for piece in part.rglob("*"):
        if piece.is_file():
            target = out / piece.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(piece, target)
    shutil.rmtree(part)
    return out
