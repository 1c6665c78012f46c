"""The contestants of `bench.tokenization`: how each trains, loads, encodes and decodes, in the fastest of its own ways.

Imported by worker processes only, one contestant in each; another Python may run them, so nothing but the standard
library is imported here. Every contestant gets a list of str and gives what its users get: arrays, lists or objects.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
SENTENCE_BYTES = 4096  # sentencepiece drops longer sentences


class Contestant:
    """A tokenizer with a trained vocabulary in a folder.

    `package` is what pip installs, `folder` the name of the contestant whose training it uses when it has none.
    """

    package: str
    folder: str = ""

    @classmethod
    def version(cls) -> str | None:
        """The installed version, or None."""
        try:
            return importlib.metadata.version(cls.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    @classmethod
    def compile(cls) -> None:
        """What happens once on a machine, and not in every training."""

    @classmethod
    def train(cls, texts: Iterable[str], size: int, threads: int, folder: Path) -> dict:
        """Writes a vocabulary of `size` pieces, the 256 bytes included; what it returns goes into the results."""
        raise NotImplementedError

    def __init__(self, folder: Path):
        raise NotImplementedError

    def encode(self, texts: list[str]) -> Any:
        raise NotImplementedError

    def decode(self, encoded: Any) -> list[str] | list[bytes]:
        """The texts of what `encode` gave, one by one."""
        raise NotImplementedError

    def ids(self, encoded: Any) -> list[list[int]]:
        """Plain lists of what `encode` gave."""
        return [list(map(int, row)) for row in encoded]


class Ours(Contestant):
    package = "loam"
    boundaries = "default"

    @classmethod
    def compile(cls) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cls.train(["A few words, 几个字.\n" * 50] * 2, 300, 1, Path(folder))

    @classmethod
    def train(cls, texts: Iterable[str], size: int, threads: int, folder: Path) -> dict:
        from tokenizer.documents import Piece
        from tokenizer.piece import PieceTokenizer
        from tokenizer.train import Settings, train_vocabulary

        phases: dict[str, float] = {}
        last = ["", time.process_time()]

        def note(progress: Any) -> None:
            now = time.process_time()
            phases[progress.phase] = phases.get(progress.phase, 0.0) + now - last[1]
            last[:] = [progress.phase, now]

        settings = Settings(vocab_size=size, workers=threads, boundaries=cls.boundaries, allow_fewer=True)
        vocabulary = train_vocabulary((Piece(text, True) for text in texts), settings, None, note)
        PieceTokenizer(vocabulary).save(folder)
        return {"pieces": len(vocabulary), "rounds": settings.rounds,
                "phases": {name: round(seconds, 2) for name, seconds in phases.items()}}

    def __init__(self, folder: Path):
        from tokenizer import load

        self.tokenizer = load(folder)

    def encode(self, texts: list[str]) -> Any:
        return self.tokenizer.encode_batch(texts)

    def decode(self, encoded: Any) -> list[str]:
        return self.tokenizer.decode_batch(*encoded)

    def ids(self, encoded: Any) -> list[list[int]]:
        ids, starts = encoded
        return [ids[i:j].tolist() for i, j in zip(starts[:-1], starts[1:])]


class HuggingFace(Contestant):
    """Byte-level BPE with the pattern of cl100k."""

    package = "tokenizers"

    @classmethod
    def train(cls, texts: Iterable[str], size: int, threads: int, folder: Path) -> dict:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(CL100K), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                      special_tokens=[], show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(str(folder / "tokenizer.json"))
        ranks = mergeable_ranks(folder)
        lines = [f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items()]
        (folder / "ranks.tiktoken").write_text("".join(lines))
        return {"pieces": tokenizer.get_vocab_size()}

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, texts: list[str]) -> Any:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, encoded: Any) -> list[str]:
        return self.tokenizer.decode_batch(encoded)


def byte_of_character() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2): printable ones stand for themselves."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def mergeable_ranks(folder: Path) -> dict[bytes, int]:
    """Bytes -> id of a byte-level `tokenizer.json`: merges come in the order of their ids, so an id is a rank."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    byte_of = byte_of_character()
    return {bytes(byte_of[character] for character in piece): rank
            for piece, rank in sorted(model["vocab"].items(), key=lambda item: item[1])}


