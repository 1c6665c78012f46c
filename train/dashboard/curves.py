"""A run's metrics.jsonl as curves: read as it grows, and thinned for drawing."""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import numpy as np

POINTS = 800  # of a curve at most
MOST_EVENTS = 1000
BLOCK = 1 << 22  # bytes read at a time
BY_LAYER = {"max_vio": "max_vio", "entropy": "load_entropy"}
"""Curves of experts, by what the rows call them."""
MOST_CELLS = 1 << 16  # of a table of loads
LARGEST = (1 << 53) - 1  # of the whole numbers that a page holds exactly


class Curve:
    """Values by step, in the order in which they were written."""

    def __init__(self) -> None:
        self.steps, self.values = array("q"), array("d")

    def append(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)

    def width(self, first: int, last: int) -> int:
        """How many values from index `first` to before `last` make a point: a power of two, so that points stay as they
        are while a curve grows."""
        return 1 << max(0, math.ceil(math.log2(max(1, last - first) / POINTS)))

    def thinned(self, first: int, last: int, width: int) -> dict[str, list[float]]:
        """Points of `width` values each: step of the first value, mean, and where there are several least and largest.

        The points are those of the whole curve: the first may begin before `first`.
        """
        first -= first % width
        steps = np.array(self.steps[first:last:width])
        values = np.array(self.values[first:last])
        if width == 1:
            return {"x": steps.tolist(), "y": _short(values)}
        starts = np.arange(0, len(values), width)
        counts = np.diff(starts, append=len(values))
        return {"x": steps.tolist(), "y": _short(np.add.reduceat(values, starts) / counts),
                "low": _short(np.minimum.reduceat(values, starts)), "high": _short(np.maximum.reduceat(values, starts))}

    def index(self, step: int) -> int:
        """Of the first value at a step or after it."""
        return bisect_left(self.steps, step)


class Curves:
    """The curves and events of a run; `refresh` reads what was written since.

    Args:
        expert_layers: gives the numbers of the layers with experts.

    Attributes:
        load: choices of each expert, by layer, of the last row that tells them, and the steps that they are from.
        version: changes whenever there is something new.
    """

    def __init__(self, path: Path, expert_layers: Callable[[], list[int]] = list):
        self.path, self.expert_layers = path, expert_layers
        self._file: tuple[int, int] = (0, 0)
        self._restarts = 0
        self._forget()

    def _forget(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.events: list[dict] = []
        self.last: dict[str, float] = {}
        self.load: dict[str, object] | None = None
        self.step = 0
        self._place, self._rest = 0, b""

    @property
    def version(self) -> str:
        return f"{self._restarts}.{self._place}"

    def refresh(self) -> None:
        """Read the lines that were added; all of them when the file was written anew, as a resumed run does."""
        try:
            file = open(self.path, "rb")
        except FileNotFoundError:
            return
        with file:
            stat = os.fstat(file.fileno())
            if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._place:
                self._file = stat.st_dev, stat.st_ino
                self._restarts += 1
                self._forget()
            file.seek(self._place)
            while block := file.read(BLOCK):
                self._place += len(block)
                *lines, self._rest = (self._rest + block).split(b"\n")
                for line in lines:
                    self._add(line)

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            return  # cut off by a kill, as train/metrics.py passes it over, or no run's line
        if not isinstance(row, dict) or not _is_count(row.get("step")):
            return
        step = row.pop("step")
        self.step = max(self.step, step)
        if "event" in row:
            self.events.append({"step": step, **row})
            return
        for name, value in row.items():
            if name == "experts" and isinstance(value, dict):
                self._add_experts(step, value)
            elif isinstance(value, dict):
                for part, one in value.items():
                    self._append(f"{name}/{part}", step, one)
            else:
                self._append(name, step, value)

    def _add_experts(self, step: int, found: dict) -> None:
        """What `models.balance.Balance.row` counted: curves by layer, the dead of all layers, the last load."""
        layers = dict(enumerate(self.expert_layers()))
        for key, name in BY_LAYER.items():
            values = found.get(key)
            for place, value in enumerate(values if isinstance(values, list) else ()):
                self._append(f"{name}/layers.{layers.get(place, place)}", step, value)
        load = found.get("load")
        if is_table(load):
            before = self.load["last"] if self.load else 0
            self.load = {"first": min(before + 1, step), "last": step, "choices": load,
                         "layers": [layers.get(place, place) for place in range(len(load))]}
        dead = found.get("dead")
        if isinstance(dead, list) and all(type(count) is int for count in dead):
            self._append("dead_experts", step, sum(dead))
        for name, value in found.items():
            self._append(name, step, value)

    def _append(self, name: str, step: int, value: object) -> None:
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            self.curves.setdefault(name, Curve()).append(step, value)
            self.last[name] = value

    def drawing(self, after: int = 0, generation: str = "", first: int = 0, last: int | None = None) -> dict:
        """What a page draws: all of it, or what has changed when the page says what it has.

        Args:
            after, generation: "upto" and "generation" of the answer that the page has.
            first, last: steps to show; None: to the end.
        Returns:
            "whole" False: in each curve, the points from its first x on take the place of those that the page has, and
            events likewise from step `after` on. "load" is `self.load`, whatever the page has.
        """
        pieces, widths = {}, []
        for name, curve in self.curves.items():
            begin = curve.index(first) if first else 0
            end = len(curve.steps) if last is None else curve.index(last + 1)
            pieces[name] = curve, begin, end, curve.width(begin, end)
            widths.append(f"{name} {pieces[name][3]}")
        now = f"{self._restarts}.{zlib.crc32(' '.join(widths).encode())}.{first}.{last}"
        whole = generation != now
        series = {}
        for name, (curve, begin, end, width) in pieces.items():
            if not whole:
                begin = max(begin, min(curve.index(after), end - 1))
            if begin < end:
                series[name] = curve.thinned(begin, end, width)
        events = [event for event in self.events if whole or event["step"] >= after][-MOST_EVENTS:]
        return {"generation": now, "upto": self.step, "whole": whole, "series": series, "events": events,
                "load": self.load, "version": self.version}


def is_table(load: object) -> bool:
    """Whether it is a table of layers by experts that can be drawn: rows of one length, of counts."""
    return bool(isinstance(load, list) and load and all(
        isinstance(line, list) and 0 < len(line) == len(load[0]) and len(line) * len(load) <= MOST_CELLS
        and all(map(_is_count, line)) for line in load))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _short(values: np.ndarray) -> list[float]:
    """Six significant digits: what a page can show."""
    return [float(f"{value:.6g}") for value in values.tolist()]
