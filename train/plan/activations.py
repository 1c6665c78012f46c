"""The buffers of a forward and backward pass, in the order in which engine and kernels ask for them and free them.

One function per part of the model; tests compare the result with what kernels.memory really holds. A kernel that
keeps something else changes its lines here.

N is the tokens of a micro-batch, d the model's width, a the width of all heads' queries, q that of queries, keys and
values, f the feed-forward part's inner width, V the number of ids.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernels.cpu.gemm import block_rows
from models.config import ModelConfig
from train.plan import mixture
from train.plan.pool import Pool

CHUNK_ELEMENTS = 1 << 22
GPU_CHUNK_BYTES = 1_200_000_000
QUERY_BLOCK, SCORE_ELEMENTS = 64, 200_000
KNOWN = {"attention": ("grouped_query",), "feed_forward": ("swiglu", "moe"), "position": ("rope", "alibi", "none"),
         "block": ("pre_norm",), "parametrisation": ("plain",), "final_norm": (True,)}


def known(model: ModelConfig) -> bool:
    """Whether there are formulas for the parts of a model; train/plan/measured.py is for the others."""
    whole_scores = model.context.kind == "dca"
    return not whole_scores and all(getattr(model, setting) in values for setting, values in KNOWN.items())


class Pass:
    """Passes over one micro-batch.

    Args:
        item: bytes of an activation.
        threads: of the CPU; 0 on a GPU.
    """

    def __init__(self, pool: Pool, model: ModelConfig, rows: int, seq_len: int, item: int, threads: int):
        self.pool, self.model, self.rows, self.threads, self.item = pool, model, rows, threads, item
        self.tokens = rows * seq_len
        c = model
        self.d, self.f, self.vocabulary = c.d_model, c.d_ff, c.vocab_size
        self.a, self.q = c.n_heads * c.head_dim, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim

    def train(self) -> None:
        """Forward and backward."""
        give, recompute = self.pool.give, self.model.recompute
        x, layers = self._embedded(), []
        for layer in range(self.model.n_layers):
            if recompute:
                layers.append(x)
                x = self._layer_without_graph(layer, x)
            else:
                kept, x = self._layer(layer, x)
                layers.append(kept)
        hidden, rstd = self._width(self.d), self._statistics()
        dx, dweight = self._head(with_gradient=True)
        give(hidden, dweight)
        dy = self._width(self.d)
        give(dx, rstd, x)
        for layer, kept in reversed(list(enumerate(layers))):
            if recompute:
                kept, y = self._layer(layer, kept)
                gradient = self._width(self.d)  # engine.autograd copies the first one that reaches a leaf
                dx = self._layer_backward(layer, dy, *kept)
                give(y, dx)
                dy = gradient
            else:
                dy = self._layer_backward(layer, dy, *kept)
        give(dy)

    def evaluate(self) -> None:
        """Forward without gradients."""
        x = self._embedded(dropout=False)
        for layer in range(self.model.n_layers):
            y = self._layer_without_graph(layer, x, dropout=False)
            self.pool.give(x)
            x = y
        hidden, rstd = self._width(self.d), self._statistics()
        self.pool.give(x, rstd)
        self._head(with_gradient=False)
        self.pool.give(hidden)

    def _width(self, width: int) -> int:
        return self.pool.take(self.tokens * width * self.item)

    def _statistics(self, heads: int = 1) -> int:
        return self.pool.take(self.tokens * heads * max(4, self.item))

    def _passing(self, *widths: int) -> None:
        """Buffers that a GPU kernel has for itself."""
        if not self.threads:
            self.pool.give(*[self._width(width) for width in widths])

    def _embedded(self, dropout: bool = True) -> int:
        x = self._width(self.d)
        return self._dropped(x) if dropout and self.model.dropout else x

    def _dropped(self, x: int) -> int:
        y = self._width(self.d)
        self.pool.give(x)
        return y

    def _added(self, x: int) -> int:
        """Dropout of x, and the sum with the residual."""
        dropped = self._dropped(x)
        y = self._width(self.d)
        self.pool.give(dropped)
        return y

    def _mixture(self) -> mixture.Mixture:
        return mixture.Mixture(self.pool, self.model, self.tokens, self.item, self.threads)

    def _layer(self, layer: int, x: int) -> tuple[tuple, int]:
        """What the parts of a layer keep for backward, and its result."""
        self._passing(self.d)
        qkv, rstd = self._width(self.q), self._statistics()
        out, lse = self._width(self.a), self._statistics(self.model.n_heads)
        mid = self._width(self.d)
        if self.model.dropout:
            mid = self._added(mid)
        attention = x, qkv, rstd, out, lse
        if self.model.feed_forward_of(layer) == "moe":
            *kept, y = self._mixture().forward(mid)
            return (attention, kept), y
        if self.model.dropout:
            h, rstd_h = self._width(2 * self.f), self._statistics()
            return (attention, (mid, h, rstd_h)), self._added(self._width(self.d))
        self._passing(self.d, self.f)
        y, h, rstd_h = self._width(self.d), self._width(2 * self.f), self._statistics()
        return (attention, (mid, h, rstd_h)), y

    def _layer_without_graph(self, layer: int, x: int, dropout: bool = True) -> int:
        give, training = self.pool.give, dropout
        qkv, rstd = self._width(self.q), self._statistics()
        give(rstd)
        out, lse = self._width(self.a), self._statistics(self.model.n_heads)
        give(lse)
        dropout = dropout and self.model.dropout > 0
        mid = self._width(self.d)
        if dropout:
            mid = self._added(mid)
        give(qkv, out)
        if self.model.feed_forward_of(layer) == "moe":
            y = self._mixture().without_graph(training)
        elif dropout:
            h, rstd = self._width(2 * self.f), self._statistics()
            give(rstd)
            z = self._width(self.d)
            y = self._added(z)
            give(h)
        else:
            y, h, rstd = self._width(self.d), self._width(2 * self.f), self._statistics()
            give(h, rstd)
        give(mid)
        return y

    def _layer_backward(self, layer: int, dy: int, attention: tuple[int, ...], feed_forward: tuple) -> int:
        if self.model.feed_forward_of(layer) == "moe":
            d_mid = self._mixture().backward(dy, *feed_forward)
        else:
            d_mid = self._feed_forward_backward(dy, *feed_forward)
        return self._attention_backward(d_mid, *attention)

    def _feed_forward_backward(self, dy: int, mid: int, h: int, rstd: int) -> int:
        give, d, f = self.pool.give, self.d, self.f
        if self.model.dropout:
            dz = self._width(d)
            dh = self._width(2 * f)
            self._lanes(2 * f + d, (d, f))
            give(dz, h)
            d_mid = self._width(d)
            self._lanes(d + 2 * f, (2 * f, d))
            give(dh, dy, mid, rstd)
        else:
            self._passing(f, d, d)
            d_mid = self._width(d)
            self._lanes(d + 4 * f, (2 * f, d), (d, f), rows=128)
            give(dy, mid, h, rstd)
        return d_mid

    def _attention_backward(self, d_mid: int, x: int, qkv: int, rstd: int, out: int, lse: int) -> int:
        give, d = self.pool.give, self.d
        dz = self._width(d) if self.model.dropout else 0
        d_out = self._width(self.a)
        self._lanes(d + self.a, (d, self.a))
        if self.model.dropout:
            give(dz)
        dqkv = self._width(self.q)
        self._passing(self.a)
        give(d_out, qkv, out, lse)
        dx = self._width(d)
        self._passing(d, d)
        self._lanes(d + self.q, (self.q, d))
        give(dqkv, d_mid, x, rstd)
        return dx

    def _lanes(self, width: int, *weights: tuple[int, int], rows: int = 1 << 30) -> None:
        """Sums of weight gradients, one for each thread; the first is dropped for the arena's."""
        if not self.threads:
            return
        lanes = min(self.threads, -(-self.tokens // min(rows, block_rows(width))))
        taken = []
        for height, length in weights:
            blocks = [self.pool.take(height * length * self.item) for _ in range(lanes)]
            self.pool.give(blocks.pop())
            taken += blocks
        self.pool.give(*taken)

    def _head(self, with_gradient: bool) -> tuple[int, int]:
        """Gradients of the hidden states and of the head's matrix, which the loss makes."""
        vocabulary, d = self.vocabulary, self.d
        dx = self._width(d) if with_gradient else 0
        dweight = self.pool.take(vocabulary * d * max(4, self.item)) if with_gradient else 0
        before, self.pool.purpose = self.pool.purpose, "logits"
        logits = self.pool.take(self.logits_bytes())
        self.pool.purpose = before
        self.pool.give(logits)
        return dx, dweight

    def logits_bytes(self) -> int:
        """Of the logits that exist at a time."""
        vocabulary = self.vocabulary
        if not self.threads:
            return min(GPU_CHUNK_BYTES, self.tokens * vocabulary * self.item)
        n = min(block_rows(vocabulary), max(1, CHUNK_ELEMENTS // vocabulary))
        rows = max(n, CHUNK_ELEMENTS // vocabulary // n * n)
        return min(rows, self.tokens) * vocabulary * self.item


def scratch_bytes(model: ModelConfig, rows: int, seq_len: int, threads: int, item: int) -> int:
    """Working memory of all CPU threads (kernels.cpu.launch.scratch): of each name the largest request."""
    return threads * item * sum(_scratch(model, rows, seq_len, threads).values())


def _scratch(c: ModelConfig, rows: int, seq_len: int, threads: int) -> dict[str, int]:
    largest: dict[str, int] = {}
    for name, elements in _requests(c, rows, seq_len, threads):
        largest[name] = max(largest.get(name, 0), elements)
    return largest


def _requests(c: ModelConfig, rows: int, seq_len: int, threads: int) -> Iterator[tuple[str, int]]:
    d, f, q = c.d_model, c.d_ff, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    tokens, block = rows * seq_len, min(QUERY_BLOCK, seq_len)
    n = min(tokens, block_rows(d + q))
    yield from (("normed", n * d), ("d_normed", n * d))
    kinds = {c.feed_forward_of(layer) for layer in range(c.n_layers)}
    if "swiglu" in kinds:
        n = min(tokens, block_rows(d + 3 * f))
        yield from (("normed", n * d), ("active", n * f))
        n = min(tokens, 128, block_rows(d + 4 * f))
        yield from (("d_active", n * f), ("dh", n * 2 * f), ("normed", n * d), ("d_normed", n * d))
    if "moe" in kinds:
        yield from mixture.requests(c, tokens)
    count = min(max(1, SCORE_ELEMENTS // (c.n_heads * block * seq_len)), -(-rows // threads))
    for name in ("k", "v", "dk", "dv"):
        yield name, count * c.n_kv_heads * seq_len * c.head_dim
    for name in ("q", "out", "do"):
        yield name, count * c.n_heads * block * c.head_dim
    for name in ("s", "ds"):
        yield name, count * c.n_heads * block * seq_len
