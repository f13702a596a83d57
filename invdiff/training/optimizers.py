"""What moves the weights: AdamW, or Muon for the inner matrices with AdamW for the rest; and how the learning rate goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from invdiff.errors import UsageError
from invdiff.training.config import TrainingConfig
from invdiff.training.muon import BatchedStep

BETAS = (0.9, 0.99)
# The first and the last layer stay with AdamW: what they map from or to are pixels, not features.
OUTER = ("conv_in", "conv_out")


def build_optimizer(
    network: torch.nn.Module, extra: Sequence[torch.nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    """The optimiser of config.optimizer over the network's parameters, and over `extra` (those of the objective).

    Raises UsageError for "muon" where torch has none.
    """
    if config.optimizer == "adamw":
        return adamw([list(network.parameters()), list(extra)], config)
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(
            f"training setting optimizer='muon' needs torch 2.9 or newer, this is {torch.__version__}; "
            "install a newer torch, or use --set optimizer=adamw"
        )
    named = [
        (name, parameter, parameter.ndim >= 2 and not name.startswith(OUTER)) for name, parameter in _named(network)
    ]
    matrices = [parameter for _, parameter, inner in named if inner]
    others = [parameter for _, parameter, inner in named if not inner]
    return MuonWithAdamW(matrices, [others, list(extra)], config)


def _named(network: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]


def adamw(groups: Sequence[list[torch.nn.Parameter]], config: TrainingConfig) -> torch.optim.AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), one group for each list."""
    filled = [{"params": group} for group in groups if group]
    return torch.optim.AdamW(filled, lr=config.lr, betas=BETAS, weight_decay=config.weight_decay, fused=True)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on matrices, AdamW on everything else, as one optimiser: one gradient scaler, one state.

    Muon replaces a matrix's momentum M by the nearest semi-orthogonal U V^T, M = U S V^T (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/), scaled to the root mean square of an AdamW update (Liu et al. 2025,
    https://arxiv.org/abs/2502.16982). A convolution (out, in, kh, kw) is the matrix (out, in kh kw); the matrices share
    the memory of the weights.
    """

    views: list[torch.nn.Parameter]

    def __init__(
        self,
        matrices: Sequence[torch.nn.Parameter],
        others: Sequence[list[torch.nn.Parameter]],
        config: TrainingConfig,
    ) -> None:
        self.weights: list[torch.nn.Parameter] = list(matrices)
        self.views = [torch.nn.Parameter(weight.data.view(len(weight), -1)) for weight in matrices]
        self.muon: torch.optim.Muon = torch.optim.Muon(
            self.views, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw: torch.optim.AdamW = adamw(others, config)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share_groups()
        self._together = BatchedStep(self.muon)

    def _share_groups(self) -> None:
        """The groups of this optimiser are those of its two parts: what sets the one sets the other."""
        self.param_groups: list[dict[str, Any]] = [*self.muon.param_groups, *self.adamw.param_groups]

    def share_gradients(self) -> None:
        """Give the matrices the weights' memory and gradients, without a copy. Call after backward, before the gradients
        are unscaled or clipped."""
        for view, weight in zip(self.views, self.weights, strict=True):
            view.data = weight.data.view(len(weight), -1)  # again: a network that was moved has its weights elsewhere
            view.grad = None if weight.grad is None else weight.grad.view(len(weight), -1)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights:
            weight.grad = None
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if self.views and self.views[0].is_cuda:
            self._together()
        else:
            self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self._share_groups()  # loading made new ones


class Budget:
    """How far a training has come: seconds of work, those before a resume included, and the share of what it may use."""

    before: float
    config: TrainingConfig
    started: float

    def __init__(self, config: TrainingConfig, seconds: float = 0.0) -> None:
        self.config, self.before, self.started = config, seconds, time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training."""
        return self.before + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """0 at the start, 1 when the budget of steps or minutes is used up."""
        by_time = self.elapsed() / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(step / self.config.steps, by_time)


def rate(config: TrainingConfig, step: int, progress: float) -> float:
    """The learning rate at a step, as a share of its highest value; progress: share of the budget that is used up.

    Linear warm-up, times: cosine (1 + cos(pi p)) / 2; linear 1 - p; constant 1, then a line to 0 in the last `cooldown`.
    """
    left = 1 - min(1.0, max(0.0, progress))
    shape = {
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "linear": left,
        "constant": min(1.0, left / config.cooldown) if config.cooldown else 1.0,
    }
    return shape[config.decay] * min(1.0, (step + 1) / max(1, config.warmup))


def set_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, factor: float) -> float:
    """Give every group its learning rate (and its weight decay, which a resumed state may bring back old); returns
    AdamW's."""
    for group in optimizer.param_groups:
        group["lr"] = factor * (config.muon_lr if "ns_steps" in group else config.lr)
        group["weight_decay"] = config.weight_decay
    return factor * config.lr
