"""Tokenising files into shards, by several processes when there is enough of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import parent_process
from pathlib import Path

from engine.errors import UserError
from tokenizer import Tokenizer
from tokenizer.documents import Advance, ReadOptions, Source
from train.data.shards import Index, Section, save_index, shard_name, write_shard

SHARD_BYTES = 32 << 20
SHARDS = 256
PARALLEL_FROM_BYTES = 1 << 30
PARALLEL_FROM_SECONDS = 10.0
POLL_SECONDS = 0.2

Progress = Callable[[int, int], None]


class ToldProgress:
    """Adds up what was read of `sources` and tells (bytes read, bytes in all), of which there are never more read."""

    def __init__(self, sources: Sequence[Source], on_progress: Progress | None) -> None:
        self.done, self.total, self._tell = 0, sum(source.size for source in sources), on_progress

    def __call__(self, count: int) -> None:
        self.done = min(self.done + count, self.total)
        if self._tell:
            self._tell(self.done, self.total)

    def finish(self) -> None:
        """All is read."""
        self(self.total - self.done)


def no_text(sources: Sequence[Source]) -> UserError:
    """The error of a corpus without text."""
    names = ", ".join(source.path for source in sources[:3]) + (" ..." if len(sources) > 3 else "")
    return UserError(f"empty corpus: no text in {names}")


def available_cpus() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(sources: Sequence[Source], shard_bytes: int = 0) -> list[list[Section]]:
    """Cuts a corpus into shards of about `shard_bytes` of source each; does not depend on the number of processes.

    A plain JSON Lines file is cut between lines. Any other large file is one shard.

    Args:
        shard_bytes: 0 for 32 MiB, or as much more as keeps their number, and so that of open files, in the hundreds.
    """
    shard_bytes = shard_bytes or max(SHARD_BYTES, sum(source.size for source in sources) // SHARDS)
    shards: list[list[Section]] = []
    room = 0
    for source in sources:
        step = shard_bytes if source.kind == "lines" and not source.compression else max(source.size, 1)
        for start in range(0, max(source.size, 1), step):
            stop = min(start + step, source.size)
            if not shards or room < stop - start:
                shards.append([])
                room = shard_bytes
            shards[-1].append(Section(source, start, None if stop == source.size else stop))
            room -= stop - start
    return shards


def build(
    folder: Path,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    options: ReadOptions,
    workers: int = 0,
    on_progress: Progress | None = None,
) -> None:
    """Tokenises `sources` into shards in `folder`, an existing empty one.

    Args:
        workers: processes; 0 for one on each processor where that pays: they take seconds to start, so a corpus under
            1 GiB is begun without, and goes on with them if the rest would take long.
        on_progress: told (bytes of source read, bytes in all).

    Raises:
        UserError: as `read_source`, or there is no text at all.
        OSError: writing failed.
    """
    shards = plan(sources)
    processes = min(workers or available_cpus(), len(shards))
    jobs = [(folder / shard_name(i), shard, i) for i, shard in enumerate(shards)]
    advance = ToldProgress(sources, on_progress)
    parts: list[Index] = []
    pays = workers > 1 or advance.total >= PARALLEL_FROM_BYTES
    started = time.monotonic()
    while jobs and not (processes > 1 and pays):
        path, shard, number = jobs.pop(0)
        parts.append(write_shard(path, shard, number, tokenizer, options, advance))
        pays = not workers and len(jobs) / len(parts) * (time.monotonic() - started) > PARALLEL_FROM_SECONDS
    if jobs:
        parts += _build_in_processes(jobs, tokenizer, options, min(processes, len(jobs)), advance)
    if not any(len(part.lengths) for part in parts):
        raise no_text(sources)
    save_index(folder, parts, tokenizer)
    advance.finish()


def _build_in_processes(
    jobs: list[tuple[Path, list[Section], int]],
    tokenizer: Tokenizer,
    options: ReadOptions,
    processes: int,
    advance: Advance,
) -> list[Index]:
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    told = 0
    with ProcessPoolExecutor(processes, context, _start_worker, (tokenizer, options, done, stop)) as pool:
        try:
            futures = [pool.submit(_work, *job) for job in jobs]
            finished, pending = set(), set(futures)
            while pending and not any(future.exception() for future in finished):
                finished, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
                now = done.value
                advance(now - told)
                told = now
            for future in futures:
                if future.done() and future.exception():
                    raise future.exception()
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError("a tokenising process was killed, perhaps for want of memory; fewer need less") from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    pass


_worker: dict = {}


def _start_worker(tokenizer: Tokenizer, options: ReadOptions, done, stop) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker.update(tokenizer=tokenizer, options=options, done=done, stop=stop)


def _exit_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _work(path: Path, shard: list[Section], number: int) -> Index:
    def advance(count: int) -> None:
        if _worker["stop"].is_set():
            raise _Stopped
        with _worker["done"].get_lock():
            _worker["done"].value += count

    return write_shard(path, shard, number, _worker["tokenizer"], _worker["options"], advance)
