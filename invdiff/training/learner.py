"""One step of the optimiser: gradients of the micro-batches, averaged over them and over the processes, and one move."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import InvdiffError, first_line
from invdiff.machine.memory import is_out_of_memory
from invdiff.priors.gpu.fused_block import fuse
from invdiff.training.checkpoint import TrainingState
from invdiff.training.config import TrainingConfig
from invdiff.training.data.sampler import CropSampler, to_network
from invdiff.training.distributed import Processes
from invdiff.training.graphed import GraphedGradients
from invdiff.training.objective import Draws, Objective, draw
from invdiff.training.optimizers import MuonWithAdamW, set_rate

log: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatch:
    """Crops (n, C, h, w) as `CropSampler.batch` gives them, or on the device as float32 in [-1, 1], with their timesteps
    and their noise."""

    crops: np.ndarray | torch.Tensor
    draws: Draws


@dataclass(frozen=True)
class Feeder:
    """The micro-batches that process `rank` of `count` learns from in a step: pure functions of the seed and the step.

    Together, all micro-batches of all processes are what one process with as large a batch would see.
    """

    sampler: CropSampler
    schedule: Schedule
    config: TrainingConfig
    rank: int = 0
    count: int = 1

    def __call__(self, step: int) -> list[MicroBatch]:
        each, parts = self.config.accumulate, self.count * self.config.accumulate
        return [self._part(step, self.rank * each + k, parts) for k in range(each)]

    def _part(self, step: int, part: int, parts: int) -> MicroBatch:
        crops, config = self.sampler.batch(step, part, parts), self.config
        count, *shape = crops.shape
        indices = range(part * count, (part + 1) * count)
        draws = draw(config.seed, step, indices, parts * count, tuple(shape), self.schedule, config.low_noise)
        return MicroBatch(crops, draws)


@dataclass(frozen=True)
class Outcome:
    """What one step of this process gave: its number, counted from 0, the learning rate, the timestep of each crop, and the
    numbers that `read` gives, which a GPU may still be computing."""

    step: int
    lr: float
    pixels: int
    """Pixels of all crops of this process."""
    t: np.ndarray
    numbers: torch.Tensor
    written: torch.cuda.Event | None = None

    def read(self) -> tuple[float, float, np.ndarray]:
        """(mean loss, norm of the gradient before clipping of all processes, squared noise error of each crop). Waits until
        the step is made, and not for later ones."""
        if self.written is not None:
            self.written.synchronize()
        loss, norm, *errors = self.numbers.tolist()
        return loss, norm, np.array(errors)


class Learner:
    """Moves the weights of a training state."""

    config: TrainingConfig
    objective: Objective
    processes: Processes
    state: TrainingState

    def __init__(
        self, config: TrainingConfig, state: TrainingState, objective: Objective, processes: Processes
    ) -> None:
        self.config, self.state, self.objective, self.processes = config, state, objective, processes
        self.accelerator: Any = processes.accelerator
        if processes.device.type == "cuda" and not config.compile:  # the compiler fuses by itself
            fuse(state.network)
        self.plain: Any = self.accelerator.prepare_model(state.network, device_placement=False)
        self.run: Any = compiled(self.plain, config) if config.compile else self.plain
        self._graphs: GraphedGradients | None = None
        # One micro-batch of one process: the others add up gradients, or send them to each other. No scaler: it changes.
        alone = processes.count == 1 and config.accumulate == 1 and self.accelerator.scaler is None
        if processes.device.type == "cuda" and alone and not config.compile:
            parameters = [*state.network.parameters(), *objective.parameters()]
            self._graphs = GraphedGradients(self._differentiate, parameters)
        self.optimizer: Any = self.accelerator.prepare_optimizer(state.optimizer, device_placement=False)
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)

    @property
    def scaled(self) -> bool:
        """Whether a gradient scaler looks after infinite gradients (float16)."""
        return self.accelerator.scaler is not None

    def step(self, batches: Sequence[MicroBatch], factor: float) -> Outcome:
        """Learn from micro-batches at `factor` times the highest learning rate. Raises InvdiffError when out of memory.

        Whether loss and norm are finite is for the caller to check: looking at them earlier would make a GPU wait.
        """
        state = self.state
        lr = set_rate(state.optimizer, self.config, factor)
        state.network.train()
        with self._memory_explained(batches):
            losses, errors = self._gradients(batches)
            self.processes.average(self.objective.parameters())
            if isinstance(state.optimizer, MuonWithAdamW):
                state.optimizer.share_gradients()
            norm = self.accelerator.clip_grad_norm_(state.network.parameters(), self.config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            step = state.step
            state.advance()
            if self.accelerator.scaler is not None:
                state.scaler = self.accelerator.scaler.state_dict()
            numbers = torch.cat([losses.mean()[None], norm[None].float(), errors])
        t, written = np.concatenate([batch.draws.t for batch in batches]), None
        if numbers.is_cuda:
            numbers = torch.empty(numbers.shape, pin_memory=True).copy_(numbers, non_blocking=True)
            written = torch.cuda.Event()
            written.record()
        pixels = sum(math.prod(batch.crops[:, 0].shape) for batch in batches)
        return Outcome(step, lr, pixels, t, numbers, written)

    def _gradients(self, batches: Sequence[MicroBatch]) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses, errors), one for each crop; the gradients of their mean are left in the parameters."""
        try:
            return self._accumulate(batches)
        except Exception as error:
            if self.run is self.plain or not _is_compilers(error):
                raise
            reason = first_line(error)[:200]
        log.warning("torch.compile failed, training goes on without it (%s)", reason)
        self.run = self.plain
        self.optimizer.zero_grad()
        return self._accumulate(batches)

    def _accumulate(self, batches: Sequence[MicroBatch]) -> tuple[torch.Tensor, torch.Tensor]:
        results = []
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.plain):
                results.append((self._graphs or self._differentiate)(*self._moved(batch)))
        return torch.cat([r[0] for r in results]), torch.cat([r[1] for r in results])

    def _moved(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Images, noise and timesteps on the device."""
        device = self.processes.device
        clean = batch.crops if isinstance(batch.crops, torch.Tensor) else to_network(batch.crops, device)
        if device.type == "cuda" and not self.config.compile:  # as the fused kernels take it
            clean = clean.contiguous(memory_format=torch.channels_last)
        noise = torch.as_tensor(batch.draws.noise, device=device)
        return clean, noise, torch.from_numpy(batch.draws.t).to(device, non_blocking=True)

    def _differentiate(
        self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(losses, errors), one for each crop; the gradients of their mean are added to those of the parameters."""
        objective = self.objective
        output = self.run(objective.noisy(clean, noise, t), t).sample
        losses = objective.losses(output, clean, noise, t)
        self.accelerator.backward(losses.mean())
        return losses.detach(), objective.epsilon_errors(output, clean, noise, t).float()

    @contextlib.contextmanager
    def _memory_explained(self, batches: Sequence[MicroBatch]) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fix = less_memory(self.config, batches[0].crops.shape)
            raise InvdiffError(f"out of memory at step {self.state.step}, on {self.processes.device}; {fix}") from error


def compiled(network: Any, config: TrainingConfig) -> Any:
    """The network through torch.compile, with kernels of their own for each crop size. Its weights are the same tensors."""
    import torch._dynamo

    # One compilation for each crop size; beyond this number torch falls back to slow code without a word.
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, max(8, 2 * len(set(config.crops))))
    return torch.compile(network, dynamic=False)


def _is_compilers(error: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def less_memory(config: TrainingConfig, shape: tuple[int, ...]) -> str:
    """What to change after a batch of this shape (n, C, side, side) was too large: half the crops, twice as often."""
    count, _, side, _ = shape
    if count > 1:
        pixels, accumulate = max(config.pixels // 2, min(config.crops) ** 2), 2 * config.accumulate
        return f"use --set pixels={pixels} --set accumulate={accumulate}, which learns the same with half the memory"
    smaller = [crop for crop in sorted(set(config.crops)) if crop < side]
    if smaller:
        return f"one crop of {side} pixels is too large; use --set crops={','.join(map(str, smaller))}"
    return "one crop is too large; use smaller crops (--crop), or a smaller network (--widths)"
