"""The buffers of a mixture of experts (models/experts.py), for the passes of train/plan/activations.py.

T is the tokens of a micro-batch, k and E the chosen and all experts, w and s the inner widths of an expert and of the
shared ones together.
"""

from __future__ import annotations

from collections.abc import Iterator

from kernels.cpu.gemm import block_rows
from kernels.cpu.grouped_linear import piece_rows
from models.config import ModelConfig
from train.plan.pool import Pool

COUNT, PLACE = 8, 4  # bytes of an expert's number as the router gives it, and of a row's place among the grouped ones


class Mixture:
    """The feed-forward part of a layer with experts.

    Args:
        tokens: T.
        item: bytes of an activation; a router's have at least 4.
        threads: of the CPU; 0 on a GPU.
    """

    def __init__(self, pool: Pool, model: ModelConfig, tokens: int, item: int, threads: int):
        self.pool, self.tokens, self.item, self.threads = pool, tokens, item, threads
        self.experts, self.precise, self.d = model.experts, max(4, item), model.d_model
        self.w, self.s = model.expert_width, model.experts.shared * model.expert_width
        self.dropout = model.dropout > 0
        self.rows = tokens * model.experts.top_k
        self.keeps_stream = model.experts.chain == 1 or model.experts.outer_residual

    def _take(self, width: int, item: int = 0) -> int:
        return self.pool.take(self.tokens * width * (item or self.item))

    def _grouped(self, width: int) -> int:
        return self.pool.take(self.rows * width * self.item)

    def forward(self, mid: int) -> tuple[tuple[int, ...], list[tuple[int, ...]], int]:
        """What the norm keeps for backward, what each step does, and the layer's result, from the stream before it."""
        normed, rstd = self._take(self.d), self._take(1, self.precise)
        steps, h = [], normed
        for _ in range(self.experts.chain):
            kept, y = self._step(training=True)
            steps.append((h, *kept))
            h = y
        return (mid, normed, rstd), steps, self._with_stream(y)

    def without_graph(self, training: bool) -> int:
        """The layer's result alone."""
        h = self._take(self.d)
        self.pool.give(self._take(1, self.precise))
        for _ in range(self.experts.chain):
            kept, y = self._step(training)
            self.pool.give(h, *kept)
            h = y
        return self._with_stream(y)

    def _with_stream(self, y: int) -> int:
        if self.experts.chain == 1 or not self.experts.outer_residual:
            return y
        added = self._take(self.d)
        self.pool.give(y)
        return added

    def _step(self, training: bool) -> tuple[tuple[int, ...], int]:
        give, settings = self.pool.give, self.experts
        rounded = self._take(self.d, self.precise) if self.item < self.precise else 0
        logits = self._take(settings.n, self.precise)
        if settings.temperature != 1.0:
            scaled = self._take(settings.n, self.precise)
            give(logits)
            logits = scaled
        chosen, scores = self._take(settings.top_k, COUNT), self._take(settings.n, self.precise)
        gates = self._take(settings.top_k, self.precise)
        if training:
            give(self._take(settings.top_k, COUNT))  # those of tokens that count
        order, place = self._take(settings.top_k, PLACE), self._take(settings.top_k, PLACE)
        y, wide = self._take(self.d), self._grouped(2 * self.w)
        give(self._grouped(self.d if self.threads else self.d + self.w))
        shared = 0
        if self.s:
            shared, sum_of_both = self._take(2 * self.s), self._take(self.d)
            give(y)
            y = sum_of_both
        if training and self.dropout:
            dropped = self._take(self.d)
            give(y)
            y = self._take(self.d)
            give(dropped)
        return (rounded, logits, chosen, scores, gates, order, place, wide, shared), y

    def backward(self, dy: int, before: tuple[int, ...], steps: list[tuple[int, ...]]) -> int:
        """The gradient of the stream before the part; gives everything up."""
        give, dx = self.pool.give, dy
        for h, *kept in reversed(steps):
            dx = self._step_backward(dx, h, kept, keep=dx is dy and self.keeps_stream)
        mid, _, rstd = before
        d_mid = self._take(self.d)
        give(dx, mid, rstd)
        if not self.keeps_stream:
            return d_mid
        total = self._take(self.d)
        give(d_mid, dy)
        return total

    def _step_backward(self, dy: int, h: int, kept: list[int], keep: bool) -> int:
        """`keep`: dy is wanted later."""
        give, settings, arrived = self.pool.give, self.experts, _Sum(self)
        rounded, logits, chosen, scores, gates, order, place, wide, shared = kept
        d_out = self._take(self.d) if self.dropout else dy
        if self.s:
            dshared = self._take(2 * self.s)
            self._lanes((self.s, self.d))
            give(shared)
            arrived.add(self._take(self.d))
            self._lanes((2 * self.s, self.d))
            give(dshared)
        dx, dgates = self._take(self.d), self._take(settings.top_k, self.precise)
        passing = [self._grouped(self.d if self.threads else self.d + 3 * self.w)]
        if self.threads > 1:
            passing += [self.pool.take(size * self.item) for _ in range(self.threads - 1)
                        for size in (2 * self.w * self.d, self.w * self.d)]
        give(*passing, wide, order, place)
        if self.dropout:
            give(d_out)
        arrived.add(dx)
        if settings.chain > 1:
            arrived.add(dy, keep)
        dscores, dlogits = self._take(settings.n, self.precise), self._take(settings.n, self.precise)
        give(dgates, dscores, chosen, scores, gates, logits)
        routed = self._take(self.d, self.precise)
        self._lanes((settings.n, self.d))
        give(dlogits, rounded, h)
        arrived.add(routed)
        return arrived.total

    def _lanes(self, shape: tuple[int, int]) -> None:
        """Sums of a matrix' gradients, one for each thread but the first."""
        lanes = min(self.threads, -(-self.tokens // block_rows(sum(shape))))
        self.pool.give(*[self.pool.take(shape[0] * shape[1] * self.item) for _ in range(lanes - 1)])


class _Sum:
    """Gradients that arrive one after the other: the second makes a buffer, and later ones join it."""

    def __init__(self, part: Mixture):
        self.part, self.total, self.owned = part, -1, False

    def add(self, gradient: int, keep: bool = False) -> None:
        if self.total < 0:
            self.total = gradient
            return
        if not self.owned:
            first, self.total, self.owned = self.total, self.part._take(self.part.d), True
            self.part.pool.give(first)
        if not keep:
            self.part.pool.give(gradient)


def requests(c: ModelConfig, tokens: int) -> Iterator[tuple[str, int]]:
    """Working memory that a thread asks for: name, elements."""
    d, w, s = c.d_model, c.expert_width, c.experts.shared * c.expert_width
    yield from (("gathered", piece_rows(2 * d + 3 * w) * d), ("active", piece_rows(2 * d + 3 * w) * w))
    rows = piece_rows(2 * d + 4 * w)
    yield from (("gathered", rows * d), ("active", rows * w), ("d_active", rows * w), ("dh", rows * 2 * w))
    if s:
        rows = min(tokens, block_rows(d + 3 * s))
        yield from (("active", rows * s), ("d_active", rows * s))


def matrices(c: ModelConfig) -> list[int]:
    """Values of each parameter with more than one dimension."""
    d, w, s = c.d_model, c.expert_width, c.experts.shared * c.expert_width
    routed = [c.experts.n * d] * c.experts.chain + [c.experts.n * 2 * w * d, c.experts.n * w * d]
    return routed + ([2 * s * d, s * d] if s else [])
