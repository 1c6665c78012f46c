"""Results that are kept: bench/results/NAME-DATE.json with what measured them, and a plot of the same name."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

from bench.side_by_side import available_cores
from train.files import write_text, write_whole

RESULTS = Path(__file__).parent / "results"


def machine(threads: int) -> dict:
    """What ran a measurement."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cores": available_cores(), "training_threads": threads, "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}", "date": time.strftime("%Y-%m-%d")}


def write_results(name: str, results: dict, plot: Callable[[Path], None]) -> str:
    """Writes both files.

    Args:
        results: JSON values with `machine`'s among them, as "machine".
        plot: draws into a PNG file of that path.
    Returns:
        What to tell of it.
    """
    RESULTS.mkdir(exist_ok=True)
    stem = f"{name}-{results['machine']['date']}"
    write_text(RESULTS / f"{stem}.json", json.dumps(results, indent=1) + "\n")
    write_whole(RESULTS / f"{stem}.png", plot)
    return f"written: {RESULTS / stem}.json and .png"
