"""Launching a program over a grid of blocks on the CPU's cores.

One level of parallelism: a program runs on one thread, and every BLAS call it makes runs on that thread alone.
The grid is cut into one contiguous range of blocks per thread, so sums over a thread's blocks are taken in the
same order in every run with the same number of threads.

When there is a thread for every core, each keeps to its own core while a launch runs: Linux tends to wake a thread on
the core of the one that woke it, where the two then take turns although another core is idle. With fewer threads than
cores the system places them, so that several processes can share a machine.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Callable

import torch
from threadpoolctl import threadpool_limits

from .. import memory

Program = Callable[[int], None]
RangeProgram = Callable[[int, int, int], None]

_local = threading.local()


class _Worker:
    """A thread that waits for a task, runs it, and reports back."""

    def __init__(self, core: int | None):
        self.core = core
        self.wake, self.done = threading.Lock(), threading.Lock()
        self.wake.acquire()
        self.done.acquire()
        self.task: Callable[[], None] | None = None
        self.error: BaseException | None = None
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self):
        torch.set_num_threads(1)
        _local.inside = True
        _keep_to(self.core)
        while True:
            self.wake.acquire()
            if self.task is None:
                return
            try:
                self.task()
            except BaseException as error:
                self.error = error
            self.task = None
            self.done.release()

    def start(self, task: Callable[[], None] | None):
        """Run the task, or end the thread."""
        self.task = task
        self.wake.release()

    def wait(self):
        self.done.acquire()
        error, self.error = self.error, None
        if error is not None:
            raise error


_workers: list[_Worker] = []
_threads = 0
_cores: list[int] = []  # of the threads, the launching one first; empty when the system places them


def _allowed_cores() -> list[int]:
    """The cores this process may run on and choose among, where the system can tell."""
    try:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
    except (AttributeError, OSError):
        return []
    return sorted(cores)


def _keep_to(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def threads() -> int:
    """Number of threads that programs run on: LOAM_THREADS if set, else every core this process may use."""
    if not _threads:
        set_threads(int(os.environ.get("LOAM_THREADS", 0)) or len(_allowed_cores()) or os.cpu_count() or 1)
    return _threads


def set_threads(count: int) -> None:
    """Run programs on `count` threads from now on. Results may differ in the last bits between thread counts."""
    global _threads, _cores
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, got {count}")
    torch.set_num_threads(1)
    if count == _threads:
        return
    threadpool_limits(1, user_api="blas")  # NumPy's own BLAS, too, would open threads under ours
    allowed = _allowed_cores()
    _threads, _cores = count, allowed if len(allowed) == count else []
    for worker in _workers:
        worker.start(None)
    _workers[:] = [_Worker(core) for core in (_cores or [None] * count)[1:]]


def ranges(grid: int) -> list[tuple[int, int]]:
    """How `launch_ranges` cuts a grid: one (start, stop) per thread that gets any block."""
    parts = min(threads(), grid)
    return [(i * grid // parts, (i + 1) * grid // parts) for i in range(parts)]


def launch_ranges(program: RangeProgram, grid: int) -> None:
    """Run `program(lane, start, stop)` once per thread, the ranges covering blocks 0 to grid - 1.

    For programs that sum over their blocks: `lane` numbers the thread's own accumulator.
    """
    parts = ranges(grid)
    if len(parts) <= 1 or getattr(_local, "inside", False):
        for lane, (start, stop) in enumerate(parts):
            program(lane, start, stop)
        return
    _local.inside = True
    active = _workers[: len(parts) - 1]
    if _cores:
        _keep_to(_cores[0])
    try:
        for lane, worker in enumerate(active, 1):
            worker.start(lambda lane=lane: program(lane, *parts[lane]))
        try:
            program(0, *parts[0])
        finally:
            for worker in active:
                worker.wait()
    finally:
        _local.inside = False
        if _cores:
            os.sched_setaffinity(0, _cores)  # what this thread starts next inherits all cores


def launch(program: Program, grid: int) -> None:
    """Run `program(block)` for every block of 0 to grid - 1."""

    def run(_lane: int, start: int, stop: int):
        for block in range(start, stop):
            program(block)

    launch_ranges(run, grid)


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """This thread's own working memory called `name`: uninitialised, valid until the next call with that name."""
    views = _local.__dict__.setdefault("views", {})
    view = views.get((name, shape, dtype))
    if view is None:
        view = views[name, shape, dtype] = _base(name, math.prod(shape), dtype)[: math.prod(shape)].view(shape)
    memory.poison(view)
    return view


def scratch_held() -> int:
    """Bytes of this thread's working memory."""
    return sum(base.numel() * base.itemsize for base in _local.__dict__.get("bases", {}).values())


def prepared(key: tuple, build: Callable[[], object]):
    """This thread's own object for `key`: scratch memory and views into it, which cost more than a small product.

    Built afresh each time while memory is poisoned.
    """
    objects = _local.__dict__.setdefault("objects", {})
    if key not in objects or memory.poisoning():
        objects[key] = build()
    return objects[key]


def _base(name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The memory behind a scratch name, grown when needed; views of an outgrown one are forgotten."""
    bases = _local.__dict__.setdefault("bases", {})
    base = bases.get((name, dtype))
    if base is None or base.numel() < count:
        base = bases[name, dtype] = torch.empty(count, dtype=dtype)
        for key in [key for key in _local.views if key[0] == name and key[2] == dtype]:
            del _local.views[key]
    return base
