"""Where the first value came from that is not finite, and the batch that brought it about."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from engine import Arena, Module, Op, Tensor, autograd, random
from models.run_folder import checkpoints, read_tokenizer
from tokenizer import Tokenizer
from train.checkpoint import MODEL_FILE, Tensors, discard, whole_folder, write_tensors
from train.data import Batch
from train.errors import UserError
from train.step import LossFunction, count_choices

if TYPE_CHECKING:
    from train.optim import Optimizer

FINDING_FILE, BATCH_FILE = "finding.json", "batch.safetensors"
WEIGHTS_KEPT = 3
OPENING_CHARACTERS = 60


@dataclass(frozen=True)
class Finding:
    """The first value of a step that is not finite. `operation` is empty when the batch, run again, had none.

    Attributes:
        layer: the module's name, such as layers.3.attention.
        phase: "forward" or "backward".
        tensor: what holds the value: an input or the output of the operation, or the gradient of one.
        parameter: its name, when that input is one.
        value: "nan", "inf" or "-inf".
        place: index of the first such value, in a tensor of this `shape`; `count` values of it are not finite.
        row, token: of the batch, where the tensor is laid out by them.
        micro_rows: rows of a micro-batch.
    """

    micro_rows: int
    layer: str = ""
    operation: str = ""
    phase: str = ""
    tensor: str = ""
    parameter: str | None = None
    value: str = ""
    place: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    count: int = 0
    row: int | None = None
    token: int | None = None

    def __str__(self) -> str:
        if not self.operation:
            return "run again, the batch gave finite values only"
        values = f"{self.count:,} of {int(np.prod(self.shape)):,} values" if self.shape else "the only value"
        where = f", in row {self.row}, token {self.token} of the batch" if self.row is not None else ""
        return (f"first in {self.layer or 'the model'}, {self.operation} {self.phase}: {self.tensor}"
                + (f" ({self.parameter})" if self.parameter else "")
                + f" has {self.value} at {list(self.place)} ({values} not finite){where}")


def diagnose(model: Module, optimizer: Optimizer, batch: Batch, micro_rows: int, loss: LossFunction) -> Finding:
    """Run a batch again as the step did, looking at what every operation takes and gives. Slow; changes gradients only.

    Args:
        optimizer: the model's; only its arena is used.
        micro_rows: rows of a micro-batch.
    """
    arena = optimizer.arena
    arena.zero_grad()
    watch, micros, normalizer = _Watch(model, batch, micro_rows), batch.split(micro_rows), max(1, batch.predicted)

    def watched(model: Module, micro: Batch, normalizer: int) -> Tensor:
        watch.first_row = (micro.first_token - batch.first_token) // batch.ids.shape[1]
        return loss(model, micro, normalizer)

    try:
        with watch.active():
            count_choices(model, micros, watched, normalizer)
            for micro in micros:
                random.set_position(micro.first_token)
                watched(model, micro, normalizer).backward()
        watch.sums(arena)
    except _Found as found:
        return found.finding
    return Finding(micro_rows)


class _Found(Exception):
    def __init__(self, finding: Finding):
        self.finding = finding


class _Watch:
    """Raises `_Found` at the first value that is not finite."""

    def __init__(self, model: Module, batch: Batch, micro_rows: int):
        self.batch, self.micro_rows, self.first_row = batch, micro_rows, 0
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._parameters = {id(parameter.data): name for name, parameter in model.named_parameters()}
        self._leaves = {id(parameter): name for name, parameter in model.named_parameters()}
        self._layers = [""]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within this context every operation is looked at."""
        before, call = autograd.observer, Module.__call__

        def named_call(module: Module, *arguments, **options):
            self._layers.append(self._modules.get(id(module), self._layers[-1]))
            try:
                return call(module, *arguments, **options)
            finally:
                self._layers.pop()

        autograd.observer, Module.__call__ = self._observe, named_call
        try:
            yield
        finally:
            autograd.observer, Module.__call__ = before, call

    def _observe(self, op: Op, phase: str, run: Callable):
        method = getattr(op, phase)
        look = self._look_forward if phase == "forward" else self._look_backward

        def watched(*buffers, **options):
            return look(op, method, buffers, options)

        setattr(op, phase, watched)  # what `run` calls, so that its arguments are seen
        try:
            return run()
        finally:
            op.__dict__.pop(phase, None)

    def _look_forward(self, op: Op, method: Callable, buffers: tuple, options: dict):
        parameters = [self._parameters.get(id(buffer)) for buffer in buffers]
        owner = next((name for name in parameters if name), "")
        op.diagnosed = self._layers[-1] or owner.rpartition(".")[0], _input_names(op, len(buffers))
        for name, buffer, parameter in zip(op.diagnosed[1], buffers, parameters):
            self._check(op, "forward", f"input {name}", buffer, parameter)
        result = method(*buffers, **options)
        for name, buffer in _named("output", result):
            self._check(op, "forward", name, buffer)
        return result

    def _look_backward(self, op: Op, method: Callable, gradients: tuple, _options: dict):
        for name, buffer in _named("gradient of the output", gradients if len(gradients) > 1 else gradients[0]):
            self._check(op, "backward", name, buffer)
        result = method(*gradients)
        results = result if isinstance(result, tuple) else (result,)
        for name, needed, leaf, buffer in zip(op.diagnosed[1], op.needs, op.inputs, results):
            parameter = self._leaves.get(id(leaf))
            if buffer is None and parameter is not None:
                buffer = leaf.grad  # backward has added to it
            if needed:
                self._check(op, "backward", f"gradient of input {name}", buffer, parameter)
        return result

    def sums(self, arena: Arena) -> None:
        """Look at what the gradients add up to."""
        for name, parameter in arena.parameters.items():
            self._check(None, "backward", "sum of the gradients", parameter.grad, name)

    def _check(self, op: Op | None, phase: str, tensor: str, buffer: object, parameter: str | None = None) -> None:
        if not isinstance(buffer, torch.Tensor) or not buffer.dtype.is_floating_point:
            return
        values = Tensor(buffer).numpy()
        bad = ~np.isfinite(values)
        if not bad.any():
            return
        place = tuple(int(index) for index in np.unravel_index(int(bad.argmax()), values.shape))
        layer = parameter.rpartition(".")[0] if op is None else op.diagnosed[0]
        operation = "accumulation" if op is None else type(op).__name__.lstrip("_")
        row, token = self._row_and_token(place, values.shape) if parameter is None else (None, None)
        raise _Found(Finding(self.micro_rows, layer, operation, phase, tensor, parameter, str(values[place]), place,
                             values.shape, int(bad.sum()), row, token))

    def _row_and_token(self, place: tuple, shape: tuple) -> tuple[int | None, int | None]:
        length = self.batch.ids.shape[1]
        rows = min(self.micro_rows, len(self.batch.ids) - self.first_row)
        return (self.first_row + place[0], place[1]) if shape[:2] == (rows, length) else (None, None)


