"""Vocabularies of other systems as ours: `python -m tokenizer.convert FILE --out DIR`. The kind shows in the content.

Pieces and scores are always kept; costs are rounded to 1/65,536 nats, where the others count in floating point.

- bytepiece's .model, JSON {base64(piece): [id, text, count]}: its normalizer (NFC) and its cuts after newlines stay.
  Ids are its own less 3. Cuts differ at ties only: which of two equal sums is larger follows its rounding.
- The seed's text, lines of piece TAB count: score = log(count / total of the pieces of as many characters), after the
  repairs of its loader. Ids are others (it sorts by text). Cuts are the best path by those scores; where its code takes
  another path is said below.
- sentencepiece's .model of type Unigram: no space is put before the text, spaces are not removed, its tables for NFKC
  are Unicode's (which also change U+FF5E), pieces of the user's own are not cut out first, unknown characters are
  bytes.
- Hugging Face's tokenizer.json of type Unigram, byte-level or with byte fallback: what `tokenizer.export` writes comes
  back exactly; any other pre-tokenizer that splits text is left out, unknown characters are bytes.

A byte that the source has no piece for costs 100 nats, several times what a piece costs: it is used only where no piece
covers the text. The seed's own code lets such bytes cost nothing, but takes them only where a word behind them arrives
at a position first, the longest word before the others. So for a character that is in longer pieces only, and only
there, it may prefer bytes and a long piece to a cut that needs no bytes.
"""

from __future__ import annotations

import io
import json
import math
import struct
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokenizer.alphabet import from_characters
from tokenizer.command import Parser, run_command
from tokenizer.export import split_by
from tokenizer.interface import TokenizerError
from tokenizer.patterns import NAMED, PREFIX
from tokenizer.storage import NAME
from tokenizer.vocabulary import BYTES, COST_UNIT, Vocabulary

UNCOVERED = 100 * COST_UNIT  # the cost of a byte that the source has no piece for
NEVER = (1 << 31) - 1
SPACE = "\u2581"  # what sentencepiece writes for a space
NORMAL, USER_DEFINED, BYTE = 1, 4, 6  # types of sentencepiece's pieces
UNIGRAM = 1


