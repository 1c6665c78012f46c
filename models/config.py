"""What a model is: one dataclass, its rules, the presets, and how many parameters it has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from engine.errors import UserError
from models.context import ContextConfig
from models.experts_config import ExpertsConfig
from models.settings import check_keys, check_types

_POSITIVE = ("vocab_size", "n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "max_seq_len")
_INNER = {"context": ContextConfig, "experts": ExpertsConfig}
_CHOICES = {"residual_init": ("zero", "scaled"), "initialisation": ("normal", "xavier"),
            "parametrisation": ("plain", "affine"), "block": ("pre_norm", "post_norm"), "dtype": ("float32", "float64"),
            "position": ("rope", "jerry", "alibi", "sinusoidal", "learned", "none")}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. `head_dim` 0 means d_model // n_heads, `n_kv_heads` 0 means n_heads.

    `attention` and `feed_forward` name the parts of a layer (models.parts), `position` how these know where tokens
    stand (models.positions), `block` where the norms are (models.layer), `parametrisation` whether the seed system's
    scalars stand beside the matrices (models.affine). `experts` is for `feed_forward` "moe" (models.experts). With a
    `context` that extends it, `max_seq_len` is derived: the trained length times the factor. Raises UserError, naming
    the rule and the value got.
    """

    vocab_size: int = 264
    n_layers: int = 6
    d_model: int = 192
    n_heads: int = 3
    n_kv_heads: int = 0
    head_dim: int = 0
    d_ff: int = 512
    max_seq_len: int = 256
    position: str = "rope"
    rope_base: float = 10_000.0
    rope_fraction: float = 1.0
    qk_norm: bool = True
    tie_embeddings: bool = False
    initialisation: str = "normal"
    residual_init: str = "zero"
    parametrisation: str = "plain"
    block: str = "pre_norm"
    final_norm: bool = True
    norm_eps: float = 1e-6
    dropout: float = 0.0
    recompute: bool = False
    dtype: str = "float32"
    attention: str = "grouped_query"
    head_mixing: bool = True
    feed_forward: str = "swiglu"
    context: ContextConfig = field(default_factory=ContextConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)

    def __post_init__(self) -> None:
        check_types(self, "model.")
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
        if self.attention == "jerry" and self.position != "jerry":
            raise UserError(f"model.position must be jerry where attention is jerry: got {self.position!r}")
        if self.attention == "jerry" and self.qk_norm:
            raise UserError("model.qk_norm must be false where attention is jerry: got true")
        if self.attention == "jerry" and self.n_kv_heads != self.n_heads:
            raise UserError("model.n_kv_heads must be n_heads where attention is jerry: "
                            f"got {self.n_kv_heads} and {self.n_heads}")
        if self.head_dim % 2:
            raise UserError(f"model.head_dim must be even, rotary positions pair its halves: got {self.head_dim}")
        if not 0.0 < self.rope_fraction <= 1.0 or self.rotary_features < 2:
            raise UserError("model.rope_fraction must be above 0 and at most 1, and leave a pair of features to turn: "
                            f"got {self.rope_fraction}")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout must be in [0, 1): got {self.dropout}")
        if not self.norm_eps > 0.0:
            raise UserError(f"model.norm_eps must be above 0: got {self.norm_eps}")
        if not self.rope_base > 0.0:
            raise UserError(f"model.rope_base must be above 0: got {self.rope_base}")
        if self.context.kind != "none":
            self._extend()

    def _extend(self) -> None:
        """Let `max_seq_len` grow, and check what the kinds of extension ask of a model."""
        context, given = self.context, self.context.trained_length
        if self.position != "rope":
            raise UserError(f"model.context.kind needs model.position rope, or none: got {context.kind!r} with "
                            f"{self.position!r}")
        if context.kind == "ntk" and self.rotary_features < 4:
            raise UserError(f"model.context.kind ntk needs at least 4 features that turn: got {self.rotary_features}")
        if context.kind == "abf" and context.base <= self.rope_base:
            raise UserError(f"model.context.base must be above model.rope_base ({self.rope_base:g}): "
                            f"got {context.base:g}")
        object.__setattr__(self, "context", context.of_length(self.max_seq_len))
        if given and self.max_seq_len != self.context.length:
            raise UserError("model.max_seq_len must be context.trained_length * context.factor "
                            f"({self.context.length}): got {self.max_seq_len}")
        object.__setattr__(self, "max_seq_len", self.context.length)

    @classmethod
    def from_dict(cls, table: dict) -> ModelConfig:
        """From a `[model]` table; an unknown key is a UserError."""
        check_keys(cls, table, "model setting '{}'")
        inner = {name: kind.from_dict(table[name]) for name, kind in _INNER.items()
                 if isinstance(table.get(name), dict)}
        return cls(**table | inner)

    def with_(self, **changes) -> ModelConfig:
        """A copy with some fields changed; a derived head_dim, n_kv_heads or max_seq_len is derived anew."""
        if "head_dim" not in changes and self.head_dim * self.n_heads == self.d_model:
            changes["head_dim"] = 0
        if "n_kv_heads" not in changes and self.n_kv_heads == self.n_heads:
            changes["n_kv_heads"] = 0
        context = changes.get("context", self.context)
        if "max_seq_len" not in changes and context.kind != "none" and context.trained_length:
            changes["max_seq_len"] = context.length
        return replace(self, **changes)

    @property
    def rotary_features(self) -> int:
        """Features of a head that rotary positions turn: an even number."""
        return 2 * int(self.rope_fraction * self.head_dim / 2)

    @property
    def expert_width(self) -> int:
        """Inner width of an expert."""
        return self.experts.width or self.d_ff

    def feed_forward_of(self, layer: int) -> str:
        """The kind of feed-forward part in a layer, counted from 0: dense layers among experts are SwiGLU of d_ff."""
        return "swiglu" if self.feed_forward == "moe" and not self.experts.here(layer) else self.feed_forward

    def n_parameters(self, active: bool = False) -> int:
        """Exact number of trained values; a tied head counts once. With `active`, of those that a token meets."""
        from models import parts  # parts are made from configs

        return sum(parts.n_parameters(self, active).values())


