"""Documents that are rows: JSON Lines, JSON arrays, Parquet."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from tokenizer.interface import TokenizerError
from tokenizer.documents.files import BOM, BUFFER_BYTES, Piece, ReadOptions, Source, decoded

PARQUET_ROWS = 256
STRING_TYPES = {"string", "large_string", "string_view"}
WHITESPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()
LONGEST_ESCAPE = len(r"\ud83d\ude00") + 4


class _BadRow(Exception):
    """What is wrong with a row; the reader adds where it is."""


def _text_of(row: object, field: str) -> str:
    if not isinstance(row, dict):
        raise _BadRow(f"expected a JSON object, got {type(row).__name__}")
    if field not in row:
        raise _BadRow(f"no field {field!r}, the fields are {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(row[field], str):
        raise _BadRow(f"the field {field!r} must be a string, got {type(row[field]).__name__}")
    return row[field]


def _parsed(line: bytes, position: int) -> object:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadRow(f"not text (invalid UTF-8 at byte offset {position + error.start})") from None
    except json.JSONDecodeError as error:
        raise _BadRow(f"broken JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"broken JSON ({error})") from None


def read_lines(file: BinaryIO, path: str, field: str, start: int, stop: int | None) -> Iterator[Piece]:
    position = start
    if start:
        file.seek(start - 1)
        position += len(file.readline()) - 1
    first = position
    for number, line in enumerate(file, 1):
        if stop is not None and position >= stop:
            return
        mark = len(BOM.encode()) if position == 0 and line.startswith(BOM.encode()) else 0
        content = line[mark:].rstrip()
        if content:
            try:
                text = _text_of(_parsed(content, position + mark), field)
            except _BadRow as bad:
                raise TokenizerError(f"{path}, line {number + _lines_before(path, first)}: {bad}") from None
            yield Piece(text, True)
        position += len(line)


def _lines_before(path: str, position: int) -> int:
    lines = 0
    with open(path, "rb") as file:
        while position > 0 and (chunk := file.read(min(position, BUFFER_BYTES))):
            lines += chunk.count(b"\n")
            position -= len(chunk)
    return lines


class _ArrayText:
    """The text of a JSON array, a window of it in memory."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._window = ""
        self._at = 0
        self._lines_gone = 0

    def line(self, ahead: int = 0) -> int:
        return 1 + self._lines_gone + self._window.count("\n", 0, self._at + ahead)

    def next_sign(self) -> str:
        """The next character that is not white space, left in place; empty at the end of the file."""
        while True:
            self._at = WHITESPACE.match(self._window, self._at).end()
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._grow():
                return ""

    def skip_sign(self) -> None:
        self._at += 1

    def next_value(self) -> object:
        while True:
            try:
                value, self._at = DECODER.raw_decode(self._window, self._at)
                return value
            except json.JSONDecodeError as error:
                broken_off = error.msg.startswith("Unterminated") or error.pos > len(self._window) - LONGEST_ESCAPE
                ahead = error.pos - self._at
                if not (broken_off and self._grow()):
                    raise _BadRow(f"broken JSON ({error.msg}, line {self.line(ahead)})") from None
            except (ValueError, RecursionError) as error:
                raise _BadRow(f"broken JSON ({error})") from None

    def _grow(self) -> bool:
        """Reads on, at least as much again as is not yet used: retries on a long value stay linear in its length."""
        self._lines_gone += self._window.count("\n", 0, self._at)
        parts = [self._window[self._at :]]
        wanted, self._at = 2 * len(parts[0]) + 1, 0
        while sum(map(len, parts)) < wanted and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk)
        self._window = "".join(parts)
        return len(self._window) > len(parts[0])


def read_array(file: BinaryIO, path: str, options: ReadOptions) -> Iterator[Piece]:
    array = _ArrayText(decoded(file, path, options.chunk_bytes))
    array.next_sign()
    array.skip_sign()
    row = 0
    more = array.next_sign() != "]"
    while more:
        row += 1
        line = array.line()
        try:
            text = _text_of(array.next_value(), options.text_field)
        except _BadRow as bad:
            raise TokenizerError(f"{path}, row {row} at line {line}: {bad}") from None
        yield Piece(text, True)
        sign = array.next_sign()
        if sign not in (",", "]"):
            problem = f"expected ',' or ']' after row {row}, got {repr(sign) if sign else 'the end of the file'}"
            raise TokenizerError(f"{path}, line {array.line()}: broken JSON ({problem})")
        more = sign == ","
        if more:
            array.skip_sign()
            array.next_sign()
    array.skip_sign()
    if array.next_sign():
        raise TokenizerError(f"{path}, line {array.line()}: broken JSON (text after the closing bracket)")


def read_parquet(file: BinaryIO, source: Source, field: str) -> Iterator[Piece]:
    # pyarrow takes a third of a second to import, which a start without Parquet files need not wait for.
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as plain:
        if source.compression:
            shutil.copyfileobj(file, plain, BUFFER_BYTES)
        row = 0
        try:
            table = pyarrow.parquet.ParquetFile(plain if source.compression else file)
            _check_column(table.schema_arrow, field, source.path)
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise TokenizerError(f"{source.path}, row {row}: the column {field!r} has no value")
                    yield Piece(text, True)
        except pyarrow.ArrowException as error:
            raise TokenizerError(f"{source.path}: not a readable Parquet file ({_one_line(error)})") from None
        except UnicodeDecodeError:
            raise TokenizerError(f"{source.path}, after row {row}: the column {field!r} holds invalid UTF-8") from None


def _check_column(schema, field: str, path: str) -> None:
    if field not in schema.names:
        raise TokenizerError(f"{path}: no column {field!r}, the columns are {', '.join(map(repr, schema.names))}")
    dtype = schema.field(field).type
    value = dtype.value_type if str(dtype).startswith("dictionary<") else dtype
    if str(value) not in STRING_TYPES:
        raise TokenizerError(f"{path}: the column {field!r} must be a string, got {dtype}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
