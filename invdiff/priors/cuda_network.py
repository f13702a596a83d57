"""A network as a CUDA device runs it quickest, for calls that want no gradient of its weights.

Three things beside autocast, each of which leaves the numbers of half precision as they are: convolutions keep their weights
in half precision, which autocast would cast at every call; residual blocks run as fused kernels (`fused_block`); and small
batches, whose kernels are over sooner than the processor has launched them, are replayed from a CUDA graph.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter, OrderedDict
from typing import Any

import torch

from invdiff.device import autocast
from invdiff.priors.fused_block import fuse
from invdiff.priors.tensor_files import first_line

log = logging.getLogger(__name__)

SMALL = 2**20
"""Pixels of a batch, up to which launching its kernels one by one leaves a large GPU idle."""
WORTH = 3
"""Calls with one shape before a graph is made of it: that costs about as much as so many calls."""
KEPT = 8
"""Graphs, the last ones used: each has its inputs and outputs to itself, and all share the memory in between."""


class CudaNetwork:
    """The network in half precision on its device. network: on a CUDA device, in float32; it is copied."""

    def __init__(self, network: torch.nn.Module, precision: torch.dtype) -> None:
        self.device, self.precision = next(network.parameters()).device, precision
        self.network = copy.deepcopy(network)
        for module in self.network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.to(precision)
        fuse(self.network)
        self._calls: Counter[tuple[int, ...]] = Counter()
        self._graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()
        self._pool: Any = None
        self._capturing = True

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """network(x, t), for x (B, C, H, W) and t (B,) on the device. Call under autocast."""
        shape = tuple(x.shape)
        if torch.is_grad_enabled() or not self._capturing or x.shape[0] * x.shape[2] * x.shape[3] > SMALL:
            return self._eager(x, t)
        graph = self._graphs.get(shape)
        if graph is None:
            self._calls[shape] += 1
            graph = self._capture(x, t) if self._calls[shape] > WORTH else None
        if graph is None:
            return self._eager(x, t)
        self._graphs.move_to_end(shape)
        return graph(x, t)

    def _eager(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = self.network(x.contiguous(memory_format=torch.channels_last), t)
        return getattr(output, "sample", output)

    def _capture(self, x: torch.Tensor, t: torch.Tensor) -> Graph | None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # A cast that autocast keeps would lie in the memory of the graph, and outlive it.
            with autocast(self.device, self.precision, keep=False):
                graph = Graph(self._eager, x, t, self._pool)
        except RuntimeError as error:  # a network that looks at its numbers, for instance
            log.info("no CUDA graph of the network (%s): its kernels are launched one by one", first_line(error)[:200])
            self._capturing = False
            return None
        self._graphs[tuple(x.shape)] = graph
        while len(self._graphs) > KEPT:
            self._graphs.popitem(last=False)
        return graph


class Graph:
    """A function of two tensors, recorded once for their shapes and replayed with new numbers."""

    def __init__(self, function: Any, x: torch.Tensor, t: torch.Tensor, pool: Any) -> None:
        self._x, self._t = x.clone(), t.clone()
        beside = torch.cuda.Stream(x.device)
        beside.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(beside):  # libraries set themselves up at the first calls, which cannot be recorded
            for _ in range(2):
                function(self._x, self._t)
        torch.cuda.current_stream(x.device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # Of this thread alone: others may allocate meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = function(self._x, self._t)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self._x.copy_(x)
        self._t.copy_(t)
        self._graph.replay()
        return self._output.clone()
