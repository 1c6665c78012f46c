"""The rules between a run's settings; a broken one is a UserError that names it and the value got."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.precision import precision
from train.curriculum import parse_shares
from train.errors import UserError
from train.loggers import check_loggers
from train.statistics import check_names

if TYPE_CHECKING:
    from train.config import Config
    from train.sections import DataConfig, OptimConfig, RunConfig

CHOICES = {
    "optim.optimizer": ("adamw", "muon"),
    "optim.schedule": ("cosine", "wsd", "waves"),
    "optim.warmup": ("linear", "quadratic"),
    "optim.muon_coefficients": ("quintic", "polar_express", "classical"),
    "optim.muon_scale": ("match_rms", "aspect"),
    "run.device": ("auto", "cpu", "cuda"),
    "run.non_finite": ("stop", "skip"),
}


def check(config: Config) -> None:
    """UserError for the first rule that does not hold."""
    for name, allowed in CHOICES.items():
        section, _, key = name.partition(".")
        value = getattr(getattr(config, section), key)
        rule(value in allowed, f"{name} must be one of {', '.join(allowed)}", value)
    model = config.model
    rule(model.feed_forward != "moe" or model.experts.first_dense + model.experts.every <= model.n_layers,
         f"model.experts.first_dense + model.experts.every must be at most model.n_layers ({model.n_layers})",
         model.experts.first_dense + model.experts.every)
    _check_data(config.data, config.model.max_seq_len)
    rule(config.tokenizer.sample_mb > 0.0, "tokenizer.sample_mb must be above 0", config.tokenizer.sample_mb)
    if config.tokenizer.vocab_size:
        config.tokenizer.training()
    _check_optim(config.optim)
    _check_run(config.run)
    for key in ("every", "keep"):
        value = getattr(config.checkpoint, key)
        rule(value >= 1, f"checkpoint.{key} must be at least 1", value)


def check_portion(seq_len: int, batch_tokens: int, window: int, max_seq_len: int) -> None:
    """UserError unless a step can take `batch_tokens` tokens in rows of `seq_len`, none of which is made of two
    stretches of text; `window` is the run's."""
    rule(seq_len >= 1, "data.seq_len must be at least 1", seq_len)
    rule(seq_len <= max_seq_len, f"data.seq_len must be at most model.max_seq_len ({max_seq_len})", seq_len)
    rule(batch_tokens >= seq_len and batch_tokens % seq_len == 0,
         f"data.batch_tokens must be a multiple of data.seq_len ({seq_len})", batch_tokens)
    rule(not window or window % seq_len == 0, f"data.seq_len must divide data.window ({window})", seq_len)


def _check_data(data: DataConfig, max_seq_len: int) -> None:
    check_portion(data.seq_len, data.batch_tokens, 0, max_seq_len)
    lengths = [length for length, _ in parse_shares(data.lengths, "data.lengths")] or [data.seq_len]
    batches = [size for size, _ in parse_shares(data.batch_ramp, "data.batch_ramp")] or [data.batch_tokens]
    rule(not data.lengths or lengths[-1] == data.seq_len, f"data.seq_len must be the last of data.lengths "
         f"({lengths[-1]})", data.seq_len)
    rule(not data.batch_ramp or batches[-1] == data.batch_tokens, "data.batch_tokens must be the last of "
         f"data.batch_ramp ({batches[-1]})", data.batch_tokens)
    if data.lengths or data.batch_ramp:
        longest = max(lengths)
        for length in lengths:
            rule(longest % length == 0, f"data.lengths must divide the longest of them ({longest})", length)
            check_portion(length, longest, data.window, max_seq_len)
        for size in batches:
            rule(size % longest == 0, f"a step's tokens must be a multiple of the longest row ({longest})", size)
    rule(0.0 <= data.val_fraction < 1.0, "data.val_fraction must be in [0, 1)", data.val_fraction)
    rule(data.micro_tokens >= 0, "data.micro_tokens must be at least 0", data.micro_tokens)
    rule(data.window >= 0, "data.window must be at least 0", data.window)
    rule(data.sampling >= 0.0, "data.sampling must be at least 0 (0: none)", data.sampling)


def _check_optim(optim: OptimConfig) -> None:
    rule(optim.lr > 0.0, "optim.lr must be above 0", optim.lr)
    rule(all(0.0 <= beta < 1.0 for beta in optim.betas), "optim.betas must be in [0, 1)", optim.betas)
    rule(optim.eps > 0.0, "optim.eps must be above 0", optim.eps)
    rule(optim.weight_decay >= 0.0, "optim.weight_decay must be at least 0", optim.weight_decay)
    rule(optim.clip_norm >= 0.0, "optim.clip_norm must be at least 0 (0: no clipping)", optim.clip_norm)
    rule(optim.warmup_steps >= 0, "optim.warmup_steps must be at least 0", optim.warmup_steps)
    rule(0.0 <= optim.min_lr_ratio <= 1.0, "optim.min_lr_ratio must be in [0, 1]", optim.min_lr_ratio)
    rule(0.0 < optim.decay_fraction <= 1.0, "optim.decay_fraction must be in (0, 1]", optim.decay_fraction)
    rule(optim.wave_steps >= (optim.schedule == "waves"), "optim.wave_steps must be at least 1 with waves",
         optim.wave_steps)
    rule(optim.muon_lr >= 0.0, "optim.muon_lr must be at least 0 (0: optim.lr)", optim.muon_lr)
    rule(0.0 <= optim.muon_momentum < 1.0, "optim.muon_momentum must be in [0, 1)", optim.muon_momentum)
    rule(optim.muon_steps >= 1, "optim.muon_steps must be at least 1", optim.muon_steps)
    rule(optim.switch_to_muon_at >= 0, "optim.switch_to_muon_at must be at least 0 (0: never)",
         optim.switch_to_muon_at)
    rule(not optim.switch_to_muon_at or optim.optimizer == "adamw",
         "optim.switch_to_muon_at wants optim.optimizer=adamw", optim.optimizer)
    rule(0.0 <= optim.ema < 1.0, "optim.ema must be in [0, 1) (0: none)", optim.ema)


def _check_run(run: RunConfig) -> None:
    lengths = {key: getattr(run, key) for key in ("steps", "minutes", "tokens")}
    for key, value in lengths.items():
        rule(value >= 0, f"run.{key} must be at least 0", value)
    rule(any(lengths.values()), "a run needs one of run.steps, run.minutes, run.tokens", "none")
    for key, least in (("seed", 0), ("log_every", 1), ("eval_every", -1), ("sample_every", -1), ("eval_tokens", 0),
                       ("sample_tokens", 1), ("threads", 0)):
        rule(getattr(run, key) >= least, f"run.{key} must be at least {least}", getattr(run, key))
    check_names(run.statistics)
    check_loggers(run.loggers)
    if run.device != "auto":
        precision(run.precision, run.device)


def rule(holds: bool, text: str, value: object) -> None:
    """UserError unless it holds."""
    if not holds:
        raise UserError(f"{text}: got {value}")
