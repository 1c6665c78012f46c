"""What a person sees while a run goes on: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from train.loop import StepReport

LINE = ("loss {loss:6.3f}  bits/byte {bits_per_byte:6.3f}  lr {lr:.2e}  grad norm {grad_norm:7.3f}  "
        "{rate:>7,.0f} tokens/s  left {left}")


def clock(seconds: float | None) -> str:
    """1:05, 2:03:04; "?" for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: str) -> str:
    """Text that cannot steer a terminal: other control characters than line ends and tabs become U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


class Display:
    """Shows a run's steps. A context manager: the live line is taken down on the way out.

    Args:
        total: planned steps, None while unknown.
        log_every: without a terminal, a line every so many steps.
    """

    def __init__(self, total: int | None, log_every: int):
        self.total, self.log_every = total, log_every
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._bar = Progress(TextColumn("{task.completed}/{task.fields[planned]}"), BarColumn(bar_width=20),
                             TextColumn("{task.fields[line]}"), console=self.console, refresh_per_second=2,
                             auto_refresh=self.live, disable=not self.live)
        self._task = self._bar.add_task("", total=total, planned=total or "?", line="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def planned(self, total: int) -> None:
        """The number of steps is known now."""
        self.total = total
        self._bar.update(self._task, total=total, planned=total)

    def step(self, report: StepReport, rate: float, left: float | None) -> None:
        """Show a step; `rate` in tokens per second, `left` in seconds or None."""
        due = report.step % self.log_every == 0 or report.step in (1, self.total)
        if not (self.live or due):
            return
        line = LINE.format(**report._asdict(), rate=rate, left=clock(left))
        if self.live:
            self._bar.update(self._task, completed=report.step, line=line)
        else:
            self.say(f"step {report.step}/{self.total or '?'}  {line}")

    def say(self, text: str) -> None:
        """Print lines above the live one."""
        self.console.print(text, markup=False)
        sys.stdout.flush()
