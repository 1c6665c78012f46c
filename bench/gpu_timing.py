"""Timing rivals on a GPU: in one process, taking turns, by the card's own events.

How a figure comes about. A contestant gets several sets of inputs, together larger than twice the L2 cache, filled
with random numbers, and is called once on each between two events; rivals take turns, and the order turns around every
round. The card is held busy until the calls are queued, so that what is measured is its time and not that of Python.
A figure is the median over at least 20 rounds; the spread says how far the middle four fifths of them lie apart.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
REPETITIONS = 25
UNFINISHED = 75  # exit code of a benchmark that ran out of time and goes on at the next call: EX_TEMPFAIL
DEFAULT_L2 = 50 << 20  # bytes, of an H100
SOURCES = ("kernels", "engine", "models", "train", "bench", "tests")
TILES = "kernels/gpu/tuning.json"  # what bench.tune writes: figures from before are of other kernels
SLEEP_PROBE = 20_000_000  # cycles
OURS_AT_MOST = {"forward": 2.0, "backward": 3.0}
"""Our error over PyTorch's in the same dtype."""
ROUNDING = {torch.bfloat16: 2**-9, torch.float16: 2**-12, torch.float32: 2**-25}

Call = Callable[[], object]
Prepare = Callable[[int], Call]
"""Number of a set of inputs -> the call to be timed. What comes before it returns is not timed."""


def has_gpu() -> bool:
    return torch.cuda.is_available()


def say_no_gpu(what: str) -> None:
    """One line for a machine without a GPU, where Triton's programs run in its interpreter from here on."""
    print(f"no GPU here: {what}", file=sys.stderr)
    os.environ["TRITON_INTERPRET"] = "1"
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.append(folder)
    __import__("triton_interpreter")


@dataclass
class Times:
    """Seconds per call, one for each round."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Distance between the 10th and the 90th percentile, as a share of the median."""
        if len(self.samples) < 2:
            return 0.0
        tenths = statistics.quantiles(self.samples, n=10, method="inclusive")
        return (tenths[-1] - tenths[0]) / self.median


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:160]}"


