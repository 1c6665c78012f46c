"""Work that is the same every time, recorded once as a CUDA graph and then started by one call.

The host needs some ten microseconds for each of the few hundred kernels of a training step; a graph needs that once.
What is captured must find its inputs in the same places each time, allocate only from PyTorch, and wait for nothing.
"""

from __future__ import annotations

from typing import Callable

import torch

WARM_UP = 3  # runs before capture: Triton compiles, cuBLAS chooses its kernels and takes its workspace


class Graphs:
    """Graphs that run in turns. They share a pool of memory, so what a graph leaves behind is valid until the next one
    runs; and a stream, as cuBLAS has a workspace for each: it is taken in the warm-up, and lies outside of the pool."""

    def __init__(self):
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """What does the same as a function without arguments and results, which works on buffers of its own. Runs that
        a few times and captures it; waits for the GPU."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            function()
        return graph.replay
