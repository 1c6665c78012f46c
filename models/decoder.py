"""The decoder: embedding, layers of attention and feed-forward with a norm before each, norm, head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine import Dropout, Embedding, Linear, Module, Parameter, RMSNorm, Tensor, UserError, ops, recompute
from models import parts
from models.cache import DeviceCache, KVCache, project, rms_norm
from models.config import ModelConfig
from models.initialise import initialise


class Layer(Module):
    """One attention part and one feed-forward part; both add to the residual stream themselves."""

    def __init__(self, config: ModelConfig):
        self.attention = parts.attention(config)
        self.feed_forward = parts.feed_forward(config)

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        return self.feed_forward(self.attention(x, doc_start), doc_start)

    def step(self, x: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        return self.feed_forward.step(self.attention.step(x, cache, layer), cache, layer)

    def decode(self, x: Tensor, cache: DeviceCache, layer: int) -> Tensor:
        return self.feed_forward(self.attention.decode(x, cache, layer))


class Decoder(Module):
    """A language model: ids to logits of the next token.

    Args:
        config: shape and parts.
        seed: of the initial weights; None leaves whatever the layers start with, for weights that are loaded next.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0):
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.layers = [Layer(config) for _ in range(config.n_layers)]
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size)
        dtype = getattr(torch, config.dtype)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        if seed is not None:
            initialise(self, config, seed)

    @property
    def output(self) -> Parameter:
        """The matrix [vocab_size, d_model] that gives the logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _stream(self, ids: torch.Tensor, doc_start: torch.Tensor | None) -> Tensor:
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.max_seq_len:
            raise UserError(f"ids must be [batch, 1 to max_seq_len {self.config.max_seq_len}]: got {list(ids.shape)}")
        x = self.embedding(ids)
        if self.training and self.config.dropout:
            x = self.dropout(x)
        for layer in self.layers:
            if self.training and self.config.recompute:
                x = recompute(lambda stream, layer=layer: layer(stream, doc_start), x)
            else:
                x = layer(x, doc_start)
        return x

    def hidden(self, ids: torch.Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """ids int64 [B, T], doc_start int32 [B, T] or None -> what the head sees, [B, T, d_model]."""
        return self.norm(self._stream(ids, doc_start))

    def forward(self, ids: torch.Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """-> logits [B, T, vocab_size]; arguments as for `hidden`."""
        return ops.rms_norm_linear(self._stream(ids, doc_start), self.norm.gain, self.output, self.config.norm_eps)

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, doc_start: torch.Tensor | None = None,
             normalizer: float | None = None) -> Tensor:
        """Cross-entropy in nats, summed over the targets that are not -100 and divided by `normalizer`.

        Args:
            ids, targets: int64 [B, T].
            doc_start: int32 [B, T], see `engine.ops.attention`.
            normalizer: number of targets of the whole batch when this is a part of it; default: of this call.
        """
        return ops.linear_cross_entropy(self.hidden(ids, doc_start), self.output, targets, normalizer)

    def step(self, ids: Sequence[int], cache: KVCache) -> np.ndarray:
        """Logits [vocab_size] after the new tokens `ids`, which join the cache. No graph, no dropout."""
        _need_room(cache, len(ids))
        x = self.embedding.weight.data.numpy()[np.asarray(ids, dtype=np.int64)]
        for index, layer in enumerate(self.layers):
            x = layer.step(x, cache, index)
        cache.length += len(ids)
        return project(rms_norm(x[-1:], self.norm.gain, self.config.norm_eps), self.output)[0]

    def decode(self, ids: torch.Tensor, cache: DeviceCache) -> Tensor:
        """`step` on a GPU, the logits [1, vocab_size] staying there.

        Args:
            ids: int64 [1, T]; T is 1, or the cache is empty.
        """
        _need_room(cache, ids.shape[1])
        x = self.embedding(ids)
        for index, layer in enumerate(self.layers):
            x = layer.decode(x, cache, index)
        cache.length += ids.shape[1]
        return ops.rms_norm_linear(x[:, -1], self.norm.gain, self.output, self.config.norm_eps)


def _need_room(cache: KVCache | DeviceCache, tokens: int) -> None:
    if not 1 <= tokens <= cache.capacity - cache.length:
        raise UserError(f"the cache has room for {cache.capacity - cache.length} tokens: got {tokens}")
