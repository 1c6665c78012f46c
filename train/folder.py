"""The folder of a run being written: its files' names, and the lock that keeps a second process out."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from train.errors import UserError


class RunFolder:
    """RUN/ and what is in it. A context manager that holds the lock; hold it before writing."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"
        self.vocabulary = path / "vocabulary.json"
        self.metrics = path / "metrics.jsonl"
        self.picture = path / "loss.png"
        self.samples = path / "samples"
        self.profile = path / "profile.txt"
        self.routing = path / "optimizer.txt"
        self.steering = path / "steering.jsonl"
        self.report = path / "report.html"
        self._lock: int | None = None

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

    def hold(self) -> None:
        """Make the folder and lock it. UserError when another process holds it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(f"{self.path} is in use by process {owner}: one run, one process") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def __enter__(self) -> RunFolder:
        self.hold()
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def numbered(parent: Path, preset: str) -> Path:
    """A new folder parent/preset-<n>, made, with the smallest n above all that are there."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(tail) for path in parent.glob(f"{preset}-*") if (tail := path.name[len(preset) + 1:]).isdecimal()]
    number = max(taken, default=0) + 1
    while True:
        path = parent / f"{preset}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1


def latest(parent: Path) -> Path:
    """The run under `parent` that wrote a file last. UserError when there is none."""
    runs = [path.parent for path in parent.glob("*/config.toml")]
    if not runs:
        raise UserError(f"no run in {parent}{os.sep}: train one with python -m train.pretrain")
    return max(runs, key=lambda run: max(path.stat().st_mtime for path in (run / "config.toml", run / "metrics.jsonl")
                                         if path.exists()))
