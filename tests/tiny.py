"""The smallest network that a prior can have, and pictures to try it on."""

from __future__ import annotations

from pathlib import Path

import torch

from invdiff.files.images import write_image


def tiny_prior(folder: Path, channels: int = 3) -> Path:
    from invdiff.training.checkpoint import export_pipeline
    from invdiff.training.config import TrainingConfig
    from invdiff.training.network import build_network, build_scheduler

    config = TrainingConfig(channels=channels, widths=(8, 16), groups=4, crops=(16,), pixels=256)
    folder.mkdir()
    return export_pipeline(build_network(config), build_scheduler(config), config, folder)


def picture(path: Path, index: int = 0, shape: tuple[int, int, int] = (3, 24, 32)) -> Path:
    rows, columns = torch.meshgrid(torch.arange(shape[1]), torch.arange(shape[2]), indexing="ij")
    planes = [0.5 + 0.3 * torch.sin(rows / (3 + index + c) + columns / 4.0) for c in range(shape[0])]
    write_image(path, torch.stack(planes))
    return path
