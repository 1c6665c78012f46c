"""Asking a run that trains in another process, and what commands need that are to answer at once: nothing of the engine
is loaded here."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

SOCKET, PLACE = "control.sock", "control.path"
"""A run's socket, and the file that says where it is instead."""
LONGEST_REPLY = 16_777_216  # bytes


class NotRunning(Exception):
    """Nobody answers for a run folder; the message says so in one line."""


class NoAnswer(NotRunning):
    """It runs, but did not answer in time."""


def ask(folder: Path, command: str, arguments: dict | None = None, seconds: float | None = None) -> dict:
    """A run's answer to a command.

    Args:
        seconds: how long to wait; None: until it has answered, which takes as long as the step it is at.

    Raises:
        NotRunning: no process trains in this folder.
        NoAnswer: it did not answer in time.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise NotRunning(f"{folder} is not a run folder: it is not there")
    address = _address(folder)
    try:
        if address is None:
            raise ConnectionRefusedError
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(address)
            connection.sendall(json.dumps({"command": command, "arguments": arguments or {}}).encode() + b"\n")
            line = read_line(connection, LONGEST_REPLY, seconds)
    except TimeoutError:
        raise NoAnswer(f"{folder} did not answer within {seconds:g} seconds") from None
    except (ConnectionError, FileNotFoundError):
        raise NotRunning(f"{folder} is not being trained: start it, or go on with "
                         f"python -m train.pretrain --out {folder} --resume") from None
    except OSError as error:
        raise NotRunning(f"{folder} cannot be reached: {error.strerror or error}") from None
    try:
        return json.loads(line)
    except ValueError:
        raise NotRunning(f"{folder} went away before it answered") from None


def read_line(connection: socket.socket, most: int, seconds: float | None) -> bytes:
    """The first line that comes, within so many seconds in all; empty when it is longer than `most` bytes."""
    received, deadline = bytearray(), None if seconds is None else time.monotonic() + seconds
    while not received.endswith(b"\n"):
        connection.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
        part = connection.recv(65_536)
        received += part
        if not part or len(received) > most:
            break
    return bytes(received) if len(received) <= most else b""


def _address(folder: Path) -> str | None:
    """Where a run's socket is or was."""
    if (folder / PLACE).is_file():
        return (folder / PLACE).read_text(encoding="utf-8")
    return str(folder / SOCKET) if (folder / SOCKET).is_socket() else None


class Flags(argparse.ArgumentParser):
    """Flags whose mistakes are told in one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the flags)\n")


def fail(message: str) -> int:
    """Tell a mistake in one line; its exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 2
