"""Which checkpoints of a run stay: the last ones, the best one, and those a person pins: python -m train.checkpoints"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from models.run_folder import checkpoint_at, checkpoints, read_state
from train.checkpoint import STATE_FILE, discard
from train.command import Parser, run_command
from train.errors import UserError
from train.files import fsync_path

PINNED = "pinned"
MB = 1_000_000


@dataclass(frozen=True)
class Kept:
    """A checkpoint on disk; `score` is its validation loss in nats per token, None when it was not evaluated."""

    step: int
    path: Path
    score: float | None
    pinned: bool


def kept(run: Path) -> list[Kept]:
    """The checkpoints of a run, oldest first."""
    return [Kept(step, path, _score(path), (path / PINNED).exists()) for step, path in checkpoints(run).items()]


def _score(path: Path) -> float | None:
    try:
        return read_state(path).get("score")
    except UserError:  # a run goes on with an old checkpoint damaged; who loads that one is told
        return None


def best(found: list[Kept]) -> Kept | None:
    """The one with the least score, of equals the oldest; None when none has a score."""
    return min((one for one in found if one.score is not None), key=lambda one: one.score, default=None)


def retain(run: Path, keep: int, with_best: bool = True) -> None:
    """Delete all but the last `keep`, the best one (`with_best`) and the pinned ones."""
    found = kept(run)
    staying = {one.step for one in found[-keep:]} | {one.step for one in found if one.pinned}
    if with_best and (first := best(found)):
        staying.add(first.step)
    for one in found:
        if one.step not in staying:
            discard(one.path, unless=PINNED)


def pin(run: Path, step: int) -> Path:
    """Keep the checkpoint of a step whatever comes. UserError when there is none."""
    path = checkpoint_at(run, step)
    try:
        (path / PINNED).touch()
    except FileNotFoundError:  # deleted by the run this very moment
        checkpoint_at(run, step)
        raise
    fsync_path(path)
    return path


def unpin(run: Path, step: int) -> Path:
    """Let the checkpoint of a step be deleted when its time comes; nothing is deleted now."""
    path = checkpoint_at(run, step)
    (path / PINNED).unlink(missing_ok=True)
    return path


def table(run: Path) -> Table:
    """One row per checkpoint."""
    found = kept(run)
    first = best(found)
    result = Table(box=box.SIMPLE_HEAD)
    for heading in ("step", "tokens", "validation loss", "MB", "saved", ""):
        result.add_column(heading, justify="left" if heading in ("saved", "") else "right")
    for one in found:
        state = read_state(one.path)
        size = sum(file.stat().st_size for file in one.path.iterdir())
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((one.path / STATE_FILE).stat().st_mtime))
        marks = [*(["best"] if one is first else []), *([PINNED] if one.pinned else [])]
        result.add_row(f"{one.step:,}", f"{state.get('cursor', 0):,}", "" if one.score is None else f"{one.score:.4f}",
                       f"{size / MB:,.1f}", saved, ", ".join(marks))
    return result


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m train.checkpoints", description="List the checkpoints of a run, or pin one: a "
                    "pinned checkpoint stays when the run deletes old ones.")
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/demo-1")
    parser.add_argument("action", nargs="?", choices=("list", "pin", "unpin"), default="list", help="default: list")
    parser.add_argument("step", nargs="?", type=int, metavar="STEP")
    arguments = parser.parse_args(argv)
    run, action, step = arguments.run, arguments.action, arguments.step
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} is not a run folder: {run / 'config.toml'} is missing")
    if (action == "list") != (step is None):
        raise UserError(f"{action} takes {'no' if step is not None else 'a'} step: got {step}")
    if action == "list":
        Console(highlight=False).print(table(run))
    else:
        path = pin(run, step) if action == "pin" else unpin(run, step)
        print(f"{path} is {action}ned")
    return 0


if __name__ == "__main__":
    run_command(main)
