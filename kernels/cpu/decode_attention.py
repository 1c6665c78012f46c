"""Attention of one new token per sequence, over a cache of keys and values, in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from .. import memory
from .launch import launch


def forward(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, lengths: torch.Tensor,
            window: int | None = None, alibi: torch.Tensor | None = None, softcap: float | None = None,
            distance: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
    result = memory.empty(q.shape, q.dtype)
    sequences, heads, dim = q.shape
    key_heads = k_cache.shape[2]
    grouped = (sequences, key_heads, heads // key_heads, dim)
    queries, out = q.numpy().reshape(grouped), result.view(grouped).numpy()
    slopes = None if alibi is None else alibi.numpy().reshape(key_heads, heads // key_heads, 1)
    reach, offset = (None, None) if distance is None else (number.numpy()[0] for number in distance)

    def program(sequence: int):
        length = int(lengths[sequence])
        seen = slice(max(0, length - (window or length)), length)
        keys, values = (cache[sequence, seen].numpy().swapaxes(0, 1) for cache in (k_cache, v_cache))
        if not length:
            out[sequence] = 0
            return
        scores = queries[sequence] @ keys.swapaxes(1, 2)
        scores *= dim**-0.5
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        away = np.arange(length - seen.start - 1, -1, -1, dtype=scores.dtype)
        if reach is not None:
            scores /= 1 + reach * away
            scores -= offset * (away > 0)
        if slopes is not None:
            scores -= slopes * away
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        np.matmul(scores, values, out=out[sequence])

    launch(program, sequences)
    return result
