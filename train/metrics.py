"""metrics.jsonl: one JSON object per logged step or evaluation."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from train.files import write_text

NATS_PER_BIT = math.log(2.0)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a metrics file; a last line that a killed process left unfinished is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


class MetricsLog:
    """Appends rows; every row reaches the operating system at once, the disk when `sync` is called.

    Args:
        after_step: rows of later steps are dropped, so that a resumed run writes each step once.
    """

    def __init__(self, path: Path, after_step: int = 0):
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= after_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a", encoding="utf-8")

    def append(self, row: dict) -> None:
        """Write one row. Values that are not finite are a ValueError: JSON has no word for them."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Flush the rows to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
