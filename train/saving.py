"""Saving checkpoints while the run goes on."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from train.checkpoint import Tensors, checkpoint_path, write
from train.checkpoints import best, kept, retain
from train.sections import CheckpointConfig

LEAST_PRIORITY = 19
REST = 19.0  # times as long as it works the thread leaves the processor alone: it takes a twentieth of one core


class Saver:
    """Writes the checkpoints of a run and deletes the old ones.

    With `config.asynchronous` a save copies the tensors into buffers of its own, which it keeps for the next time; a
    thread of low priority does the rest. Beside training on the CPU that thread rests most of the time, until someone
    waits for it. There is one save at a time: the next one waits for it. What goes wrong in the thread is raised by
    whichever call comes next.

    Args:
        run: its folder; hold its lock.
    """

    def __init__(self, run: Path, config: CheckpointConfig):
        self.run, self.config = run, config
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._thread = ThreadPoolExecutor(1, "saving", _yield_to_others) if config.asynchronous else None
        self._writing: Future | None = None
        self._awaited = threading.Event()
        first = best(kept(run))
        self._best: float | None = first and first.score

    def reserve(self, model: Tensors, optimizer: Tensors) -> None:
        """Get the buffers now, which the first save would have to wait for otherwise."""
        if self._thread is not None:
            self._copied("model", model)
            self._copied("optimizer", optimizer)

    def save(self, step: int, model: Tensors, optimizer: Tensors, state: dict, score: float | None = None,
             first: Callable[[], object] | None = None) -> Path:
        """Save the checkpoint of `step`; see checkpoint.write. Returns its folder, which may not be there yet.

        Args:
            score: validation loss, the less the better; None when it was not measured.
            first: called before anything is written, to flush what the checkpoint relies on to the disk.

        Raises:
            UserError: this save failed, or the one before.
        """
        self.finish()
        state = {**copy.deepcopy(state), "score": score}
        if score is not None:
            self._best = score if self._best is None else min(score, self._best)
        if self._thread is None:
            self._write(step, model, optimizer, state, first)
        else:
            copies = self._copied("model", model), self._copied("optimizer", optimizer)
            on_gpu = any(tensor.device.type == "cuda" for tensor in model.values())
            if on_gpu:
                torch.cuda.current_stream().synchronize()
            self._awaited.clear()
            after_block = None if on_gpu else self._rest
            self._writing = self._thread.submit(self._write, step, *copies, state, first, after_block)
        return checkpoint_path(self.run, step)

    def check(self) -> None:
        """Raise what went wrong in a save that is over, without waiting for one that is not."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until what was saved last is on the disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._awaited.set()
            writing.result()

    def best_score(self) -> float | None:
        """The least score so far; None when nothing was saved with one."""
        return self._best

    def _copied(self, part: str, tensors: Tensors) -> Tensors:
        result = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get((part, name))
            if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
                pinned = tensor.device.type == "cuda"
                buffer = self._buffers[part, name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            result[name] = buffer.copy_(tensor, non_blocking=True)
        return result

    def _rest(self, seconds: float) -> None:
        self._awaited.wait(REST * seconds)

    def _write(self, step: int, model: Tensors, optimizer: Tensors, state: dict, first, after_block=None) -> None:
        if first is not None:
            first()
        write(self.run, step, model, optimizer, state, after_block)
        retain(self.run, self.config.keep, self.config.best)


def _yield_to_others() -> None:
    """Lowest priority for this thread, where the system has one for each thread; elsewhere saving only costs more."""
    if sys.platform == "linux":
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_PRIORITY)
