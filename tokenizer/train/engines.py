"""One job, many tasks: on the threads of this process, or on a Ray cluster, with the same files as the result.

A job is a function of a module, `job(task, path)`. It writes its result at `path` and returns nothing. What tasks share
and is large goes by file. A result is there whole or not at all, and a task whose result is there is not run again:
a training that was killed goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tokenizer.interface import TokenizerError
from tokenizer.train.spool import PARTIAL, write_whole

ENGINES = ("local", "ray")
WRITING = 2  # threads beyond the workers that wait for the disk to have a result, while others compute

Job = Callable[[Any, Path], None]


def worker_count(workers: int = 0) -> int:
    """`workers`, or one for each processor that this process may use."""
    if workers:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(
    job: Job,
    tasks: Sequence[Any],
    folder: Path,
    name: str,
    engine: str = "local",
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Runs `job(task, path)` for every task whose result is not there yet.

    Args:
        tasks: small, and for Ray picklable.
        folder: where results stand, `name-00000.npy` and so on; for Ray one that all its machines see.
        engine: "local", threads of this process: compiled loops and NumPy's sort run without the interpreter lock.
            "ray": tasks of the Ray cluster that is connected, else of a local one.
        workers: tasks at once; 0 for one on each processor. Ray's connected cluster decides itself.
        on_progress: called with the numbers of tasks done and of all tasks.
    Returns:
        The results' paths, in the order of the tasks.
    Raises:
        TokenizerError: an unknown engine, Ray is missing, or the disk refuses. What a job raises comes through; results
        that were complete by then stay.
    """
    if engine not in ENGINES:
        raise TokenizerError(f"the engine must be one of {', '.join(ENGINES)}: got {engine!r}")
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{PARTIAL}{name}-*"):
        leftover.unlink()
    paths = results(folder, name, len(tasks))
    missing = [(task, path) for task, path in zip(tasks, paths) if not path.exists()]
    report = on_progress or (lambda done, total: None)
    done = len(paths) - len(missing)
    report(done, len(paths))
    if missing:
        with cluster(engine, workers):
            for _ in (_on_ray if engine == "ray" else _on_threads)(job, missing, worker_count(workers)):
                done += 1
                report(done, len(paths))
    return paths


def results(folder: Path, name: str, count: int) -> list[Path]:
    """The paths of the results that `run` leaves of so many tasks."""
    return [Path(folder).absolute() / f"{name}-{i:05d}.npy" for i in range(count)]


def remove(folder: Path, *names: str) -> None:
    """Deletes the results of `run` under these names."""
    for name in names:
        for path in Path(folder).glob(f"{name}-[0-9]*.npy"):
            path.unlink()


def _finish(job: Job, task: Any, path: Path) -> None:
    write_whole(path, lambda temporary: job(task, temporary))


def _on_threads(job: Job, tasks: list, workers: int) -> Iterator[None]:
    computing, keeping = ThreadPoolExecutor(workers), ThreadPoolExecutor(workers + WRITING)
    try:
        computed = [computing.submit(job, task, path.with_name(PARTIAL + path.name)) for task, path in tasks]
        running = {keeping.submit(write_whole, path, lambda _, written=written: written.result())
                   for written, (_, path) in zip(computed, tasks)}
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                future.result()
                yield
    finally:
        computing.shutdown(wait=True, cancel_futures=True)
        keeping.shutdown(wait=True)


@contextlib.contextmanager
def cluster(engine: str, workers: int = 0) -> Iterator[None]:
    """Keeps a local Ray cluster up for several runs. Does nothing for another engine, or where Ray is connected."""
    ray = _ray() if engine == "ray" else None
    if ray is None or ray.is_initialized():
        yield
        return
    ray.init(num_cpus=worker_count(workers), include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def _ray():
    try:
        import ray
    except ImportError:
        raise TokenizerError("the engine ray needs Ray: pip install 'loam[ray]'") from None
    return ray


def _on_ray(job: Job, tasks: list, workers: int) -> Iterator[None]:
    ray = _ray()
    finish = ray.remote(_finish)
    running = [finish.remote(job, task, path) for task, path in tasks]
    try:
        while running:
            ended, running = ray.wait(running)
            for future in ended:
                ray.get(future)
                yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for future in running:
            ray.cancel(future)
