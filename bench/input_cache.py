"""Decoding with a cache of keys and values, or of what the layers were given: `python -m bench.input_cache`.

One layer of the seed system's 0.18B attention (12 heads of 128 features, d_model 768) takes one token after texts of
growing length, on the CPU. EL-attention (arXiv 2105.04779) keeps 768 numbers for a token in place of 3,072, and takes
six times the arithmetic per token kept: it wins once reading the cache is what takes the time. A table goes to stderr,
one JSON line to stdout: microseconds of a step by length, bytes of a token, and the length from which on the cache of
inputs is the faster one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import numpy as np
import torch

import kernels
from models.cache import CACHES
from models.config import PRESETS
from models.jerry_attention import JerryAttention
from train.command import Parser, run_command

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CACHE_BYTES = 64 << 20  # what other layers would have put into the processor's caches meanwhile


def microseconds(attention: JerryAttention, caches: dict, length: int, rounds: int) -> dict[str, float]:
    """Median time of one token's step after `length` tokens, in turns, from memory that is not in the caches."""
    rng = np.random.default_rng(length)
    x, sweep, times = rng.standard_normal((1, 768), np.float32), np.zeros(CACHE_BYTES, np.uint8), {}
    for _ in range(rounds):
        for name, cache in caches.items():
            cache.length = length - 1
            sweep += 1
            begin = time.perf_counter()
            attention.step(x, cache, 0)
            times.setdefault(name, []).append(1e6 * (time.perf_counter() - begin))
    return {name: round(statistics.median(found), 1) for name, found in times.items()}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bench.input_cache", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=kernels.threads(), help="of NumPy's matrix products")
    arguments = parser.parse_args(argv)
    from threadpoolctl import threadpool_limits

    threadpool_limits(arguments.threads, user_api="blas")
    torch.set_num_threads(arguments.threads)
    config = PRESETS["jerry-0.18b"].with_(n_layers=1, max_seq_len=max(arguments.lengths), vocab_size=264)
    attention = JerryAttention(config)
    for mixer in (attention.before, attention.after):
        mixer.data.copy_(torch.eye(config.n_heads))
    caches = {name: kind(config) for name, kind in CACHES.items()}
    for cache in caches.values():
        cache.store[:] = np.random.default_rng(0).standard_normal(cache.store.shape, np.float32)
    rows = {length: microseconds(attention, caches, length, arguments.rounds) for length in arguments.lengths}
    print(f"{'length':>7}  " + "  ".join(f"{name + ' us':>10}" for name in caches) + f"  {'keys / inputs':>13}",
          file=sys.stderr)
    for length, row in rows.items():
        print(f"{length:>7}  " + "  ".join(f"{row[name]:>10.1f}" for name in caches) +
              f"  {row['keys'] / row['inputs']:>13.2f}", file=sys.stderr)
    slower = [length for length, row in rows.items() if row["inputs"] >= row["keys"]]
    faster = [length for length in rows if length > max(slower, default=0)]
    sizes = {name: cache.store.nbytes // config.max_seq_len for name, cache in caches.items()}
    print(json.dumps({"bytes_per_token_and_layer": sizes, "threads": arguments.threads, "microseconds": rows,
                      "inputs_faster_from": min(faster, default=None)}))
    return 0


if __name__ == "__main__":
    run_command(main)
