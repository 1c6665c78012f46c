"""The head and the loss: cross-entropy of x W^T, with both gradients, over chunks of rows.

Only a chunk's logits exist at a time, and they become their own gradient in place; so memory does not grow with
tokens x vocabulary. Making them again in backward would cost a fourth product, more than writing and reading them.
Rows of the logits lie PADDING apart, whatever the vocabulary: so 16-byte accesses stay aligned. The products see the
vocabulary's columns only, and the weight needs no padding.
"""

from __future__ import annotations

import torch
import triton

from .. import memory
from . import cross_entropy
from .gemm import add_product
from .rows import as_rows, contiguous
from .tuning import tuned

PADDING = 128  # elements


def forward(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, normalizer: float | torch.Tensor,
            ignore_index: int = -100, with_gradient: bool = True, z_loss: float = 0.0, softcap: float | None = None,
            into: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    vocabulary = len(weight)
    rows_x, rows_t, weight = as_rows(x), contiguous(targets).view(-1), contiguous(weight)
    count = len(rows_x)
    losses = memory.empty((count,), torch.float32, x.device)
    dx, dweight = None, None
    if with_gradient:
        dx = memory.empty(x.shape, x.dtype, x.device)
        rows_dx = as_rows(dx)
        dweight = memory.empty(weight.shape, torch.float32, x.device) if into is None else into
    chunk, columns = chunk_shape(count, vocabulary, x.dtype)
    logits = memory.empty((chunk, columns), x.dtype, x.device)

    for first in range(0, count, chunk):
        rows = slice(first, min(first + chunk, count))
        padded = logits[: rows.stop - first]
        used = padded[:, :vocabulary]
        torch.mm(rows_x[rows], weight.t(), out=used)
        cross_entropy.in_place(padded, rows_t[rows], losses[rows], normalizer, ignore_index, z_loss, softcap,
                               vocabulary, with_gradient)
        if with_gradient:
            torch.mm(used, weight, out=rows_dx[rows])
            add_product(dweight, used.t(), rows_x[rows], onto=first > 0 or into is not None)
    if with_gradient and not count and into is None:
        dweight.zero_()
    return cross_entropy.sum_losses(losses, normalizer), dx, None if dweight is into else dweight


def chunk_shape(rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[int, int]:
    """Shape of the buffer of logits: chunks of about one size, each of at most the bytes that the table allows, or of
    PADDING rows if these are more."""
    columns = triton.cdiv(vocabulary, PADDING) * PADDING
    limit = tuned("linear_cross_entropy", dtype)["CHUNK_BYTES"]
    chunks = triton.cdiv(rows * columns * dtype.itemsize, limit)
    height = max(triton.cdiv(rows, max(chunks, 1)), 1)
    return (height if height <= PADDING else triton.cdiv(height, PADDING) * PADDING), columns
