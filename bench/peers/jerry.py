"""Every part and position that a config can name, in plain PyTorch: the reference of tests/test_positions.py.

Written from the formulas: the scores of all pairs exist, and what a query may not see is -inf before the softmax.
Parameters bear our names, so that the state dict of a models.decoder.Decoder can be loaded as it is.

Shapes: B rows, T tokens, H query heads, K key heads, D features per head.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from bench.references import rotate, visible
from models.config import ModelConfig

FACTOR = 100.0


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.gain.shape, self.gain, self.eps)


class Affine(nn.Module):
    """FACTOR (w x + b), one w and b for each of the equal parts of x's last dimension."""

    def __init__(self, parts: int = 1):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(parts)), nn.Parameter(torch.empty(parts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = x.unflatten(-1, (len(self.weight), -1))
        return (FACTOR * (split * self.weight[:, None] + self.bias[:, None])).flatten(-2)


class Scalar(nn.Module):
    """A learned number, or with `affine` the sum of two."""

    def __init__(self, affine: bool):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1)) if affine else None

    def forward(self) -> torch.Tensor:
        return self.weight if self.bias is None else self.weight + self.bias


class ReciprocalDistance(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.reach, self.offset = (Scalar(config.parametrisation == "affine") for _ in range(2))

    def forward(self, scores: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
        """scores [B, H, T, T], away [T, T]: how far each key lies before the query."""
        return scores / (1 + self.reach() * away.abs()) - self.offset() * (away > 0)


class ALiBi(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        slopes = torch.tensor(alibi_slopes(config.n_heads), dtype=torch.float32)
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, scores: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
        return scores - self.slopes.to(scores.dtype)[:, None, None] * away.abs()


class NoPosition(nn.Module):
    def forward(self, scores: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
        return scores


def alibi_slopes(heads: int) -> list[float]:
    """Of each head (arXiv 2108.12409, section 3, and its code where the heads are no power of two)."""
    if heads & (heads - 1) == 0:
        return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return alibi_slopes(below) + alibi_slopes(2 * below)[::2][: heads - below]


def rotary_table(config: ModelConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-> cos, sin float64 [length, features that turn / 2] (arXiv 2104.09864, section 3.4.2)."""
    features = config.rotary_features
    frequency = config.rope_base ** (-torch.arange(0, features, 2, dtype=torch.float64) / features)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return angle.cos(), angle.sin()


def sinusoids(places: torch.Tensor, width: int) -> torch.Tensor:
    """-> float64 [..., width] for places [...] (arXiv 1706.03762, section 3.5)."""
    feature = torch.arange(width, dtype=torch.float64)
    angle = places[..., None] / 10_000.0 ** ((feature - feature % 2) / width)
    return torch.where(feature % 2 == 0, angle.sin(), angle.cos())


def norm_before(config: ModelConfig) -> nn.Module:
    return RMSNorm(config.d_model, config.norm_eps) if config.block == "pre_norm" else nn.Identity()


def affine_if(there: bool, parts: int = 1) -> nn.Module:
    return Affine(parts) if there else nn.Identity()


class Attention(nn.Module):
    """Grouped-query attention, or the seed system's, whose heads may be mixed before and after the softmax."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.jerry = c.attention == "jerry"
        self.norm = norm_before(c)
        self.qkv = nn.Linear(c.d_model, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, bias=False)
        self.out = nn.Linear(c.n_heads * c.head_dim, c.d_model, bias=False)
        scaled = self.jerry and c.parametrisation == "affine"
        self.qkv_affine, self.out_affine = affine_if(scaled, 3), affine_if(scaled)
        normed = c.qk_norm and not self.jerry
        self.q_norm, self.k_norm = (RMSNorm(c.head_dim, c.norm_eps) if normed else nn.Identity() for _ in range(2))
        self.position = {"jerry": ReciprocalDistance, "alibi": ALiBi}.get(c.position, lambda _: NoPosition())(c)
        self.mixed = self.jerry and c.head_mixing
        if self.mixed:
            self.before, self.after = (nn.Parameter(torch.empty(c.n_heads, c.n_heads)) for _ in range(2))

    def forward(self, x: torch.Tensor, doc_start: torch.Tensor | None) -> torch.Tensor:
        c, length = self.config, x.shape[1]
        heads = self.qkv_affine(self.qkv(self.norm(x))).unflatten(-1, (-1, c.head_dim))
        q, k, v = heads.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        if c.position == "rope":
            cos, sin = (table.to(x.device, x.dtype) for table in rotary_table(c, length))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(c.n_heads // c.n_kv_heads, dim=2) for t in (k, v))
        place = torch.arange(length, device=x.device)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(c.head_dim)
        scores = self.position(scores, place[:, None] - place)
        if self.mixed:
            scores = torch.einsum("gh,bhij->bgij", self.before, scores)
        weights = scores.masked_fill(~visible(length, doc_start).to(x.device), float("-inf")).softmax(-1)
        if self.mixed:
            weights = torch.einsum("gh,bhij->bgij", self.after, weights)
        y = self.out_affine(self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)))
        for _ in range(2 if self.jerry else 1):
            y = F.dropout(y, c.dropout, self.training)
        return x + y


class FeedForward(nn.Module):
    """SwiGLU, or the seed system's two ReLUs."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        self.swiglu = c.feed_forward == "swiglu"
        self.norm = norm_before(c)
        self.down = nn.Linear(c.d_ff, c.d_model, bias=False)
        if self.swiglu:
            self.gate_up = nn.Linear(c.d_model, 2 * c.d_ff, bias=False)
        else:
            self.up = nn.Linear(c.d_model, c.d_ff, bias=False)
            self.up_affine, self.down_affine = (affine_if(c.parametrisation == "affine") for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        if self.swiglu:
            gate, up = self.gate_up(h).chunk(2, dim=-1)
            h = self.down(F.silu(gate) * up)
        else:
            h = F.relu(self.down(self.down_affine(F.relu(self.up(self.up_affine(h))))))
        return x + F.dropout(h, self.config.dropout, self.training)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention, self.feed_forward = Attention(config), FeedForward(config)
        self.norm = RMSNorm(config.d_model, config.norm_eps) if config.block == "post_norm" else nn.Identity()

    def forward(self, x: torch.Tensor, doc_start: torch.Tensor | None) -> torch.Tensor:
        return self.norm(self.feed_forward(self.attention(x, doc_start)))


class TorchJerry(nn.Module):
    """models.decoder.Decoder of any config, dropout included; its values come from `load_ours`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        c = self.config = config
        affine = c.parametrisation == "affine"
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.embedding_affine, self.head_affine = affine_if(affine), affine_if(affine)
        self.position = nn.Embedding(c.max_seq_len, c.d_model) if c.position == "learned" else None
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.n_layers))
        self.norm = RMSNorm(c.d_model, c.norm_eps) if c.final_norm else nn.Identity()
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False)
        if c.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.to(getattr(torch, c.dtype))

    def load_ours(self, state: dict[str, torch.Tensor]) -> None:
        """Copies the state dict of a models.decoder.Decoder of the same config."""
        head = {"head.weight": state["embedding.weight"]} if self.config.tie_embeddings else {}
        self.load_state_dict({**state, **head}, strict=True)

    def forward(self, ids: torch.Tensor, doc_start: torch.Tensor | None = None) -> torch.Tensor:
        """ids int64 [B, T], doc_start int32 [B, T] or None -> logits [B, T, V]."""
        x = self.embedding_affine(self.embedding(ids))
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        places = places if doc_start is None else places - doc_start
        if self.position is not None:
            x = x + self.position(places)
        elif self.config.position == "sinusoidal":
            x = x + sinusoids(places, self.config.d_model).to(x.dtype)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer in self.layers:
            x = layer(x, doc_start)
        return self.head_affine(self.head(self.norm(x)))

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, doc_start: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy in nats over the targets that are not -100."""
        return F.cross_entropy(self(ids, doc_start).flatten(0, 1), targets.flatten())
