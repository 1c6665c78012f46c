"""The seed system's attention: its positions, and heads that are mixed before and after the softmax."""

from __future__ import annotations

import numpy as np
import torch

import kernels
from engine import Dropout, Linear, Module, Parameter, Tensor, ops
from models import positions
from models.affine import affine
from models.cache import DeviceCache, InputCache, KVCache, project, softmax
from models.config import ModelConfig
from models.norms import before_part, normed


class JerryAttention(Module):
    """x + W_out attention(W_qkv x), causal; talking heads (arXiv 2003.02436) if `head_mixing`.

    Scores have the positions of models.positions.jerry, and no QK-norm. The rows of W_qkv are the queries of all heads,
    then the keys, then the values; each third, and the result, goes through an Affine if the parametrisation has them.
    Its dropout comes twice: after the projection, and on what joins the stream.
    """

    residual_outputs = ("out.weight",)
    caches = ("keys", "inputs")

    def __init__(self, config: ModelConfig):
        self.config = config
        self.norm = before_part(config)
        self.qkv = Linear(config.d_model, 3 * config.n_heads * config.head_dim)
        self.qkv_affine = affine(config, parts=3)
        self.position = positions.in_attention(config)
        mixers = [Parameter(kernels.empty((config.n_heads, config.n_heads))) for _ in range(2 * config.head_mixing)]
        self.before, self.after = mixers or (None, None)
        self.out = Linear(config.n_heads * config.head_dim, config.d_model)
        self.out_affine = affine(config)
        self.dropout = Dropout(config.dropout)

    @staticmethod
    def n_parameters(config: ModelConfig) -> dict[str, int]:
        """Trained values of one, without its positions."""
        return {"attention": 4 * config.d_model * config.n_heads * config.head_dim,
                "head mixing": 2 * config.n_heads**2 * config.head_mixing,
                "scalars": 8 * (config.parametrisation == "affine")}

    def packed(self, per_head: bool) -> dict[str, tuple[int, ...]]:
        """The rows of each matrix in a parameter that holds several, by the parameter's name."""
        heads, dim = self.config.n_heads, self.config.head_dim
        return {"qkv.weight": (dim,) * (3 * heads) if per_head else (heads * dim,) * 3}

    def forward(self, x: Tensor, doc_start: torch.Tensor | None = None) -> Tensor:
        """x [B, T, d_model], doc_start int32 [B, T] or None -> [B, T, d_model]."""
        heads = self.config.n_heads
        qkv = self.qkv(x if self.norm is None else self.norm(x))
        qkv = qkv if self.qkv_affine is None else self.qkv_affine(qkv)
        distance = self.position.options(self.qkv.weight)["distance"]
        if self.before is None:
            y = ops.attention(qkv, heads, heads, doc_start=doc_start, distance=distance)
        else:
            y = ops.talking_heads(qkv, heads, *distance, self.before, self.after, doc_start)
        y = self.out(y)
        y = y if self.out_affine is None else self.out_affine(y)
        return x + self.dropout(self.dropout(y))

    def step(self, x: np.ndarray, cache: KVCache | InputCache, layer: int) -> np.ndarray:
        """x [T, d_model] of the T tokens after those in the cache -> [T, d_model]."""
        h = normed(self.norm, x)
        y = self._from_inputs(h, cache, layer) if isinstance(cache, InputCache) else self._from_keys(h, cache, layer)
        y = project(y, self.out.weight)
        return x + (y if self.out_affine is None else self.out_affine.step(y))

    def _from_keys(self, h: np.ndarray, cache: KVCache, layer: int) -> np.ndarray:
        c, first = self.config, cache.length
        packed = project(h, self.qkv.weight)
        packed = packed if self.qkv_affine is None else self.qkv_affine.step(packed)
        q, k, v = packed.reshape(len(h), 3, c.n_heads, c.head_dim).swapaxes(0, 1)
        return self._mixed(q, *cache.put(layer, k, v), first)

    def _from_inputs(self, h: np.ndarray, cache: InputCache, layer: int) -> np.ndarray:
        """Queries go through the matrix of the keys to meet what the layer was given, and what the weights pick of that
        goes through the matrix of the values (EL-attention, arXiv 2105.04779, section 3).

        With k = a (w_k W_k h + b_k), a the Affine's factor, q . k = a w_k (q W_k) . h + a b_k sum(q); so for values.
        """
        c, first, one = self.config, cache.length, h.dtype.type(1)
        to_q, to_k, to_v = self.qkv.weight.numpy().reshape(3, c.n_heads, c.head_dim, c.d_model)
        weight, bias = (one, one, one), (0 * one,) * 3
        if self.qkv_affine is not None:
            weight, bias = (p.numpy() * one * self.qkv_affine.factor for p in
                            (self.qkv_affine.weight, self.qkv_affine.bias))
        q = np.matmul(h, to_q.swapaxes(1, 2)) * weight[0] + bias[0]  # [H, T, D]
        q *= h.dtype.type(c.head_dim**-0.5)
        past = cache.put(layer, h)
        through = (np.matmul(q, to_k) * weight[1]).reshape(-1, c.d_model)  # [H T, d_model]
        scores = (through @ past.T).reshape(c.n_heads, len(h), -1) + bias[1] * q.sum(axis=-1, keepdims=True)
        weights = self._weights(scores, first)
        picked = (weights.reshape(-1, len(past)) @ past).reshape(c.n_heads, len(h), c.d_model)
        mixed = np.matmul(picked, to_v.swapaxes(1, 2)) * weight[2] + bias[2] * weights.sum(axis=-1, keepdims=True)
        return mixed.swapaxes(0, 1).reshape(len(h), -1)

    def decode(self, x: Tensor, cache: DeviceCache, layer: int) -> Tensor:
        """`step` on a GPU: x [1, T, d_model], T = 1 unless the cache is empty -> [1, T, d_model]."""
        heads, new = self.config.n_heads, x.shape[1]
        packed = self.qkv(x if self.norm is None else self.norm(x))
        packed = packed if self.qkv_affine is None else self.qkv_affine(packed)
        options = self.position.options(self.qkv.weight)
        if self.before is None:
            y = cache.attend(layer, packed, options)
        else:
            split = packed.reshape(1, new, 3, heads, self.config.head_dim)
            q, k, v = split[:, :, 0], split[:, :, 1], split[:, :, 2]
            keys, values = cache.put(layer, k, v)
            y = (ops.talking_heads(packed, heads, *options["distance"], self.before, self.after) if new > 1
                 else self._newest(q, keys, values, *options["distance"]))
        y = self.out(y)
        return x + (y if self.out_affine is None else self.out_affine(y))

    def _newest(self, q: Tensor, keys: Tensor, values: Tensor, reach: Tensor, offset: Tensor) -> Tensor:
        """The newest token's result [1, 1, H D], of q [1, 1, H, D], keys and values [1, S, H, D]; its scores in float32
        at least."""
        heads, kind = self.config.n_heads, torch.promote_types(q.dtype, torch.float32)
        before, after, reach, offset = (value.to(kind) for value in (self.before, self.after, reach, offset))
        away = Tensor(torch.arange(keys.shape[1] - 1, -1, -1, dtype=kind, device=q.data.device))
        products = keys.permute(0, 2, 1, 3) @ q.permute(0, 2, 3, 1)
        scores = products.reshape(heads, -1).to(kind) * self.config.head_dim**-0.5
        scores = scores / (1.0 + reach * away) - offset * away.clamp(max=1.0)
        weights = (after @ (before @ scores).softmax(-1)).to(values.dtype)
        return (weights.reshape(1, heads, 1, -1) @ values.permute(0, 2, 1, 3)).reshape(1, 1, -1)

    def _mixed(self, q: np.ndarray, keys: np.ndarray, values: np.ndarray, first: int) -> np.ndarray:
        scores = np.matmul((q * q.dtype.type(q.shape[-1]**-0.5)).swapaxes(0, 1), keys.swapaxes(1, 2))
        mixed = np.matmul(self._weights(scores, first), values)
        return mixed.swapaxes(0, 1).reshape(len(q), -1)

    def _weights(self, scores: np.ndarray, first: int) -> np.ndarray:
        """What the values are multiplied with, [H, T, S], from the products of queries and keys over sqrt(D)."""
        scores = self.position.shape(scores, first)
        if self.before is None:
            return softmax(scores)
        return _across(self.after, softmax(_across(self.before, scores)))


def _across(mixer: Parameter, scores: np.ndarray) -> np.ndarray:
    """sum over h of mixer[g, h] scores[h], for scores [H, T, S]."""
    return np.tensordot(mixer.numpy(), scores, axes=1)
