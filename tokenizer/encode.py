"""A corpus as one file of ids: python -m tokenizer.encode DIR --data PATHS --out FILE.bin

FILE.bin holds the ids of all documents, little-endian, 16 bits each up to 65,536 ids and 32 bits above, the
end-of-document id after each; documents without text are left out. FILE.bin.json says what it holds. To read them:

    ids = np.memmap("FILE.bin", json.load(open("FILE.bin.json"))["dtype"], "r")

--decode makes the documents again: python -m tokenizer.encode DIR --decode FILE.bin --out FILE.jsonl
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from tokenizer.command import Parser, run_command
from tokenizer.documents import Piece, ReadOptions, find_sources, read_source
from tokenizer.documents.sources import KINDS
from tokenizer.interface import Tokenizer, TokenizerError, to_utf8
from tokenizer.normalizing import text_bytes
from tokenizer.sampling import SampledTokenizer
from tokenizer.storage import load
from tokenizer.streaming import StreamDecoder, StretchCutter

FORMAT = "loam-ids"
VERSION = 1
BATCH_BYTES = 1 << 20
AHEAD = 2  # batches waiting for each thread
DECODED_AT_ONCE = 1 << 20


class Encoded(NamedTuple):
    """Some ids of a corpus, how many documents end in them, and how many bytes of text they stand for."""

    ids: np.ndarray
    documents: int
    text_bytes: int


@dataclass
class _Batch:
    """Stretches that can be encoded apart: each with its document's number, its place there in bytes, and whether the
    document ends with it."""

    parts: list[bytes] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    last: list[bool] = field(default_factory=list)
    size: int = 0
    text_bytes: int = 0


def encode_documents(tokenizer: Tokenizer, pieces: Iterable[Piece], threads: int = 1) -> Iterator[Encoded]:
    """The ids of documents, in order, each closed by the end-of-document id; those without text are left out.

    What all ids joined are depends on neither `threads` nor how documents come in pieces. A few MB per thread are held,
    and of a document in pieces the longest stretch that is undecided.

    Args:
        tokenizer: any; of a SampledTokenizer the documents with text are numbered from 0.
    """

    def work(batch: _Batch) -> Encoded:
        if isinstance(tokenizer, SampledTokenizer):
            ids, starts = tokenizer.encode_parts(batch.parts, batch.documents, batch.positions)
        else:
            ids, starts = tokenizer.encode_batch(batch.parts)
        ends = starts[1:][np.array(batch.last)]
        return Encoded(np.insert(ids, ends, tokenizer.eod), len(ends), batch.text_bytes)

    waiting = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(tokenizer, pieces):
            waiting.append(pool.submit(work, batch))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> Iterator[_Batch]:
    cutter = StretchCutter(tokenizer)
    batch = _Batch()
    document = position = size = 0
    begun = False
    for text, last in pieces:
        if begun or not last:
            stretch = cutter.push(text) + (cutter.flush() if last else b"")
        else:
            stretch = text_bytes(tokenizer, text)
        size += len(text)
        ends = last and size > 0
        if stretch or ends:
            batch.parts.append(stretch)
            batch.documents.append(document)
            batch.positions.append(position)
            batch.last.append(ends)
        batch.size += len(stretch)
        batch.text_bytes += len(to_utf8(text))
        position, document, begun = position + len(stretch), document + ends, not last
        if last:
            position = size = 0
        if batch.size >= BATCH_BYTES:
            yield batch
            batch = _Batch()
    if batch.parts:
        yield batch


def encode_corpus(
    tokenizer: Tokenizer,
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    options: ReadOptions = ReadOptions(),
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Write the ids of a corpus to the file `out` and a description to `out` + ".json", whole or not at all; what was
    there is replaced.

    Args:
        on_progress: told (bytes of files read, bytes in all).
    Returns:
        The description: format, version, dtype, tokens, documents, bytes (of text), end_of_document, fingerprint; alpha
        and seed of a SampledTokenizer, whose fingerprint is that of the tokenizer within.
    Raises:
        TokenizerError: as `read_source`; or there is no text at all.
        OSError: writing failed.
    """
    out, sources = Path(out), find_sources(paths)
    _check_out(out)
    total, read = sum(source.size for source in sources), 0

    def advance(count: int) -> None:
        nonlocal read
        read += count
        if on_progress:
            on_progress(min(read, total), total)

    pieces = (piece for source in sources for piece in read_source(source, options, advance))
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    tokens = documents = text_bytes = 0
    with _whole(out) as file:
        for encoded in encode_documents(tokenizer, pieces, threads):
            file.write(encoded.ids.astype(dtype, copy=False).data)
            tokens += len(encoded.ids)
            documents += encoded.documents
            text_bytes += encoded.text_bytes
        if not documents:
            names = ", ".join(source.path for source in sources[:3]) + (" ..." if len(sources) > 3 else "")
            raise TokenizerError(f"empty corpus: no text in {names}")
        _description(out).unlink(missing_ok=True)
    sampled = isinstance(tokenizer, SampledTokenizer)
    described = {
        "format": FORMAT, "version": VERSION, "dtype": dtype.str, "tokens": tokens, "documents": documents,
        "bytes": text_bytes, "end_of_document": tokenizer.eod,
        "fingerprint": (tokenizer.tokenizer if sampled else tokenizer).fingerprint(),
        **({"alpha": tokenizer.alpha, "seed": tokenizer.seed} if sampled else {}),
    }
    with _whole(_description(out)) as file:
        file.write((json.dumps(described, indent=1) + "\n").encode())
    return described


