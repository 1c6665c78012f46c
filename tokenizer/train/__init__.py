"""Training a vocabulary: text to shards, shards to candidate pieces, rounds of segmenting, counting and pruning."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.documents import Piece
from tokenizer.interface import TokenizerError
from tokenizer.train import engines, rounds, seed_method
from tokenizer.train.discover import discover as discovered
from tokenizer.train.report import Round
from tokenizer.train.settings import Settings, TooLittleText, parse_bytes
from tokenizer.train.spool import open_arrays, save_arrays, spool as write_shards, spooled, write_whole
from tokenizer.vocabulary import Pieces, Vocabulary

__all__ = ["Progress", "Round", "Settings", "TooLittleText", "parse_bytes", "train_vocabulary", "unfinished"]

TRAINING, CANDIDATES, LOCK = "training.json", "candidates.npy", "lock"
SEED_ALPHA = 1.0
CHANGE_NOTHING = ("memory", "engine", "workers")


class Progress(NamedTuple):
    """How far a phase is: `done` of `total` tasks, or bytes of text where the total is unknown (None)."""

    phase: str
    done: int
    total: int | None


def train_vocabulary(documents: Iterable[Piece], settings: Settings, folder: Path | None = None,
                     on_progress: Callable[[Progress], object] | None = None,
                     on_round: Callable[[Round], object] | None = None, corpus: str = "") -> Vocabulary:
    """A vocabulary of exactly `settings.vocab_size` pieces from the text of `documents`.

    Args:
        folder: where work files live, and from which a training that was cut short goes on if it is given the same
            settings and `corpus`. It is left to the caller to remove. None: a temporary one.
        on_progress: told how far each phase is.
        on_round: told what each round found, those of before an interruption too.
        corpus: a name that is equal only for equal documents, which are read once only.
    Raises:
        TooLittleText: no text; fewer pieces in it than wanted, unless `settings.allow_fewer`.
        TokenizerError: work files of another corpus or of other settings; a training at work in the same folder; a
            folder or disk that cannot be written.
    """
    report = on_progress or (lambda progress: None)

    def run(job: engines.Job, tasks: Sequence, where: Path, name: str) -> list[Path]:
        return engines.run(job, tasks, where, name, settings.engine, settings.workers,
                           lambda done, total: report(Progress(name, done, total)))

    with _work_folder(folder, settings, corpus) as work, engines.cluster(settings.engine, settings.workers):
        shards = spooled(work)
        if shards is None:
            shards = write_shards(documents, work, on_progress=lambda done: report(Progress("reading", done, None)))
        if not sum(shard.stat().st_size for shard in shards):
            raise TooLittleText("no text to train on: every document is empty")
        way, find = rounds.Way(), discovered
        if settings.method != "discover":
            alpha = SEED_ALPHA if settings.method == "seed-sampled" else None
            way, find = seed_method.Seed(alpha), seed_method.fragments
        if not (work / CANDIDATES).exists():
            pieces, counts = find(shards, work, settings, run)
            joined = Pieces.joined(pieces)
            write_whole(work / CANDIDATES, lambda to: save_arrays(to, [joined.text, joined.starts, counts]))
        text, starts, counts = open_arrays(work / CANDIDATES)
        return rounds.prune(shards, Pieces(text, starts), np.array(counts), work, settings, run, on_round, way)


def unfinished(folder: Path, settings: Settings, corpus: str) -> bool:
    """Whether a folder holds work files worth going on with, which then are of these settings and this corpus.

    Raises:
        TokenizerError: of others.
    """
    if spooled(folder) is None:
        return False
    found = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    for name, value in _identity(settings, corpus).items():
        if found.get(name) != value:
            change = "on other text" if name == "corpus" else f"with {name} {found.get(name)!r}, now {value!r}"
            raise TokenizerError(f"{folder}: an unfinished training {change}; repeat its command to go on with it, or "
                                 "delete the folder to start over")
    return True


def _identity(settings: Settings, corpus: str) -> dict[str, object]:
    shaping = {name: value for name, value in dataclasses.asdict(settings).items() if name not in CHANGE_NOTHING}
    return {**shaping, "corpus": corpus}


@contextlib.contextmanager
def _work_folder(folder: Path | None, settings: Settings, corpus: str) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="vocabulary-") as temporary:
            yield Path(temporary)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "w")
    except OSError as error:
        raise TokenizerError(f"{folder}: cannot write ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TokenizerError(f"{folder}: another training is at work here") from None
        if not unfinished(folder, settings, corpus):
            text = json.dumps(_identity(settings, corpus), indent=1)
            write_whole(folder / TRAINING, lambda to: to.write_text(text, encoding="utf-8"))
        yield folder
