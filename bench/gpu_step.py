"""One training step on a GPU, side by side: ours, PyTorch eager and torch.compile. `bench.step` runs it there.

All in one process, taking turns; a sample is two steps, timed by the wall clock with the card idle before and after,
so Python counts. The rivals are written as a good user would: float32 weights and moments, bfloat16 autocast with the
residual stream in bfloat16 too, attention by cuDNN, clipping, fused AdamW. Ours is what train.pretrain runs: bfloat16
weights and activations, float32 masters and moments. Each side gets the largest micro-batch that fits beside the
others: all tokens, or half of them, or a quarter ...

FLOPs per token: 6 for each weight of a matrix product, and 7 H D S per layer for causal attention (2 forward, 2.5 times
that backward). Utilisation is against the card's dense bfloat16 peak as its maker gives it.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.config import PRESETS, ModelConfig

from .gpu_timing import Call, Times, contest, facts, reason, report, say_no_gpu, table
from .step import CLIP_NORM, OPTIMIZER, WEIGHT_DECAY, batch

PRESET = "base-0.18b"
LENGTHS = (1024, 128)
BATCH_TOKENS = 65_536
STEPS_PER_SAMPLE = 2
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "4090": 165e12}
"""FLOP/s of dense bfloat16 products with float32 sums, from the data sheets; the first name found counts."""
Step = Callable[[], object]


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Forward and backward; nothing is counted for what is computed again."""
    c = config
    attention = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads)
    matrices = c.n_layers * (attention + 3 * c.d_model * c.d_ff) + c.vocab_size * c.d_model
    return 6.0 * matrices + 7.0 * c.n_layers * c.n_heads * c.head_dim * seq_len


def peak_flops(device: str) -> float | None:
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def ours(config: ModelConfig, rows: int, seq_len: int, micro_rows: int, device: str = "cuda") -> Step:
    """Loam's step, by the parts that train.pretrain uses."""
    from engine.precision import precision
    from models.decoder import Decoder
    from train.data import Batch
    from train.loop import next_token_loss
    from train.optim.adamw import AdamW
    from train.step import take_step

    policy = precision("auto", device)
    model = Decoder(config).to(device)
    optimizer = AdamW(model, OPTIMIZER["betas"], OPTIMIZER["eps"], WEIGHT_DECAY, CLIP_NORM, policy.working)
    take = take_step(model, optimizer, next_token_loss, micro_rows * seq_len)
    ids, targets = (t.numpy() for t in batch(config.vocab_size, rows, seq_len))
    tokens = Batch(ids=ids, targets=targets, doc_start=None, first_token=0, predicted=rows * seq_len,
                   bytes=rows * seq_len, row_bytes=np.full(rows, seq_len))

    def step():
        with policy.active():
            return take(tokens, OPTIMIZER["lr"])

    return step


class HalfEmbedding(nn.Embedding):
    """Gives bfloat16, which the residual stream then is."""

    def forward(self, ids):
        return super().forward(ids).to(torch.bfloat16)


