"""What a run reads: its vocabulary and its corpus."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tokenizer as tokenizers
from tokenizer import ByteTokenizer, Tokenizer
from tokenizer.documents import ReadOptions, Source
from tokenizer.sampling import SampledTokenizer
from train.config import Config
from train.data import Corpus, MixedStream, Part, TokenStream, corpus_sources, parse_sources, prepare
from train.data.vocabulary import Recipe, cached_vocabulary
from train.errors import UserError
from train.sections import BYTES

if TYPE_CHECKING:
    from tokenizer.train import Progress

MB = 1_000_000
TELL_EVERY_SECONDS = 10


def new_tokenizer(config: Config) -> Tokenizer:
    """What the settings of a new run name: bytes, a vocabulary that is there, or one trained now or in the cache.

    Raises:
        UserError, TokenizerError: no such vocabulary, or nothing to train one on.
    """
    data, wanted = config.data, config.tokenizer
    if wanted.path and wanted.path != BYTES:
        return _exact(tokenizers.load(wanted.path), wanted.path)
    if wanted.path or not wanted.vocab_size:
        return ByteTokenizer()
    recipe = Recipe(source_shares(data.paths), ReadOptions(data.text_field, data.document_separator or None),
                    0.0 if data.val_data else data.val_fraction, round(wanted.sample_mb * MB), wanted.training())
    shown = _Shown(f"vocabulary: {wanted.vocab_size:,} pieces from up to {wanted.sample_mb:g} MB of the text")
    found = cached_vocabulary(recipe, data.cache_dir or None, shown)
    shown.finish()
    return found


def source_shares(paths: Sequence[str]) -> list[tuple[list[Source], float]]:
    """The files of each source of a mixture, with its share of the tokens; all files where there is none."""
    sources = parse_sources(paths)
    if not any(source.name for source in sources):
        return [(corpus_sources(paths), 1.0)]
    total = sum(source.weight for source in sources)
    return [(corpus_sources(source.paths), source.weight / total) for source in sources]


def _exact(tokenizer: Tokenizer, path: str) -> Tokenizer:
    """One that changes no text; else a UserError."""
    normalizer = "" if isinstance(tokenizer, ByteTokenizer) else tokenizer.vocabulary.normalizer
    if normalizer:
        raise UserError(f"{path}: a vocabulary to train with must have no normalizer, or bits per byte would not be "
                        f"those of the text: got {normalizer!r}")
    return tokenizer


def training_tokenizer(config: Config, tokenizer: Tokenizer) -> Tokenizer:
    """What cuts the training text: `tokenizer`, at random where the settings say so."""
    if not config.data.sampling:
        return tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        raise UserError(f"data.sampling needs a vocabulary of pieces, bytes can be cut in one way only: "
                        f"got {config.data.sampling:g}")
    return SampledTokenizer(tokenizer, config.data.sampling, config.run.seed)


class Texts(NamedTuple):
    """A run's text by source, "" where there is one without a name.

    Attributes:
        validation: empty where nothing is held out.
        weights: of the sources, adding up to 1.
    """

    train: dict[str, Part]
    validation: dict[str, Part]
    weights: dict[str, float]

    @property
    def fingerprint(self) -> str:
        """Equal exactly for the same tokens, mixed in the same way."""
        if len(self.train) == 1:
            return next(iter(self.train.values())).fingerprint
        mixture = [(name, part.fingerprint, self.weights[name]) for name, part in self.train.items()]
        return hashlib.sha256(repr(mixture).encode()).hexdigest()


def read_texts(config: Config, tokenizer: Tokenizer) -> Texts:
    """The text of a run, tokenised now or found in the cache."""
    data = config.data
    sources = parse_sources(data.paths)
    if not any(source.name for source in sources):
        corpus = _read_corpus(config, tokenizer, data.paths)
        return Texts({"": corpus.train}, {"": corpus.validation} if corpus.validation else {}, {"": 1.0})
    found = {source.name: _read_corpus(config, tokenizer, source.paths) for source in sources}
    total = sum(source.weight for source in sources)
    validation = {name: corpus.validation for name, corpus in found.items() if corpus.validation}
    if data.val_data:
        validation = {"": next(iter(validation.values()))}
    return Texts({name: corpus.train for name, corpus in found.items()}, validation,
                 {source.name: source.weight / total for source in sources})


def token_stream(texts: Texts, window: int, seed: int) -> TokenStream | MixedStream:
    """The training text of a run in its order."""
    if len(texts.train) == 1:
        return TokenStream(next(iter(texts.train.values())), window, seed)
    return MixedStream(list(texts.train.values()), [texts.weights[name] for name in texts.train], window, seed)


def _read_corpus(config: Config, tokenizer: Tokenizer, paths: Sequence[str]) -> Corpus:
    data, cut = config.data, training_tokenizer(config, tokenizer)

    def show(done: int, total: int) -> None:
        _live(f"reading text: {done / MB:,.1f} of {total / MB:,.1f} MB" + ("\n" if done >= total else ""))

    return prepare(paths, tokenizer, data.text_field, data.document_separator or None, data.val_data,
                   data.val_fraction, data.cache_dir or None, on_progress=show,
                   train_tokenizer=None if cut is tokenizer else cut)


def check_vocabulary(run: Path, tokenizer: Tokenizer, fingerprint: str) -> None:
    """UserError when a run's vocabulary is not the one it began with."""
    if fingerprint and tokenizer.fingerprint() != fingerprint:
        raise UserError(f"cannot go on with {run}: its vocabulary (vocabulary.json) has changed: fingerprint "
                        f"{tokenizer.fingerprint()[:12]}, the run began with {fingerprint[:12]}")


class _Shown:
    """Tells that a vocabulary is being trained, how far it is, and how long it took."""

    def __init__(self, title: str) -> None:
        self.title, self.started, self.told = title, 0.0, 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self.started:
            self.started = self.told = now
            print(self.title, flush=True)
        phase, done, total = progress
        text = f"{phase.replace('-', ' ')}, " + (f"{100 * done / total:.0f} %" if total else f"{done / MB:,.1f} MB")
        _live(f"vocabulary: {text}")
        if not sys.stderr.isatty() and now - self.told > TELL_EVERY_SECONDS:
            self.told = now
            print(f"vocabulary: {text}", flush=True)

    def finish(self) -> None:
        if self.started:
            _live("")
            print(f"vocabulary: trained in {time.monotonic() - self.started:.1f} s, kept for the next run", flush=True)


def _live(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
