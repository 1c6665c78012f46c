"""Time and memory of a model's training steps, by operation and layer. Costs nothing while it is not on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from engine import Module, Op, autograd
from kernels import memory
from train.files import write_text
from train.loop import StepReport
from train.progress import Display

MIB = 1 << 20
SKIPPED_STEPS = 2
PROFILED_STEPS = 10


@dataclass
class Row:
    """Seconds without the operations called from inside; bytes kept for backward; highest rise of pooled memory."""

    calls: int = 0
    forward: float = 0.0
    backward: float = 0.0
    kept: int = 0
    rise: int = 0

    def add(self, other: Row) -> None:
        """Join another's figures to these."""
        self.calls += other.calls
        self.forward += other.forward
        self.backward += other.backward
        self.kept += other.kept
        self.rise = max(self.rise, other.rise)


@dataclass(frozen=True)
class Meter:
    """How time and memory are read: `wait` until all that was launched is done, bytes `held`, and their `peak`."""

    wait: Callable[[], object]
    held: Callable[[], int]
    reset_peak: Callable[[], object]
    peak: Callable[[], int]

    @classmethod
    def of(cls, device: torch.device) -> Meter:
        if device.type == "cuda":
            return cls(torch.cuda.current_stream().synchronize, torch.cuda.memory_allocated,
                       torch.cuda.reset_peak_memory_stats, torch.cuda.max_memory_allocated)
        return cls(lambda: None, lambda: memory.allocated_bytes, memory.reset_peak, lambda: memory.peak_bytes)


class Profile:
    """Context manager that measures every operation run inside it. On a GPU it waits for each, and steps run without
    their graphs: the figures compare operations, and add up to more than a step.

    Args:
        model: its modules' names become the rows' layers.

    Attributes:
        rows: by (layer, operation), in the order they first ran.
    """

    def __init__(self, model: Module):
        self.rows: dict[tuple[str, str], Row] = {}
        self._meter = Meter.of(next(iter(model.parameters())).data.device)
        self._names = {id(module): name for name, module in model.named_modules()}
        self._layers = [""]
        self._inner_seconds = [0.0]

    def __enter__(self) -> Profile:
        self._before = autograd.observer, Module.__call__
        call, names, layers = Module.__call__, self._names, self._layers

        def named_call(module: Module, *arguments, **options):
            layers.append(names.get(id(module), layers[-1]))
            try:
                return call(module, *arguments, **options)
            finally:
                layers.pop()

        autograd.observer, Module.__call__ = self._observe, named_call
        return self

    def __exit__(self, *_) -> None:
        autograd.observer, Module.__call__ = self._before

    def _observe(self, op: Op, phase: str, run):
        layer = op.profiled_layer if phase == "backward" else self._layers[-1]
        if phase == "forward":
            op.profiled_layer = layer
        row = self.rows.setdefault((layer, type(op).__name__.lstrip("_")), Row())
        meter = self._meter
        meter.wait()
        held = meter.held()
        meter.reset_peak()
        self._inner_seconds.append(0.0)
        self._layers.append(layer)
        start = time.perf_counter()
        try:
            return run()
        finally:
            meter.wait()
            seconds = time.perf_counter() - start
            self._layers.pop()
            own = seconds - self._inner_seconds.pop()
            self._inner_seconds[-1] += seconds
            setattr(row, phase, getattr(row, phase) + own)
            row.rise = max(row.rise, meter.peak() - held)
            if phase == "forward":
                row.calls += 1
                row.kept += meter.held() - held

    def text(self, steps: int, seconds: float) -> str:
        """Two tables of means per step: by operation, and by layer and operation.

        Args:
            steps: taken while measuring.
            seconds: they took altogether; what no operation accounts for is the last row.
        """
        by_operation: dict[tuple[str, str], Row] = {}
        for (_, name), row in self.rows.items():
            by_operation.setdefault(("all", name), Row()).add(row)
        title = f"mean of {steps} steps, {1000 * seconds / steps:,.1f} ms each"
        tables = [_table(title + heading, rows, steps, seconds)
                  for heading, rows in ((", by operation", by_operation), (", by layer and operation", self.rows))]
        file = io.StringIO()
        console = Console(file=file, width=200)
        for table in tables:
            console.print(table)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _table(title: str, rows: dict[tuple[str, str], Row], steps: int, seconds: float) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in ("layer", "operation"):
        table.add_column(column)
    for column in ("calls", "forward ms", "backward ms", "share", "MB kept", "MB peak"):
        table.add_column(column, justify="right")

    def line(layer: str, name: str, row: Row) -> None:
        table.add_row(layer, name, f"{row.calls / steps:g}", f"{1000 * row.forward / steps:.2f}",
                      f"{1000 * row.backward / steps:.2f}", f"{(row.forward + row.backward) / seconds:.1%}",
                      f"{row.kept / steps / MIB:.1f}", f"{row.rise / MIB:.1f}")

    total = Row()
    for (layer, name), row in rows.items():
        line(layer or "(model)", name, row)
        total.add(row)
    table.add_section()
    line("all", "operations", total)
    rest = seconds - total.forward - total.backward
    table.add_row("the rest", "batch, norm, optimizer", "", f"{1000 * rest / steps:.2f}", "", f"{rest / seconds:.1%}")
    return table


class Profiling:
    """Profiles some steps of a run once the first ones are over, then steps aside.

    Args:
        path: where the tables are written.
    """

    def __init__(self, model: Module, path: Path):
        self._profile, self._path = Profile(model), path
        self._waiting, self._steps, self._seconds = SKIPPED_STEPS, 0, 0.0

    def step(self, take: Callable[[], StepReport], display: Display) -> StepReport:
        """Take a step."""
        if self._waiting or self._steps == PROFILED_STEPS:
            self._waiting = max(0, self._waiting - 1)
            return take()
        with self._profile:
            report = take()
        self._steps += 1
        self._seconds += report.seconds
        if self._steps == PROFILED_STEPS:
            self._show(display)
        return report

    def finish(self, display: Display) -> None:
        """Show what a run shorter than the profile gathered."""
        if 0 < self._steps < PROFILED_STEPS:
            self._show(display)

    def _show(self, display: Display) -> None:
        text = self._profile.text(self._steps, self._seconds)
        display.say(text)
        write_text(self._path, text, durable=False)
