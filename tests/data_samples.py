"""Corpora in memory whose every token has its own number, and the order of reading by loops over its definition."""

from typing import NamedTuple

import numpy as np

from tokenizer import ByteTokenizer
from train.data import Batches
from train.data.corpus import Part
from train.data.permutation import permutation_key, permute

BYTE = ByteTokenizer()


class MemoryShards:
    """Shards whose every token is its own number, so that each can be accounted for."""

    fingerprint = BYTE.fingerprint()

    def gather(self, starts, lengths):
        return np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)])


def numbered(lengths, first: int = 0, shards: type = MemoryShards) -> Part:
    lengths = np.array(lengths, np.int64)
    return Part(shards(), first + np.cumsum(lengths) - lengths, lengths, int(lengths.sum()), "")


def numbered_batches(stream, doc_mask: bool = False) -> Batches:
    """Batches of numbered tokens, each of one byte."""
    batches = Batches(stream, 1, BYTE, doc_mask)
    batches._token_bytes = np.ones(1 + max(int((part.starts + part.lengths).max()) for part in stream.parts), np.int64)
    return batches


class Place(NamedTuple):
    """What stands at a place of the stream; `last`: of its document."""

    token: int
    target: int
    last: bool


def naive_epoch(part: Part, window: int, seed: int, epoch: int) -> list[Place]:
    """An epoch in the order of reading."""
    order = permute(np.arange(part.documents), part.documents, permutation_key(seed, epoch, "documents"))
    text, last = [], []
    for document in order:
        tokens = list(range(part.starts[document], part.starts[document] + part.lengths[document]))
        text += tokens
        last += [False] * (len(tokens) - 1) + [True]
    n = len(text)
    head = min(-epoch * n % window, n)
    windows = (n - head) // window
    places = list(range(head))
    for i in range(windows):
        at = head + window * int(permute(np.array([i]), windows, permutation_key(seed, epoch, "windows"))[0])
        places += range(at, at + window)
    places += range(head + windows * window, n)
    return [Place(text[place], text[(place + 1) % n], last[place]) for place in places]


def naive_stream(part: Part, window: int, seed: int, tokens: int) -> list[Place]:
    """So many tokens, epoch after epoch."""
    epochs = range(-(-tokens // part.tokens))
    return [place for epoch in epochs for place in naive_epoch(part, window, seed, epoch)][:tokens]


def naive_rows(stream: list[Place], seq_len: int, doc_mask: bool) -> list[tuple[int, int, int]]:
    """(token, target, document's start in its row) of places that are cut into rows."""
    result = []
    for at, place in enumerate(stream):
        column, before = at % seq_len, stream[at - 1]
        if column == 0:
            start = 0
        elif before.last or before.target != place.token:
            start = column
        result.append((place.token, -100 if doc_mask and place.last else place.target, start))
    return result
