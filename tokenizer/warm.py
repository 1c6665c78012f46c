"""Compiles the tokenizer's loops ahead of time: `python -m tokenizer.warm`.

Numba compiles a loop at its first call for each type of array and keeps the machine code. Doing that at installation
takes the wait out of the first vocabulary and the first text.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from tokenizer.documents import Piece
from tokenizer.interface import Tokenizer
from tokenizer.piece import PieceTokenizer
from tokenizer.sampling import SampledTokenizer
from tokenizer.storage import load
from tokenizer.streaming import StreamEncoder
from tokenizer.train import Settings, train_vocabulary
from tokenizer.vocabulary import Vocabulary

TEXT = Path(__file__).read_text(encoding="utf-8") + "词表是由字节组成的片段。\n"


def warm() -> None:
    """Train a small vocabulary, save and load it, and use it and one with 32-bit ids in every way once."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = train_vocabulary([Piece(TEXT, True)], Settings(600, rounds=3, allow_fewer=True))
        made = PieceTokenizer(vocabulary)
        made.save(folder)
        for tokenizer in (made, load(folder), PieceTokenizer(_wide())):
            _use(tokenizer)


def _use(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode_batch([TEXT, ""])
    tokenizer.decode(ids)
    stream = StreamEncoder(tokenizer)
    stream.push(TEXT * 3)
    stream.flush()
    SampledTokenizer(tokenizer, 1.0, 0).encode_batch([TEXT])


def _wide() -> Vocabulary:
    """Every byte and every pair of bytes: more pieces than 16 bits number."""
    singles = [bytes([byte]) for byte in range(256)]
    pieces = singles + [first + second for first in singles for second in singles]
    return Vocabulary(pieces, np.ones(len(pieces), np.int64), np.ones(len(pieces), np.int32))


def main() -> None:
    start = time.perf_counter()
    warm()
    print(f"tokenizer compiled in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
