"""Rotary position embedding (arXiv 2104.09864, section 3.4.2), pairing feature i with i + R/2 of the first R."""

from __future__ import annotations

import torch

from .. import memory
from .compiled import compiled
from .launch import launch
from .rows import STEP


@compiled
def _rotate(x, cos, sin, y):
    """Tokens x (n, H, D) by the angles of each token, cos and sin (n, R/2)."""
    half = cos.shape[1]
    for i in range(x.shape[0]):
        for head in range(x.shape[1]):
            source, out = x[i, head], y[i, head]
            for j in range(half):
                a, b = source[j], source[j + half]
                out[j] = a * cos[i, j] - b * sin[i, j]
                out[j + half] = b * cos[i, j] + a * sin[i, j]
            rest, out_rest = source[2 * half:], out[2 * half:]
            for j in range(rest.shape[0]):
                out_rest[j] = rest[j]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    y = memory.empty(x.shape, x.dtype)
    array, out, cosines, sines = (t.contiguous().numpy() for t in (x, y, cos, sin))
    batch, tokens, heads, dim = x.shape
    n = max(1, min(tokens, STEP // max(heads * dim, 1)))
    blocks = -(-tokens // n)

    def program(block: int):
        b, part = block // blocks, slice(block % blocks * n, min(block % blocks * n + n, tokens))
        _rotate(array[b, part], cosines[part], sines[part], out[b, part])

    launch(program, batch * blocks)
    return y
