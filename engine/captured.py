"""Work that is the same every time, recorded once as a CUDA graph and then started by one call.

The host needs some ten microseconds for each of the few hundred kernels of a training step; a graph needs that once.
What is captured must find its inputs in the same places each time, allocate only from PyTorch, and wait for nothing.
"""

from __future__ import annotations

import functools
from typing import Callable

import torch

WARM_UP = 3  # runs before capture: Triton compiles, cuBLAS chooses its kernels and takes its workspace


class Captured:
    """A function without arguments and results that works on buffers of its own.

    `prepare` runs it a few times and captures it; a call replays it. Graphs share one pool of memory, so what a graph
    leaves behind is valid until the next one runs.
    """

    def __init__(self, function: Callable[[], None]):
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None

    def prepare(self) -> None:
        """Warm up and capture. Waits for the GPU."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.function()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=_pool()):
            self.function()

    def __call__(self) -> None:
        self.graph.replay()


@functools.cache
def _pool():
    return torch.cuda.graph_pool_handle()
