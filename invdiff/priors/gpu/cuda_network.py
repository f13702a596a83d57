"""The fastest form of a network on a CUDA device, for calls that want no gradient of its weights.

It differs from the network under autocast in three ways. Convolutions keep their weights in half precision, which autocast
would cast at every call. Residual blocks run as fused kernels (`fused_block`) on channels-last tensors, which round less
often than torch's. Small batches, whose kernels end sooner than the processor can launch the next ones, are replayed from a
CUDA graph.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import torch

from invdiff.errors import first_line
from invdiff.machine.device import autocast
from invdiff.machine.memory import for_want_of_memory
from invdiff.priors.gpu.fused_block import fuse

log: logging.Logger = logging.getLogger(__name__)

SMALL = 2**20
"""A batch of at most so many pixels leaves a large GPU idle when its kernels are launched one by one."""
WORTH = 3
"""How many calls of one shape come before a graph is recorded, which costs about as much as so many calls."""
KEPT = 8
"""How many graphs are kept, those used last. Each has its own inputs and outputs; all share the memory in between."""


class CudaNetwork:
    """A copy of a network in half precision. network: on a CUDA device, in float32; later changes of it have no effect here.
    Several threads may call it."""

    device: torch.device
    precision: torch.dtype

    def __init__(self, network: torch.nn.Module, precision: torch.dtype) -> None:
        self.device, self.precision = next(network.parameters()).device, precision
        self.network: torch.nn.Module = copy.deepcopy(network)
        for module in self.network.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.to(precision)
        self.network.to(memory_format=torch.channels_last)
        fuse(self.network)
        self._calls: Counter[tuple[int, ...]] = Counter()
        self._graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()
        self._beside: Any = None
        self._pool: Any = None
        self._latest: Any = None  # the stream that a graph ran on
        self._capturing = True
        self._lock = threading.Lock()

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """network(x, t), for x (B, C, H, W) and t (B,) on the device. Call under autocast."""
        shape = tuple(x.shape)
        if torch.is_grad_enabled() or not self._capturing or x.shape[0] * x.shape[2] * x.shape[3] > SMALL:
            return self._eager(x, t)
        with self._lock:  # a graph has one set of inputs and outputs
            graph = self._graphs.get(shape)
            if graph is None:
                self._calls[shape] += 1
                graph = self._capture(x, t) if self._calls[shape] > WORTH else None
            if graph is not None:
                self._graphs.move_to_end(shape)
                # All graphs share memory, which the graph before may still use on another stream.
                stream = torch.cuda.current_stream(self.device)
                if self._latest not in (None, stream):
                    stream.wait_stream(self._latest)
                self._latest = stream
                return graph(x, t)
        return self._eager(x, t)

    def forget_graphs(self) -> None:
        """Free the memory that graphs hold. They are recorded again for shapes that are called often enough."""
        with self._lock:
            self._graphs.clear()
            self._calls.clear()
            self._pool = None

    def _eager(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = self.network(x.contiguous(memory_format=torch.channels_last), t)
        return getattr(output, "sample", output)

    def _capture(self, x: torch.Tensor, t: torch.Tensor) -> Graph | None:
        if self._pool is None:
            self._pool, self._beside = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)
        shape = tuple(x.shape)
        try:
            # A cast kept by autocast would lie in the graph's memory and be used after the graph is gone.
            with autocast(self.device, self.precision, keep=False):
                graph = Graph(self._eager, x, t, self._pool, self._beside)
        except RuntimeError as error:
            if for_want_of_memory(error):
                self._calls[shape] = -(2**31)  # never for this shape
                torch.cuda.empty_cache()
                return None
            # A network whose control flow depends on its values, for instance.
            cause = error.__context__ or error
            log.info("no CUDA graph of the network (%s): its kernels are launched one by one", first_line(cause)[:200])
            self._capturing = False
            return None
        self._graphs[shape] = graph
        while len(self._graphs) > KEPT:
            dropped, _ = self._graphs.popitem(last=False)
            self._calls.pop(dropped, None)
        return graph


class Graph:
    """A function of two tensors, recorded once for their shapes and replayed with new numbers."""

    def __init__(self, function: Any, x: torch.Tensor, t: torch.Tensor, pool: Any, beside: torch.cuda.Stream) -> None:
        self._x, self._t = x.clone(), t.clone()
        self._graph = torch.cuda.CUDAGraph()
        with capturing(beside):
            for _ in range(2):  # libraries initialise themselves in the first calls, which cannot be recorded
                function(self._x, self._t)
            # Only this thread's allocations are recorded: other threads may allocate meanwhile.
            with torch.cuda.graph(self._graph, pool=pool, stream=beside, capture_error_mode="thread_local"):
                self._output = function(self._x, self._t)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self._x.copy_(x)
        self._t.copy_(t)
        self._graph.replay()
        return self._output.clone()


@contextlib.contextmanager
def capturing(stream: torch.cuda.Stream) -> Iterator[None]:
    """Makes a stream of a device the current one, and restores the former one even after a capture that failed, which leaves
    the thread on the stream of the capture."""
    with torch.cuda.device(stream.device):
        before = torch.cuda.current_stream()
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            torch.cuda.set_stream(before)
        before.wait_stream(stream)
