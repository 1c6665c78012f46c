"""The head and the loss: cross-entropy of x W^T, with both gradients, over chunks of rows.

Only a chunk's logits exist at a time, and they become their own gradient in place; so memory does not grow with
tokens x vocabulary. The gradients are made in forward, where the logits are at hand, for a loss gradient of 1.
"""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .cross_entropy import loss_rows, regularised_loss_rows
from .gemm import block_rows, blocks, multiply
from .launch import launch, threads
from .rounding import rounded

CHUNK_ELEMENTS = 1 << 22  # logits held at a time


def forward(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, normalizer: float | torch.Tensor,
            ignore_index: int = -100, with_gradient: bool = True, z_loss: float = 0.0, softcap: float | None = None,
            into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    normalizer = float(normalizer)
    vocabulary, width = weight.shape
    rows_x, rows_t = x.reshape(-1, width), targets.contiguous().view(-1).numpy()
    count = len(rows_x)
    losses = np.empty(count, rows_x.numpy().dtype)
    scale = losses.dtype.type(1 / normalizer)
    dx = memory.empty(x.shape, x.dtype) if with_gradient else None
    dweight = into
    if with_gradient and into is None:
        dweight = (memory.empty if count else memory.zeros)(weight.shape, weight.dtype)
    rows_dx = dx.view(-1, width) if with_gradient else None
    n = min(block_rows(vocabulary), max(1, CHUNK_ELEMENTS // vocabulary))
    chunk_rows = max(n, CHUNK_ELEMENTS // vocabulary // n * n)
    logits = memory.empty((min(chunk_rows, max(count, 1)), vocabulary), x.dtype)
    columns = blocks(vocabulary, 32 * threads()) * 32

    for first in range(0, count, chunk_rows):
        rows_chunk = slice(first, min(first + chunk_rows, count))
        size = rows_chunk.stop - first

        def logits_program(block: int):
            part = slice(block * n, min(block * n + n, size))
            rows = slice(first + part.start, first + part.stop)
            multiply(rows_x[rows], weight.t(), logits[part])
            rounded(logits[part])
            if z_loss or softcap:
                regularised_loss_rows(logits[part].numpy(), rows_t[rows], ignore_index, scale, z_loss, softcap,
                                      losses[rows], with_gradient)
            else:
                loss_rows(logits[part].numpy(), rows_t[rows], ignore_index, scale, losses[rows], with_gradient)
            if with_gradient:
                multiply(rounded(logits[part]), weight, rows_dx[rows])

        def weight_program(block: int):
            part = slice(block * columns, block * columns + columns)
            multiply(logits[:size, part].t(), rows_x[rows_chunk], dweight[part], first > 0 or into is not None)

        launch(logits_program, blocks(size, n))
        if with_gradient:
            launch(weight_program, blocks(vocabulary, columns))
    total = losses.sum(dtype=np.float64) / normalizer
    return torch.tensor(total, dtype=x.dtype), dx, None if dweight is into else dweight
