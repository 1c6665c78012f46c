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
    """What is read, and in which portions.

    Attributes:
        paths: empty means the Python standard library's source; `name=PATH:weight` items make a mixture
            (train/data/mixture.py).
        seq_len: tokens of a row, in validation too; with `lengths`, the last of them.
        batch_tokens: of a whole optimizer step; with `batch_ramp`, the last of them.
        lengths, batch_ramp: such as "64:10%,128:90%", by share of the run's tokens (train/curriculum.py).
        window: the stretch of text that shuffling keeps whole; 0: the longest row.
        micro_tokens: of a micro-batch; 0: as many as fit.
        sampling: above 0 the training text is cut at random instead of the best way, with this as the alpha of
            tokenizer/sampling.py: 1 draws cuts by their probability, 5 is close to the best one.
    """

    paths: list[str] = field(default_factory=list)
    text_field: str = "text"
    document_separator: str = ""
    val_data: list[str] = field(default_factory=list)
    val_fraction: float = 0.05
    seq_len: int = 256
    batch_tokens: int = 4096
    lengths: str = ""
    batch_ramp: str = ""
    window: int = 0
    doc_mask: bool = False
    micro_tokens: int = 0
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
    """The optimizer and its schedule (train/optim, train/schedule.py).

    Attributes:
        optimizer: "adamw", or "muon": Muon for the layers' matrices and AdamW for the rest.
        lr: the peak; Muon's is `muon_lr`, or the same when that is 0.
        betas, eps: AdamW's.
        weight_decay: of both; Muon's is `muon_weight_decay` when that is not negative.
        clip_norm: largest norm of the whole gradient; 0: no clipping.
        schedule: "cosine", "wsd" (its last part is `decay_fraction` of the run) or "waves" (of `wave_steps`).
        warmup: "linear" or "quadratic", over `warmup_steps`.
        muon_coefficients: of the Newton-Schulz steps: "quintic", "polar_express" or "classical".
        muon_scale: of an update: "match_rms" 0.2 sqrt(max(rows, columns)), "aspect" sqrt(max(1, rows / columns)).
        muon_per_head: orthogonalise q, k and v head by head.
        muon_head: the output matrix belongs to Muon, too.
        normuon: rows of an update brought to equal size by a running mean of their squares.
        switch_to_muon_at: with "adamw", the last step before Muon takes over; 0: never.
        ema: decay of the average of the weights that is evaluated and saved beside them; 0: none.
    """

    optimizer: str = "adamw"
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    schedule: str = "cosine"
    warmup: str = "linear"
    warmup_steps: int = 40
    min_lr_ratio: float = 0.1
    decay_fraction: float = 0.2
    wave_steps: int = 0
    muon_lr: float = 0.0
    muon_momentum: float = 0.95
    muon_nesterov: bool = True
    muon_steps: int = 5
    muon_coefficients: str = "quintic"
    muon_scale: str = "match_rms"
    muon_weight_decay: float = -1.0
    muon_per_head: bool = False
    muon_head: bool = False
    normuon: bool = False
    switch_to_muon_at: int = 0
    ema: float = 0.0


@dataclass(frozen=True)
class RunConfig:
    """The length is the first of `steps`, `tokens`, `minutes` above 0; a run by minutes writes the steps it measured
    into `steps`. `eval_every` and `sample_every` 0 mean a tenth and a fifth of the run, -1 only at the end;
    `eval_tokens` 0 means all of the validation part; `threads` 0 means all cores. `device` auto is a GPU if there is
    one; `precision` auto is bf16 on a GPU and float32 on the CPU (engine.precision). `non_finite` says what a step with
    a value that is not finite does: "stop" the run, or "skip" the step. `statistics` and `loggers` name what
    train/statistics.py and train/loggers.py offer."""

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
    non_finite: str = "stop"
    statistics: list[str] = field(default_factory=list)
    loggers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CheckpointConfig:
    """Every `every` steps and at the end. The last `keep` stay on disk, and the `best` by validation loss, and those
    that are pinned (train/checkpoints.py). `asynchronous`: written while the run goes on."""

    every: int = 200
    keep: int = 3
    best: bool = True
    asynchronous: bool = True
