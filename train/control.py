"""Steer a run while it trains: python -m train.control RUN status

A run listens on a socket in its folder, which only its user may open. A connection carries one request and one reply,
each a line of JSON: {"command": "set", "arguments": {"lr": 1e-4, "over": 500}} gets {"message": ...} or {"error": ...}.
Nothing of the engine is loaded here, so that the command answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from train.asking import PLACE, SOCKET, Flags, NotRunning, ask, fail, read_line
from train.files import write_text

NAME = "s"  # of a socket that is being made, or that is in a folder of its own
LONGEST_ADDRESS = 100  # bytes: macOS has room for 104, Linux for 108
LONGEST_LINE = 65_536  # bytes of a request
MOST_CLIENTS, MOST_WAITING = 16, 64
CLIENT_SECONDS = 5.0  # a client's time to send its line, and to take the reply
PATIENCE = 0.5  # seconds between two looks at whether all is over
ENDED = {"error": "the run has ended"}


@dataclass
class Request:
    """What a client asks of the run; whoever handles it replies once."""

    command: str
    arguments: dict
    answer: dict | None = None
    _answered: threading.Event = field(default_factory=threading.Event)

    def reply(self, answer: dict) -> None:
        """Hand the client its answer."""
        self.answer = answer
        self._answered.set()

    def wait(self, seconds: float) -> bool:
        """Whether there is an answer, at the latest after so long."""
        return self._answered.wait(seconds)


class Control:
    """A run's ear: a context manager that listens on RUN/control.sock in a thread.

    `status` is answered by that thread from the last snapshot; all else waits for `requests`. Where the folder's path
    is too long for a socket, the socket is in a private temporary folder that RUN/control.path names. What a killed run
    left is replaced: hold the folder's lock.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._requests: queue.Queue[Request] = queue.Queue(MOST_WAITING)
        self._snapshot = {"state": "starting"}
        self._places = threading.BoundedSemaphore(MOST_CLIENTS)
        self._closing = False

    def __enter__(self) -> Control:
        _remove(self.folder)
        self._listener = self._listen()
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._closing = True
        with contextlib.suppress(NotRunning):
            ask(self.folder, "status", seconds=PATIENCE)  # wakes the thread
        self._thread.join(2 * PATIENCE)
        self._listener.close()
        _remove(self.folder)
        for request in self.requests():
            request.reply(ENDED)

    def publish(self, snapshot: dict) -> None:
        """What `status` answers from now on."""
        self._snapshot = snapshot

    def requests(self) -> list[Request]:
        """All that was asked for since the last call."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._requests.get_nowait())
        return found

    def wait(self, seconds: float) -> list[Request]:
        """As `requests`; waits for one so long at most."""
        try:
            first = self._requests.get(timeout=seconds)
        except queue.Empty:
            return []
        return [first, *self.requests()]

    def _listen(self) -> socket.socket:
        """A socket that is private from birth: made in a folder of this user alone, then moved."""
        fits = len(os.fsencode(self.folder.absolute())) + len("/.control-12345678/s") <= LONGEST_ADDRESS
        try:
            if not fits:
                raise OSError(errno.ENAMETOOLONG, "the path is too long for a socket")
            private = tempfile.mkdtemp(prefix=".control-", dir=self.folder.absolute())
            listener = _bound(os.path.join(private, NAME))
            os.replace(os.path.join(private, NAME), self.folder / SOCKET)
            os.rmdir(private)
        except OSError:  # some file systems have no sockets, either
            address = os.path.join(tempfile.mkdtemp(prefix="loam-"), NAME)
            listener = _bound(address)
            write_text(self.folder / PLACE, address, durable=False)
        listener.settimeout(PATIENCE)
        return listener

    def _accept(self) -> None:
        while not self._closing:
            if not self._places.acquire(timeout=PATIENCE):
                continue
            try:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), name="control client", daemon=True).start()
            except TimeoutError:
                self._places.release()
            except OSError:
                self._places.release()
                time.sleep(PATIENCE)

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                answer = self._answer(read_line(client, LONGEST_LINE, CLIENT_SECONDS), client)
                client.settimeout(CLIENT_SECONDS)
                client.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            pass  # the client went away, or is stuck: the run has nothing to do with it
        finally:
            self._places.release()

    def _answer(self, line: bytes, client: socket.socket) -> dict:
        try:
            asked = json.loads(line)
            json.dumps(asked, ensure_ascii=False).encode()
            command, arguments = asked["command"], asked.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {"error": f"a request must be a line of JSON in UTF-8 with a command, at most {LONGEST_LINE} bytes"}
        if not isinstance(command, str) or not isinstance(arguments, dict):
            return {"error": f"a request must have a command and its arguments: got {str(asked)[:80]}"}
        if command == "status":
            return self._snapshot
        request = Request(command, arguments)
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            return {"error": f"the run has {MOST_WAITING} requests to answer before: try again later"}
        while not request.wait(PATIENCE):
            if self._closing:
                return ENDED
            if _gone(client):
                raise ConnectionAbortedError
        return request.answer


def _bound(address: str) -> socket.socket:
    """A socket that listens, for this user alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen(MOST_WAITING)
    except OSError:
        listener.close()
        raise
    return listener


