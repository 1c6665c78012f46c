"""What a training tells about its rounds: a line each in rounds.jsonl, and the curves of rounds.png."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenizer.train.spool import write_whole

LOG, PLOT = "rounds.jsonl", "rounds.png"


class Round(NamedTuple):
    """One segmentation of the whole text.

    Attributes:
        round: 0 for the candidates, the last one for the vocabulary.
        pieces: how many pieces there were to choose from.
        tokens: how many the text was cut into.
        bytes_per_token: bytes of the text for each of them.
        coverage: share of the text's bytes that lie in pieces of two characters or more.
        seconds: how long the pass and what followed took.
    """

    round: int
    pieces: int
    tokens: int
    bytes_per_token: float
    coverage: float
    seconds: float


def described(number: int, counts: np.ndarray, lengths: np.ndarray, characters: np.ndarray, seconds: float) -> Round:
    """The report of a round in which pieces of `lengths` bytes and as many `characters` were used `counts` times."""
    tokens, in_bytes = int(counts.sum()), counts * lengths
    total = int(in_bytes.sum())
    return Round(number, len(counts), tokens, round(total / max(1, tokens), 4),
                 round(int(in_bytes[characters > 1].sum()) / max(1, total), 4), round(seconds, 2))


def write_report(folder: Path, rounds: Sequence[Round]) -> None:
    """Writes rounds.jsonl and rounds.png, each whole or not at all."""
    lines = "".join(json.dumps(row._asdict()) + "\n" for row in rounds)
    write_whole(folder / LOG, lambda path: path.write_text(lines, encoding="utf-8"))
    write_whole(folder / PLOT, lambda path: _draw(rounds, path))


def _draw(rounds: Sequence[Round], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 7.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    curves = (("pieces", "pieces", "#08519c"), ("bytes_per_token", "bytes per token", "#d94801"),
              ("coverage", "bytes in pieces of\ntwo characters or more", "#238b45"))
    for axes, (name, label, color) in zip(figure.subplots(len(curves), sharex=True), curves):
        axes.plot([row.round for row in rounds], [getattr(row, name) for row in rounds], color=color, marker="o",
                  markersize=3.5, linewidth=1.4)
        axes.set_ylabel(label)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    canvas.print_png(str(path), pil_kwargs={"compress_level": 6})
