"""Checkpoints written whole or not at all, and read with every name, shape and dtype checked.

RUN/checkpoints/step-000600/ holds model.safetensors (weights by parameter name), optimizer.safetensors (moments by
`exp_avg.<name>` and `exp_avg_sq.<name>`) and state.json (everything else a run needs to go on). A checkpoint is made
under a temporary name in the same folder, flushed to the disk and renamed, so a folder called step-* is complete; one
is deleted by renaming it first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from models.run_folder import CHECKPOINT_FORMAT, checkpoints, read_state
from train.errors import UserError
from train.files import fsync_path

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
_TEMPORARY = ".partial-"
_BLOCK = 4 << 20  # bytes hashed and written at a time; the interpreter's lock is free meanwhile
_KINDS = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8",
          "bool": "BOOL"}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What `load` found: where, the weights, the optimizer's tensors (None if not asked for, or if state.json names
    none, as at step 0 of an upcycled run), the rest of the state."""

    path: Path
    model: Tensors
    optimizer: Tensors | None
    state: dict


def checkpoint_path(run: Path, step: int) -> Path:
    """RUN/checkpoints/step-000600."""
    return run / "checkpoints" / f"step-{step:06d}"


def remove_leftovers(run: Path) -> None:
    """Delete what a killed process left half-written or half-deleted in the folder of a run."""
    for folder in (run / "checkpoints", run / "non-finite"):
        for path in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)
    for folder in (run, run / "samples"):
        for path in folder.glob(".*.tmp*"):
            path.unlink(missing_ok=True)


def write(run: Path, step: int, model: Tensors, optimizer: Tensors, state: dict,
          after_block: Callable[[float], object] | None = None) -> Path:
    """Write the checkpoint of `step`. Returns its folder.

    One that is there already is left alone: a step of a run has one outcome.

    Args:
        model, optimizer: tensors by name.
        state: what JSON can hold; `format`, `versions`, `step` and the tensor files' sizes and SHA-256 are added.
        after_block: see write_tensors.

    Raises:
        UserError: the disk is full or not writable. Nothing half-written stays; older checkpoints are as they were.
    """
    path = checkpoint_path(run, step)
    if step in checkpoints(run):
        return path
    try:
        with whole_folder(path) as folder:
            files = {}
            for name, tensors in ((MODEL_FILE, model), (OPTIMIZER_FILE, optimizer)):
                arrays = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
                files[name] = write_tensors(folder / name, arrays, after_block)
            content = {"format": CHECKPOINT_FORMAT, "versions": versions(), "step": step, **state, "files": files}
            (folder / STATE_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        older = list(checkpoints(run).values())
        left = f"the last good checkpoint is {older[-1]}" if older else "there is no earlier checkpoint"
        raise UserError(f"cannot save {path}: {error.strerror or error}; {left}") from None
    return path


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to write into, which is flushed to the disk and becomes `path` at the end; after an error it
    is removed."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in (*temporary.iterdir(), temporary):
            fsync_path(file)
        os.rename(temporary, path)
        for folder in (path.parent, path.parent.parent):
            fsync_path(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def discard(path: Path, unless: str | None = None) -> None:
    """Delete a folder, so that it is there whole or not at all; not one that holds a file `unless`."""
    doomed = path.with_name(f"{_TEMPORARY}{path.name}-old-{os.getpid()}")
    os.rename(path, doomed)
    if unless is not None and (doomed / unless).exists():
        os.rename(doomed, path)
    else:
        shutil.rmtree(doomed, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, np.ndarray],
                  after_block: Callable[[float], object] | None = None) -> dict:
    """Write a safetensors file, byte for byte as `safetensors.numpy.save_file` does, but without a copy in memory and
    leaving the interpreter to other threads. Returns its size and SHA-256.

    Args:
        after_block: called after every few megabytes with the processor's seconds they took.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in
              sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))}
    header, end = {}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": _KINDS[array.dtype.name], "shape": list(tensors[name].shape),
                        "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    parts = len(text).to_bytes(8, "little"), text, *(array.reshape(-1).view(np.uint8) for array in arrays.values())
    with open(path, "wb") as file:
        for part in parts:
            for start in range(0, len(part), _BLOCK):
                begun = time.thread_time()
                block = memoryview(part)[start:start + _BLOCK]
                digest.update(block)
                file.write(block)
                size += len(block)
                if after_block is not None:
                    after_block(time.thread_time() - begun)
    return {"bytes": size, "sha256": digest.hexdigest()}


def load(path: Path, with_optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint folder, checked against the sizes and SHA-256 in its state.json.

    Raises:
        UserError: a file is missing, changed or of another format version.
    """
    state = read_state(path)
    model = _read_tensors(path / MODEL_FILE, state)
    with_optimizer = with_optimizer and OPTIMIZER_FILE in state.get("files", {OPTIMIZER_FILE: None})
    optimizer = _read_tensors(path / OPTIMIZER_FILE, state) if with_optimizer else None
    return Checkpoint(path, model, optimizer, state)


def restore(target: Tensors, source: Tensors, what: str) -> None:
    """Copy `source` into `target` in place; names, shapes and dtypes must be the same.

    Args:
        what: names the file in the error.

    Raises:
        UserError: naming the first tensor that does not fit; nothing has been copied then.
    """
    missing, unexpected = sorted(target.keys() - source.keys()), sorted(source.keys() - target.keys())
    if missing or unexpected:
        raise UserError(f"{what} does not fit the model: " + "; ".join(
            f"{kind} {names[0]!r}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for kind, names in (("missing", missing), ("unexpected", unexpected)) if names))
    for name, own in target.items():
        given = source[name]
        if given.dtype != own.dtype or given.shape != own.shape:
            raise UserError(f"{what}: {name} must be {_kind(own)}, got {_kind(given)}")
    for name, own in target.items():
        own.copy_(source[name])


def versions() -> dict[str, str]:
    """Versions of what makes a checkpoint."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        loam = version("loam")
    except PackageNotFoundError:
        loam = "source"
    return {"loam": loam, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def _read_tensors(path: Path, state: dict) -> Tensors:
    facts = state.get("files", {}).get(path.name)
    try:
        if facts != _file_facts(path):
            raise UserError(f"{path}: size or SHA-256 is not the one in {STATE_FILE}; the file has changed")
        return {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror})") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None


def _file_facts(path: Path) -> dict:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
