"""Tokenizers as files: a readable JSON file, and beside that of a vocabulary its compiled tables.

`vocabulary.json` of a trained vocabulary begins with the lines "format", "version", "kind" and "sha256". The SHA-256 is
that of all bytes after its own line. Then come the settings, and one piece per line: `[piece, count, cost]`. A piece is
shown as text where it is valid UTF-8, else as `{"hex": "e4bd"}`.

`vocabulary.tables` (tables.py) is made from the JSON file and names it by SHA-256, size and CRC-32. While those fit,
the JSON file is the one whose SHA-256 and pieces were checked when the tables were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizer.interface import Tokenizer, TokenizerError

if TYPE_CHECKING:
    from tokenizer.piece import PieceTokenizer
    from tokenizer.vocabulary import Vocabulary

FORMAT = "loam-tokenizer"
VERSION = 1
NAME = "vocabulary.json"
TABLES_SUFFIX = ".tables"
_KINDS = ("byte", "pieces")
_SEAL = '{{\n "format": "{}",\n "version": {},\n "kind": "pieces",\n "sha256": "{}",\n'
_SEALED = re.compile(re.escape(_SEAL.format(FORMAT, VERSION, "#")).replace("\\#", "([0-9a-f]{64})").encode())
_PIECES = b'\n "pieces": [\n'
# Characters that JSON need not escape but that an editor would hide, reorder or take for the end of a line.
_UNSEEN = re.compile("[\x7f-\xa0\xad\u0600-\u0605\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\uffff]")


def load(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer saved at `path`, a folder or its JSON file.

    Compiled tables are mapped into memory; where they are missing or do not fit they are made anew, and written if the
    folder can be written.

    Raises:
        TokenizerError: the JSON file is missing, damaged or not understood; names the file, the rule and the value got.
    """
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{file}: cannot read the tokenizer file ({error.strerror or error})") from None
    try:
        return _load_pieces(file, data) if _SEALED.match(data) else _load_bytes(data)
    except TokenizerError as error:
        raise TokenizerError(f"{file}: {error}") from None


