"""models.decoder.Decoder written as a good PyTorch user would: the rival of bench.step, the reference of the tests."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.config import ModelConfig


def rotary_table(config: ModelConfig, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """-> cos, sin [max_seq_len, head_dim / 2] (RoFormer, arXiv 2104.09864, section 3.4.2)."""
    frequency = config.rope_base ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angle = torch.outer(torch.arange(config.max_seq_len, dtype=torch.float64), frequency)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        n_projected = config.n_heads + 2 * config.n_kv_heads
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.qkv = nn.Linear(config.d_model, n_projected * config.head_dim, bias=False)
        self.out = nn.Linear(config.n_heads * config.head_dim, config.d_model, bias=False)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps)

    def forward(self, x, cos, sin, mask):
        c = self.config
        batch, length, _ = x.shape
        heads = self.qkv(self.norm(x)).view(batch, length, -1, c.head_dim).transpose(1, 2)
        q, k, v = heads.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], dim=1)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = c.n_kv_heads != c.n_heads
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
        y = self.out(y.transpose(1, 2).reshape(batch, length, -1))
        return x + F.dropout(y, c.dropout, self.training)


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout = config.dropout
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        return x + F.dropout(self.down(F.silu(gate) * up), self.dropout, self.training)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cos, sin, mask):
        return self.feed_forward(self.attention(x, cos, sin, mask))


class TorchDecoder(nn.Module):
    """Same parameter names as ours, except that a norm's gain is `weight` here and `gain` there."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model, eps=config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        dtype = getattr(torch, config.dtype)
        cos, sin = rotary_table(config, dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.to(dtype)

    @classmethod
    def from_config(cls, config: ModelConfig, seed: int = 0) -> TorchDecoder:
        """Weights drawn so that training behaves: for timing. Tests copy ours with `load_ours`."""
        model = cls(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    residual = name.endswith(("out.weight", "down.weight"))
                    parameter.normal_(0, 0.02 / math.sqrt(2 * config.n_layers) if residual else 0.02,
                                      generator=generator)
        return model

    def load_ours(self, state: dict[str, torch.Tensor]) -> None:
        """Copies the state dict of a models.decoder.Decoder of the same config."""
        renamed = {name[:-4] + "weight" if name.endswith("gain") else name: value for name, value in state.items()}
        if self.config.tie_embeddings:
            renamed["head.weight"] = renamed["embedding.weight"]
        self.load_state_dict(renamed, strict=True)

    def forward(self, ids: torch.Tensor, doc_start: torch.Tensor | None = None) -> torch.Tensor:
        """ids int64 [B, T], doc_start int32 [B, T] or None -> logits [B, T, V]."""
        length = ids.shape[1]
        mask = None
        if doc_start is not None:
            position = torch.arange(length, device=ids.device)
            own_document = position >= doc_start[:, :, None]
            mask = (own_document & (position <= position[:, None]))[:, None]
        x = self.embedding(ids)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer in self.layers:
            arguments = (x, self.cos[:length], self.sin[:length], mask)
            if self.config.recompute and self.training:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return self.head(self.norm(x))

    def loss(self, ids: torch.Tensor, targets: torch.Tensor, doc_start: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy in nats over the targets that are not -100."""
        return F.cross_entropy(self(ids, doc_start).flatten(0, 1), targets.flatten())
