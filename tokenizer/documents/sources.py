"""Which files a corpus is made of, and the documents in them."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizer.interface import TokenizerError
from tokenizer.documents.files import Piece, ReadOptions, Source
from tokenizer.documents.readers import read_source

KINDS = {".txt": "text", ".md": "text", ".py": "text", ".tokens": "text",
         ".jsonl": "lines", ".json": "json", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
NOT_LIBRARY = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


class FileType(NamedTuple):
    kind: str
    compression: str


def file_type(path: Path) -> FileType | None:
    """How to read a file, by its name: a known extension, or one followed by .gz or .zst; else None."""
    suffix = path.suffix.lower()
    compression = COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = Path(path.stem).suffix.lower()
    return FileType(KINDS[suffix], compression) if suffix in KINDS else None


def find_sources(paths: Iterable[str | os.PathLike[str]]) -> list[Source]:
    """The files that `paths` name, in the order given; a folder gives its files, recursively, sorted by path.

    In folders, hidden entries and unknown extensions are passed over; a file named outright must have a known one.
    A path named twice counts twice.

    Raises:
        TokenizerError: a missing path, an unknown extension, or nothing to read.
    """
    paths = [Path(path).expanduser() for path in paths]
    if not paths:
        raise TokenizerError("no data: name at least one file or folder")
    sources = []
    for path in paths:
        if path.is_dir():
            found = [_source(file) for file in _walk(path) if file_type(file)]
            if not found:
                raise TokenizerError(f"{path}: the folder holds none of {_known()}")
            sources.extend(found)
        elif path.is_file():
            if not file_type(path):
                raise TokenizerError(f"{path}: the extension must be one of {_known()}")
            sources.append(_source(path))
        elif path.exists():
            raise TokenizerError(f"{path}: neither a file nor a folder")
        else:
            raise TokenizerError(f"{path}: no such file or folder")
    return sources


def _known() -> str:
    return f"{' '.join(KINDS)} (also with {' or '.join(COMPRESSIONS)} behind)"


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(parent, name)


def _source(path: Path) -> Source:
    kind, compression = file_type(path)
    try:
        status = path.stat()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read ({error.strerror})") from None
    return Source(str(path), kind, compression, status.st_size, status.st_mtime_ns)


def iter_documents(
    paths: Iterable[str | os.PathLike[str]],
    text_field: str = "text",
    document_separator: str | None = None,
    chunk_bytes: int = 1 << 20,
) -> Iterator[Piece]:
    """The documents of files and folders, in pieces, reading no more than about `chunk_bytes` of a text file at once.

    A row of JSON Lines, of a JSON array or of a Parquet file is a document, in one piece. A text file is a document, in
    as many pieces as it takes, cut after line ends where there are any; `document_separator` cuts it into several.
    Line ends are kept as they are; a byte order mark at the start is not text.

    Yields:
        `Piece(text, last)`: `last` marks the end of a document. A document may be empty.

    Raises:
        TokenizerError: with file and line, row or byte offset.
    """
    options = ReadOptions(text_field, document_separator, chunk_bytes)
    for source in find_sources(paths):
        yield from read_source(source, options)


def standard_library_files() -> list[Path]:
    """The running Python's own library sources, sorted: real text that is on every machine.

    Without its tests and bundled packages, and without the few files that are not UTF-8.

    Raises:
        TokenizerError: this Python came without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - NOT_LIBRARY)
        files.extend(Path(parent, name) for name in sorted(names) if name.endswith(".py"))
    files = [file for file in files if _is_plain_text(file)]
    if not files:
        raise TokenizerError(f"{root}: this Python has no library sources to train on; give your own text with --data")
    return files


def _is_plain_text(path: Path) -> bool:
    try:
        content = path.read_bytes()
        content.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return bool(content) and b"\0" not in content
