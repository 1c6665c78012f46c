"""Reading documents out of one file, as a stream."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from tokenizer.interface import TokenizerError
from tokenizer.documents.files import BOM, Advance, Piece, ReadOptions, Source, decoded, open_source
from tokenizer.documents.rows import read_array, read_lines, read_parquet

UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError)


def read_source(
    source: Source,
    options: ReadOptions,
    advance: Advance = lambda _: None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Piece]:
    """The documents of one file, in pieces.

    Args:
        advance: told, as reading goes on, how many bytes of the file (compressed ones, if it is) were read.
        start, stop: bytes; of an uncompressed "lines" file, only the lines that begin in start <= position < stop.

    Raises:
        TokenizerError: with file and line, row or byte offset.
    """
    try:
        with open_source(source, advance) as file:
            if source.kind == "text":
                yield from _read_text(file, source.path, options)
            elif source.kind == "parquet":
                yield from read_parquet(file, source, options.text_field)
            elif source.kind == "json" and _starts_with_bracket(file):
                yield from read_array(file, source.path, options)
            else:
                yield from read_lines(file, source.path, options.text_field, start, stop)
    except UNREADABLE as error:
        message = getattr(error, "strerror", None) or error
        raise TokenizerError(f"{source.path}: cannot read ({message})") from None


def _starts_with_bracket(file: io.BufferedReader) -> bool:
    return file.peek(1).removeprefix(BOM.encode()).lstrip()[:1] == b"["


def _read_text(file: BinaryIO, path: str, options: ReadOptions) -> Iterator[Piece]:
    separator = options.document_separator
    pending = ""
    for text in decoded(file, path, options.chunk_bytes):
        pending += text
        certain = len(pending)
        if separator:
            *documents, pending = pending.split(separator)
            for document in documents:
                yield Piece(document, True)
            certain = max(0, len(pending) - len(separator) + 1)
        if certain > options.chunk_bytes // 4:
            cut = pending.rfind("\n", 0, certain) + 1 or certain
            yield Piece(pending[:cut], False)
            pending = pending[cut:]
    yield Piece(pending, True)
