"""Rounds: segment the text by the best path, count, propose pieces, drop those whose loss costs least.

A piece is worth what dropping it would cost in tokens: how often it is used, times the tokens it would then be cut
into, less one. Used often in one place only it would serve other text badly, so that "how often" is the geometric mean
of its count and of its spread, the number of blocks of text it occurs in. Costs follow from the same numbers.

Candidates of a language model are words of one segmentation. What they lack the text itself shows: two pieces that
stand side by side often are worth a piece of their own, as in byte-pair encoding (Gage, "A new algorithm for data
compression", 1994). Rounds in the middle propose the most frequent pairs and let them compete.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer import automaton
from tokenizer.boundaries import allowed
from tokenizer.patterns import is_pattern
from tokenizer.train import engines, pairs
from tokenizer.train.counting import (
    Counts, Pass, added_up, count_pieces, find_cuts, forget, stretches, tokens_without, write_tables, write_weights,
)
from tokenizer.train.report import Round, described
from tokenizer.train.settings import Settings, TooLittleText
from tokenizer.train.spool import open_arrays, save_arrays, write_whole
from tokenizer.vocabulary import BYTES, Pieces, Vocabulary, costs_of

NAME, STATE, CUTS, PAIRS = "round", "rounds.npy", "cuts", "pairs"
PAIRS_AT_ONCE = 4096
FOUND, GROWTH = 0.5, 0.25  # of the pieces wanted: those that come from the candidates, and how their number grows
PROPOSED, FEWER = 0.4, 0.8  # of the pieces wanted: pairs of the first round that proposes; that much of it in the next
PROMISING = 0.5  # a pair is proposed if its weight is this share of the worth of the last piece that would be kept
SINGLE_BYTES = [bytes([byte]) for byte in range(BYTES)]

Run = Callable[..., list[Path]]


class Step(NamedTuple):
    """What a round does: keep `size` pieces, and all characters besides if `characters`, then add up to `pairs` pairs.
    """

    size: int
    pairs: int = 0
    characters: bool = False


class State(NamedTuple):
    """Between two rounds: pieces sorted by bytes, float64 weights [pieces], the worth of the last piece that would be
    kept, and the rounds so far."""

    pieces: Sequence[bytes]
    weights: np.ndarray
    least: float
    rounds: Sequence[Round]


def schedule(candidates: int, wanted: int, rounds: int) -> list[Step]:
    """In the first sixth of the rounds from the candidates to half of the wanted number, geometrically; pairs in
    between, fewer each time; in the last sixth those that do not hold out go.

    A character that was dropped could not come back, since pairs are of whole characters: all stay until the end.
    """
    edge = max(1, rounds // 6)
    middle = rounds - 2 * edge
    if middle <= 0:
        return geometric(candidates, wanted, rounds)
    longer = wanted - BYTES
    pruning = [Step(step.size, 0, True) for step in geometric(candidates, BYTES + int(longer * FOUND), edge)]
    proposing = [Step(BYTES + int(longer * min(1, FOUND + i * GROWTH)), math.ceil(longer * PROPOSED * FEWER**i), True)
                 for i in range(middle)]
    surplus = proposing[-1].pairs
    settling = [Step(wanted + surplus * (edge - 1 - i) // (2 * edge)) for i in range(edge)]
    return pruning + proposing + settling


def geometric(candidates: int, wanted: int, rounds: int) -> list[Step]:
    """Sizes that shrink by the same factor each round, from the number of candidates to exactly the number wanted."""
    ratio = wanted / max(1, candidates)
    return [Step(round(candidates * ratio ** (i / rounds))) for i in range(1, rounds)] + [Step(wanted)]


class Way:
    """How rounds weigh, price and rank pieces; `seed_method` has another."""

    schedule = staticmethod(schedule)
    candidates_for_each = 4  # piece wanted: those with the highest counts; and all characters
    alpha: float | None = None  # the strength of sampling while counting; None counts the best path

    def weights(self, counts: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """float64 [pieces]: how often a piece is used, damped by how narrowly."""
        return np.sqrt(counts * spread.astype(np.float64))

    def costs(self, weights: np.ndarray, characters: np.ndarray) -> np.ndarray:
        """int32 [pieces], for the automaton."""
        return costs_of(weights)

    def worth(self, weights: np.ndarray, without: np.ndarray) -> np.ndarray:
        """float64 [pieces]: the order in which pieces are kept. `without`: tokens_without."""
        return weights * (without - 1)


def prune(shards: Sequence[Path], pieces: Sequence[bytes], counts: np.ndarray, folder: Path, settings: Settings,
          run: Run, on_round: Callable[[Round], object] | None = None, way: Way | None = None) -> Vocabulary:
    """Candidates to a vocabulary of `settings.vocab_size` pieces.

    Args:
        pieces, counts: candidates, in any order, with or without single bytes, which are always kept.
        folder: where the state after each round stands; a call that finds one goes on from it.
        run: `engines.run` with engine and workers given.
    Raises:
        TooLittleText: fewer pieces than wanted, unless `settings.allow_fewer`.
    """
    way, on_round = way or Way(), on_round or (lambda row: None)
    folder.mkdir(parents=True, exist_ok=True)
    tasks, total, sampled = stretches(shards)
    cuts = [None] * len(tasks)
    if is_pattern(settings.boundaries):
        cuts = run(find_cuts, [(task, settings.boundaries) for task in tasks], folder, CUTS)
    tasks = list(zip(tasks, cuts))
    counts, wanted = np.asarray(counts), settings.vocab_size
    most = min(len(pieces), way.candidates_for_each * wanted)
    plan = [*way.schedule(most, wanted, settings.rounds), Step(wanted)]
    state = _saved(folder) or _first(pieces, counts, most)
    for row in state.rounds:
        on_round(row)
    with ThreadPoolExecutor(1) as aside:
        removing = None
        while True:
            number, started = len(state.rounds), time.monotonic()
            name = f"{NAME}-{number:02d}"
            cut = _segmented(state, name, tasks, plan[number].pairs > 0, folder, run, way)
            if number < settings.rounds:
                new = _after(state.pieces, cut, plan[number], wanted, lambda least, most: _proposed(
                    state.pieces, _side_by_side(cut.results, total / max(1, sampled), PROMISING * least, run, folder,
                                                name, way), most, settings), way)
                if number == settings.rounds - 1:
                    new = _filled(new, pieces, counts, wanted)
            if removing:
                removing.result()
            removing = aside.submit(_remove, folder, name)
            row = described(number, cut.found.counts, cut.joined.lengths, cut.characters, time.monotonic() - started)
            if number == settings.rounds:
                on_round(row)
                engines.remove(folder, CUTS)
                return _vocabulary(state.pieces, cut, settings, total, way)
            state = new._replace(rounds=[*state.rounds, row])
            _save(folder, state)
            on_round(row)


def _remove(folder: Path, name: str) -> None:
    """Deletes the results of a round, which takes the disk a while."""
    engines.remove(folder, name)
    engines.remove(folder / PAIRS, name)


class Segmented(NamedTuple):
    """What a pass over the text found: pieces joined, int64 [pieces] characters of each, the automaton, counts,
    weights, and the files of its tasks."""

    joined: Pieces
    characters: np.ndarray
    rows: np.ndarray
    found: Counts
    weights: np.ndarray
    results: Sequence[Path]


def _segmented(state: State, name: str, tasks: Sequence, pairs: bool, folder: Path, run: Run, way: Way) -> Segmented:
    joined, tables = Pieces.joined(state.pieces), folder / f"{name}-tables.npy"
    characters = _characters(joined)
    rows = automaton.build(state.pieces, way.costs(state.weights, characters))
    frequent = state.weights >= PROMISING * state.least
    drawn = way.alpha is not None
    write = partial(write_weights, alpha=way.alpha) if drawn else write_tables
    write(tables, rows, joined.lengths, frequent)
    results = run(count_pieces, [Pass(task, tables, pairs, cuts, drawn, len(state.rounds)) for task, cuts in tasks],
                  folder, name)
    forget(tables)
    found = added_up(results)
    return Segmented(joined, characters, rows, found, way.weights(found.counts, found.spread), results)


def _side_by_side(results: Sequence[Path], scale: float, least: float, run: Run, folder: Path, name: str,
                  way: Way) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that the tasks of a pass found, those of weight `least` or more: int64 [pairs, 2], pieces, sorted, and
    float64 [pairs]."""
    return pairs.joined(run(pairs.add_up, pairs.ranges(results, way.weights, scale, least), folder / PAIRS, name))


