"""The decoder: embedding, layers of attention and feed-forward, norm, head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from engine import Dropout, Embedding, Linear, Module, Parameter, RMSNorm, Tensor, UserError, ops, recompute
from models import positions
from models.affine import affine
from models.balance import Balance, Tally
from models.cache import DeviceCache, KVCache, project
from models.config import ModelConfig
from models.initialise import initialise
from models.layer import new_layer
from models.norms import normed


class Decoder(Module):
    """A language model: ids to logits of the next token.

    Args:
        config: shape and parts.
        seed: of the initial weights; None leaves whatever the layers start with, for weights that are loaded next.

    Attributes:
        balance: of the experts; None in a model without any.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0):
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.embedding_affine = affine(config, math.sqrt(config.d_model))
        self.position = positions.in_stream(config)
        self.dropout = Dropout(config.dropout)
        self.layers = [new_layer(config, index) for index in range(config.n_layers)]
        self.norm = RMSNorm(config.d_model, config.norm_eps) if config.final_norm else None
        self.head = None if config.tie_embeddings else Linear(config.d_model, config.vocab_size)
        self.head_affine = affine(config)
        routers = [layer.feed_forward.routers for layer in self.layers if layer.has_experts]
        self.balance = Balance(config, routers) if routers else None
        dtype = getattr(torch, config.dtype)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        if seed is not None:
            initialise(self, config, seed)

    @property
    def output(self) -> Parameter:
        """The matrix [vocab_size, d_model] that gives the logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _stream(self, ids: torch.Tensor, doc_start: torch.Tensor | None, tally: Tally | None = None) -> Tensor:
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.max_seq_len:
            raise UserError(f"ids must be [batch, 1 to max_seq_len {self.config.max_seq_len}]: got {list(ids.shape)}")
        x = self._embedded(ids, doc_start, 0)
        if self.training and self.config.dropout:
            x = self.dropout(x)
        for layer in self.layers:
            counting = (tally,) if tally is not None and layer.has_experts else ()
            if self.training and self.config.recompute:
                x = recompute(lambda x, layer=layer, counting=counting: layer(x, doc_start, *counting), x)
            else:
                x = layer(x, doc_start, *counting)
            x = tally.take(x) if counting else x
        return x

    def _embedded(self, ids: torch.Tensor, doc_start: torch.Tensor | None, first: int) -> Tensor:
        x = self.embedding(ids)
        if self.embedding_affine is not None:
            x = self.embedding_affine(x)
        return x if self.position is None else self.position(x, doc_start, first)

    def hidden(self, ids: torch.Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """ids int64 [B, T], doc_start int32 [B, T] or None -> what the head sees, [B, T, d_model]."""
        return self._before_head(self._stream(ids, doc_start))

    def _before_head(self, x: Tensor) -> Tensor:
        """The head's Affine is taken here, before its matrix: its bias would add the same to all logits, which changes
        no probability."""
        x = x if self.norm is None else self.norm(x)
        return x if self.head_affine is None else self.head_affine.scaled(x)

    def forward(self, ids: torch.Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """-> logits [B, T, vocab_size]; arguments as for `hidden`."""
        return self._logits(self._stream(ids, doc_start))

    def _logits(self, x: Tensor) -> Tensor:
        if self.norm is not None and self.head_affine is None:
            return ops.rms_norm_linear(x, self.norm.gain, self.output, self.config.norm_eps)
        return ops.linear(self._before_head(x), self.output)

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, doc_start: torch.Tensor | None = None,
             normalizer: float | None = None) -> Tensor:
        """Cross-entropy in nats, summed over the targets that are not -100 and divided by `normalizer`.

        In training the gradient is that of its sum with the losses that balance experts (models.balance).

        Args:
            ids, targets: int64 [B, T].
            doc_start: int32 [B, T], see `engine.ops.attention`.
            normalizer: number of targets of the whole batch when this is a part of it; default: of this call.
        """
        tally = self.balance.tally(targets, normalizer) if self.balance is not None and self.training else None
        stream = self._stream(ids, doc_start, tally)
        if tally is not None and self.balance.counting:
            return tally.counted()
        loss = ops.linear_cross_entropy(self._before_head(stream), self.output, targets, normalizer)
        return loss if tally is None else tally.beside(loss)

    def step(self, ids: Sequence[int], cache: KVCache) -> np.ndarray:
        """Logits [vocab_size] after the new tokens `ids`, which join the cache. No graph, no dropout."""
        _need_room(cache, len(ids))
        x = self.embedding.weight.data.numpy()[np.asarray(ids, dtype=np.int64)]
        if self.embedding_affine is not None:
            x = self.embedding_affine.step(x)
        if self.position is not None:
            x = self.position.step(x, cache.length)
        for index, layer in enumerate(self.layers):
            x = layer.step(x, cache, index)
        cache.length += len(ids)
        x = normed(self.norm, x[-1:])
        return project(x if self.head_affine is None else self.head_affine.step(x, biased=False), self.output)[0]

    def decode(self, ids: torch.Tensor, cache: DeviceCache) -> Tensor:
        """`step` on a GPU, the logits [1, vocab_size] staying there.

        Args:
            ids: int64 [1, T]; T is 1, or the cache is empty.
        """
        _need_room(cache, ids.shape[1])
        x = self._embedded(ids, None, cache.length)
        for index, layer in enumerate(self.layers):
            x = layer.decode(x, cache, index)
        cache.length += ids.shape[1]
        return self._logits(x[:, -1])


def _need_room(cache: KVCache | DeviceCache, tokens: int) -> None:
    if not 1 <= tokens <= cache.capacity - cache.length:
        raise UserError(f"the cache has room for {cache.capacity - cache.length} tokens: got {tokens}")
