"""The sections of a run's settings beside the model's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenizer import TokenizerError
from train.errors import UserError

if TYPE_CHECKING:
    from tokenizer.train import Settings

BYTES = "bytes"


@dataclass(frozen=True)
class DataConfig:
    """`paths` empty means the Python standard library's source; `batch_tokens` counts a whole optimizer step.

    `window` is the stretch of text that shuffling keeps whole (0: `seq_len`); `micro_rows` 0 means as many as fit.
    `sampling` above 0 cuts the training text at random instead of the best way, with this as the alpha of
    tokenizer/sampling.py: 1 draws cuts by their probability, 5 is close to the best one."""

    paths: list[str] = field(default_factory=list)
    text_field: str = "text"
    document_separator: str = ""
    val_data: list[str] = field(default_factory=list)
    val_fraction: float = 0.05
    seq_len: int = 256
    batch_tokens: int = 4096
    window: int = 0
    doc_mask: bool = False
    micro_rows: int = 0
    sampling: float = 0.0
    cache_dir: str = ""


@dataclass(frozen=True)
class TokenizerConfig:
    """The vocabulary: a trained one at `path` ("bytes" for bytes); else one of `vocab_size` pieces, the 256 bytes
    included, or as many as the text gives, trained on `sample_mb` megabytes (10^6 bytes) of the training documents by
    the rules of tokenizer/train/settings.py; with neither, bytes. `fingerprint` is the run's, written by the run."""

    path: str = ""
    vocab_size: int = 0
    sample_mb: float = 16.0
    rounds: int = 12
    max_piece_bytes: int = 36
    boundaries: str = "default"
    fingerprint: str = ""

    def training(self) -> Settings:
        """What `tokenizer.train` asks for. UserError when a value is outside its range."""
        from tokenizer.train import Settings

        try:
            return Settings(self.vocab_size, self.rounds, self.max_piece_bytes, self.boundaries, allow_fewer=True)
        except TokenizerError as error:
            raise UserError(f"tokenizer.{error}") from None


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule; `decay_fraction` is the last part of a "wsd" run."""

    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    schedule: str = "cosine"
    warmup_steps: int = 40
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2


@dataclass(frozen=True)
class RunConfig:
    """The length is the first of `steps`, `tokens`, `minutes` above 0; a run by minutes writes the steps it measured
    into `steps`. `eval_every` and `sample_every` 0 mean a tenth and a fifth of the run, -1 only at the end;
    `eval_tokens` 0 means all of the validation part; `threads` 0 means all cores. `device` auto is a GPU if there is
    one; `precision` auto is bf16 on a GPU and float32 on the CPU (engine.precision)."""

    preset: str = "demo"
    seed: int = 0
    steps: int = 0
    minutes: float = 0.0
    tokens: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_tokens: int = 65_536
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 200
    threads: int = 0
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class CheckpointConfig:
    """Every `every` steps and at the end; the last `keep` stay on disk."""

    every: int = 200
    keep: int = 3
