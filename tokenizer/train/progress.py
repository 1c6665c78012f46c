"""What a person sees while a vocabulary is trained: bars in a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress as Bars, TextColumn, TimeElapsedColumn

from tokenizer.train.report import Round

PHASES = {"reading": "reading the text", "windows": "counting n-grams", "n-grams": "adding up n-grams",
          "characters": "finding characters", "model": "making the n-gram model", "words": "cutting text into words",
          "merged words": "adding up words", "candidates": "collecting candidates", "cuts": "finding matches"}


class Display:
    """Shows phases and rounds. A context manager: bars are taken down on the way out."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._bars = Bars(TextColumn("{task.description:28}"), BarColumn(bar_width=24),
                          TextColumn("{task.fields[done]}"), TimeElapsedColumn(), console=self.console,
                          refresh_per_second=4, auto_refresh=self.live, disable=not self.live, transient=True)
        self._task = None
        self._phase = ""
        self._done = ""
        self._started = 0.0

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self._finish()
        self._bars.stop()

    def progress(self, phase: str, done: int, total: int | None) -> None:
        """A phase is so far: tasks of `total`, or bytes where the total is None."""
        phase = PHASES.get(phase, phase.replace("-", " "))
        if phase != self._phase:
            self._finish()
            self._phase, self._started = phase, time.monotonic()
            self._task = self._bars.add_task(phase, total=total, done="")
        self._done = f"{done / 1e6:,.2f} MB" if total is None else f"{done}/{total}"
        self._bars.update(self._task, completed=done, total=total, done=self._done)

    def round(self, row: Round, rounds: int) -> None:
        """A round has ended."""
        self._close()
        self.say(f"round {row.round:2d}/{rounds}  {row.pieces:>9,} pieces  {row.bytes_per_token:6.3f} bytes/token  "
                 f"coverage {row.coverage:6.1%}  {row.seconds:6.1f} s")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False)
        sys.stdout.flush()

    def _finish(self) -> None:
        if self._phase:
            seconds = time.monotonic() - self._started
            self.say(f"{self._phase}: {self._done}, {seconds:.1f} s")
        self._close()

    def _close(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task, self._phase = None, ""
