"""Bytes that a run takes, by what they are for."""

from __future__ import annotations

from collections import Counter

import torch

import kernels
from engine.precision import precision
from models.config import ModelConfig
from train.config import Config
from train.curriculum import parse_shares
from train.evaluate import BATCH_TOKENS
from train.plan import mixture
from train.plan.activations import Pass, known, scratch_bytes
from train.plan.machine import resident_bytes
from train.plan.pool import Pool
from train.plan.work import parameters

LATER = 150_000_000  # bytes that the program grows by: compiled kernels, buffers of the product library, drawing curves
MAPPED_AT_ONCE = 65_536  # bytes; Linux maps 16 pages around the one that is read
BATCH_BYTES_PER_TOKEN = 16 * 2 + 41  # ids and targets of this batch and the next, and what making one takes


def memory_by_part(config: Config, micro_tokens: int, device: str) -> dict[str, int]:
    """Bytes on the device at the run's largest, by part; on the CPU with what the process holds already.

    Without what training a vocabulary and tokenising takes before the run, and without `mapped_tokens`.

    Args:
        micro_tokens: of a micro-batch; a row, where that has more.
        device: "cpu" or "cuda".
    """
    model, on_cpu = config.model, device == "cpu"
    weight = 8 if model.dtype == "float64" else 4
    trained = model.n_parameters() * weight
    found: Counter[str] = Counter({"program": resident_bytes() + LATER if on_cpu else 0})
    pool = _with_weights(model, device, weight)
    item = _activation_bytes(config, device, weight)
    threads = (config.run.threads or kernels.threads()) if on_cpu else 0
    scratch = 0
    passes, scratch_of = (Pass, scratch_bytes) if known(model) else _measured()
    for rows, seq_len in micro_batches(config, micro_tokens):
        passes(pool, model, rows, seq_len, item, threads).train()
        if on_cpu:
            scratch = max(scratch, scratch_of(model, rows, seq_len, threads, item))
    rows = max(1, BATCH_TOKENS // config.data.seq_len)
    passes(pool, model, rows, config.data.seq_len, item, threads).evaluate()
    found.update(pool.made)
    working = _working_bytes(config, device)
    state = _optimizer_state(config, weight)
    found.update(state)
    found["working copy"] = model.n_parameters() * working
    found["threads' own"] = scratch + (threads * _muon_scratch(config) * weight)
    found["batches"] = BATCH_BYTES_PER_TOKEN * largest_batch(config) if on_cpu else 0
    saved = trained + sum(state.values())
    if on_cpu:
        found["checkpoint being written"] = saved * config.checkpoint.asynchronous
    else:
        found["update being captured"] = saved
    if "update_ratio" in config.run.statistics:
        found["statistics"] = trained
    return {name: size for name, size in found.items() if size}


def _measured() -> tuple:
    """As `Pass` and `scratch_bytes`, for parts without formulas."""
    from train.plan import measured  # loads the engine's optimizers

    return measured.MeasuredPass, lambda model, _rows, seq_len, threads, _item: measured.scratch_bytes(model, seq_len,
                                                                                                       threads)


def mapped_tokens(config: Config, text_bytes: int, bytes_per_token: float, steps: int) -> int:
    """Bytes of the token files that lie in memory by the end of a run. They count as the process's, but the system
    drops them when it wants the memory."""
    item = 2 if config.model.vocab_size <= 1 << 16 else 4
    windows = steps * config.data.batch_tokens // max(config.data.window, config.data.seq_len) + 1
    return min(round(text_bytes / bytes_per_token) * item, windows * MAPPED_AT_ONCE)


def micro_batches(config: Config, micro_tokens: int) -> list[tuple[int, int]]:
    """(rows, tokens of a row) of every kind of micro-batch in the run, in the order in which they come."""
    found = {}
    for length in _values(config.data.lengths) or [config.data.seq_len]:
        for size in _values(config.data.batch_ramp) or [config.data.batch_tokens]:
            rows = max(1, size // length)
            micro = min(rows, max(1, micro_tokens // length))
            found |= {(micro, length): None, (rows % micro, length): None}
    return [(rows, length) for rows, length in found if rows]


def largest_batch(config: Config) -> int:
    """Tokens of the largest step."""
    return max(_values(config.data.batch_ramp) or [config.data.batch_tokens])


def _values(text: str) -> list[int]:
    return [value for value, _ in parse_shares(text, "shares")]


def _with_weights(model: ModelConfig, device: str, weight: int) -> Pool:
    """After the model and its arena have been made; the blocks of the first weights are free for later."""
    pool = Pool(device)
    pool.purpose = "first weights"
    d, q, a = model.d_model, (model.n_heads + 2 * model.n_kv_heads) * model.head_dim, model.n_heads * model.head_dim
    counts = [model.vocab_size * d] * (1 if model.tie_embeddings else 2)
    for layer in range(model.n_layers):
        kind = model.feed_forward_of(layer)
        counts += [q * d, a * d]
        counts += mixture.matrices(model) if kind == "moe" else [(2 if kind == "swiglu" else 1) * model.d_ff * d,
                                                                 model.d_ff * d]
    blocks = [pool.take(4 * count) for count in counts]
    for pool.purpose in ("weights", "gradients"):
        if not pool.take(size := model.n_parameters() * weight):
            pool.made[pool.purpose] += size
    pool.purpose = "activations"
    pool.give(*blocks)
    return pool


def _activation_bytes(config: Config, device: str, weight: int) -> int:
    return 2 if _policy(config, device).working == torch.bfloat16 else weight


def _working_bytes(config: Config, device: str) -> int:
    working = _policy(config, device).working
    return 0 if working is None else working.itemsize


def _policy(config: Config, device: str):
    fits = config.run.device in ("auto", device)
    return precision(config.run.precision if fits else "auto", device)


def _optimizer_state(config: Config, weight: int) -> dict[str, int]:
    """Adam's two moments; of Muon's matrices the first alone, unless AdamW begins; the average of the weights."""
    model, optim = config.model, config.optim
    count = model.n_parameters()
    second = count - (muon_parameters(config) if optim.optimizer == "muon" else 0)
    return {"moments": (count + second) * weight, "average": count * weight if optim.ema else 0}


def muon_parameters(config: Config) -> int:
    """Trained values in the matrices that are Muon's."""
    parts = parameters(config.model)
    layers = parts["attention"] + parts["feed-forward"] + parts.get("head mixing", 0)
    return layers + (parts.get("head", 0) if config.optim.muon_head else 0)


def _muon_scratch(config: Config) -> int:
    """Elements that a thread needs to orthogonalise the largest matrix; see kernels/cpu/newton_schulz.py."""
    c, optim = config.model, config.optim
    if optim.optimizer != "muon" and not optim.switch_to_muon_at:
        return 0
    shapes = [(c.n_heads * c.head_dim, c.d_model)]
    kinds = {c.feed_forward_of(layer) for layer in range(c.n_layers)}
    if "moe" in kinds:
        shapes += [(c.expert_width, c.d_model), (c.experts.shared * c.expert_width, c.d_model)]
    if kinds != {"moe"}:
        shapes.append((c.d_ff, c.d_model))
    if optim.muon_head and not c.tie_embeddings:
        shapes.append((c.vocab_size, c.d_model))
    return max(4 * rows * columns + 2 * min(rows, columns) ** 2 for rows, columns in shapes)