JERRY = {"attention": "jerry", "position": "jerry", "feed_forward": "relu", "block": "post_norm", "final_norm": False,
         "parametrisation": "affine", "initialisation": "xavier", "qk_norm": False, "dropout": 0.1}
"""The parts of the seed system's model."""

PRESETS: dict[str, ModelConfig] = {
    "demo": ModelConfig(),
    "shakespeare": ModelConfig(n_layers=4, d_model=128, n_heads=4, d_ff=336, max_seq_len=64, tie_embeddings=True),
    "base-0.18b": ModelConfig(vocab_size=65_544, n_layers=12, d_model=768, n_heads=6, head_dim=128, d_ff=2048,
                              max_seq_len=1024),
    "moe-demo": ModelConfig(feed_forward="moe", experts=ExpertsConfig(n=8, top_k=2, width=256, bias_rate=0.001)),
    "moe-0.18b": ModelConfig(vocab_size=65_544, n_layers=12, d_model=768, n_heads=6, head_dim=128, d_ff=2048,
                             max_seq_len=1024, feed_forward="moe",
                             experts=ExpertsConfig(n=32, top_k=3, width=512, shared=1, bias_rate=0.001)),
    "jerry-demo": ModelConfig(n_layers=6, d_model=192, n_heads=3, head_dim=128, d_ff=384, **JERRY),
    "jerry-0.18b": ModelConfig(vocab_size=65_800, n_layers=12, d_model=768, n_heads=12, head_dim=128, d_ff=1536,
                               max_seq_len=1024, **JERRY),
}
