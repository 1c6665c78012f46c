"""Whether a vocabulary matters: one small model trained the same minutes on each, and bits per byte of the same text.

A process of `bench.tokenization` (bench/worker.py): asked once it makes ready, asked again it trains and tells where
that ended. So two of them train at once, on the same machine in the same minutes.

The model is that of preset `demo`, its optimizer too; the learning rate follows the share of the minutes that is spent.
Seconds count batches and steps; they leave out reading, evaluation and one step on a model that is thrown away.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import kernels
from bench.tokenization_rivals import byte_of_character
from models.decoder import Decoder
from tokenizer import ByteTokenizer, Tokenizer, load
from tokenizer.interface import SPECIAL_NAMES, to_utf8
from train.data import Batches, Corpus, TokenStream, prepare
from train.evaluate import evaluate
from train.loop import Loop, next_token_loss
from train.optim import make_optimizer
from train.presets import PRESETS
from train.schedule import learning_rate
from train.sections import OptimConfig

SCHEDULE_STEPS = 10_000
EVALUATION_ROWS = 16


class HuggingFaceTokenizer:
    """A byte-level `tokenizer.json` with our special tokens behind its pieces, as `tokenizer.Tokenizer` wants it."""

    def __init__(self, folder: str | Path):
        from tokenizers import Tokenizer as Implementation

        self.implementation = Implementation.from_file(str(Path(folder) / "tokenizer.json"))
        byte_of = byte_of_character()
        pieces = sorted(self.implementation.get_vocab().items(), key=lambda item: item[1])
        self.pieces = [bytes(byte_of[character] for character in piece) for piece, _ in pieces]
        self.special = {name: len(self.pieces) + i for i, name in enumerate(SPECIAL_NAMES)}
        self.vocab_size = len(self.pieces) + len(self.special)
        self.eod = self.special["<|end|>"]
        self.folder = str(folder)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Of valid UTF-8 only."""
        return self.encode_batch([data])[0]

    def encode_batch(self, texts: Sequence[str | bytes], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end."""
        data = [(text if isinstance(text, bytes) else to_utf8(text)).decode() for text in texts]
        rows = [found.ids for found in self.implementation.encode_batch_fast(data, add_special_tokens=False)]
        dtype = np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        ids = np.fromiter((i for row in rows for i in row), dtype)
        return ids, np.cumsum([0] + [len(row) for row in rows])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return b"".join(self.pieces[i] for i in np.asarray(ids).reshape(-1).tolist() if i < len(self.pieces))

    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]."""
        return np.array([len(piece) for piece in self.pieces] + [0] * len(self.special), np.int32)

    def fingerprint(self) -> str:
        return f"{Path(self.folder).name}-{self.vocab_size}"


def tokenizer_of(contestant: str, folder: str) -> Tokenizer:
    if contestant == "bytes":
        return ByteTokenizer()
    return HuggingFaceTokenizer(folder) if contestant == "tokenizers" else load(folder)


def prepared(contestant: str, folder: str, train: str, validation: str, minutes: float, seed: int,
             cache: str) -> Callable[[], dict]:
    """All that comes before the training; what is returned trains, and tells bits per byte of the validation text."""
    tokenizer = tokenizer_of(contestant, folder)
    corpus = prepare([train], tokenizer, val_paths=[validation], cache_dir=cache, workers=1)
    preset = PRESETS["demo"]
    length, optim = preset.data.seq_len, preset.optim
    schedule = dataclasses.replace(optim, warmup_steps=SCHEDULE_STEPS // 25)
    config = dataclasses.replace(preset.model, vocab_size=tokenizer.vocab_size)
    batches = Batches(TokenStream(corpus.train, window=length, seed=seed), length, tokenizer, preset.data.doc_mask)
    per_step = preset.data.batch_tokens // length

    def loop() -> Loop:
        model = Decoder(config, seed)
        optimizer = make_optimizer(model, optim, None)
        return Loop(model, optimizer, lambda cursor: batches.batch(cursor, per_step), next_token_loss,
                    micro_tokens=preset.data.batch_tokens)

    loop().step(0.0)
    return lambda: trained(loop(), corpus, tokenizer, minutes * 60.0, schedule, length, preset.data.doc_mask)


def trained(loop: Loop, corpus: Corpus, tokenizer: Tokenizer, budget: float, schedule: OptimConfig, length: int,
            doc_mask: bool) -> dict:
    """Trains for so many seconds."""
    seconds, steps = 0.0, 0
    while seconds < budget:
        begin = time.perf_counter()
        loop.step(learning_rate(1 + int(SCHEDULE_STEPS * seconds / budget), SCHEDULE_STEPS, schedule))
        seconds += time.perf_counter() - begin
        steps += 1
    sweep = Batches(TokenStream(corpus.validation, shuffle=False), length, tokenizer, doc_mask)
    found = evaluate(loop.model, sweep.sweep(EVALUATION_ROWS))
    tokens = loop.position.cursor
    size = round(tokens * corpus.train.bytes / corpus.train.tokens)
    return {"bits_per_byte": found.bits_per_byte, "loss": found.loss, "steps": steps, "seconds": seconds,
            "tokens": tokens, "train_bytes": size, "epochs": tokens / corpus.train.tokens,
            "vocab_size": tokenizer.vocab_size, "bytes_per_token": found.bytes / max(1, found.tokens),
            "validation_bytes": found.bytes}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    request = json.loads(sys.stdin.readline())
    threads = request.pop("threads")
    torch.set_num_threads(threads)
    kernels.set_threads(threads)
    run = prepared(**request)
    print(json.dumps({}), file=answers, flush=True)
    sys.stdin.readline()
    print(json.dumps(run()), file=answers, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
