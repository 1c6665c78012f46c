"""The text of `bench.tokenization`: documents by kind, a tenth of them held out by hash, and strings that are hard.

A document's kind is what the command line says (zh=PATH), or else what its file's name or its characters tell.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

KINDS = ("zh", "en", "code")
HELD_OUT = 10  # one document in so many
DOCUMENT_BYTES = 4096
CODE_FILES = (".py", ".py.gz", ".py.zst")
CODE_LINE = re.compile(r"^\s*(def|class|import|from|return|if|for|while|func|fn|let|const|var|#include)\b|[{};:]$")
HAN = re.compile(r"[\u3400-\u9fff]")
RANDOM_STRINGS = 20_000


class Document(NamedTuple):
    kind: str
    text: str


def kind_of(text: str, path: str = "") -> str:
    """`zh` where a tenth of the characters are Chinese, `code` by file name or by most lines' look, else `en`."""
    if path.endswith(CODE_FILES):
        return "code"
    sample = text[:20_000]
    if len(HAN.findall(sample)) * 10 > len(sample):
        return "zh"
    lines = [line.rstrip() for line in sample.splitlines() if line.strip()]
    return "code" if lines and sum(bool(CODE_LINE.search(line)) for line in lines) * 2 > len(lines) else "en"


def is_held_out(text: str) -> bool:
    """By the document's hash alone, so that files and their order play no part."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def read_documents(arguments: Iterable[str]) -> Iterator[Document]:
    """The documents of `KIND=PATH` and `PATH` arguments, files or folders; TokenizerError for what cannot be read."""
    from tokenizer.documents import ReadOptions, find_sources, read_source

    for argument in arguments:
        kind, separator, path = argument.partition("=")
        if not separator or kind not in KINDS:
            kind, path = "", argument
        for source in find_sources([path]):
            pieces: list[str] = []
            for piece in read_source(source, ReadOptions()):
                pieces.append(piece.text)
                if piece.last:
                    text, pieces = "".join(pieces), []
                    if text:
                        yield Document(kind or kind_of(text, source.path), text)


def utf8_size(texts: Iterable[str]) -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def draw(documents: list[Document], room: int, seed: int = 0) -> list[Document]:
    """Random documents of `room` bytes, all of them when they are fewer; the last one goes over."""
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    taken, size = [], 0
    for i in order:
        if size >= room:
            break
        taken.append(documents[i])
        size += utf8_size([documents[i].text])
    return taken


def cut(texts: Iterable[str], size: int = DOCUMENT_BYTES, room: int | None = None) -> list[str]:
    """The texts joined by newlines and cut into documents of at most `size` bytes, never inside a character."""
    data = "\n".join(texts).encode("utf-8", "replace")[:room]
    pieces, start = [], 0
    while start < len(data):
        end = min(start + size, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        piece = data[start:end].decode("utf-8", "ignore")
        pieces.append(piece)
        start = end
    return [piece for piece in pieces if piece]


def write_texts(path: Path, texts: Iterable[str]) -> int:
    """A file of JSON lines, each with a `text`; returns the bytes of text."""
    total = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            text = text.encode("utf-8", "replace").decode()
            total += len(text.encode())
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return total


class Texts:
    """The texts of a file by `write_texts`, read anew each time they are asked for: nobody's memory holds them."""

    def __init__(self, path: str | Path):
        self.path = path

    def __iter__(self) -> Iterator[str]:
        with open(self.path, encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def random_strings(count: int = RANDOM_STRINGS, seed: int = 0) -> list[bytes]:
    """Short byte strings: any bytes, few bytes, odd characters of text, the same among broken UTF-8."""
    rng = random.Random(seed)
    broken = [b"\xe4\xbd", b"\xf0\x9f\x98", b"\xc0\x80", b"\xed\xa0\x80", b"\xff\xfe", b"\x80", b"\xe4", b"\xbf\xbf"]
    odd = ["你好", "e\u0301", "\u2581", " ", "\n", "\r\n", "\t", "a", "the", "\u0000", "0", "😀", "\u200d", "\ufeff", "ﬁ"]
    text = [piece.encode() for piece in odd]
    strings = []
    for i in range(count):
        length = rng.randrange(60)
        if i % 4 == 0:
            strings.append(rng.randbytes(length))
        elif i % 4 == 1:
            strings.append(bytes(rng.choices(rng.randbytes(3), k=length)))
        else:
            strings.append(b"".join(rng.choices(text if i % 4 == 2 else text + broken, k=length // 3)))
    return strings


def hard_texts(pieces: list[bytes], size: int, seed: int = 0) -> dict[str, bytes]:
    """Texts of `size` bytes that make an automaton or a best path work hardest, by name; `pieces` is a vocabulary."""
    rng = random.Random(seed)
    known, longest = set(pieces), sorted(pieces, key=lambda piece: (-len(piece), piece))[:500]
    suffixes = {piece: sum(piece[i:] in known for i in range(len(piece))) for piece in longest}
    nested = max(longest, key=lambda piece: (suffixes[piece], piece))
    units = {
        "one letter": b"a", "one space": b" ", "one newline": b"\n", "one mark": b"^", "one digit": b"0",
        "one Chinese character": "的".encode(), "one NUL": b"\0", "one byte of no text": b"\xff",
        "half a character": "的".encode()[:2],
        "pieces in pieces": nested,
        "failures from the deepest": b"".join(piece[:-1] + b"\1" for piece in longest),
        "random pieces": b"".join(rng.choices(pieces[256:] or pieces, k=20_000)),
        "random bytes": rng.randbytes(1 << 16),
    }
    broken = bytearray(("这是一段被打断的文字。" * 3000).encode())
    for i in range(0, len(broken), 7):
        broken[i] = rng.randrange(256)
    units["broken UTF-8"] = bytes(broken)
    return {name: (unit * (size // len(unit) + 1))[:size] for name, unit in units.items()}
