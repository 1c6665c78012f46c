"""Small models and run folders that several tests use."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import tomli_w
import torch
from safetensors.torch import save_file

from models.config import ModelConfig
from models.decoder import Decoder
from tokenizer import ByteTokenizer

RUN_CONFIG = ModelConfig(vocab_size=264, n_layers=1, d_model=16, n_heads=2, d_ff=12, max_seq_len=32)


def disturbed(config: ModelConfig, seed: int = 0) -> Decoder:
    """A decoder none of whose weights is zero or one."""
    model = Decoder(config, seed)
    rng = np.random.default_rng(seed + 100)
    for parameter in model.parameters():
        noise = 0.1 * rng.standard_normal(parameter.shape)
        parameter.data.copy_(torch.from_numpy(parameter.numpy() + noise))
    return model


def written_run(path: Path, config: ModelConfig = RUN_CONFIG, steps: tuple[int, ...] = (7,)) -> Path:
    """A run folder with checkpoints of `steps`, whose weights differ."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text(tomli_w.dumps({"model": dataclasses.asdict(config), "run": {"seed": 1}}))
    ByteTokenizer().save(path / "vocabulary.json")
    for step in steps:
        folder = path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        save_file(disturbed(config, seed=step).state_dict(), folder / "model.safetensors")
        (folder / "state.json").write_text(json.dumps({"format": 1, "step": step}))
    return path
