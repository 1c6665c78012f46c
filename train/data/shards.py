"""Token shards: documents as ids in flat binary files, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from tokenizer import Tokenizer, to_utf8
from tokenizer.documents import Advance, ReadOptions, Source, read_source
from tokenizer.sampling import SampledTokenizer
from tokenizer.streaming import StreamEncoder
from train.data.split import text_hash

FORMAT = "loam-shards"
VERSION = 1
SHORT_DOCUMENT = 64
WRITE_BYTES = 1 << 20
BATCH_BYTES = 1 << 20


class Section(NamedTuple):
    """A file, or the lines of one that begin in start <= position < stop (bytes)."""

    source: Source
    start: int = 0
    stop: int | None = None


class Index(NamedTuple):
    """One entry per document: tokens with the closing end-of-document one, bytes of text, 64-bit hash of the text."""

    lengths: np.ndarray
    text_bytes: np.ndarray
    hashes: np.ndarray


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_shard(
    path: Path, sections: Sequence[Section], number: int, tokenizer: Tokenizer, options: ReadOptions, advance: Advance
) -> Index:
    """Tokenises `sections` in order into one file of ids; documents without text are left out.

    Args:
        number: of the shard; a tokenizer that cuts at random cuts by it.
        advance: told how many bytes of the sources were read.

    Raises:
        TokenizerError: as `read_source`.
        OSError: writing failed.
    """
    with open(path, "wb", buffering=WRITE_BYTES) as file:
        writer = _Writer(file, tokenizer, number << 32)
        for section in sections:
            for text, last in read_source(section.source, options, advance, section.start, section.stop):
                writer.push(text, last)
        index = writer.finish()
        file.flush()
        os.fsync(file.fileno())
    return index


class _Writer:
    """Writes ids to a file: documents that come whole together in batches, those that come in pieces as they come.

    Args:
        first_document: number of the first document.
    """

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, first_document: int) -> None:
        self._file, self._tokenizer, self._first_document = file, tokenizer, first_document
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._lengths, self._text_bytes, self._hashes = array("q"), array("q"), array("Q")
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._stream: StreamEncoder | None = None

    def push(self, text: str, last: bool) -> None:
        """The next piece of text, with which a document may end."""
        data = to_utf8(text)
        if self._stream is None and last:
            if data:
                self._waiting.append(data)
                self._waiting_bytes += len(data)
                if self._waiting_bytes >= BATCH_BYTES:
                    self._write_waiting()
            return
        if self._stream is None and data:
            self._write_waiting()
            self._stream = StreamEncoder(self._tokenizer, self._next_document)
            self._tokens, self._size, self._digest = 0, 0, hashlib.blake2b(digest_size=8)
        if self._stream is not None:
            self._digest.update(data)
            self._size += len(data)
            self._tokens += self._write(self._stream.push(data))
            if last:
                self._tokens += self._write(self._stream.flush()) + self._write(np.array([self._tokenizer.eod]))
                self._note([self._tokens], [self._size], [int.from_bytes(self._digest.digest(), "little")])
                self._stream = None

    def finish(self) -> Index:
        """What was written."""
        self._write_waiting()
        return Index(np.array(self._lengths, np.int64), np.array(self._text_bytes, np.int64),
                     np.array(self._hashes, np.uint64))

    @property
    def _next_document(self) -> int:
        return self._first_document + len(self._lengths)

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        texts, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if isinstance(self._tokenizer, SampledTokenizer):
            ids, starts = self._tokenizer.encode_batch(texts, first_document=self._next_document)
        else:
            ids, starts = self._tokenizer.encode_batch(texts)
        closed = np.full(len(ids) + len(texts), self._tokenizer.eod, self._dtype)
        is_text = np.ones(len(closed), bool)
        is_text[starts[1:] + np.arange(len(texts))] = False
        closed[is_text] = ids
        self._write(closed)
        self._note((np.diff(starts) + 1).tolist(), map(len, texts), map(text_hash, texts))

    def _write(self, ids: np.ndarray) -> int:
        self._file.write(ids.astype(self._dtype, copy=False).data)
        return len(ids)

    def _note(self, lengths: Iterable[int], text_bytes: Iterable[int], hashes: Iterable[int]) -> None:
        self._lengths.extend(lengths)
        self._text_bytes.extend(text_bytes)
        self._hashes.extend(hashes)


class Shards:
    """All the documents of a corpus, one after the other, on disk.

    Attributes:
        lengths, text_bytes, hashes: see `Index`; int64, int64, uint64 [documents].
        fingerprint: the tokenizer's.
        tokens: number of tokens.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a folder that `save_index` completed; ValueError or OSError when it is not whole."""
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if (meta["format"], meta["version"]) != (FORMAT, VERSION):
            raise ValueError(f"{folder}: not {FORMAT} of version {VERSION}")
        self.folder = folder
        self.fingerprint: str = meta["tokenizer"]
        dtype = np.dtype(meta["dtype"])
        self._ends = np.cumsum(meta["shard_tokens"], dtype=np.int64)
        self.tokens = int(self._ends[-1])
        self._shards = [_map(folder / shard_name(i), dtype, n) for i, n in enumerate(meta["shard_tokens"])]
        self._dtype = dtype
        self.lengths = np.load(folder / "lengths.npy", allow_pickle=False)
        self.text_bytes = np.load(folder / "text_bytes.npy", allow_pickle=False)
        self.hashes = np.load(folder / "hashes.npy", allow_pickle=False)
        if int(self.lengths.sum()) != self.tokens or not len(self.lengths) == len(self.text_bytes) == len(self.hashes):
            raise ValueError(f"{folder}: the index does not fit the shards")

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Ids at [start, start + length) of each stretch, joined; no stretch crosses a document's end.

        Args:
            starts, lengths: int64 [stretches], in tokens from the corpus's beginning; lengths at least 1.

        Returns:
            uint16 or uint32 [sum of lengths].
        """
        shards = np.searchsorted(self._ends, starts, side="right")
        offsets = starts - np.concatenate(([0], self._ends))[shards]
        out = np.empty(int(lengths.sum()), self._dtype)
        if len(starts) * SHORT_DOCUMENT < len(out):
            at = 0
            for shard, offset, length in zip(shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True):
                out[at : at + length] = self._shards[shard][offset : offset + length]
                at += length
            return out
        at = np.cumsum(lengths) - lengths
        places = np.repeat(offsets - at, lengths) + np.arange(len(out))
        owners = np.unique(shards)
        if len(owners) == 1:
            return self._shards[owners[0]][places]
        owner_of_token = np.repeat(shards, lengths)
        for owner in owners:
            mine = owner_of_token == owner
            out[mine] = self._shards[owner][places[mine]]
        return out


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def _map(path: Path, dtype: np.dtype, tokens: int) -> np.ndarray:
    if path.stat().st_size != tokens * dtype.itemsize:
        raise ValueError(f"{path}: {path.stat().st_size} bytes instead of {tokens * dtype.itemsize}")
    if tokens == 0:
        return np.empty(0, dtype)
    # A plain array over the map: slicing np.memmap objects costs several times as much.
    return np.asarray(np.memmap(path, dtype, mode="r")).view(np.ndarray)


def save_index(folder: Path, parts: Sequence[Index], tokenizer: Tokenizer) -> None:
    """Completes a folder of shards, whose indexes are `parts`, in order."""
    joined = Index(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    for name, column in zip(Index._fields, joined, strict=True):
        with open(folder / f"{name}.npy", "wb") as file:
            np.save(file, column, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.fingerprint(),
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "shard_tokens": [int(part.lengths.sum()) for part in parts],
        "documents": len(joined.lengths),
        "text_bytes": int(joined.text_bytes.sum()),
    }
    with open(folder / "meta.json", "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
