"""Dual chunk attention: rotary positions that never come further apart than in training (arXiv 2402.17463).

A document is cut into chunks of s tokens, s below the trained length c. With place i mod s of a token in its chunk, key
j stands at j mod s, and query i

- at i mod s for keys of its own chunk (section 3, intra-chunk),
- at min(s + i mod s, c - 1) for those of the chunk before (successive), which are near it in the text: the nearest
  c - s keep their true distance,
- at c - 1 for all chunks before that (inter-chunk).

One softmax runs over the scores with all of them. The paper leaves s open below c and takes s = 3 c / 4 in its
experiments, as is the default here; its released code bounds positions by another c.

Shapes: T new tokens, S tokens in all, H query heads, K key heads, G = H / K, D features per head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from engine import Parameter, Tensor, ops
from models.cache import softmax
from models.config import ModelConfig
from models.positions.none import AttentionPosition
from models.positions.rotary import rotary_table, rotate

OWN, NEXT, BEYOND = range(3)
Table = tuple[torch.Tensor, torch.Tensor]


class Block(NamedTuple):
    """Queries of one chunk, and for each kind of position the keys that are seen with it; the last are OWN."""

    queries: slice
    keys: list[tuple[int, slice]]


def blocks(first: int, stop: int, chunk: int) -> Iterator[Block]:
    """Queries at places `first` to `stop` of a document, chunk by chunk."""
    for begin in range(first // chunk * chunk, stop, chunk):
        queries = slice(max(first, begin), min(stop, begin + chunk))
        parts = [(BEYOND, slice(0, max(0, begin - chunk))), (NEXT, slice(max(0, begin - chunk), begin)),
                 (OWN, slice(begin, queries.stop))]
        yield Block(queries, [(kind, part) for kind, part in parts if part.start < part.stop])


def query_places(length: int, chunk: int, trained_length: int) -> np.ndarray:
    """Positions of queries by kind and place: int64 [3, length]. OWN is that of keys, too."""
    own = np.arange(length) % chunk
    return np.stack([own, np.minimum(own + chunk, trained_length - 1), np.full(length, trained_length - 1)])


@lru_cache(maxsize=8)
def tables(config: ModelConfig, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Table]:
    """cos and sin [max_seq_len, R / 2] for each kind of position. Cached: nobody writes into them."""
    c, context = config, config.context
    turns = rotary_table(context.trained_length, c.rotary_features, c.rope_base, context, dtype)
    places = query_places(c.max_seq_len, context.chunk_tokens, context.trained_length)
    return [tuple(torch.from_numpy(table.numpy()[row]).to(device) for table in turns) for row in places]


class DualChunk(AttentionPosition):
    """Takes the place of `ops.attention` where the config's `context.kind` is "dca"."""

    chunked = True

    def turn(self, heads: np.ndarray, first: int) -> np.ndarray:
        """Keys [T, K, D] of the tokens from place `first` on, as the cache holds them."""
        return _turned(heads, tables(self.config, torch.from_numpy(heads[:0]).dtype)[OWN], first)

    def attend(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray, first: int) -> np.ndarray:
        """q [T, H, D] normed, keys [K, S, D] turned, values [K, S, D], S = first + T -> [T, H D]."""
        new, heads, dim = q.shape
        key_heads, stop = keys.shape[:2]
        scaled, places = q * q.dtype.type(dim**-0.5), tables(self.config, torch.from_numpy(q[:0]).dtype)
        result = np.empty_like(q)
        for queries, parts in blocks(first, stop, self.config.context.chunk_tokens):
            rows = slice(queries.start - first, queries.stop - first)
            count = rows.stop - rows.start
            scores = [np.matmul(_stacked(_turned(scaled[rows], places[kind], queries.start), key_heads),
                                keys[:, part].swapaxes(1, 2)) for kind, part in parts]
            scores = np.concatenate(scores, axis=-1)
            weights = softmax(scores.reshape(heads, count, queries.stop)).reshape(scores.shape)
            mixed = np.matmul(weights, values[:, :queries.stop])
            result[rows] = mixed.reshape(heads, count, dim).swapaxes(0, 1)
        return result.reshape(new, heads * dim)

    def keys(self, k: Tensor, weight: Parameter, first: int = 0) -> Tensor:
        """`turn` of k [B, T, K, D] in the graph."""
        return ops.rope(k, *self._tables(weight)[OWN], first)

    def whole(self, q: Tensor, k: Tensor, v: Tensor, weight: Parameter, doc_start: torch.Tensor | None) -> Tensor:
        """q [B, T, H, D], k and v [B, T, K, D], normed and not turned, doc_start int32 [B, T] or None -> [B, T, H D].

        Each document counts its chunks from its own beginning, so what else is in its row changes nothing.
        """
        if doc_start is None:
            return self.newest(q, self.keys(k, weight), v, weight, 0)
        batch, tokens = doc_start.shape
        sizes = document_sizes(doc_start)
        parts = [ops.split(side.reshape(1, batch * tokens, *side.shape[2:]), sizes, dim=1) for side in (q, k, v)]
        found = [self.newest(q, self.keys(k, weight), v, weight, 0) for q, k, v in zip(*parts, strict=True)]
        return ops.cat(found, dim=1).reshape(batch, tokens, -1)

    def newest(self, q: Tensor, keys: Tensor, values: Tensor, weight: Parameter, first: int) -> Tensor:
        """q [B, T, H, D] normed, keys [B, S, K, D] turned, values [B, S, K, D], S = first + T -> [B, T, H D].

        No matrix of more than one chunk's queries exists at a time, but training keeps them all: memory grows with
        T times S.
        """
        batch, new, heads, dim = q.shape
        stop, key_heads = keys.shape[1:3]
        scaled, places = q * dim**-0.5, self._tables(weight)
        keys, values = keys.permute(0, 2, 3, 1), values.permute(0, 2, 1, 3)
        found = []
        for queries, parts in blocks(first, stop, self.config.context.chunk_tokens):
            rows = slice(queries.start - first, queries.stop - first)
            asking, count = scaled[:, rows], rows.stop - rows.start
            scores = [_rows(ops.rope(asking, *places[kind], queries.start), key_heads) @ keys[..., part]
                      for kind, part in parts]
            scores[-1] = _causal(scores[-1], count)
            weights = ops.softmax(ops.cat(scores, dim=-1) if len(scores) > 1 else scores[0], dim=-1)
            mixed = (weights @ values[:, :, :queries.stop]).reshape(batch, heads, count, dim)
            found.append(mixed.transpose(1, 2).reshape(batch, count, heads * dim))
        return ops.cat(found, dim=1) if len(found) > 1 else found[0]

    def _tables(self, weight: Parameter) -> list[Table]:
        return tables(self.config, torch.promote_types(weight.dtype, torch.float32), weight.device)


