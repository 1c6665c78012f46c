"""What a model is: one dataclass, its rules, the presets, and how many parameters it has."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from engine.errors import UserError

_POSITIVE = ("vocab_size", "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "max_seq_len")
_CHOICES = {"residual_init": ("zero", "scaled"), "dtype": ("float32", "float64")}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. `head_dim` 0 means d_model // n_heads, `n_kv_heads` 0 means n_heads.

    `attention` and `feed_forward` name the parts of a layer (models.parts). Raises UserError, naming the rule and the
    value got.
    """

    vocab_size: int = 264
    n_layers: int = 6
    d_model: int = 192
    n_heads: int = 3
    n_kv_heads: int = 0
    head_dim: int = 0
    d_ff: int = 512
    max_seq_len: int = 256
    rope_base: float = 10_000.0
    qk_norm: bool = True
    tie_embeddings: bool = False
    residual_init: str = "zero"
    norm_eps: float = 1e-6
    dropout: float = 0.0
    recompute: bool = False
    dtype: str = "float32"
    attention: str = "grouped_query"
    feed_forward: str = "swiglu"

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, field.type, getattr(self, field.name))
        if self.n_kv_heads == 0:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.head_dim == 0 and self.n_heads > 0:
            if self.d_model % self.n_heads:
                raise UserError(f"model.d_model must be a multiple of n_heads when head_dim is 0: "
                                f"got {self.d_model} and {self.n_heads}")
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1: got {getattr(self, name)}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"model.{name} must be one of {', '.join(allowed)}: got {getattr(self, name)!r}")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"model.n_heads must be a multiple of n_kv_heads: got {self.n_heads} and {self.n_kv_heads}")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim must be even, rotary positions pair its halves: got {self.head_dim}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout must be in [0, 1): got {self.dropout}")
        if not self.norm_eps > 0.0:
            raise UserError(f"model.norm_eps must be above 0: got {self.norm_eps}")
        if not self.rope_base > 0.0:
            raise UserError(f"model.rope_base must be above 0: got {self.rope_base}")

    @classmethod
    def from_dict(cls, table: dict) -> ModelConfig:
        """From a `[model]` table; an unknown key is a UserError."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise UserError(f"unknown model setting {unknown[0]!r}: known are {', '.join(known)}")
        return cls(**table)

    def with_(self, **changes) -> ModelConfig:
        """A copy with some fields changed; a derived head_dim or n_kv_heads is derived anew."""
        if "head_dim" not in changes and self.head_dim * self.n_heads == self.d_model:
            changes["head_dim"] = 0
        if "n_kv_heads" not in changes and self.n_kv_heads == self.n_heads:
            changes["n_kv_heads"] = 0
        return replace(self, **changes)

    def n_parameters(self) -> int:
        """Exact number of trained values; a tied head counts once."""
        attention = self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads) + self.d_model
        if self.qk_norm:
            attention += 2 * self.head_dim
        feed_forward = 3 * self.d_model * self.d_ff + self.d_model
        tables = 1 if self.tie_embeddings else 2
        return tables * self.vocab_size * self.d_model + self.n_layers * (attention + feed_forward) + self.d_model


def _check_type(name: str, kind: str, value: object) -> None:
    accepted = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"model.{name} must be {kind}: got {value!r}")


PRESETS: dict[str, ModelConfig] = {
    "demo": ModelConfig(),
    "shakespeare": ModelConfig(n_layers=4, d_model=128, n_heads=4, d_ff=336, max_seq_len=64, tie_embeddings=True),
    "base-0.18b": ModelConfig(vocab_size=65_544, n_layers=12, d_model=768, n_heads=6, head_dim=128, d_ff=2048,
                              max_seq_len=1024),
}