def _first(pieces: Sequence[bytes], counts: np.ndarray, most: int) -> State:
    """The state before the first round. Bytes that were not counted are as rare as can be."""
    weights = dict.fromkeys(SINGLE_BYTES, 0.0)
    order = np.argsort(-counts, kind="stable")
    rest = order[most:]
    chosen = np.concatenate((order[:most], rest[_characters(Pieces.joined(pieces))[rest] == 1])).tolist()
    weights.update(zip(map(pieces.__getitem__, chosen), counts[chosen].astype(np.float64).tolist()))
    return _state(weights)


def _characters(pieces: Pieces) -> np.ndarray:
    """int64 [pieces]: how many characters each has; bytes that begin none do not count."""
    return np.add.reduceat((pieces.text & 0xC0) != 0x80, pieces.starts[:-1], dtype=np.int64)


def _after(pieces: Sequence[bytes], cut: Segmented, step: Step, wanted: int,
           proposed: Callable[[float, int], dict[bytes, float]], way: Way) -> State:
    """The pieces kept and those proposed. Of equal worth, the first by bytes is kept."""
    worth = way.worth(cut.weights, tokens_without(cut.rows, cut.joined.text, cut.joined.starts))
    worth[cut.joined.lengths == 1] = np.inf
    order = np.argsort(-worth, kind="stable")
    least = float(worth[order[wanted - 1]]) if len(order) >= wanted else 0.0
    kept = order[: max(step.size, BYTES)]
    if step.characters:
        kept = np.append(kept, np.flatnonzero(cut.characters == 1))
    kept = np.unique(kept)
    weights = dict(zip((pieces[i] for i in kept.tolist()), cut.weights[kept].tolist()))
    if step.pairs:
        weights.update(proposed(least, max(step.pairs, wanted - len(weights))))
    return _state(weights, least)


