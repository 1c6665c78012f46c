"""One job of `bench.tokenization` in a process of its own: a JSON object in by stdin, one out by stdout.

    {"contestant": NAME, "do": "versions" | "train" | "speed" | "throughput" | "count" | "lossless" | "hard", ...}

The other arguments are those of the function that `do` names. CPU seconds are those of all threads and children.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import sys
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

from bench.side_by_side import peak_mb
from bench.tokenization_rivals import CONTESTANTS, Contestant
from bench.tokenization_text import Texts, hard_texts, random_strings

FIRST = "Hello, 你好\n"  # encoded before the clock starts: compiled code is loaded, and no cache knows the text
ENGLISH = "English"


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    return sum(usage.ru_utime + usage.ru_stime
               for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def versions(contestant: str) -> dict:
    version = CONTESTANTS[contestant].version()
    return {"version": version, "python": platform.python_version()}


def train(contestant: str, texts: str, size: int, threads: int, folder: str) -> dict:
    """A vocabulary in `folder`: what it cost, and what the trainer tells of it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    CONTESTANTS[contestant].compile()
    before = peak_mb()
    cpu, wall = cpu_seconds(), time.perf_counter()
    told = CONTESTANTS[contestant].train(Texts(texts), size, threads, Path(folder))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 1024
    # Memory of workers is the largest one's for each: an upper bound, as they share pages with their parent.
    return {"cpu": cpu_seconds() - cpu, "wall": time.perf_counter() - wall, "idle_mb": before, "peak_mb": peak_mb(),
            "child_mb": children / unit, "threads": threads, **told}


def _loaded(contestant: str, folder: str) -> Contestant:
    tokenizer = CONTESTANTS[contestant](Path(folder))
    tokenizer.decode(tokenizer.encode([FIRST]))
    return tokenizer


def _timed(function, argument) -> tuple[Any, float]:
    gc.collect()
    start = time.process_time()
    result = function(argument)
    return result, time.process_time() - start


def speed(contestant: str, folder: str, texts: str, passes: int) -> dict:
    """CPU seconds of the first pass over the texts, of `passes` more, and of decoding; `load` is wall time."""
    _loaded(contestant, folder)
    start = time.perf_counter()
    tokenizer = CONTESTANTS[contestant](Path(folder))  # modules are imported and compiled by now
    load = time.perf_counter() - start
    tokenizer.decode(tokenizer.encode([FIRST]))
    documents = list(Texts(texts))
    encoded, cold = _timed(tokenizer.encode, documents)
    warm, decode = [], []
    for _ in range(passes):
        encoded, seconds = _timed(tokenizer.encode, documents)
        warm.append(seconds)
    for _ in range(passes + 1):
        decoded, seconds = _timed(tokenizer.decode, encoded)
        decode.append(seconds)
    wrong = sum(_utf8(result) != text.encode() for result, text in zip(decoded, documents))
    ids = tokenizer.ids(encoded)
    return {"load": load, "cold": cold, "warm": warm, "decode": decode[1:], "tokens": sum(map(len, ids)),
            "wrong": wrong, "checks": [zlib.crc32(repr(row).encode()) for row in ids]}


def throughput(contestant: str, folder: str, texts: str, seconds: float) -> dict:
    """A line out when ready; then, for each line that comes in, passes per second within about `seconds`."""
    tokenizer = _loaded(contestant, folder)
    documents = list(Texts(texts))
    tokenizer.encode(documents)
    print("ready", file=ANSWERS, flush=True)
    for _ in sys.stdin:
        passes, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            tokenizer.encode(documents)
            passes += 1
        print(passes / (time.perf_counter() - start), file=ANSWERS, flush=True)
    return {}


def count(contestant: str, folder: str, texts: dict[str, str]) -> dict:
    """Tokens of each file of whole documents."""
    tokenizer = _loaded(contestant, folder)
    return {name: sum(map(len, tokenizer.ids(tokenizer.encode(list(Texts(path)))))) for name, path in texts.items()}


def lossless(contestant: str, folder: str, strings: int) -> dict:
    """How many random strings come back changed; rivals, which take str, get those that are valid UTF-8."""
    tokenizer = _loaded(contestant, folder)
    data = random_strings(strings)
    if contestant != "ours":
        data = [text for text in data if _is_utf8(text)]
        results = tokenizer.decode(tokenizer.encode([text.decode() for text in data]))
    else:
        ids, starts = tokenizer.tokenizer.encode_batch(data)
        results = [tokenizer.tokenizer.decode_bytes(ids[i:j]) for i, j in zip(starts[:-1], starts[1:])]
    return {"strings": len(data), "changed": sum(_utf8(result) != text for result, text in zip(results, data))}


def hard(contestant: str, folder: str, texts: str, size: int, passes: int) -> dict:
    """Nanoseconds of CPU per byte for each hard text, and whether it came back; English beside them."""
    tokenizer = _loaded(contestant, folder).tokenizer
    pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size - len(tokenizer.special))]
    english = "\n".join(Texts(texts)).encode()[:size]
    cases = {ENGLISH: english, **hard_texts(pieces, size)}
    cost: dict[str, list[float]] = {name: [] for name in cases}
    wrong = []
    for turn in range(passes):
        for name, data in cases.items():
            ids, seconds = _timed(tokenizer.encode_bytes, data)
            cost[name].append(seconds / len(data) * 1e9)
            if turn == 0 and tokenizer.decode_bytes(ids) != data:
                wrong.append(name)
    return {"bytes": size, "ns": {name: sorted(times)[len(times) // 2] for name, times in cost.items()}, "wrong": wrong}


def _utf8(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


JOBS = {job.__name__: job for job in (versions, train, speed, throughput, count, lossless, hard)}

if __name__ == "__main__":
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a contestant prints must not end up among the answers
    request = json.loads(sys.stdin.readline())
    try:
        answer = JOBS[request.pop("do")](**request)
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=ANSWERS, flush=True)
