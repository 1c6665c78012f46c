"""One training step, side by side: ours, PyTorch eager and torch.compile.

    python -m bench.step [--preset demo] [--rounds 11] [--batch-tokens N] [--seq-len S]

Forward, backward, gradient clipping and AdamW in float32, the same shapes and number of threads, each rival in a
process of its own, taking turns. Prints one JSON line with medians, in milliseconds for the phases. On a machine with a
GPU it is that of bench/gpu_step.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time

import numpy as np

from bench.side_by_side import Contest, Timing, available_cores

RIVALS = {"ours": "bench.step:ours", "eager": "bench.step:eager", "compile": "bench.step:compiled"}
OPTIMIZER = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8}
WEIGHT_DECAY, CLIP_NORM = 0.1, 1.0


def batch(vocabulary: int, rows: int, seq_len: int):
    import torch

    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, seq_len + 1))
    return torch.from_numpy(ids[:, :-1].copy()), torch.from_numpy(ids[:, 1:].copy())


class _Phases:
    """Seconds from one mark to the next, by name."""

    def __init__(self):
        self.seconds, self.last = {}, time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def ours(preset: str, rows: int, seq_len: int):
    """Loam's step, by the parts that train.pretrain uses."""
    from models.config import PRESETS
    from models.decoder import Decoder
    from train.optim.adamw import AdamW

    model = Decoder(PRESETS[preset])
    optimizer = AdamW(model, OPTIMIZER["betas"], OPTIMIZER["eps"], WEIGHT_DECAY, CLIP_NORM)
    ids, targets = batch(model.config.vocab_size, rows, seq_len)

    def step():
        phases = _Phases()
        optimizer.arena.zero_grad()
        loss = model.loss(ids, targets)
        phases.mark("forward")
        loss.backward()
        phases.mark("backward")
        optimizer.measure()
        optimizer.step(OPTIMIZER["lr"])
        phases.mark("optimizer")
        return phases.seconds

    return step


def _torch_step(preset: str, rows: int, seq_len: int, compile_model: bool):
    import torch
    from bench.peers.decoder import TorchDecoder
    from models.config import PRESETS

    model = TorchDecoder.from_config(PRESETS[preset])
    matrices = [p for name, p in model.named_parameters() if p.dim() >= 2 and "embedding" not in name]
    decayed = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in decayed]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                                   {"params": others, "weight_decay": 0.0}], fused=True, **OPTIMIZER)
    ids, targets = batch(model.config.vocab_size, rows, seq_len)
    loss_of = torch.compile(model.loss) if compile_model else model.loss

    def step():
        phases = _Phases()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(ids, targets)
        phases.mark("forward")
        loss.backward()
        phases.mark("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        phases.mark("optimizer")
        return phases.seconds

    return step


def eager(preset: str, rows: int, seq_len: int):
    """PyTorch's step, op by op."""
    return _torch_step(preset, rows, seq_len, compile_model=False)


def compiled(preset: str, rows: int, seq_len: int):
    """PyTorch's step with the model and its loss under torch.compile."""
    return _torch_step(preset, rows, seq_len, compile_model=True)


def _result(timing: Timing, tokens: int) -> dict:
    phases = {name: round(timing.phase(name) * 1e3, 1) for name in timing.phases}
    return {"tokens_per_second": round(tokens / timing.median), "peak_mb": round(timing.peak_mb),
            "milliseconds": round(timing.median * 1e3, 1), **phases}


def _ratio(a: Timing, b: Timing) -> float:
    """How many times faster a is than b: the median over the rounds, in each of which both ran."""
    return round(statistics.median(y / x for x, y in zip(a.seconds, b.seconds)), 3)


def main() -> int:
    import torch

    from train.presets import preset

    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", help="demo when left out; on a GPU base-0.18b")
    parser.add_argument("--rounds", type=int, default=11, help="timed steps of each rival, at least 7")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, help="tokens per step; the preset's own when left out")
    parser.add_argument("--seq-len", type=int, help="tokens per sequence; the preset's own when left out")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parser.parse_args()
    if torch.cuda.is_available():
        from bench import gpu_step

        lengths = [options.seq_len] if options.seq_len else list(gpu_step.LENGTHS)
        return gpu_step.run(options.preset, lengths, options.batch_tokens, options.rounds)
    print("no GPU here: the step of a small model on the CPU", file=sys.stderr)
    chosen = options.preset or "demo"
    data = preset(chosen).data
    seq_len = options.seq_len or data.seq_len
    rows = max(1, (options.batch_tokens or data.batch_tokens) // seq_len)
    rivals = dict(RIVALS)
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        del rivals["compile"]
        print("no C++ compiler: torch.compile is left out", file=sys.stderr)
    with Contest(rivals, options.threads) as contest:
        timings = contest.run({"preset": chosen, "rows": rows, "seq_len": seq_len},
                              max(options.rounds, 7), options.warmup)
    line = {name: _result(timing, rows * seq_len) for name, timing in timings.items()}
    for name in timings:
        if name != "ours":
            line[f"vs_{name}"] = _ratio(timings["ours"], timings[name])
    line["memory_vs_eager"] = round(timings["ours"].peak_mb / timings["eager"].peak_mb, 3)
    line |= {"preset": chosen, "rows": rows, "seq_len": seq_len, "threads": options.threads}
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