def document_sizes(doc_start: torch.Tensor) -> list[int]:
    """Tokens of each document of int32 [B, T], row after row; on a GPU it waits for them."""
    starts = doc_start.cpu().numpy()
    first = np.flatnonzero((starts == np.arange(starts.shape[1])).reshape(-1))
    return np.diff(first, append=starts.size).tolist()


def _turned(heads: np.ndarray, table: Table, first: int) -> np.ndarray:
    rows = slice(first, first + len(heads))
    return rotate(heads, *(side.numpy()[rows, None] for side in table))


def _stacked(q: np.ndarray, key_heads: int) -> np.ndarray:
    """[T, H, D] -> [K, G T, D]: queries that share a key head below each other."""
    return q.swapaxes(0, 1).reshape(key_heads, -1, q.shape[-1])


def _rows(q: Tensor, key_heads: int) -> Tensor:
    """[B, T, H, D] -> [B, K, G T, D]."""
    batch, _, _, dim = q.shape
    return q.transpose(1, 2).reshape(batch, key_heads, -1, dim)


def _causal(scores: Tensor, count: int) -> Tensor:
    """Scores [B, K, G T, n] of the newest T of a chunk's n tokens, -inf where the key comes after the query."""
    keys = scores.shape[-1]
    visible = np.arange(keys) <= np.arange(keys - count, keys)[:, None]
    if visible.all():
        return scores
    shaped = scores.reshape(*scores.shape[:2], -1, count, keys)
    hidden = ops.where(Tensor(torch.from_numpy(visible).to(scores.device)), shaped, -math.inf)
    return hidden.reshape(scores.shape)