def _input_names(op: Op, count: int) -> list[str]:
    """What an operation's forward calls its first `count` inputs."""
    names = [name for name, parameter in inspect.signature(type(op).forward).parameters.items()
             if parameter.kind is parameter.POSITIONAL_OR_KEYWORD][1:]
    return [names[index] if index < len(names) else str(index) for index in range(count)]


def _named(name: str, buffers: object) -> list[tuple[str, object]]:
    """Buffers with names; several are numbered."""
    if not isinstance(buffers, tuple):
        return [(name, buffers)]
    return [(f"{name} {index}", buffer) for index, buffer in enumerate(buffers)]


def save_finding(run: Path, step: int, finding: Finding, batch: Batch, weights: Tensors | None = None) -> Path:
    """Write a step's finding and its whole batch to RUN/non-finite/step-000123. Returns that folder.

    Args:
        weights: the model's before the step. They are written, too, when the run has no checkpoint of the step before,
            for the first WEIGHTS_KEPT findings.
    """
    folder = run / "non-finite"
    path = folder / f"step-{step:06d}"
    if path.exists():
        discard(path)
    arrays, numbers = {}, {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif value is not None:
            numbers[field.name] = value
    record = {"step": step, "finding": dataclasses.asdict(finding), "batch": numbers,
              "documents": documents(batch, read_tokenizer(run))}
    alone = step - 1 not in checkpoints(run) and len(list(folder.glob(f"*/{MODEL_FILE}"))) < WEIGHTS_KEPT
    with whole_folder(path) as temporary:
        write_tensors(temporary / BATCH_FILE, arrays)
        if weights is not None and alone:
            write_tensors(temporary / MODEL_FILE, {name: tensor.cpu().numpy() for name, tensor in weights.items()})
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (temporary / FINDING_FILE).write_text(text + "\n", encoding="utf-8")
    return path


class Recorded(NamedTuple):
    """What `save_finding` wrote; `weights` None where it left them to the checkpoint."""

    step: int
    finding: Finding
    batch: Batch
    weights: Tensors | None


def load_finding(path: Path) -> Recorded:
    """Read what `save_finding` wrote. UserError when it is not there or not readable."""
    try:
        record = json.loads((path / FINDING_FILE).read_text(encoding="utf-8"))
        saved = {key: tuple(value) if isinstance(value, list) else value for key, value in record["finding"].items()}
        fields = {field.name: None for field in dataclasses.fields(Batch)}
        batch = Batch(**{**fields, **record["batch"], **load_file(path / BATCH_FILE)})
        weights = None
        if (path / MODEL_FILE).exists():
            weights = {name: torch.from_numpy(array) for name, array in load_file(path / MODEL_FILE).items()}
        return Recorded(record["step"], Finding(**saved), batch, weights)
    except OSError as error:
        raise UserError(f"{path} holds no step with a value that is not finite: cannot read "
                        f"{error.filename or 'it'} ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: not what a run writes there: {type(error).__name__}: {error}") from None


def documents(batch: Batch, tokenizer: Tokenizer) -> list[dict]:
    """The documents of a batch, or their parts in it, in order: `row`, `start` and `stop` tokens in the row, and the
    `text` of the beginning."""
    found = []
    for row, ids in enumerate(batch.ids):
        stops = [*(np.flatnonzero(ids[:-1] == tokenizer.eod) + 1).tolist(), len(ids)]
        for start, stop in zip([0, *stops], stops):
            text = tokenizer.decode(ids[start:min(stop, start + OPENING_CHARACTERS)])[:OPENING_CHARACTERS]
            found.append({"row": row, "start": start, "stop": stop, "text": text})
    return found
