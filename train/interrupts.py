"""Ctrl-C and SIGTERM end a run between two steps."""

from __future__ import annotations

import os
import signal
import sys


class Interrupts:
    """Context manager. The first SIGINT or SIGTERM sets `received`; a second SIGINT ends the process at once.

    Attributes:
        received: the signal's number, 0 while there was none. 128 + received is the exit code shells expect.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame) -> None:
        if self.received and number == signal.SIGINT:
            # Raising here could leave another thread's kernel half-way; nothing after the last checkpoint is worth it.
            os.write(sys.stderr.fileno(), b"\naborted; the last checkpoint is as it was\n")
            os._exit(128 + number)
        if not self.received:
            self.received = number
            os.write(sys.stderr.fileno(), b"\nfinishing this step and saving; press Ctrl-C again to abort at once\n")