class GpuClock:
    """Seconds that the card takes for calls, without those of Python that queue them."""

    def __init__(self):
        self.cycles_per_second = self._calibrated()
        self.queueing: dict[str, float] = {}

    @staticmethod
    def _calibrated() -> float:
        for _ in range(2):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            torch.cuda._sleep(SLEEP_PROBE)
            end.record()
            end.synchronize()
        return SLEEP_PROBE / (start.elapsed_time(end) / 1e3)

    def __call__(self, name: str, calls: list[Call]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        busy = min(1.5 * self.queueing.get(name, 0.0) + 2e-4, 0.05)
        torch.cuda._sleep(int(busy * self.cycles_per_second))
        start.record()
        begin = time.perf_counter()
        for call in calls:
            call()
        self.queueing[name] = time.perf_counter() - begin
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def wall_clock(_name: str, calls: list[Call]) -> float:
    """Seconds of calls that return when their work is done."""
    begin = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - begin


def contest(contestants: Mapping[str, Prepare], sets: int, clock: Callable[[str, list[Call]], float],
            repetitions: int = REPETITIONS, warmup: int = 3) -> dict[str, Times | str]:
    """Name -> its times, or why it has none: what raises, at any time, is out of the contest.

    Args:
        sets: number of sets of inputs; each sample is one call on each.
    """
    found: dict[str, Times | str] = {}
    for name, prepare in contestants.items():
        try:
            for _ in range(max(warmup, 1)):
                clock(name, [prepare(number) for number in range(sets)])
            found[name] = Times()
        except Exception as error:
            found[name] = reason(error)
            _forget_failure()
    for turn in range(repetitions):
        order = [name for name, entry in found.items() if isinstance(entry, Times)]
        for name in order if turn % 2 == 0 else reversed(order):
            try:
                seconds = clock(name, [contestants[name](number) for number in range(sets)])
                found[name].samples.append(seconds / sets)
            except Exception as error:
                found[name] = reason(error)
                _forget_failure()
    return found


def _forget_failure() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def sets_for(bytes_per_set: int, most: int = 64) -> int:
    """How many sets of inputs are together larger than twice the L2 cache, and at least two."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size if has_gpu() else DEFAULT_L2
    return min(max(2, math.ceil(2 * (cache or DEFAULT_L2) / max(bytes_per_set, 1))), most)


def extra_memory(call: Call) -> int:
    """Bytes that a call holds at most, over what was there before and what it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    returned = torch.cuda.memory_allocated() - before
    del result
    return torch.cuda.max_memory_allocated() - before - returned


def copy_bandwidth(clock, size: int = 1 << 30) -> float:
    """Bytes per second of a copy on the card, read and written ones."""
    sources = [torch.randint(-2**31, 2**31 - 1, (size // 4,), dtype=torch.int32, device="cuda") for _ in range(2)]
    places = [torch.empty_like(source) for source in sources]
    times = contest({"copy": lambda n: lambda: places[n].copy_(sources[n])}, 2, clock)["copy"]
    return 2 * size / times.median


def product_rate(clock, n: int = 8192) -> float:
    """FLOP/s of a product of two bfloat16 matrices (n, n)."""
    a, b = (torch.randn(n, n, device="cuda").to(torch.bfloat16) for _ in range(2))
    return 2 * n**3 / contest({"mm": lambda _: lambda: torch.mm(a, b)}, 2, clock)["mm"].median


def device_slug() -> str:
    """The card's name for file names."""
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def facts() -> dict:
    """What a figure depends on: card, driver, clocks, versions, commit, date."""
    found = {"date": date.today().isoformat(), "commit": commit(), "python": platform.python_version(),
             "torch": torch.__version__, "triton": _version("triton"), "liger_kernel": _version("liger-kernel")}
    if has_gpu():
        card = torch.cuda.get_device_properties(0)
        found |= {"device": card.name, "multiprocessors": card.multi_processor_count, "memory": card.total_memory,
                  "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                  "driver": _asked("driver_version"), "clocks": clocks()}
    return found


def clocks() -> dict[str, str | None]:
    """Clocks of multiprocessors and memory now and at most, and power, as the driver says."""
    names = ["clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu"]
    answer = _asked(",".join(names))
    return dict(zip(names, answer.split(", "))) if answer else {}


def _asked(query: str) -> str | None:
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def too_far(phase: str, ours: torch.Tensor, theirs: torch.Tensor, truth: torch.Tensor,
            dtype: torch.dtype) -> str | None:
    """How far we are from the truth (PyTorch in float64), if that is too far beside PyTorch in `dtype`."""
    error, usual = (float((result.double() - truth).norm() / truth.norm()) for result in (ours, theirs))
    if error <= OURS_AT_MOST[phase] * max(usual, ROUNDING[dtype]):
        return None
    return f"error {error:.2e}, PyTorch's {usual:.2e}"


def commit() -> str:
    """The commit checked out; if sources differ from it, or there is none, with a digest of them after a plus."""
    commands = [["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", *(f"{folder}/*.py" for folder in SOURCES), TILES]]
    try:
        ran = [subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
               for command in commands]
    except (OSError, subprocess.CalledProcessError):
        return f"unknown+{_digest()}"
    return ran[0].strip() + (f"+{_digest()}" if ran[1].strip() else "")


def _digest() -> str:
    found = hashlib.sha256()
    for path in [*sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")), ROOT / TILES]:
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:8]


def table(head: list[str], lines: Iterable[Iterable[object]]) -> str:
    """Columns under their heads: words to the left, numbers to the right, None as nothing."""
    cells = [[_cell(value) for value in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(head, *cells)]
    right = [all(_is_number(line[i]) for line in cells if line[i]) and bool(cells) for i in range(len(head))]
    lines_of_text = []
    for line in [head, *cells]:
        parts = [text.rjust(width) if number else text.ljust(width) for text, width, number in zip(line, widths, right)]
        lines_of_text.append("  ".join(parts).rstrip())
    return "\n".join(lines_of_text)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?[\d,.]+(e[-+]?\d+)?%?x?", text) is not None


def report(result: dict) -> None:
    """The one line of JSON that a benchmark ends with."""
    print(json.dumps(result), flush=True)
