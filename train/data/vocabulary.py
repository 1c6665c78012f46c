"""Vocabularies trained on a corpus, in the same cache as its ids."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tokenizer import Tokenizer, TokenizerError, load
from tokenizer.documents import Piece, ReadOptions, Source
from tokenizer.piece import PieceTokenizer
from train.data.cache import becoming, cache_folder, check_unchanged, content_key, identity, locked
from train.data.sample import training_sample

if TYPE_CHECKING:
    from tokenizer.train import Progress, Settings

VERSION = 2
SHAPING = ("vocab_size", "rounds", "max_piece_bytes", "boundaries", "method", "allow_fewer")
OnProgress = Callable[["Progress"], object]


class Recipe(NamedTuple):
    """A vocabulary of the training part of a corpus: from `sample_bytes` of it, by `settings`.

    Attributes:
        texts: files that `train.data.prepare` reads as one corpus, and their share of the sample; of a mixture, so for
            each of its sources.
        val_fraction: what `prepare` holds out of them.
    """

    texts: Sequence[tuple[Sequence[Source], float]]
    options: ReadOptions
    val_fraction: float
    sample_bytes: int
    settings: Settings


def cached_vocabulary(recipe: Recipe, cache_dir: str | os.PathLike[str] | None = None,
                      on_progress: OnProgress = lambda _: None) -> Tokenizer:
    """The vocabulary of a recipe, from the cache or trained now.

    What a killed training left is in the cache, too, and the next one for the same recipe goes on from there.

    Args:
        on_progress: told how far each phase of a training is; never called when the cache has it.

    Raises:
        UserError, TokenizerError: as `training_sample` and `train_vocabulary`; or the cache folder cannot be written.
    """
    with cache_folder(cache_dir) as root:
        content = {"vocabulary": VERSION,
                   "texts": [(identity(sources, recipe.options, root), share) for sources, share in recipe.texts],
                   "val_fraction": recipe.val_fraction, "sample_bytes": recipe.sample_bytes,
                   **{name: value for name, value in asdict(recipe.settings).items() if name in SHAPING}}
        folder = root / f"vocabulary-{content_key(content)}"
        found = _opened(folder)
        if found is None:
            with locked(root / f"{folder.name}.lock"):
                found = _opened(folder)
                if found is None:
                    shutil.rmtree(folder, ignore_errors=True)
                    found = _train_whole(folder, recipe, on_progress)
        return found


def _opened(folder: Path) -> Tokenizer | None:
    with contextlib.suppress(TokenizerError):
        return load(folder)
    return None


def _train_whole(folder: Path, recipe: Recipe, on_progress: OnProgress) -> Tokenizer:
    """Work files stay when training is cut short."""
    from tokenizer.train import Progress, train_vocabulary

    def told(done: int, total: int) -> None:
        on_progress(Progress("reading text", done, total))

    def sample() -> Iterator[Piece]:
        for sources, share in recipe.texts:
            room = round(share * recipe.sample_bytes)
            yield from training_sample(sources, recipe.options, recipe.val_fraction, room, told)
            check_unchanged(sources)

    work = folder.with_suffix(".work")
    work.mkdir(exist_ok=True)
    trained = PieceTokenizer(train_vocabulary(sample(), recipe.settings, work, on_progress, corpus=folder.name))
    with becoming(folder) as partial:
        trained.save(partial)
    shutil.rmtree(work, ignore_errors=True)
    return trained