def convert(path: str | Path) -> Vocabulary:
    """The vocabulary in a file of another system; `made_by` says which, and what is not exact.

    Raises:
        TokenizerError: the file cannot be read, or is none of the kinds above.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read the vocabulary ({error.strerror or error})") from None
    try:
        return _reader(data)(data)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise TokenizerError(f"{path}: the vocabulary is damaged ({type(error).__name__}: {error})") from None


def _reader(data: bytes):
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if isinstance(content, dict):
        if isinstance(content.get("model"), dict) and content["model"].get("type") == "Unigram":
            return from_tokenizer_json
        if content and all(isinstance(value, list) and len(value) == 3 for value in content.values()):
            return from_bytepiece
    elif data[:1] == b"\n":
        return from_sentencepiece
    elif b"\t" in data.split(b"\n", 1)[0]:
        return from_seed
    raise TokenizerError("the file must be a .model of bytepiece, a .model of sentencepiece (Unigram), a tokenizer.json"
                         f" of type Unigram, or lines of piece TAB count; it begins with {data[:24]!r}")


def from_seed(data: bytes) -> Vocabulary:
    """The seed's text. As its loader does, "," gets the count of ".", and newline, carriage return and tab, which the
    file cannot hold, get 1; that changes the total of the pieces of one character, so all their costs."""
    counts: dict[str, int] = {}
    for number, line in enumerate(io.StringIO(data.decode(), newline=None), 1):
        piece, tab, count = line.rstrip("\n").rpartition("\t")
        if piece.startswith("\t"):
            continue
        if not (tab and piece and count.isascii() and count.isdigit() and int(count) > 0):
            raise TokenizerError(f"line {number} must be a piece, a tab and a count above 0, got {line!r}")
        counts[piece] = int(count)
    if "." in counts:
        counts |= {",": counts["."], "\r": 1, "\n": 1, "\t": 1}
    totals: dict[int, int] = {}
    for piece, count in counts.items():
        totals[len(piece)] = totals.get(len(piece), 0) + count
    return _vocabulary({piece.encode(): math.log(totals[len(piece)] / count) for piece, count in counts.items()},
                       {piece.encode(): count for piece, count in counts.items()},
                       "the seed's vocabulary", ["characters that are in longer pieces only may be cut otherwise"])


def from_bytepiece(data: bytes) -> Vocabulary:
    """bytepiece cuts text after newlines before anything else: a piece that goes on after one is never used."""
    content = json.loads(data)
    ordered = sorted(content, key=lambda name: content[name][0])
    counts = {b64decode(name, validate=True): int(content[name][2]) for name in ordered}
    if min(counts.values()) < 1:
        raise TokenizerError(f"counts must be above 0, got {min(counts.values())}")
    total = sum(counts.values())
    costs = {piece: math.inf if b"\n" in piece.rstrip(b"\n") else math.log(total / count)
             for piece, count in counts.items()}
    return _vocabulary(costs, counts, "bytepiece", [], "nfc")


def from_sentencepiece(data: bytes) -> Vocabulary:
    """sentencepiece_model.proto: pieces in field 1, the trainer's settings in 2, the normalizer's in 3."""
    fields = list(_fields(data))
    trainer, normalizer = (dict(_fields(next((value for n, value in fields if n == number), b""))) for number in (2, 3))
    if trainer.get(3, UNIGRAM) != UNIGRAM:
        raise TokenizerError(f"the model of sentencepiece must be Unigram (type 1), got type {trainer[3]}")
    costs: dict[bytes, float] = {}
    for piece in (dict(_fields(value)) for number, value in fields if number == 1):
        kind, text = piece.get(3, NORMAL), piece[1].decode()
        if kind in (NORMAL, USER_DEFINED):
            costs[text.replace(SPACE, " ").encode()] = _cost(text, struct.unpack("<f", piece.get(2, bytes(4)))[0])
    name = normalizer.get(1, b"").decode()
    possible = {
        "unknown characters become bytes": True,
        "a space before the text is not added": normalizer.get(3, 1),
        "spaces are not removed": normalizer.get(4, 1),
        f"the normalizer {name} is Unicode's NFKC": "nfkc" in name,
        f"the normalizer {name} is left out": name not in ("", "identity") and "nfkc" not in name,
    }
    notes = [note for note, holds in possible.items() if holds]
    return _vocabulary(costs, {}, "sentencepiece", notes, "nfkc" if "nfkc" in name else "")


def from_tokenizer_json(data: bytes) -> Vocabulary:
    """A Unigram model of Hugging Face's tokenizers; scores are nats, or what `tokenizer.export` wrote."""
    content = json.loads(data)
    pre = content.get("pre_tokenizer") or {}
    kinds = [part.get("type") for part in pre.get("pretokenizers", [pre])]
    unit = COST_UNIT if min(score for _, score in content["model"]["vocab"]) < -COST_UNIT else 1
    outside = {token["content"] for token in content.get("added_tokens", [])}
    costs = {}
    for i, (token, score) in enumerate(content["model"]["vocab"]):
        if token in outside or i == content["model"].get("unk_id") or _is_byte(token):
            continue
        piece = from_characters(token) if "ByteLevel" in kinds else token.replace(SPACE, " ").encode()
        costs[piece] = _cost(token, score / unit)
    normalizer = (content.get("normalizer") or {}).get("type")
    known = {None: "", "NFC": "nfc", "NFKC": "nfkc"}
    notes = [f"the normalizer {normalizer} is left out"] * (normalizer not in known)
    pattern = next((name for name, expression in NAMED.items() if pre == split_by(expression)), "")
    notes += [f"the pre-tokenizer {kind} is left out" for kind in kinds if kind not in (None, "ByteLevel")
              and not pattern]
    return _vocabulary(costs, {}, "tokenizer.json", notes, known.get(normalizer, ""),
                       PREFIX + pattern if pattern else "none")


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _cost(piece: str, score: float) -> float:
    if not score <= 0:
        raise TokenizerError(f"the score of a piece must be a logarithm of a probability, at most 0, got {score} for "
                             f"{piece!r}")
    return -score


def _vocabulary(costs: dict[bytes, float], counts: dict[bytes, int], source: str, not_exact: list[str],
                normalizer: str = "", boundaries: str = "none") -> Vocabulary:
    """The 256 bytes, then the other pieces in their order. Costs in nats."""
    singles = [bytes([byte]) for byte in range(BYTES)]
    pieces = [*singles, *(piece for piece in costs if len(piece) > 1)]
    units = np.array([costs.get(piece, UNCOVERED / COST_UNIT) for piece in pieces]) * COST_UNIT
    notes = ["costs are rounded to 1/65,536 nats", *not_exact]
    return Vocabulary(pieces, np.array([counts.get(piece, 0) for piece in pieces], np.int64),
                      np.rint(np.minimum(units, NEVER)).astype(np.int32), boundaries, normalizer=normalizer,
                      made_by={"converted_from": source, "not_exact": notes})


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message of protocol buffers: numbers as int, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise TokenizerError(f"the file breaks off: field {number} needs {length} bytes")
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def main() -> None:
    parser = Parser(prog="python -m tokenizer.convert",
                    description="Makes a tokenizer from a vocabulary of another system.")
    parser.add_argument("file",
                        help="a .model of bytepiece or sentencepiece, a tokenizer.json, or lines of piece TAB count")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make, or a file that ends in .json")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    file = out if out.suffix == ".json" and not out.is_dir() else out / NAME
    if file.exists():
        raise TokenizerError(f"--out must not hold a vocabulary yet: {file} exists")
    vocabulary = convert(arguments.file)

    from tokenizer.piece import PieceTokenizer

    PieceTokenizer(vocabulary).save(out)
    made_by = vocabulary.made_by
    print(f"{file}: {len(vocabulary):,} pieces from {made_by['converted_from']}; {'; '.join(made_by['not_exact'])}")


if __name__ == "__main__":
    run_command(main)
