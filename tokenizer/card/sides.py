"""The tokenizers that a card sets beside each other: Loam's own, and Hugging Face's tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tokenizer.interface import Tokenizer, TokenizerError
from tokenizer.storage import FORMAT, NAME, load
from tokenizer.vocabulary import BYTES, COST_UNIT

HUGGING_FACE_FILE = "tokenizer.json"


class Cut(NamedTuple):
    """One token of a text: its id, and the bytes of the text that it stands for."""

    id: int
    text: bytes


class Side(Protocol):
    """A tokenizer as a card sees it.

    Attributes:
        name: short, for headings.
        family: whose format it is.
        pieces: the bytes of each id; None for special tokens and ids without a meaning.
        special: names of the special tokens.
        counts: how often training text used each id, where known.
        costs: of each id in nats, where known.
        boundaries: the rule that shaped the pieces, where known.
        made_by: what the vocabulary's file says of its making.
    """

    name: str
    family: str
    pieces: list[bytes | None]
    special: list[str]
    counts: np.ndarray | None
    costs: np.ndarray | None
    boundaries: str | None
    made_by: dict[str, object]

    def encode(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts joined, and int64 [texts + 1] where each text's begin and where the last one's end. Bytes
        are not normalized; a tokenizer that takes text only loses what is not UTF-8."""

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids."""

    def cuts(self, text: str) -> list[Cut]:
        """A text's tokens; joined they are the text, unless the tokenizer changes or drops some of it."""


class LoamSide:
    family = "Loam"

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self.name = name
        self._tokenizer = tokenizer
        vocabulary = getattr(tokenizer, "vocabulary", None)
        known = range(BYTES) if vocabulary is None else vocabulary.pieces
        self.special = list(tokenizer.special)
        self.pieces = [piece if isinstance(piece, bytes) else bytes([piece]) for piece in known]
        self.pieces += [None] * len(self.special)
        self.counts = self.costs = self.boundaries = None
        self.made_by = {}
        if vocabulary is not None:
            rest = np.zeros(len(self.special), np.int64)
            self.counts = np.concatenate((vocabulary.counts, rest))
            self.costs = np.concatenate((vocabulary.costs, rest)) / COST_UNIT
            self.boundaries, self.made_by = vocabulary.boundaries, dict(vocabulary.made_by)

    def encode(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        return self._tokenizer.encode_batch(texts)

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids)

    def cuts(self, text: str) -> list[Cut]:
        return [Cut(i, self.pieces[i] or b"") for i in self.encode([text])[0].tolist()]


class HuggingFaceSide:
    family = "Hugging Face"
    counts = costs = boundaries = None
    made_by: dict[str, object] = {}

    def __init__(self, name: str, path: Path) -> None:
        tokenizers = _library(path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise TokenizerError(f"{path}: the tokenizers package cannot read it ({error})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.name = name
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = [token.content for _, token in sorted(added.items()) if token.special]
        special = {i for i, token in added.items() if token.special}
        written = Writing(json.loads(self._tokenizer.to_str()))
        self.pieces = [None] * (1 + max(self._tokenizer.get_vocab().values(), default=-1))
        for token, i in self._tokenizer.get_vocab().items():
            if i not in special:
                self.pieces[i] = token.encode() if i in added else written.piece(token)

    def encode(self, texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        texts = [text.decode("utf-8", "ignore") if isinstance(text, bytes) else text for text in texts]
        try:
            found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:
            raise TokenizerError(f"{self.name}: the tokenizers package cannot encode the text ({error})") from None
        starts = np.cumsum([0, *(len(encoding.ids) for encoding in found)], dtype=np.int64)
        return np.fromiter((i for encoding in found for i in encoding.ids), np.int64, starts[-1]), starts

    def decode(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def cuts(self, text: str) -> list[Cut]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        found = [Cut(i, self.pieces[i] or b"") for i in encoding.ids]
        if b"".join(cut.text for cut in found) == text.encode():
            return found
        return [Cut(i, text[start:end].encode()) for i, (start, end) in zip(encoding.ids, encoding.offsets)]


def _library(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise TokenizerError(f"{path}: reading it needs the package tokenizers (pip install tokenizers)") from None
    return tokenizers


class Writing:
    """How a tokenizer.json writes the bytes of its pieces as text."""

    def __init__(self, content: dict) -> None:
        described = json.dumps([content.get("pre_tokenizer"), content.get("decoder"), content.get("normalizer")])
        model = content["model"]
        self._letters = _letters_of_bytes() if '"ByteLevel"' in described else None
        self._space = "▁" if '"Metaspace"' in described or "▁" in described else None
        self._byte_fallback = model.get("byte_fallback") or '"ByteFallback"' in described
        self._inner = model.get("continuing_subword_prefix") or ""

    def piece(self, token: str) -> bytes:
        if self._letters is not None and all(letter in self._letters for letter in token):
            return bytes(self._letters[letter] for letter in token)
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        if self._inner and token.startswith(self._inner):
            token = token.removeprefix(self._inner)
        return (token.replace(self._space, " ") if self._space else token).encode()


def _letters_of_bytes() -> dict[str, int]:
    """The visible letters that byte-level BPE writes bytes as (GPT-2's `bytes_to_unicode`): those that are visible
    themselves, and from U+0100 on the others in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def open_side(path: Path) -> Side:
    """A tokenizer by its file or folder: a Loam vocabulary, or a Hugging Face tokenizer.json.

    Raises:
        TokenizerError: the path is missing, is neither of the two, or the package `tokenizers` is.
    """
    if not path.exists():
        raise TokenizerError(f"{path}: no such file or folder")
    file = path
    if path.is_dir() and not (path / NAME).exists() and (path / HUGGING_FACE_FILE).exists():
        file = path / HUGGING_FACE_FILE
    if file.is_file() and file.suffix == ".json" and not _is_loam(file):
        return HuggingFaceSide(_name(path), file)
    return LoamSide(_name(path), load(path))


def _name(path: Path) -> str:
    """The folder's name where the file's is the same for all."""
    generic = path.is_file() and path.name in (HUGGING_FACE_FILE, NAME)
    path = path.resolve()
    return (path.parent.name if generic else path.name if path.is_dir() else path.stem) or "tokenizer"


def _is_loam(path: Path) -> bool:
    """Whether a file says so near its beginning."""
    with open(path, "rb") as file:
        return FORMAT.encode() in file.read(256)


def open_sides(paths: Sequence[Path]) -> list[Side]:
    """`open_side` of each; names that repeat get a number."""
    sides = [open_side(path) for path in paths]
    names: dict[str, int] = {}
    for side in sides:
        names[side.name] = names.get(side.name, 0) + 1
        if names[side.name] > 1:
            side.name = f"{side.name} ({names[side.name]})"
    return sides