def _gone(connection: socket.socket) -> bool:
    """Whether the other side has hung up."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


def _remove(folder: Path) -> None:
    """Take away a run's socket, and what a killed run left of it; never more than sockets and their empty folders."""
    (folder / SOCKET).unlink(missing_ok=True)
    left = [path / NAME for path in folder.glob(".control-*")]
    if (folder / PLACE).is_file():
        left.append(Path((folder / PLACE).read_text(encoding="utf-8")))
        (folder / PLACE).unlink()
    for path in left:
        with contextlib.suppress(OSError):
            if path.is_socket():
                path.unlink()
            path.parent.rmdir()


def _arguments(command: str, words: list[str]) -> dict:
    """The words after a command, by name. ValueError when they do not fit it."""
    if command == "sample" and len(words) <= 1:
        return {"text": "".join(words)}
    if command == "undo" and len(words) <= 1 and all(word.isdecimal() for word in words):
        return {"change": int(words[0])} if words else {}
    if command == "set" and words and all("=" in word for word in words):
        pairs = dict(word.split("=", 1) for word in words)
        return {key: int(text) if key == "over" and text.isdecimal() else text for key, text in pairs.items()}
    if words or command == "set":
        takes = {"set": "KEY=VALUE [over=STEPS]", "sample": 'one "TEXT"', "undo": "the number of a change"}
        raise ValueError(f"{command} takes {takes.get(command, 'nothing more')}: got {' '.join(words) or 'nothing'}")
    return {}


def _told(answer: dict) -> str:
    """An answer as text for a terminal, which it cannot steer."""
    lines = [answer.get("text"), answer.get("message")]
    if "state" in answer:
        lines = [f"{key.replace('_', ' '):16} {value:,}" if isinstance(value, int) else
                 f"{key.replace('_', ' '):16} {f'{value:.5g}' if isinstance(value, float) else value}"
                 for key, value in answer.items() if value is not None]
    text = "\n".join(line for line in lines if line is not None)
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def main(argv: list[str] | None = None, ask: Callable[..., dict] = ask) -> int:
    parser = Flags(prog="python -m train.control", allow_abbrev=False, description="Steer a run while it trains.",
                   epilog='commands: status, pause, resume, save, stop, sample "TEXT", set lr=1e-4 over=500, '
                   "set KEY=VALUE (batch_tokens, seq_len, eval_every, sample_every, log_every, checkpoint.every), "
                   "undo [NUMBER], pin (save, and keep it for good), evaluate")
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/demo-1")
    parser.add_argument("command", metavar="COMMAND", help="what to do: see below")
    parser.add_argument("words", nargs="*", metavar="WORD", help="what the command takes")
    given = parser.parse_args(argv)
    sys.stdout.reconfigure(errors="replace")
    try:
        answer = ask(given.run, given.command, _arguments(given.command, given.words))
    except (NotRunning, ValueError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    if "error" in answer:
        return fail(answer["error"])
    try:
        print(_told(answer), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
