"""The PyTorch model that bench.time_to_loss races: a small GPT at nanoGPT's published CPU setting for tinyshakespeare.

The setting (nanoGPT README, "I only have a macbook"): 4 layers, 4 heads, width 128, context 64, batch 12, no dropout,
2,000 iterations. The rest are nanoGPT's training defaults for this data set. The code is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Setting:
    n_layers: int = 4
    n_heads: int = 4
    width: int = 128
    context: int = 64
    batch: int = 12
    iterations: int = 2000
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    grad_clip: float = 1.0

    def learning_rate_at(self, iteration: int) -> float:
        """Linear warm-up, then half a cosine down to the final rate at the last iteration, constant after it."""
        if iteration < self.warmup:
            return self.learning_rate * (iteration + 1) / (self.warmup + 1)
        progress = min(1.0, (iteration - self.warmup) / (self.iterations - self.warmup))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_learning_rate + cosine * (self.learning_rate - self.final_learning_rate)


class Block(nn.Module):
    def __init__(self, setting: Setting):
        super().__init__()
        self.n_heads = setting.n_heads
        self.norm_1 = nn.LayerNorm(setting.width, bias=False)
        self.qkv = nn.Linear(setting.width, 3 * setting.width, bias=False)
        self.attention_out = nn.Linear(setting.width, setting.width, bias=False)
        self.norm_2 = nn.LayerNorm(setting.width, bias=False)
        self.up = nn.Linear(setting.width, 4 * setting.width, bias=False)
        self.down = nn.Linear(4 * setting.width, setting.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class NanoGPT(nn.Module):
    """ids int64 [B, T], T at most `setting.context` -> logits float32 [B, T, vocab_size]; the head is the embedding."""

    def __init__(self, vocab_size: int, setting: Setting = Setting()):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, setting.width)
        self.position_embedding = nn.Embedding(setting.context, setting.width)
        self.blocks = nn.ModuleList(Block(setting) for _ in range(setting.n_layers))
        self.norm = nn.LayerNorm(setting.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attention_out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * setting.n_layers) if residual else 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token_embedding.weight)

    def loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats per target."""
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())


def optimizer_for(model: NanoGPT, setting: Setting = Setting()) -> torch.optim.AdamW:
    """AdamW, decay on every matrix (embeddings too, as published), none on norms; PyTorch's fused update."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": setting.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=setting.learning_rate, betas=setting.betas, fused=True)


def character_ids(text: str) -> tuple[np.ndarray, int]:
    """nanoGPT's vocabulary for this data: the sorted characters of the whole text. -> (int64 ids, vocabulary size)."""
    characters = sorted(set(text))
    index = {character: i for i, character in enumerate(characters)}
    return np.array([index[character] for character in text], dtype=np.int64), len(characters)
