"""The corpus as shards of text on disk, and arrays in files: what every pass of training reads and writes.

A shard is two files: `text-00000.bin`, documents joined, and `text-00000.npy`, where each begins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from tokenizer.documents import Piece
from tokenizer.interface import TokenizerError, to_utf8

SHARD_BYTES = 16 << 20
LINE_BYTES = 1 << 16  # how far back a line end is looked for where a long document must be cut
COMPLETE = "text.json"
PARTIAL = ".partial-"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file under a temporary name beside `path` (same suffix), flush it, and rename it to `path`.

    Raises:
        TokenizerError: the disk refuses.
    """
    temporary = path.with_name(PARTIAL + path.name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) not in ("None", str(temporary)):
            raise
        raise TokenizerError(f"{path}: cannot write ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: Iterable[np.ndarray]) -> None:
    """Arrays in one file, one after the other; they may come from a generator."""
    with open(path, "wb") as file:
        for array in arrays:
            np.save(file, array, allow_pickle=False)


def open_arrays(path: Path) -> list[np.ndarray]:
    """The arrays of `save_arrays`, mapped read-only."""
    return list(each_array(path))


def each_array(path: Path) -> Iterator[np.ndarray]:
    """As `open_arrays`, one after the other: each that is mapped counts as an open file."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        while file.tell() < size:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
            length = int(np.prod(shape)) * dtype.itemsize
            yield np.memmap(path, dtype, "r", offset, shape) if length else np.empty(shape, dtype)
            file.seek(offset + length)


def spool(
    documents: Iterable[Piece],
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Writes the corpus as shards of at most `shard_bytes` bytes of text, and forgets what was spooled there before.

    A shard holds whole documents, as many as fit. One longer than a shard begins a new one and goes on in the next,
    cut after a line where there is one near, else between characters. So the shards depend on the documents alone, not
    on how their text came in pieces.

    Args:
        on_progress: called with the bytes taken in so far, about once a shard.
    Returns:
        The shards' paths, `text-00000.bin` and so on.
    """
    if shard_bytes < 4:
        raise TokenizerError(f"shard_bytes must be at least 4, the longest character: got {shard_bytes}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    forget(folder)
    shards: list[Path] = []
    text = bytearray()
    starts = [0]
    taken = 0

    def write(end: int) -> None:
        path = folder / f"text-{len(shards):05d}.bin"
        inside = starts if starts[-1] == end else [*starts, end]
        write_whole(path.with_suffix(".npy"), lambda to: np.save(to, np.array(inside, np.int64)))
        write_whole(path, lambda to: to.write_bytes(memoryview(text)[:end]))
        shards.append(path)
        del text[:end]
        starts[:] = [0]
        if on_progress:
            on_progress(taken)

    for piece in documents:
        data = to_utf8(piece.text)
        taken += len(data)
        text += data
        while len(text) > shard_bytes:
            write(starts[-1] or _cut(text, shard_bytes))
        if piece.last:
            starts.append(len(text))
    if text or len(starts) > 1:
        write(len(text))
    content = {"shards": len(shards), "bytes": taken}
    write_whole(folder / COMPLETE, lambda to: to.write_text(json.dumps(content), encoding="utf-8"))
    return shards


def _cut(text: bytearray, most: int) -> int:
    """The end of the last line within `most` bytes, else of the last character."""
    end = text.rfind(b"\n", max(1, most - LINE_BYTES), most) + 1
    if end == 0:
        end = most
        while text[end] & 0xC0 == 0x80:
            end -= 1
    return end


def forget(folder: Path) -> None:
    """Deletes the shards in a folder."""
    (folder / COMPLETE).unlink(missing_ok=True)
    for pattern in ("text-*.bin", "text-*.npy", PARTIAL + "text*"):
        for path in folder.glob(pattern):
            path.unlink()


def spooled(folder: Path) -> list[Path] | None:
    """The shards that a finished `spool` left in a folder; None where it was not finished."""
    try:
        content = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    except OSError:
        return None
    return [folder / f"text-{i:05d}.bin" for i in range(content["shards"])]


def open_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A shard's text, uint8 [bytes], mapped read-only, and int64 [documents + 1], where each document begins and the
    last one ends. A document goes on from the shard before it, or in the next one, if it is longer than a shard."""
    starts = np.load(path.with_suffix(".npy"), allow_pickle=False)
    text = np.memmap(path, np.uint8, "r") if starts[-1] else np.empty(0, np.uint8)
    return text, starts
