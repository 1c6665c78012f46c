"""A run as one HTML page to read, print and send: RUN/report.html."""

from __future__ import annotations

from pathlib import Path

from train.files import write_text
from train.report.facts import recorded
from train.report.history import read_history
from train.report.page import page

__all__ = ["recorded", "write_report"]


def write_report(run: Path) -> Path:
    """Write RUN/report.html, whole or not at all, from what the folder has by now; returns its path.

    Raises:
        UserError: it is no run folder, or config.toml is not one of ours.
    """
    path = run / "report.html"
    write_text(path, page(read_history(run)), durable=False)
    return path
