"""A run folder as a report needs it; every part of it may be missing but config.toml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from models.run_folder import checkpoints, read_state
from train.config import Config
from train.curriculum import Curriculum
from train.errors import UserError
from train.folder import RunFolder
from train.metrics import read_metrics
from train.report.charts import Mark
from train.report.facts import read_facts

MARKED = ("set", "undo", "switch", "spike", "skipped")
SAMPLE = re.compile(r"step-(\d+)\.txt")


@dataclass(frozen=True)
class History:
    """What is known of a run.

    Attributes:
        rows: of metrics.jsonl.
        samples: (step, text), by step.
        total: steps of the whole run, or None.
        wall_seconds: of the steps that count, as the last checkpoint has it; 0 where there is none.
    """

    path: Path
    config: Config
    rows: list[dict]
    facts: dict
    samples: list[tuple[int, str]]
    total: int | None
    wall_seconds: float
    checkpoints: list[int]

    @property
    def training(self) -> list[dict]:
        return [row for row in self.rows if "loss" in row and "event" not in row]

    @property
    def evaluations(self) -> list[dict]:
        return [row for row in self.rows if "val_loss" in row]

    @property
    def events(self) -> list[dict]:
        return [row for row in self.rows if "event" in row]

    @property
    def step(self) -> int:
        """The last one that anything is known of."""
        return max([row["step"] for row in self.rows] + self.checkpoints, default=0)

    @property
    def finished(self) -> bool:
        return self.total is not None and self.step >= self.total

    def marks(self) -> list[Mark]:
        """The events that change curves, numbered as in the table of events."""
        return [Mark(number, row["step"], told(row)) for number, row in enumerate(self.events, 1)
                if row["event"] in MARKED]

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a number in the rows."""
        return [(row["step"], row[key]) for row in self.rows if "event" not in row and _is_number(row.get(key))]

    def groups(self, key: str) -> dict[str, list[tuple[int, float]]]:
        """`series` of each name in the dicts that rows have under `key`."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.rows:
            if isinstance(row.get(key), dict):
                for name, value in row[key].items():
                    if _is_number(value):
                        found.setdefault(name, []).append((row["step"], value))
        return found


def read_history(run: Path) -> History:
    """UserError when it is no run folder."""
    folder = RunFolder(run)
    if not folder.holds_run():
        raise UserError(f"{run} holds no run (config.toml is missing)")
    config = Config.load(folder.config)
    saved = checkpoints(run)
    return History(run, config, read_metrics(folder.metrics), read_facts(run), _samples(folder.samples),
                   _total(config), _wall_seconds(saved), list(saved))


def told(row: dict) -> str:
    """An event in words."""
    values = {key: value for key, value in row.items() if key not in ("step", "event")}
    shown = ", ".join(f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}"
                      for key, value in values.items() if value not in (None, ""))
    if row["event"] == "set" and "key" in values:
        smoothly = f" over {values['over']} steps" if values.get("over") else ""
        before = f" (it was {values['was']})" if values.get("was") is not None else ""
        shown = f"{values['key']} = {values.get('value')}{smoothly}{before}"
    return f"step {row['step']:,}: {row['event']} {shown}".strip()


def _total(config: Config) -> int | None:
    run = config.run
    if run.steps:
        return run.steps
    return Curriculum(config.data, run.tokens).total_steps() if run.tokens else None


def _wall_seconds(saved: dict[int, Path]) -> float:
    try:
        return float(read_state(list(saved.values())[-1])["wall_seconds"])
    except (IndexError, KeyError, TypeError, ValueError, UserError):
        return 0.0


def _samples(folder: Path) -> list[tuple[int, str]]:
    found = [(int(match[1]), file) for file in (folder.iterdir() if folder.is_dir() else ())
             if (match := SAMPLE.fullmatch(file.name))]
    return [(step, file.read_text(encoding="utf-8", errors="replace")) for step, file in sorted(found)]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
