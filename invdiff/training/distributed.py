"""The processes of one training: one, or as many as `accelerate launch` or torchrun started."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

_PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
# The others wait while the main process validates and saves; a validation takes minutes on a slow machine.
_PATIENCE = datetime.timedelta(hours=2)


def launched() -> bool:
    """Whether this process is one of several that a launcher watches over (it sets these variables)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this is the process that writes and reports; before a `Processes` exists, too."""
    return int(os.environ.get("RANK", "0")) == 0


def leave() -> None:
    """Part from the other processes, at the end of a program; they must not be needed any more."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """Accelerate's view of the processes, with the few questions that a training asks of it.

    device: the kind of device; where a launcher started several processes, each takes its own of that kind.
    precision: of the network's arithmetic; accumulate: micro-steps whose gradients are averaged.
    """

    accelerator: Any
    rank: int
    count: int

    def __init__(self, device: torch.device, precision: torch.dtype, accumulate: int = 1) -> None:
        # Accelerate keeps one state for the whole life of a process; an earlier training may have had another device.
        AcceleratorState._reset_state(reset_partial_state=True)
        with _preferred(device):
            self.accelerator = Accelerator(
                cpu=device.type == "cpu",
                mixed_precision=_PRECISIONS[precision],
                kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            )
        # Set here, and not above, where the environment of a launcher would win over the recipe.
        self.accelerator.gradient_accumulation_steps = accumulate
        # Not its "cpu:0": to torch that is another device than "cpu", and moving a network there copies its weights.
        self.device: torch.device = torch.device("cpu") if device.type == "cpu" else self.accelerator.device
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.main: bool = self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, which all of them get: what one of them knows, or their count, or a mean."""
        if self.count == 1:
            return list(values)
        return self.accelerator.reduce(torch.tensor(values, dtype=torch.float64, device=self.device), "sum").tolist()

    def average(self, parameters: Iterator[torch.nn.Parameter]) -> None:
        """Replace the gradients by their means over all processes, for parameters outside the wrapped network."""
        for parameter in parameters if self.count > 1 else ():
            if parameter.grad is not None:
                parameter.grad.copy_(self.accelerator.reduce(parameter.grad, "mean"))

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()


@contextlib.contextmanager
def _preferred(device: torch.device) -> Iterator[None]:
    """Makes accelerate take this very device (cuda:1, say) where no launcher gave one to each process."""
    if launched() or "ACCELERATE_TORCH_DEVICE" in os.environ:
        yield
        return
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        yield
    finally:
        del os.environ["ACCELERATE_TORCH_DEVICE"]
