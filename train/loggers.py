"""Other places for the rows of metrics.jsonl: TensorBoard and Weights & Biases, from packages that are not required."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from train.config import Config
from train.errors import UserError


class Logger(Protocol):
    """Gets every row of metrics.jsonl, in order."""

    def log(self, row: dict) -> None: ...

    def close(self) -> None: ...


def check_loggers(names: Sequence[str]) -> None:
    """UserError for a name that is unknown, or whose package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"run.loggers must be among {', '.join(LOGGERS)}: got {name!r}")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"run.loggers: {name} is not installed; get it with: pip install 'loam[{name}]'")


def open_loggers(names: Sequence[str], config: Config, run: Path, after_step: int = 0) -> list[Logger]:
    """The loggers of a run.

    Args:
        names: of `LOGGERS`.
        run: its folder, in which they write.
        after_step: where a resumed run goes on; what was logged for later steps is superseded.
    Raises:
        UserError: as `check_loggers`.
    """
    check_loggers(names)
    return [LOGGERS[name](config, run, after_step) for name in dict.fromkeys(names)]


def numbers(row: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a row but its step, those of dicts as "grad_norms/head"."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and (prefix or name != "step"):
            yield prefix + name, value


class TensorBoardLogger:
    """Event files in RUN/tensorboard, by TensorBoard's own writer. Numbers are scalars, events of the run texts."""

    def __init__(self, config: Config, run: Path, after_step: int = 0):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event = Event
        self._writer = EventFileWriter(str(run / "tensorboard"))
        if after_step:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(step=after_step + 1, wall_time=time.time(), session_log=start))
        self._text(0, "config", "\n".join(f"    {line}" for line in config.to_toml().splitlines()))

    def log(self, row: dict) -> None:
        """Write one row."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if "event" in row:
            self._text(row["step"], f"event/{row['event']}", json.dumps(row))
        else:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers(row)]
            self._add(row["step"], values)

    def _text(self, step: int, tag: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        content = TensorProto(dtype=DT_STRING, string_val=[text.encode()],
                              tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]))
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._add(step, [Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=content)])

    def _add(self, step: int, values: list) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.add_event(self._event(step=step, wall_time=time.time(), summary=Summary(value=values)))

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases, whose files are in RUN/wandb; WANDB_MODE=offline keeps them there.

    Its own steps only grow, and a resumed run repeats some: curves are drawn over the row's "step" instead.
    """

    def __init__(self, config: Config, run: Path, after_step: int = 0):
        import wandb

        self._run = wandb.init(project=os.environ.get("WANDB_PROJECT", "loam"), name=run.name, dir=str(run),
                               config=config.flat(), resume="allow", id=_identity(run))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, row: dict) -> None:
        """Write one row."""
        values = dict(numbers(row))
        if "event" in row:
            values["event"] = json.dumps(row)
        self._run.log({"step": row["step"], **values})

    def close(self) -> None:
        """Write what is left, and send it unless offline."""
        self._run.finish()


def _identity(run: Path) -> str:
    """The same for a run that is resumed."""
    file = run / "wandb" / "loam-run-id"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(os.urandom(8).hex())
    return file.read_text()


LOGGERS = {"tensorboard": TensorBoardLogger, "wandb": WandbLogger}