class TikToken(Contestant):
    """With the ranks of `tokenizers`' BPE: the ids are the same."""

    package, folder = "tiktoken", "tokenizers"

    def __init__(self, folder: Path):
        import tiktoken

        self.encoding = tiktoken.Encoding("bench", pat_str=CL100K, mergeable_ranks=mergeable_ranks(folder),
                                          special_tokens={})

    def encode(self, texts: list[str]) -> Any:
        encode = self.encoding.encode_ordinary
        return [encode(text) for text in texts]

    def decode(self, encoded: Any) -> list[bytes]:
        decode = self.encoding.decode_bytes
        return [decode(ids) for ids in encoded]


class GigaToken(Contestant):
    """With the ranks of `tokenizers`' BPE."""

    package, folder = "gigatoken", "tokenizers"

    def __init__(self, folder: Path):
        import gigatoken

        self.tokenizer = gigatoken.Tokenizer.from_tiktoken(folder / "ranks.tiktoken", pretokenizer="cl100k")

    def encode(self, texts: list[str]) -> Any:
        encode = self.tokenizer.encode
        return [encode(text) for text in texts]

    def decode(self, encoded: Any) -> list[bytes]:
        decode = self.tokenizer.decode
        return [decode(ids) for ids in encoded]


class Tokie(Contestant):
    """With the file of `tokenizers`' BPE."""

    package, folder = "tokie", "tokenizers"

    def __init__(self, folder: Path):
        import tokie

        self.tokenizer = tokie.Tokenizer.from_json(str(folder / "tokenizer.json"))

    def encode(self, texts: list[str]) -> Any:
        encode = self.tokenizer.encode
        return [encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, encoded: Any) -> list[bytes]:
        decode = self.tokenizer.decode_bytes
        return [decode(ids) for ids in encoded]


class SentencePiece(Contestant):
    """Unigram, lossless as far as it can be: no normaliser, no dummy prefix, bytes for unknown characters."""

    package = "sentencepiece"

    @classmethod
    def train(cls, texts: Iterable[str], size: int, threads: int, folder: Path) -> dict:
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts), model_prefix=str(folder / "model"), vocab_size=size + 3,
            model_type="unigram", byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, max_sentence_length=2 * SENTENCE_BYTES,
            hard_vocab_limit=False, num_threads=threads, minloglevel=1)
        return {"pieces": cls(folder).processor.get_piece_size() - 3}

    def __init__(self, folder: Path):
        import sentencepiece

        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "model.model"))

    def encode(self, texts: list[str]) -> Any:
        return self.processor.encode(texts, num_threads=1)

    def decode(self, encoded: Any) -> list[str]:
        return self.processor.decode(encoded, num_threads=1)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines(keepends=True):
            data = line.encode()
            for start in range(0, len(data), SENTENCE_BYTES):
                yield data[start:start + SENTENCE_BYTES].decode("utf-8", "ignore")


class BytePiece(Contestant):
    """Its own defaults. It needs pyahocorasick built with AHOCORASICK_BYTES=1, hence a Python of its own."""

    package = "bytepiece"

    @classmethod
    def train(cls, texts: Iterable[str], size: int, threads: int, folder: Path) -> dict:
        from bytepiece import Trainer

        trainer = Trainer(order=6, max_vocab_size=size + 3, ensure_unicode=True)
        trainer.train(texts, workers=threads)
        trainer.save(str(folder / "bytepiece.model"))
        return {"pieces": len(trainer.pieces[0])}

    def __init__(self, folder: Path):
        from bytepiece import Tokenizer

        self.tokenizer = Tokenizer(str(folder / "bytepiece.model"))

    def encode(self, texts: list[str]) -> Any:
        encode = self.tokenizer.encode
        return [encode(text) for text in texts]

    def decode(self, encoded: Any) -> list[str]:
        decode = self.tokenizer.decode
        return [decode(ids) for ids in encoded]


CONTESTANTS: dict[str, type[Contestant]] = {
    "ours": Ours, "bytepiece": BytePiece, "tokenizers": HuggingFace, "tiktoken": TikToken,
    "sentencepiece": SentencePiece, "gigatoken": GigaToken, "tokie": Tokie}
