"""Opening a corpus file: decompression, progress, UTF-8."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import zstandard

from tokenizer.interface import TokenizerError

BOM = "\ufeff"
BUFFER_BYTES = 1 << 20

Advance = Callable[[int], None]


class Source(NamedTuple):
    """A file to read: `kind` is text, lines, json or parquet, `compression` is empty, gz or zst, `size` in bytes."""

    path: str
    kind: str
    compression: str
    size: int
    mtime_ns: int


class ReadOptions(NamedTuple):
    text_field: str = "text"
    document_separator: str | None = None
    chunk_bytes: int = 1 << 20


class Piece(NamedTuple):
    """A stretch of a document; `last` when the document ends with it."""

    text: str
    last: bool


class _Counted(io.FileIO):
    def __init__(self, path: str, advance: Advance) -> None:
        super().__init__(path, "rb")
        self._advance = advance

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer)
        self._advance(count)
        return count


class _Zstandard(io.RawIOBase):
    """Decompresses frame after frame; unlike the library's own reader it notices a file that breaks off."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._frame = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._file.read(1 << 16)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("the compressed file breaks off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(self._compressed))
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Gzip(gzip.GzipFile):
    def close(self) -> None:
        compressed = self.fileobj
        super().close()
        if compressed is not None:
            compressed.close()


def open_source(source: Source, advance: Advance) -> io.BufferedReader:
    """The file's bytes, decompressed; `advance` is told how many bytes of the file itself were read."""
    file = io.BufferedReader(_Counted(source.path, advance), BUFFER_BYTES)
    if source.compression == "gz":
        return io.BufferedReader(_Gzip(fileobj=file, mode="rb"), BUFFER_BYTES)
    if source.compression == "zst":
        return io.BufferedReader(_Zstandard(file), BUFFER_BYTES)
    return file


def decoded(file: BinaryIO, path: str, chunk_bytes: int) -> Iterator[str]:
    """The file's text, about `chunk_bytes` at a time, without a byte order mark at its start.

    Raises:
        TokenizerError: a NUL byte or invalid UTF-8, with its byte offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    chunk = None
    while chunk != b"":
        chunk = file.read(chunk_bytes)
        if b"\0" in chunk:
            raise TokenizerError(f"{path}: not a text file (a NUL byte at offset {offset + chunk.index(0)})")
        held_back = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            position = offset - held_back + error.start
            raise TokenizerError(f"{path}: not a text file (invalid UTF-8 at byte offset {position})") from None
        yield text.removeprefix(BOM) if offset - held_back == 0 else text
        offset += len(chunk)
