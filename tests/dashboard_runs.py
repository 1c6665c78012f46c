"""Run folders as a run writes them, for the dashboard's tests."""

from __future__ import annotations

import json
import math
from pathlib import Path

import tomli_w

GROUPS = ("embedding", "layers.0", "layers.1", "head")
SAMPLE = '从前有座山，山里有座庙。<script>window.hacked = 1</script> <b onclick="x">bold</b> & \u202edesrever'


def training_row(step: int) -> dict:
    loss = 2.0 + 8.0 * math.exp(-step / 100)
    return {"step": step, "tokens": 4096 * step, "loss": loss, "bits_per_byte": loss / 3, "lr": 1e-3, "grad_norm": 1.0,
            "tokens_per_second": 20_000.5, "elapsed_seconds": 0.2 * step, "seq_len": 256, "batch_tokens": 4096,
            "grad_norms": {group: 0.1 * (i + 1) for i, group in enumerate(GROUPS)}}


def evaluation_row(step: int) -> dict:
    return {"step": step, "tokens": 4096 * step, "val_loss": 2.5, "val_bits_per_byte": 0.9}


def experts_row(step: int, load: list[list[int]]) -> dict:
    """A training row of a mixture of experts whose layers got `load`."""
    return {**training_row(step), "experts": {
        "load": load, "max_vio": [max(line) * len(line) / max(1, sum(line)) - 1 for line in load],
        "entropy": [0.5] * len(load), "dead": [line.count(0) for line in load], "balance_loss": 1.3}}


def append(run: Path, *rows: dict) -> None:
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def make_run(root: Path, name: str, steps: int, total: int) -> Path:
    """A run that has logged each of its steps, evaluated every tenth and written two samples."""
    run = root / name
    (run / "samples").mkdir(parents=True)
    (run / "config.toml").write_text(tomli_w.dumps({"run": {"steps": total}}))
    for step in range(1, steps + 1):
        append(run, training_row(step), *([evaluation_row(step)] if step % 10 == 0 else []))
    for step in (5, 10):
        (run / "samples" / f"step-{step:06d}.txt").write_text(f"{step}: {SAMPLE}\n", encoding="utf-8")
    return run
