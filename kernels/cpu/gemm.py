"""Matrix products inside a program: PyTorch's GEMM, one thread, written straight into the caller's buffer."""

from __future__ import annotations

import torch

BLOCK_ELEMENTS = 1 << 20  # elements of all the rows a block works on: a few MiB, a share of the L3 cache


def block_rows(width: int) -> int:
    """Rows per block for programs whose rows hold `width` elements: a power of two from 32 to 512."""
    rows = 512
    while rows > 32 and rows * width > BLOCK_ELEMENTS:
        rows //= 2
    return rows


def blocks(rows: int, per_block: int) -> int:
    """How many blocks of `per_block` rows cover `rows` rows."""
    return -(-rows // per_block)


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, accumulate: bool = False) -> None:
    """out = a @ b, or out += a @ b. Matrices, or stacks of matrices."""
    if a.ndim == 3:
        torch.baddbmm(out, a, b, out=out) if accumulate else torch.bmm(a, b, out=out)
    elif accumulate:
        torch.addmm(out, a, b, out=out)
    else:
        torch.mm(a, b, out=out)


def multiply_add(base: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out = base + a @ b."""
    torch.addmm(base, a, b, out=out)