def _filled(state: State, pieces: Sequence[bytes], counts: np.ndarray, wanted: int) -> State:
    """With the commonest candidates that were dropped, where too few pieces are left."""
    weights = dict(zip(state.pieces, state.weights.tolist()))
    for i in np.argsort(-counts, kind="stable").tolist():
        if len(weights) >= wanted:
            break
        weights.setdefault(pieces[i], 0.0)
    return _state(weights, state.least)


def _state(weights: dict[bytes, float], least: float = 0.0) -> State:
    names = sorted(weights)
    return State(names, np.array([weights[name] for name in names]), least, [])


def _proposed(pieces: Sequence[bytes], found: tuple[np.ndarray, np.ndarray], most: int,
              settings: Settings) -> dict[bytes, float]:
    """Up to `most` new pieces, each two that stand side by side, and their weights, the weightiest first. They are
    whole characters and keep to the rule of borders."""
    beside, weights = found
    chosen = np.argsort(-weights, kind="stable")
    known, new = set(pieces), {}
    for at in range(0, len(chosen), PAIRS_AT_ONCE):
        part = chosen[at : at + PAIRS_AT_ONCE]
        names = [pieces[left] + pieces[right] for left, right in beside[part].tolist()]
        for name, weight, fine in zip(names, weights[part].tolist(), allowed(names, settings.boundaries).tolist()):
            if fine and len(name) <= settings.max_piece_bytes and name not in known and _is_text(name):
                if name not in new and len(new) == most:
                    return new
                new[name] = new.get(name, 0.0) + weight
    return new


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _vocabulary(pieces: Sequence[bytes], cut: Segmented, settings: Settings, total: int, way: Way) -> Vocabulary:
    """Bytes first, then the other pieces by falling count, ties by bytes."""
    if len(pieces) < settings.vocab_size and not settings.allow_fewer:
        raise TooLittleText(f"vocab_size must be at most {len(pieces)} for this text of {total:,} bytes, which has no "
                            f"more pieces: got {settings.vocab_size}")
    counts, costs = cut.found.counts, way.costs(cut.weights, cut.characters)
    order = np.lexsort((-counts, cut.joined.lengths > 1))
    order[:BYTES].sort()
    made_by = {"method": settings.method, "rounds": settings.rounds, "max_piece_bytes": settings.max_piece_bytes,
               "text_bytes": total}
    return Vocabulary([pieces[i] for i in order.tolist()], counts[order], costs[order], settings.boundaries,
                      made_by=made_by)


def _save(folder: Path, state: State) -> None:
    """Leaves the state of this round in place of the one before."""
    joined = Pieces.joined(state.pieces)
    rest = json.dumps({"least": state.least, "rounds": state.rounds}).encode()
    arrays = [joined.text, joined.starts, state.weights, np.frombuffer(rest, np.uint8)]
    write_whole(folder / STATE, lambda to: save_arrays(to, arrays))


def _saved(folder: Path) -> State | None:
    if not (folder / STATE).exists():
        return None
    text, starts, weights, rest = open_arrays(folder / STATE)
    rest = json.loads(rest.tobytes())
    return State(Pieces(text, starts)[:], np.array(weights), rest["least"], [Round(*row) for row in rest["rounds"]])
