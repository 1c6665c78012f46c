"""The runs of a folder as the page shows them: their state, curves and samples."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from pathlib import Path

from train.asking import NoAnswer, NotRunning, ask
from train.dashboard.curves import Curves

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SAMPLE = re.compile(r"step-(\d+)\.txt", re.ASCII)
MOST_SAMPLES, LONGEST_SAMPLE = 20, 20_000
STATUS_SECONDS = 0.5  # a run's time to say how it is
ANSWER_SECONDS = 600.0  # its time to do what it is asked
FRESH_SECONDS = 1.0  # how long its answer is taken for true


class Run:
    """A run folder that is read again and again, each time only what is new."""

    def __init__(self, path: Path):
        self.path, self.name = path, shown(path)
        self.curves = Curves(path / "metrics.jsonl", self.expert_layers)
        self.lock = threading.Lock()
        self._status, self._asked = None, float("-inf")
        self._settings, self._settings_at = {}, 0

    def status(self) -> dict | None:
        """What the run says of itself; None when it does not run."""
        if time.monotonic() - self._asked > FRESH_SECONDS:
            try:
                self._status = ask(self.path, "status", seconds=STATUS_SECONDS)
            except NoAnswer:
                self._status = self._status or {"state": "running"}
            except NotRunning:
                self._status = None
            self._asked = time.monotonic()
        return self._status

    def command(self, command: str, arguments: dict) -> dict:
        """The run's answer to a command; see `train.asking.ask`."""
        try:
            return ask(self.path, command, arguments, ANSWER_SECONDS)
        finally:
            self._asked = float("-inf")

    def settings(self) -> dict:
        """Its config.toml."""
        try:
            at = (self.path / "config.toml").stat().st_mtime_ns
            if at != self._settings_at:
                self._settings = tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
                self._settings_at = at
        except (OSError, ValueError):
            return {}
        return self._settings

    def expert_layers(self) -> list[int]:
        """Numbers of the layers with experts, as `models.experts_config` has them."""
        model = self.settings().get("model", {})
        experts, layers = model.get("experts", {}), model.get("n_layers", 0)
        first, every = experts.get("first_dense", 0), experts.get("every", 1)
        if any(type(value) is not int for value in (layers, first, every)) or every < 1:
            return []
        return [layer for layer in range(layers) if layer >= first and (layer - first + 1) % every == 0]

    def row(self) -> dict:
        """Its line in the list of runs."""
        with self.lock:
            self.curves.refresh()
            last, step, version = dict(self.curves.last), self.curves.step, self.curves.version
            settings, status = self.settings().get("run", {}), self.status() or {}
        total = status.get("total") or settings.get("steps") or None
        tokens = settings.get("tokens") or 0
        over = total and step >= total or tokens and last.get("tokens", 0) >= tokens
        row = {"name": self.name, "state": "finished" if over else "stopped", "step": step, "total": total,
               "changed": self.changed(), "version": version, "samples": self.samples_version()}
        row |= {key: last.get(key) for key in ("loss", "bits_per_byte", "val_loss", "val_bits_per_byte", "lr",
                                               "tokens", "tokens_per_second")}
        return row | {key: value for key, value in status.items() if value is not None}

    def changed(self) -> float:
        """When something was logged last, in seconds since 1970."""
        try:
            return (self.path / "metrics.jsonl").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def drawing(self, **wanted) -> dict:
        """See `Curves.drawing`."""
        with self.lock:
            self.curves.refresh()
            return self.curves.drawing(**wanted)

    def samples_version(self) -> str:
        """Changes when a sample is written."""
        try:
            return str((self.path / "samples").stat().st_mtime_ns)
        except FileNotFoundError:
            return ""

    def samples(self) -> list[dict]:
        """The last texts, the newest first."""
        folder = self.path / "samples"
        found = [(int(match[1]), path) for path in (folder.iterdir() if folder.is_dir() else ())
                 if (match := SAMPLE.fullmatch(path.name))]
        return [{"step": step, "text": path.read_text(encoding="utf-8", errors="replace")[:LONGEST_SAMPLE]}
                for step, path in sorted(found, reverse=True)[:MOST_SAMPLES]]


class Runs:
    """All runs in a folder, or the one run that the folder itself is."""

    def __init__(self, path: Path):
        self.path = path.absolute()
        self._runs: dict[str, Run] = {}

    def found(self) -> dict[str, Run]:
        """By name; folders that are gone are forgotten."""
        here = [self.path] if _is_run(self.path) else (entry for entry in self.path.iterdir() if _is_run(entry))
        self._runs = {shown(path): self._runs.get(shown(path)) or Run(path) for path in here}
        return self._runs

    def rows(self) -> list[dict]:
        """The list of runs: those that run first, then the latest."""
        rows = [run.row() for run in self.found().values()]
        return sorted(rows, key=lambda row: (row["state"] in ("stopped", "finished"), -row["changed"]))

    def get(self, name: str) -> Run | None:
        """A run by name."""
        return self._runs.get(name) or self.found().get(name)


def shown(path: Path) -> str:
    """A folder's name as text."""
    return os.fsencode(path.name).decode(errors="replace")


def _is_run(path: Path) -> bool:
    return any(os.path.isfile(path / name) for name in ("metrics.jsonl", "config.toml"))
