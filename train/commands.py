"""What a run does when a person asks for it: between two steps, in the thread that trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from train.checkpoints import pin
from train.config import parse_settings
from train.errors import UserError
from train.rules import check_portion, rule
from train.steering import LR, Change, Changes

if TYPE_CHECKING:
    from train.control import Request
    from train.session import Session

SETTABLE = {
    "lr": "optim.lr", "batch_tokens": "data.batch_tokens", "seq_len": "data.seq_len", "eval_every": "run.eval_every",
    "sample_every": "run.sample_every", "log_every": "run.log_every", "checkpoint.every": "checkpoint.every",
}
"""Names of the settings that `set` changes, and their names in config.toml."""


def handle(session: Session, request: Request) -> None:
    """Do what is asked and reply: {"message"} and more, or {"error"} when a rule is broken.

    What goes wrong with the run itself (the disk, values that are not finite while saving) is told and raised.
    """
    command = COMMANDS.get(request.command)
    try:
        if command is None:
            raise UserError(f"a run knows {', '.join(sorted((*COMMANDS, 'status')))}: got {request.command!r}")
        request.reply(command(session, request.arguments))
    except UserError as error:
        request.reply({"error": str(error)})
    except Exception as error:
        request.reply({"error": str(error) or type(error).__name__})
        raise


def _pause(session: Session, arguments: dict) -> dict:
    if not session.paused:
        session.paused = True
        _record(session, "pause")
    return {"message": f"paused after step {session.position.step}"}


def _resume(session: Session, arguments: dict) -> dict:
    if not session.paused:
        return {"message": f"it was not paused: step {session.position.step} is done"}
    session.paused = False
    _record(session, "resume")
    return {"message": f"goes on with step {session.position.step + 1}"}


def _stop(session: Session, arguments: dict) -> dict:
    session.stopping = True
    _record(session, "stop")
    return {"message": f"saves step {session.position.step} and ends; go on with train.pretrain --resume"}


def _save(session: Session, arguments: dict) -> dict:
    path = _saved(session)
    return {"message": f"saved: {path}", "path": path}


def _pin(session: Session, arguments: dict) -> dict:
    path = _saved(session)
    pin(session.folder.path, session.position.step)
    return {"message": f"saved and kept for good: {path}", "path": path}


def _saved(session: Session) -> str:
    if not session.position.step:
        raise UserError("nothing to save before the first step: got step 0")
    session.save_now()
    session.saver.finish()
    path = f"checkpoints/step-{session.position.step:06d}"
    _record(session, "save", path=path)
    return path


def _evaluate(session: Session, arguments: dict) -> dict:
    if session.validate is None:
        raise UserError("this run has no validation text: start one with --val-data or data.val_fraction above 0")
    session.evaluate_now()
    total = session.last_evaluation.total
    return {"message": f"step {session.position.step}: validation loss {total.loss:.4f}, "
            f"{total.bits_per_byte:.4f} bits per byte",
            "val_loss": total.loss, "val_bits_per_byte": total.bits_per_byte}


def _sample(session: Session, arguments: dict) -> dict:
    prompt = arguments.get("text", "")
    if not isinstance(prompt, str):
        raise UserError(f"sample takes a text: got {prompt!r}")
    try:
        text = session.sample(prompt)
    except (ValueError, RuntimeError) as error:
        session.say(f"no sample: {error}")
        raise UserError(f"no sample: {error}") from None
    return {"message": f"step {session.position.step}", "text": text}


def _set(session: Session, arguments: dict) -> dict:
    values = dict(arguments)
    over = values.pop("over", 0)
    if type(over) is not int or over < 0:
        raise UserError(f"over must be a whole number of steps, at least 0: got {over!r}")
    if len(values) != 1:
        raise UserError(f"set takes one setting, such as lr=1e-4 over=500: got {', '.join(values) or 'none'}")
    (name, text), = values.items()
    key = _key(name)
    if over and key != LR:
        raise UserError(f"over goes with lr alone, {key} changes at once: got over={over}")
    value = _checked(session, key, str(text))
    step = session.position.step + 1
    line = Change(step, key, value, over, _present(session, key))
    changes = session.steering.changes.plus(line)
    _check_portions(session, changes)
    session.steering.append(line)
    number = len(session.steering.changes.made)
    told = f"change {number}: {key} {line.start:g} -> {value:g} from step {step} on"
    if over > 1:
        told = f"change {number}: {key} {line.start:g} -> {value:g}, there at step {line.end}"
    if key == LR and line.end < session.config.optim.warmup_steps:
        told += f"; the warm-up goes on, to {session.pace.lr(session.config.optim.warmup_steps):g}"
    session.say(told)
    return {"message": told, "change": number}


def _undo(session: Session, arguments: dict) -> dict:
    changes = session.steering.changes
    left = [number for number in range(1, len(changes.made) + 1) if number not in changes.undone()]
    number = arguments.get("change", left[-1] if left else 0)
    if type(number) is not int or number not in left:
        known = ", ".join(f"{n} ({changes.made[n - 1].key}={changes.made[n - 1].value:g})" for n in left) or "none"
        raise UserError(f"undo takes the number of a change that holds ({known}): got {number!r}")
    undone = changes.made[number - 1]
    step = session.position.step + 1
    key = undone.key
    line = Change(step, key, None, undone.over if undone.step < step else 0, _present(session, key), number)
    _check_portions(session, changes.plus(line))
    session.steering.append(line)
    told = f"change {number} ({key}={undone.value:g}) is undone from step {step} on"
    session.say(told)
    return {"message": told, "change": number}


COMMANDS = {"pause": _pause, "resume": _resume, "save": _save, "stop": _stop, "sample": _sample, "set": _set,
            "undo": _undo, "pin": _pin, "evaluate": _evaluate}


def _record(session: Session, event: str, **more: object) -> None:
    session.record({"step": session.position.step, "event": event, **more})


def _key(name: str) -> str:
    full = {value: key for key, value in SETTABLE.items()}
    if name not in SETTABLE and name not in full:
        raise UserError(f"set takes one of {', '.join(SETTABLE)}: got {name!r}")
    return full.get(name, name)


def _checked(session: Session, key: str, text: str) -> float | int:
    """The value by the rules of the settings."""
    name = SETTABLE[key]
    values = parse_settings([f"{name}={text}"])
    if key == LR:
        rule(math.isfinite(values[name]), "optim.lr must be a finite number", text)
    if key not in ("batch_tokens", "seq_len"):
        session.config.with_values(values).validated()
    return values[name]


def _present(session: Session, key: str) -> float | int:
    """What holds now: of the learning rate, that of the last step."""
    step = session.position.step
    if key == LR:
        return session.pace.lr(max(1, step))
    portion = session.pace.portion(step + 1, session.position.cursor)
    if key == "seq_len":
        return portion.seq_len
    return portion.rows * portion.seq_len if key == "batch_tokens" else session.pace.every(key, step + 1)


def _check_portions(session: Session, changes: Changes) -> None:
    """UserError unless all steps from here on can be cut into whole rows, whatever is in force at them."""
    first, cursor = session.position.step + 1, session.position.cursor
    data, longest = session.config.data, session.config.model.max_seq_len
    curriculum = session.pace.curriculum
    stages = [curriculum.at(cursor), *(stage for stage, _ in curriculum.stages())]
    for step in [first, *(step for step in changes.steps() if step > first)]:
        steered = changes.value("seq_len", step), changes.value("batch_tokens", step)
        if steered == (None, None):
            continue
        for stage in stages:
            seq_len, batch_tokens = (own if set_to is None else set_to for own, set_to in zip(stage, steered))
            check_portion(seq_len, batch_tokens, data.window, longest)
            rule(cursor % seq_len == 0, "data.seq_len must divide the tokens read so far, or rows would mix two "
                 f"stretches of text ({cursor})", seq_len)
