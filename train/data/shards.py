"""Token shards: documents as ids in flat binary files, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer import Tokenizer, to_utf8
from tokenizer.documents import Advance, ReadOptions, Source, read_source

FORMAT = "loam-shards"
VERSION = 1
SHORT_DOCUMENT = 64
WRITE_BYTES = 1 << 20


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
    path: Path, sections: Sequence[Section], tokenizer: Tokenizer, options: ReadOptions, advance: Advance
) -> Index:
    """Tokenises `sections` in order into one file of ids; documents without text are left out.

    Args:
        advance: told how many bytes of the sources were read.

    Raises:
        UserError: as `read_source`.
        OSError: writing failed.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    eod = np.array([tokenizer.eod], dtype).tobytes()
    lengths, text_bytes, hashes = array("q"), array("q"), array("Q")
    with open(path, "wb", buffering=WRITE_BYTES) as file:
        tokens, size, digest = 0, 0, None
        for section in sections:
            for text, last in read_source(section.source, options, advance, section.start, section.stop):
                if text:
                    data = to_utf8(text)
                    ids = tokenizer.encode_bytes(data).astype(dtype, copy=False)
                    file.write(ids.data)
                    digest = digest or hashlib.blake2b(digest_size=8)
                    digest.update(data)
                    tokens += len(ids)
                    size += len(data)
                if last and digest:
                    file.write(eod)
                    lengths.append(tokens + 1)
                    text_bytes.append(size)
                    hashes.append(int.from_bytes(digest.digest(), "little"))
                    tokens, size, digest = 0, 0, None
        file.flush()
        os.fsync(file.fileno())
    return Index(np.array(lengths, np.int64), np.array(text_bytes, np.int64), np.array(hashes, np.uint64))


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
