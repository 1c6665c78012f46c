"""Settings that a person changes while a run goes on: what holds at which step, and RUN/steering.jsonl.

A change holds from its step on and is looked up by the step, never by the clock. So a run that is resumed from an
earlier checkpoint takes the same changes at the same steps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train.errors import UserError
from train.files import fsync_path

Schedule = Callable[[int], float]
"""Step (from 1) -> learning rate."""
LR = "lr"


@dataclass(frozen=True)
class Change:
    """One line of the file.

    Attributes:
        step: the first one that it holds for.
        key: "lr", "batch_tokens", ...
        value: None where it undoes an earlier change.
        over: steps in which the learning rate moves there.
        start: the value before: of the learning rate, where the move begins.
        undo: number of the change that is undone, from 1; 0 where it is a change itself.
    """

    step: int
    key: str
    value: float | int | None
    over: int = 0
    start: float | int | None = None
    undo: int = 0

    @property
    def end(self) -> int:
        """The step that arrives at the value."""
        return self.step + max(1, self.over) - 1

    def line(self) -> str:
        """Its line of the file."""
        fields = {"step": self.step, "key": self.key, "over": self.over, "start": self.start}
        return json.dumps(fields | ({"undo": self.undo} if self.undo else {"value": self.value})) + "\n"


class Changes:
    """All changes of a run, in the order in which they were made. A value: `plus` makes a new one."""

    def __init__(self, lines: tuple[Change, ...] = ()):
        self.lines = lines
        self.made = [line for line in lines if not line.undo]
        self._numbers = {id(line): number for number, line in enumerate(self.made, 1)}
        self._by_step = sorted(lines, key=lambda line: line.step)

    def plus(self, line: Change) -> Changes:
        """With one more."""
        return Changes((*self.lines, line))

    def holding(self, key: str, step: int) -> tuple[Change | None, Change | None]:
        """The change of `key` that holds at a step, of several the one with the latest step, then the last made; and
        the undoing that gave the word back to it, or to the settings."""
        held, cancelled, back = [], set(), None
        for line in self._by_step:
            if line.step > step:
                break
            if line.key != key:
                continue
            if not line.undo:
                if self.number(line) not in cancelled:
                    held, back = [*held, line], None
                continue
            cancelled.add(line.undo)
            undone = self.made[line.undo - 1]
            if held and held[-1] is undone:
                back = line
            held = [one for one in held if one is not undone]
        return (held[-1] if held else None), back

    def value(self, key: str, step: int) -> float | int | None:
        """What `key` is changed to at a step; None where the run's settings hold."""
        change, _ = self.holding(key, step)
        return change and change.value

    def lr(self, step: int, scheduled: Schedule) -> float:
        """The learning rate of a step.

        A change moves it from where it was along half a cosine to its value; then it is the schedule times a factor
        that makes it pass through the value there. Undoing moves it back in as many steps.
        """
        change, back = self.holding(LR, step)
        rate = scheduled(step)
        if change is not None:
            there = scheduled(change.end)
            follows = step > change.end and there > 0.0
            rate = _moving(change, step, change.value * rate / there if follows else change.value)
        return rate if back is None else _moving(back, step, rate)

    def number(self, line: Change) -> int:
        """Of a change that was made, from 1."""
        return self._numbers[id(line)]

    def undone(self) -> set[int]:
        """Numbers of the changes that were undone."""
        return {line.undo for line in self.lines if line.undo}

    def steps(self) -> list[int]:
        """The steps at which something changes, in order."""
        return sorted({line.step for line in self.lines})

    def rows(self, step: int) -> list[dict]:
        """What takes effect at a step, as rows of metrics.jsonl."""
        rows, undone = [], {line.undo for line in self.lines if line.undo and line.step < step}
        for line in self.lines:
            if line.step != step:
                continue
            if line.undo:
                rows.append({"step": step, "event": "undo", "of": line.undo, "key": line.key})
            elif self.number(line) not in undone:
                rows.append({"step": step, "event": "set", "key": line.key, "value": line.value, "over": line.over,
                             "was": line.start, "change": self.number(line)})
        return rows


class Steering:
    """The changes of a run, on disk before they hold.

    Args:
        path: RUN/steering.jsonl, which need not be there. A last line that a killed process left unfinished is passed
            over: nobody was told that it holds.

    Raises:
        UserError: a line is broken.
    """

    def __init__(self, path: Path):
        self.path = path
        self._whole = 0
        lines = []
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.is_file() else (), 1):
            if line.endswith(b"\n"):
                lines.append(_parsed(line, f"{path}, line {number}", [*lines]))
                self._whole += len(line)
        self.changes = Changes(tuple(lines))

    def value(self, key: str, step: int) -> float | int | None:
        """See `Changes.value`."""
        return self.changes.value(key, step)

    def lr(self, step: int, scheduled: Schedule) -> float:
        """See `Changes.lr`."""
        return self.changes.lr(step, scheduled) if self.changes.lines else scheduled(step)

    def changes_at(self, step: int) -> list[dict]:
        """See `Changes.rows`."""
        return self.changes.rows(step) if self.changes.lines else []

    def append(self, line: Change) -> None:
        """Add a change; it is on the disk when this returns."""
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, self._whole)
            written = os.pwrite(descriptor, line.line().encode(), self._whole)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            fsync_path(self.path.parent)
        self._whole += written
        self.changes = self.changes.plus(line)


def _moving(line: Change, step: int, target: float) -> float:
    """The rate at a step of a move that begins at `line`: at `line.end` it is the target."""
    if step >= line.end:
        return target
    share = 0.5 - 0.5 * math.cos(math.pi * (step - line.step + 1) / line.over)
    return line.start + (target - line.start) * share


def _parsed(line: bytes, place: str, before: list[Change]) -> Change:
    try:
        change = Change(**{"value": None, **json.loads(line)})
        made = sum(not one.undo for one in before)
        if type(change.step) is int and type(change.undo) is int and 0 <= change.undo <= made:
            if type(change.over) is int and (change.undo or isinstance(change.value, (int, float))):
                return change
    except (ValueError, TypeError):
        pass
    raise UserError(f"{place}: not a change of a run's settings: got {line[:80].decode(errors='replace').strip()!r}")