class HalfNorm(nn.RMSNorm):
    """With its gain rounded to the input's dtype, as PyTorch's fused norm wants both alike."""

    def forward(self, x):
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def half_stream(model: nn.Module) -> nn.Module:
    """The model with what autocast leaves in float32 in bfloat16, but for weights and loss."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.__class__ = HalfEmbedding
        elif isinstance(module, nn.RMSNorm):
            module.__class__ = HalfNorm
    model.cos, model.sin = model.cos.to(torch.bfloat16), model.sin.to(torch.bfloat16)
    return model


def rival(config: ModelConfig, rows: int, seq_len: int, micro_rows: int, compile_model: bool,
          device: str = "cuda") -> Step:
    """PyTorch's step, op by op or with the model and its loss under torch.compile."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from bench.peers.decoder import TorchDecoder

    model = half_stream(TorchDecoder.from_config(config).to(device))
    matrices = [p for name, p in model.named_parameters() if p.dim() >= 2 and "embedding" not in name]
    decayed = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in decayed]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                                   {"params": others, "weight_decay": 0.0}], fused=True, **OPTIMIZER)
    parts = [t.to(device).split(micro_rows) for t in batch(config.vocab_size, rows, seq_len)]
    loss_of = torch.compile(model.loss, dynamic=False) if compile_model else model.loss
    backends = [SDPBackend.CUDNN_ATTENTION] if device == "cuda" else [SDPBackend.MATH]

    def step():
        optimizer.zero_grad(set_to_none=True)
        for ids, targets in zip(*parts):
            with sdpa_kernel(backends), torch.autocast(device, torch.bfloat16):
                loss = loss_of(ids, targets)
                (loss if micro_rows == rows else loss * (micro_rows / rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss

    return step


def fitting(make: Callable[[int], Step], rows: int) -> tuple[Step, int, int]:
    """The step with the largest micro-batch that fits, warmed up; the rows of that, and the bytes it takes at most."""
    while True:
        step = None
        free_memory()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        try:
            step = make(rows)
            for _ in range(3):
                step()
            torch.cuda.synchronize()
            return step, rows, torch.cuda.max_memory_allocated() - before
        except torch.OutOfMemoryError:
            if rows % 2:
                raise
        del step
        rows //= 2


def free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def wall_clock(_name: str, calls: list[Call]) -> float:
    """Seconds of steps, the card idle before and after."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(preset: str, seq_len: int, tokens: int, rounds: int, peak: float | None) -> dict:
    """Tokens per second, peak memory and utilisation of each side at one length."""
    torch.compiler.reset()  # a length that is the second would be compiled for any length
    config, rows = PRESETS[preset], max(1, tokens // seq_len)
    makers = {"ours": lambda micro: ours(config, rows, seq_len, micro),
              "eager": lambda micro: rival(config, rows, seq_len, micro, compile_model=False),
              "compile": lambda micro: rival(config, rows, seq_len, micro, compile_model=True)}
    steps: dict[str, Step] = {}
    sides: dict[str, dict] = {}
    for name, make in makers.items():
        try:
            steps[name], micro, peak_bytes = fitting(make, rows)
            sides[name] = {"micro_batch_tokens": micro * seq_len, "peak_mb": round(peak_bytes / 2**20)}
        except Exception as error:
            sides[name] = {"note": reason(error)}
    timed = contest({name: lambda _, step=step: step for name, step in steps.items()}, STEPS_PER_SAMPLE, wall_clock,
                    rounds)
    for name, times in timed.items():
        sides[name] |= figures(times, config, rows * seq_len, seq_len, peak)
    return {"case": f"{preset} {seq_len}", "tokens": rows * seq_len, **sides, **ratios(timed)}


def figures(times: Times | str, config: ModelConfig, tokens: int, seq_len: int, peak: float | None) -> dict:
    if isinstance(times, str):
        return {"note": times}
    speed = tokens / times.median
    return {"milliseconds": round(times.median * 1e3, 2), "spread": round(times.spread, 3),
            "tokens_per_second": round(speed),
            "utilisation": peak and round(speed * flops_per_token(config, seq_len) / peak, 3)}


def ratios(timed: dict[str, Times | str]) -> dict[str, float]:
    """How many times faster ours is: the median over rounds; `ratio` is that against torch.compile."""
    found = {}
    for name, key in {"eager": "vs_eager", "compile": "ratio"}.items():
        if isinstance(timed.get("ours"), Times) and isinstance(timed.get(name), Times):
            pairs = zip(timed[name].samples, timed["ours"].samples)
            found[key] = round(statistics.median(other / mine for other, mine in pairs), 3)
    return found


def rows_of_table(cases: list[dict]) -> list[list[object]]:
    columns = ("tokens_per_second", "utilisation", "milliseconds", "spread", "peak_mb", "micro_batch_tokens", "note")
    return [[case["case"], side, *(case[side].get(column) for column in columns)]
            for case in cases for side in ("ours", "eager", "compile")]


HEAD = ["case", "side", "tokens/s", "utilisation", "ms", "spread", "peak MB", "micro-batch", "note"]


def run(preset: str | None, lengths: list[int], tokens: int | None, rounds: int) -> int:
    """The contest on a GPU, and its report."""
    known = facts()
    cases = []
    for seq_len in lengths:
        cases.append(measure(preset or PRESET, seq_len, tokens or BATCH_TOKENS, max(rounds, 20),
                             peak_flops(known["device"])))
        print(table(HEAD, rows_of_table(cases[-1:])), file=sys.stderr, flush=True)
    speeds = [f"{case['case']}: {case['ours'].get('tokens_per_second', 0):,} tokens/s, "
              f"{case.get('ratio', float('nan')):.2f}x compile" for case in cases]
    report({"bench": "step", **known, "clocks_after": facts()["clocks"], "cases": cases, "headline": "; ".join(speeds)})
    return int(any("note" in case["ours"] for case in cases))


def dry_run() -> int:
    """FLOPs and what utilisation means in tokens per second, and one step of ours and PyTorch's at a small size."""
    say_no_gpu("FLOPs of a step, and one small step on the CPU")
    lines = [[length, flops_per_token(PRESETS[PRESET], length) / 1e9,
              0.48 * PEAKS["H100"] / flops_per_token(PRESETS[PRESET], length)] for length in LENGTHS]
    print(table(["length", "GFLOP/token", "tokens/s at 48 % of an H100"], lines), file=sys.stderr)
    small = PRESETS["demo"].with_(n_layers=1, vocab_size=64)
    ours(small, 4, 16, 2, device="cpu")()
    rival(small, 4, 16, 2, compile_model=False, device="cpu")()
    report({"bench": "step", "gpu": False, "gflop_per_token": {str(line[0]): round(line[1], 4) for line in lines}})
    return 0


if __name__ == "__main__":
    sys.exit(dry_run() if not torch.cuda.is_available() else run(None, list(LENGTHS), None, 20))
