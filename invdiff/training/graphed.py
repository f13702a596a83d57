"""The gradients of a batch from a CUDA graph: forward and backward pass, recorded once for each shape, then replayed.

A step of a small network is a thousand kernels, of which a GPU runs a batch of a megapixel faster than a processor core
launches them. Replayed, they follow each other without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from invdiff.errors import first_line
from invdiff.machine.memory import for_want_of_memory
from invdiff.priors.gpu.cuda_network import capturing

log: logging.Logger = logging.getLogger(__name__)

Results = tuple[torch.Tensor, torch.Tensor]
Function = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Results]


@dataclass
class Recording:
    """A graph with the tensors that it reads, those that it writes, and the gradients that it leaves."""

    graph: Any
    inputs: tuple[torch.Tensor, ...]
    outputs: Results
    gradients: list[torch.Tensor | None]


class GraphedGradients:
    """function(clean, noise, t) -> (losses, errors), which leaves gradients in `parameters`, replayed from CUDA graphs.

    function: does the same at every call with tensors of the same shapes; the gradients are None before it. A shape of
    which no graph can be made, and all others from then on, is computed kernel by kernel.
    """

    def __init__(self, function: Function, parameters: Sequence[torch.nn.Parameter]) -> None:
        self._function, self._parameters = function, list(parameters)
        self._recordings: dict[tuple[int, ...], Recording] = {}
        self._pool: Any = None
        self._beside: Any = None
        self._recording = True

    def __call__(self, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> Results:
        shape = tuple(clean.shape)
        if shape not in self._recordings and self._recording:
            self._record(clean, noise, t)
        recording = self._recordings.get(shape)
        if recording is None:
            return self._function(clean, noise, t)
        for mine, given in zip(recording.inputs, (clean, noise, t), strict=True):
            mine.copy_(given)
        recording.graph.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        losses, errors = recording.outputs
        return losses.clone(), errors.clone()

    def _record(self, *given: torch.Tensor) -> None:
        if self._pool is None:
            self._pool, self._beside = torch.cuda.graph_pool_handle(), torch.cuda.Stream(given[0].device)
        try:
            inputs = tuple(tensor.clone() for tensor in given)
            graph = torch.cuda.CUDAGraph()
            with capturing(self._beside):
                for _ in range(2):  # libraries set themselves up at the first calls, which cannot be recorded
                    self._forget()
                    self._function(*inputs)
                self._forget()
                with torch.cuda.graph(graph, pool=self._pool, stream=self._beside):
                    outputs = self._function(*inputs)
            gradients = [parameter.grad for parameter in self._parameters]
            self._recordings[tuple(given[0].shape)] = Recording(graph, inputs, outputs, gradients)
        except RuntimeError as error:
            if for_want_of_memory(error):
                self._give_up("their memory, beside that of the steps, is not there")
                self._recordings.clear()
                torch.cuda.empty_cache()
            else:
                self._give_up(first_line(error.__context__ or error)[:200])
        self._forget()

    def _give_up(self, why: str) -> None:
        log.info("no CUDA graphs of the steps (%s): their kernels are launched one by one", why)
        self._recording = False

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
