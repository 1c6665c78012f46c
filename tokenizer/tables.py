"""Compiled tables in a file that is mapped into memory: what a start would otherwise spend its time on.

The file holds a line of JSON, padded with spaces, then the arrays, each at a multiple of 64 bytes, zeros up to a
multiple of 4,096, and a checksum in four bytes, little-endian. The line names the vocabulary the tables were made from
and where each array stands. Tables are never the only copy of anything: whoever finds them missing, stale or damaged
makes them anew.

Damage is what the checksum is for (a disk, a copy that broke off); against somebody who wants to mislead it gives no
more protection than the vocabulary's own SHA-256, which he could write as well. It is the CRC-32 of the sums, modulo
2^64, of the 64-bit words of each 4,096 bytes: a change to one word is always found, words that change places within a
block never, other damage but for one case in 2^32. It reads at the speed of memory: a millisecond for 65,544 pieces,
where CRC-32 alone takes 4 and SHA-256 45. (The JSON file, which people edit, is compared by CRC-32.)
"""

from __future__ import annotations

import json
import mmap
import zlib
from pathlib import Path

import numpy as np

from tokenizer.automaton import LAYOUT

FORMAT = "loam-tables"
ALIGNMENT = 64
BLOCK = 4096
CHECKSUM_BYTES = 4


def packed(arrays: dict[str, np.ndarray], vocabulary: dict) -> bytes:
    """The file's content: little-endian `arrays`, and what names the vocabulary."""
    described = {name: [array.dtype.newbyteorder("<").str, list(array.shape), 0] for name, array in arrays.items()}
    room = len(_line(described, vocabulary)) + len(described) * len(str(1 << 40))
    at = _aligned(room + 1)
    parts = []
    for name, array in arrays.items():
        described[name][2] = at
        data = array.astype(described[name][0], copy=False).tobytes()
        parts.append(data.ljust(_aligned(len(data)), b"\0"))
        at += len(parts[-1])
    content = _line(described, vocabulary).ljust(_aligned(room + 1) - 1) + b"\n" + b"".join(parts)
    content = content.ljust(_aligned(len(content), BLOCK), b"\0")
    return content + _checksum(content)


def mapped(path: Path, vocabulary: dict) -> dict[str, np.ndarray] | None:
    """The arrays of a file, or None if it is missing, damaged, or was made from another vocabulary or in another
    layout. Arrays lie on memory that processes share until they write to it."""
    try:
        with open(path, "rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        return None
    content = memoryview(memory)[:-CHECKSUM_BYTES]
    if len(content) % BLOCK or _checksum(content) != memory[len(content) :]:
        return None
    try:
        header = json.loads(memory.readline())
    except ValueError:
        return None
    if {**header, "arrays": None} != {"format": FORMAT, "layout": LAYOUT, "vocabulary": vocabulary, "arrays": None}:
        return None
    return {name: np.frombuffer(content, dtype, int(np.prod(shape)), offset).reshape(shape)
            for name, (dtype, shape, offset) in header["arrays"].items()}


def _line(described: dict, vocabulary: dict) -> bytes:
    return json.dumps({"format": FORMAT, "layout": LAYOUT, "vocabulary": vocabulary, "arrays": described}).encode()


def _aligned(size: int, to: int = ALIGNMENT) -> int:
    return -size % to + size


def _checksum(content: bytes | memoryview) -> bytes:
    sums = np.frombuffer(content, "<u8").reshape(-1, BLOCK // 8).sum(axis=1, dtype=np.uint64)
    return zlib.crc32(sums.astype("<u8").tobytes()).to_bytes(CHECKSUM_BYTES, "little")