def _load_bytes(data: bytes) -> Tokenizer:
    from tokenizer.byte import ByteTokenizer

    content = _parsed(data)
    if content.get("format") != FORMAT:
        raise TokenizerError(f"not a tokenizer file, its format is not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise TokenizerError(f"the format version must be {VERSION}, got {content.get('version')!r}")
    if content.get("kind") not in _KINDS:
        raise TokenizerError(f"the kind must be one of {list(_KINDS)}, got {content.get('kind')!r}")
    if content["kind"] != ByteTokenizer.kind:
        raise TokenizerError('the first lines, up to "sha256", must stand as they were written: the file was changed')
    return ByteTokenizer.from_json(content)


def _load_pieces(file: Path, data: bytes) -> PieceTokenizer:
    from tokenizer.best_path import Tables
    from tokenizer.piece import PieceTokenizer
    from tokenizer.tables import mapped
    from tokenizer.vocabulary import Pieces, Vocabulary

    stated = _SEALED.match(data)[1].decode()
    arrays = mapped(file.with_suffix(TABLES_SUFFIX), _identity(data, stated))
    if arrays is not None:
        settings = _settings(_parsed(data[: data.index(_PIECES)] + _PIECES + b"]}"), len(arrays["counts"]))
        vocabulary = Vocabulary.unchecked(pieces=Pieces(arrays["text"], arrays["starts"]), counts=arrays["counts"],
                                          costs=arrays["costs"], **settings)
        tables = [arrays[name] if arrays[name].ndim else int(arrays[name]) for name in Tables._fields]
        return PieceTokenizer(vocabulary, arrays["rows"], Tables(*tables))
    found = hashlib.sha256(data[_SEALED.match(data).end() :]).hexdigest()
    if found != stated:
        raise TokenizerError(f"the sha256 must be that of all bytes after its line, {found}, got {stated}: the file "
                             "was changed or damaged")
    tokenizer = PieceTokenizer(_vocabulary(_parsed(data)))
    try:
        _write_tables(file, tokenizer, _identity(data, stated))
    except OSError:
        pass  # a folder that others own: this process has its tables in memory
    return tokenizer


def save_pieces(path: str | os.PathLike[str], tokenizer: PieceTokenizer) -> None:
    """Writes a vocabulary's JSON file and its tables (with Numba only, which they are for), each whole or not at all;
    `path` as for `write_json`.

    Raises:
        TokenizerError: `made_by` holds what JSON cannot.
    """
    file, data = _file_to_write(path), _text(tokenizer.vocabulary)
    write_whole(file, data)
    _write_tables(file, tokenizer, _identity(data, _SEALED.match(data)[1].decode()))


def write_json(path: str | os.PathLike[str], content: dict) -> None:
    """Writes format name, version and `content`, whole or not at all.

    Args:
        path: a file if the name ends in .json; else a folder, made if it is not there, that gets a vocabulary.json.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **content}, ensure_ascii=False, indent=1) + "\n"
    write_whole(_file_to_write(path), text.encode())


def _file_to_write(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix == ".json" and not path.is_dir():
        return path
    path.mkdir(parents=True, exist_ok=True)
    return path / NAME


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: under a temporary name beside it, then renamed."""
    descriptor, temporary = tempfile.mkstemp(prefix=path.name + ".", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write_tables(file: Path, tokenizer: PieceTokenizer, identity: dict) -> None:
    from tokenizer.compiled import AVAILABLE
    from tokenizer.tables import packed

    if not AVAILABLE:
        return
    vocabulary = tokenizer.vocabulary
    arrays = {"rows": tokenizer.automaton_rows, "starts": vocabulary.pieces.starts, "counts": vocabulary.counts,
              "costs": vocabulary.costs, "text": vocabulary.pieces.text,
              **{name: np.asarray(value) for name, value in tokenizer.tables._asdict().items()}}
    write_whole(file.with_suffix(TABLES_SUFFIX), packed(arrays, identity))


def _identity(data: bytes, sha256: str) -> dict:
    """What tables say of the JSON file they were made from."""
    return {"sha256": sha256, "bytes": len(data), "crc32": zlib.crc32(data)}


def _text(vocabulary: Vocabulary) -> bytes:
    """The JSON file of a vocabulary."""
    settings = {"boundaries": vocabulary.boundaries, "normalizer": vocabulary.normalizer,
                "special": {name: len(vocabulary) + i for i, name in enumerate(vocabulary.special)},
                "made_by": dict(vocabulary.made_by),
                "columns": ["piece", "count", "cost: -log(probability) in 1/65,536 nats"]}
    rows = zip(vocabulary.pieces, vocabulary.counts.tolist(), vocabulary.costs.tolist(), strict=True)
    lines = ",\n".join(f"  [{_shown(piece)}, {count}, {cost}]" for piece, count, cost in rows)
    try:
        head = json.dumps(settings, ensure_ascii=False, indent=1, allow_nan=False)
        body = f"{head[2:-2]},{_PIECES.decode()}{lines}\n ]\n}}\n".encode()
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"made_by and the names of special tokens must be what JSON can hold: {error}") from None
    return _SEAL.format(FORMAT, VERSION, hashlib.sha256(body).hexdigest()).encode() + body


def _shown(piece: bytes) -> str:
    """A piece as JSON."""
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return f'{{"hex": "{piece.hex()}"}}'
    return json.dumps(text, ensure_ascii=bool(_UNSEEN.search(text)))


def _parsed(data: bytes) -> dict:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"not a tokenizer file, the JSON is broken ({error})") from None
    if not isinstance(content, dict):
        raise TokenizerError(f"not a tokenizer file, its format is not {FORMAT!r}")
    return content


def _settings(content: dict, pieces: int) -> dict:
    """Everything but the pieces."""
    special = content.get("special")
    if not isinstance(special, dict) or list(special.values()) != list(range(pieces, pieces + len(special))):
        raise TokenizerError(f"the ids of special tokens must be {pieces} and the following, in order, got {special}")
    for name, kind in (("boundaries", str), ("normalizer", str), ("made_by", dict)):
        if not isinstance(content.get(name), kind):
            raise TokenizerError(f"{name} must be there and be a {kind.__name__}, got {content.get(name)!r}")
    return {"special": tuple(special), **{name: content[name] for name in ("boundaries", "normalizer", "made_by")}}


def _vocabulary(content: dict) -> Vocabulary:
    from tokenizer.vocabulary import Vocabulary

    rows = content.get("pieces")
    if not isinstance(rows, list):
        raise TokenizerError(f"the pieces must be a list, got {rows!r}")
    for number, row in enumerate(rows):
        if not (type(row) is list and len(row) == 3 and type(row[1]) is type(row[2]) is int):
            raise TokenizerError(f"piece {number} must be [piece, count, cost], got {json.dumps(row)}")
    shown, counts, costs = zip(*rows, strict=True) if rows else ((), (), ())
    pieces = [_piece(number, piece) for number, piece in enumerate(shown)]
    try:
        counts, costs = np.array(counts, np.int64), np.array(costs, np.int64)
    except OverflowError:
        raise TokenizerError(f"counts and costs must be in {-1 << 63}..{(1 << 63) - 1}") from None
    return Vocabulary(pieces, counts, costs, **_settings(content, len(pieces)))


def _piece(number: int, shown: object) -> bytes:
    """The inverse of `_shown`."""
    try:
        return shown.encode() if isinstance(shown, str) else bytes.fromhex(shown["hex"])
    except (TypeError, KeyError, ValueError):
        raise TokenizerError(f'piece {number} must be text or {{"hex": "..."}}, got {json.dumps(shown)}') from None
