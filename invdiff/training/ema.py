"""Exponential moving averages of the weights, one for each decay."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch


class Averages:
    """avg <- d avg + (1 - d) weights after every step, for each decay; d = min(decay, (1 + step) / (10 + step)), so that
    early averages forget the start."""

    modules: dict[float, torch.nn.Module]

    def __init__(self, network: torch.nn.Module, decays: tuple[float, ...]) -> None:
        self.modules = {decay: copy.deepcopy(network).eval().requires_grad_(False) for decay in decays}
        self._parameters = {decay: list(module.parameters()) for decay, module in self.modules.items()}
        self.best: float = decays[0]
        """The decay whose average denoised best at the last validation: the one to export."""

    @property
    def exported(self) -> torch.nn.Module:
        """The average to export."""
        return self.modules[self.best]

    def update(self, network: torch.nn.Module, step: int) -> None:
        """Take in the weights after step number `step`, counted from 0."""
        parameters = list(network.parameters())
        with torch.no_grad():
            for decay, averaged in self._parameters.items():
                average = torch.optim.swa_utils.get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
                average(averaged, parameters, step)

    def choose(self, scores: Mapping[float, float]) -> float:
        """Make the decay with the highest score the best; the shorter memory where they are equal."""
        self.best = max(sorted(scores), key=lambda decay: scores[decay])
        return self.best

    def state_dict(self) -> dict[str, Any]:
        modules = {repr(decay): module.state_dict() for decay, module in self.modules.items()}
        return {"modules": modules, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; a decay that was not kept before goes on from the one with the nearest half-life.

        Also takes the state of a single average of unknown decay, as first versions saved it.
        """
        saved = state.get("modules")
        if saved is None:
            for module in self.modules.values():
                module.load_state_dict(state)
            return
        kept = {float(name): tensors for name, tensors in saved.items()}
        for decay, module in self.modules.items():
            module.load_state_dict(kept[min(kept, key=lambda other: _distance(other, decay))])
        if state["best"] in self.modules:
            self.best = state["best"]


def _distance(one: float, two: float) -> float:
    """Distance of two decays: how many times longer the one remembers (1 / (1 - d) steps), as an absolute logarithm."""
    return abs(math.log1p(-one) - math.log1p(-two))
