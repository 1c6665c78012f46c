"""A process that works when it is asked: a line of JSON there, a line of JSON back.

Nothing of Loam is imported here: where memory is measured, that would count as a rival's.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys


class Worker:
    """This end of it.

    Args:
        name: what an error calls it.
        module: is run with the arguments (`python -m`), reads requests from its standard input and answers each.
        environment: added to this process's.
    """

    def __init__(self, name: str, module: str, *arguments: str, environment: dict[str, str] | None = None):
        self.name = name
        self.process = subprocess.Popen([sys.executable, "-m", module, *arguments], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, **(environment or {})})

    def ask(self, request: dict) -> dict:
        """Its answer; RuntimeError when there is none, or one that is {"error": text}."""
        self.send(request)
        return self.receive()

    def send(self, request: dict) -> None:
        """Asks without waiting, so that several work at once."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, either
            print(json.dumps(request), file=self.process.stdin, flush=True)

    def receive(self) -> dict:
        """The answer to what was sent."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: the process ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: the process failed:\n{answer['error']}")
        return answer

    def close(self) -> None:
        """Lets it end, and waits for that."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
