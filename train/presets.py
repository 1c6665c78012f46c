"""The training side of the presets; their models are in models.config.PRESETS."""

from __future__ import annotations

from models.config import PRESETS as MODELS
from train.config import Config
from train.errors import UserError
from train.sections import CheckpointConfig, DataConfig, OptimConfig, RunConfig, TokenizerConfig

SEED_OPTIMIZER = OptimConfig(
    optimizer="muon", lr=3e-4, betas=(0.9, 0.98), eps=1e-7, schedule="waves", warmup="quadratic", warmup_steps=2048,
    wave_steps=1024, min_lr_ratio=1 / 30, decay_fraction=0.047, muon_momentum=0.9, muon_nesterov=False, muon_steps=20,
    muon_coefficients="classical", muon_per_head=True, muon_head=True)
"""The seed system's: its last 8,192 of 173,396 steps fell to 1e-5."""
SEED_LENGTHS = "64:10%,128:20%,256:50%,512:10%,1024:10%"

PRESETS: dict[str, Config] = {
    "demo": Config(
        model=MODELS["demo"],
        data=DataConfig(seq_len=256, batch_tokens=4096),
        tokenizer=TokenizerConfig(vocab_size=4096, sample_mb=4.0),
        optim=OptimConfig(lr=3e-3, warmup_steps=40),
        run=RunConfig(preset="demo", minutes=5.0, eval_tokens=32_768),
    ),
    "shakespeare": Config(
        model=MODELS["shakespeare"],
        data=DataConfig(seq_len=64, batch_tokens=12 * 64, val_fraction=0.1),
        optim=OptimConfig(lr=3e-3, betas=(0.8, 0.95), weight_decay=0.03, schedule="wsd", warmup_steps=80,
                          min_lr_ratio=0.0, decay_fraction=1.0),
        run=RunConfig(preset="shakespeare", steps=380, log_every=20),
    ),
    "base-0.18b": Config(
        model=MODELS["base-0.18b"],
        data=DataConfig(seq_len=1024, batch_tokens=262_144, val_fraction=0.001),
        tokenizer=TokenizerConfig(vocab_size=65_536, sample_mb=256.0),
        optim=OptimConfig(lr=6e-4, schedule="wsd", warmup_steps=1000),
        run=RunConfig(preset="base-0.18b", tokens=4_000_000_000, eval_every=250, eval_tokens=1_048_576,
                      sample_every=500),
        checkpoint=CheckpointConfig(every=250),
    ),
    "moe-demo": Config(
        model=MODELS["moe-demo"],
        data=DataConfig(seq_len=256, batch_tokens=4096),
        tokenizer=TokenizerConfig(vocab_size=4096, sample_mb=4.0),
        optim=OptimConfig(lr=3e-3, warmup_steps=40),
        run=RunConfig(preset="moe-demo", minutes=5.0, eval_tokens=32_768),
    ),
    "moe-0.18b": Config(
        model=MODELS["moe-0.18b"],
        data=DataConfig(seq_len=1024, batch_tokens=262_144, val_fraction=0.001),
        tokenizer=TokenizerConfig(vocab_size=65_536, sample_mb=256.0),
        optim=OptimConfig(lr=6e-4, schedule="wsd", warmup_steps=1000),
        run=RunConfig(preset="moe-0.18b", tokens=4_000_000_000, eval_every=250, eval_tokens=1_048_576,
                      sample_every=500),
        checkpoint=CheckpointConfig(every=250),
    ),
    "jerry-demo": Config(
        model=MODELS["jerry-demo"],
        data=DataConfig(seq_len=256, batch_tokens=4096),
        tokenizer=TokenizerConfig(vocab_size=4096, sample_mb=4.0),
        optim=OptimConfig(optimizer="muon", lr=3e-3, warmup_steps=40),
        run=RunConfig(preset="jerry-demo", minutes=5.0, eval_tokens=32_768),
    ),
    "jerry-0.18b": Config(
        model=MODELS["jerry-0.18b"],
        data=DataConfig(seq_len=1024, batch_tokens=65_536, lengths=SEED_LENGTHS, val_fraction=0.001),
        tokenizer=TokenizerConfig(vocab_size=65_792, sample_mb=256.0, boundaries="characters"),
        optim=SEED_OPTIMIZER,
        run=RunConfig(preset="jerry-0.18b", tokens=13_200_000_000, eval_every=1000, eval_tokens=1_048_576,
                      sample_every=2000),
        checkpoint=CheckpointConfig(every=1000),
    ),
}


def preset(name: str) -> Config:
    """A preset by name; an unknown one is a UserError that lists them."""
    if name not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}: got {name!r}")
    return PRESETS[name]