def open_ids(path: str | os.PathLike[str]) -> tuple[np.ndarray, dict]:
    """A file that `encode_corpus` wrote: the ids, mapped into memory, and the description.

    Raises:
        TokenizerError: a file is missing, not understood, or the two do not fit.
    """
    path = Path(path)
    try:
        described = json.loads(_description(path).read_text(encoding="utf-8"))
        if (described["format"], described["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format and version must be {FORMAT} and {VERSION}")
        wanted = described["tokens"] * np.dtype(described["dtype"]).itemsize
        if path.stat().st_size != wanted:
            raise TokenizerError(f"{path}: must have {wanted} bytes by its description: got {path.stat().st_size}")
        return np.memmap(path, described["dtype"], "r"), described
    except OSError as error:
        raise TokenizerError(f"{error.filename}: cannot read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{_description(path)}: not a description of ids ({error!r})") from None


def decode_corpus(tokenizer: Tokenizer, path: str | os.PathLike[str], out: str | os.PathLike[str],
                  text_field: str = "text") -> dict:
    """Write the documents of a file of ids as JSON Lines, each in the field `text_field`, whole or not at all.

    Returns:
        The file's description.
    Raises:
        TokenizerError: as `open_ids`; or the ids are another tokenizer's.
        OSError: writing failed.
    """
    ids, described = open_ids(path)
    if described["fingerprint"] != tokenizer.fingerprint():
        raise TokenizerError(f"{path}: the ids were made by another tokenizer, fingerprint {described['fingerprint']}, "
                             f"this one's is {tokenizer.fingerprint()}")
    _check_out(Path(out))
    head = b"{" + json.dumps(text_field, ensure_ascii=False).encode() + b': "'
    stream = StreamDecoder(tokenizer)
    begun = False
    with _whole(Path(out)) as file:
        for start in range(0, len(ids), DECODED_AT_ONCE):
            some = np.asarray(ids[start : start + DECODED_AT_ONCE])
            ends = np.flatnonzero(some == tokenizer.eod).tolist()
            for first, last in zip([0, *(end + 1 for end in ends)], [*ends, len(some)], strict=True):
                if first < last:
                    file.write((b"" if begun else head) + _escaped(stream.push(some[first:last])))
                    begun = True
                if last < len(some):
                    file.write((b"" if begun else head) + _escaped(stream.flush()) + b'"}\n')
                    begun = False
    return described


def _escaped(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False)[1:-1].encode()


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _check_out(path: Path) -> None:
    if path.is_dir():
        raise TokenizerError(f"{path}: must be the name of a file, got a folder")
    if not path.parent.is_dir():
        raise TokenizerError(f"{path}: there is no folder {path.parent}")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb", buffering=BATCH_BYTES) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m tokenizer.encode", description="Turn a corpus into one file of token ids, or back.")
    parser.add_argument("tokenizer", metavar="DIR", help="a tokenizer's folder or file")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--data", nargs="+", metavar="PATH", help=f"{' '.join(KINDS)} files, also .gz or .zst, and "
                     "folders of them")
    way.add_argument("--decode", metavar="FILE.bin", help="make the documents again, as JSON Lines")
    parser.add_argument("--out", required=True, metavar="FILE", help="the ids, or with --decode the documents")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="default: one for each processor")
    parser.add_argument("--text-field", default="text", metavar="F", help="of JSON and Parquet rows (default: text)")
    parser.add_argument("--document-separator", metavar="S",
                        help="cuts text files into documents (default: a file is a document)")
    parser.add_argument("--alpha", type=float, metavar="A", help="cut at random, likely cuts more often; 0: all alike, "
                        "1: by their probability, inf: the best (default: the best)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of --alpha")
    arguments = parser.parse_args(argv)
    if arguments.threads < 0:
        raise TokenizerError(f"--threads must be at least 1, or 0 for all: got {arguments.threads}")
    tokenizer = load(arguments.tokenizer)
    if arguments.decode:
        described = decode_corpus(tokenizer, arguments.decode, arguments.out, arguments.text_field)
    else:
        if arguments.alpha is not None:
            tokenizer = SampledTokenizer(tokenizer, arguments.alpha, arguments.seed)
        options = ReadOptions(arguments.text_field, arguments.document_separator or None)
        console = Console(stderr=True)
        with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(), console=console,
                      transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)
            described = encode_corpus(tokenizer, arguments.data, arguments.out, options,
                                      arguments.threads or _available_cpus(),
                                      lambda done, total: bar.update(task, completed=done, total=total))
    print(f"{arguments.out}: documents {described['documents']:,}, bytes {described['bytes']:,}, "
          f"tokens {described['tokens']:,}, bytes per token {described['bytes'] / described['tokens']:.3f}")
    return 0


if __name__ == "__main__":
    run_command(main)
