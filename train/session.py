"""A run from its first step or last checkpoint to its end: steps, logs, samples, checkpoints, what a person asks."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import kernels
from engine import Module
from models.run_folder import checkpoints, latest_checkpoint
from train import checkpoint, experts
from train.budget import steps_in_budget
from train.commands import handle
from train.config import Config
from train.control import Control
from train.diagnosis import diagnose, save_finding
from train.errors import NonFiniteError, UserError
from train.files import write_text
from train.folder import RunFolder
from train.interrupts import Interrupts
from train.loggers import open_loggers
from train.loop import Loop, Position, StepReport
from train.metrics import MetricsLog
from train.optim import Optimizer
from train.pace import Pace
from train.plot import draw_loss
from train.profile import Profiling
from train.progress import Display, printable
from train.saving import Saver
from train.spikes import SpikeDetector
from train.statistics import Statistics
from train.steering import Steering
from train.step import micro_rows
from train.validation import Validated, Validation

PAUSE_SECONDS = 0.2
MOST_SKIPPED = 20


@dataclass(frozen=True)
class Identity:
    """Fingerprints that a resumed run must find again."""

    tokenizer: str
    data: str


class Session:
    """Runs a `Loop` in a run folder.

    Args:
        config: its number of steps may be unknown: a run by minutes measures its first steps, fixes the number of steps
            and writes it to config.toml, so that from then on nothing depends on the clock.
        validate: None where there is nothing to validate on.
        generate: a text from a prompt.
        statistics: what else is measured.

    Attributes:
        paused, stopping: asked for by a person; a paused run waits between two steps.
    """

    def __init__(self, config: Config, folder: RunFolder, model: Module, optimizer: Optimizer, loop: Loop,
                 identity: Identity, validate: Validation | None, generate: Callable[[str], str],
                 statistics: Statistics):
        self.config, self.folder, self.model, self.optimizer, self.loop = config, folder, model, optimizer, loop
        self.identity, self.validate, self.generate = identity, validate, generate
        self.statistics = statistics
        self.position: Position = loop.position
        self.steering = Steering(folder.steering)
        self.pace = Pace(config, self.steering)
        self.spikes = SpikeDetector()
        self.saver = Saver(folder.path, config.checkpoint)
        self.paused, self.stopping = False, False
        self.last_evaluation: Validated | None = None
        self._drawn_at, self._skipped = -1, 0

    @property
    def total(self) -> int | None:
        """Steps of the whole run; None while unknown."""
        return self.pace.total

    def restore(self) -> bool:
        """Take over the last checkpoint; False when there is none yet. UserError when it does not fit."""
        if not checkpoints(self.folder.path):
            return False
        saved = checkpoint.load(latest_checkpoint(self.folder.path))
        missing = [key for key in ("tokenizer", "data", "updates", *vars(Position())) if key not in saved.state]
        if missing:
            raise UserError(f"{saved.path / checkpoint.STATE_FILE}: {missing[0]!r} is missing")
        for what, own in (("tokenizer", self.identity.tokenizer), ("data", self.identity.data)):
            if saved.state[what] != own:
                noun = {"tokenizer": "vocabulary (vocabulary.json)", "data": "training data"}[what]
                raise UserError(f"cannot resume {self.folder.path}: the {noun} has changed: fingerprint "
                                f"{own[:12]}, the checkpoint has {saved.state[what][:12]}")
        checkpoint.restore(self.model.state_dict(), saved.model, str(saved.path / checkpoint.MODEL_FILE))
        for parameter in self.model.parameters():
            parameter.refresh()
        self.optimizer.load_state(saved.optimizer, saved.state["updates"])
        self.spikes.load_state(saved.state.get("spikes"))
        self.statistics.load_state(saved.state.get("statistics"))
        experts.load_state(self.model, saved.state)
        self.position.__dict__.update({key: saved.state[key] for key in vars(Position())})
        self.pace.replan(self.position.step, self.position.cursor)
        return True

    def run(self, profile: bool = False) -> int:
        """Train to the end. Returns the exit code: 0, or 128 + the signal that ended it early, after saving."""
        position, config = self.position, self.config
        self._started = time.perf_counter() - position.wall_seconds
        self._logged, self._recent = (position.step, position.seconds), []
        profiler = Profiling(self.model, self.folder.profile) if profile else None
        with ExitStack() as stack:
            self.metrics = MetricsLog(self.folder.metrics, position.step)
            stack.callback(self.metrics.close)
            stack.callback(self.saver.finish)
            self.saver.reserve(self.model.state_dict(), self.optimizer.state())
            self.loggers = open_loggers(config.run.loggers, config, self.folder.path, position.step)
            for logger in self.loggers:
                stack.callback(logger.close)
            interrupts = stack.enter_context(Interrupts())
            self.display = stack.enter_context(Display(self.total, config.run.log_every))
            self.control = stack.enter_context(Control(self.folder.path))
            while not self._finished():
                self._obey(interrupts)
                if interrupts.received or self.stopping:
                    break
                report = self._step(profiler)
                if report is None:
                    continue
                if self.total is None:
                    self._fix_length()
                self._after(report)
            if self.position.step != self.total:
                self.save_now()
            self._draw()
            if profiler is not None:
                profiler.finish(self.display)
        return 128 + interrupts.received if interrupts.received and not self._finished() else 0

    def _finished(self) -> bool:
        return self.total is not None and self.position.step >= self.total

    def _obey(self, interrupts: Interrupts) -> None:
        """Do what was asked for since the last step, and wait while the run is paused."""
        for request in self.control.requests():
            handle(self, request)
        while self.paused and not (interrupts.received or self.stopping):
            self.control.publish(self.snapshot())
            for request in self.control.wait(PAUSE_SECONDS):
                handle(self, request)
        self.position.wall_seconds = time.perf_counter() - self._started
        step = self.position.step + 1
        for change in self.steering.changes_at(step):
            self.record(change)
        if self.optimizer.advance_to(step):
            self.record({"step": step, "event": "switch", "optimizer": "muon"})
        self.pace.replan(self.position.step, self.position.cursor)
        if self.total is not None and self.total != self.display.total:
            self.display.planned(self.total)

    def _step(self, profiler: Profiling | None) -> StepReport | None:
        """One step; None when it was passed over because a value was not finite."""
        position, step = self.position, self.position.step + 1
        lr, portion = self.pace.lr(step), self.pace.portion(step, position.cursor)
        self.statistics.due = self.pace.due("log_every", step)
        try:
            if profiler is None:
                report = self.loop.step(lr, *portion)
            else:
                report = profiler.step(lambda: self.loop.step(lr, *portion), self.display)
        except NonFiniteError as error:
            self._pass_over(error)
            return None
        self._skipped = 0
        position.wall_seconds = time.perf_counter() - self._started
        self._recent = (self._recent + [report.seconds])[-50:]
        return report

    def _pass_over(self, error: NonFiniteError) -> None:
        """Find out where the value came from and keep the batch; then stop the run, or go on behind the batch."""
        step, batch = self.position.step + 1, self.loop.batch
        finding = diagnose(self.model, self.optimizer, batch, micro_rows(batch, self.config.data.micro_tokens),
                           self.loop.loss)
        self._skipped += 1
        stop = self.config.run.non_finite == "stop" or self._skipped == MOST_SKIPPED
        if stop and not self.optimizer.first_bad_weight():
            self.save_now()
            self.saver.finish()
        kept = save_finding(self.folder.path, step, finding, batch, self.model.state_dict())
        told = f"{error}; {finding}; look at it again with: python -m train.replay {kept}"
        if stop:
            raise NonFiniteError(f"{told}; {self._last_good()}")
        self.display.say(f"{told}; the step is skipped")
        self.loop.pass_over()
        self.record({"step": step, "event": "skipped", "reason": str(finding)})

    def _after(self, report: StepReport) -> None:
        """All that follows a step."""
        step = report.step
        rate = report.batch_tokens / statistics.median(self._recent)
        self.display.step(report, rate, self._seconds_left())
        expected = self.spikes.check(report.loss)
        if expected is not None:
            self.record({"step": step, "event": "spike", "loss": report.loss, "expected": expected})
        if step == 1 or self.pace.due("log_every", step):
            self._log(report, rate)
        improved = False
        if self.validate is not None and self.pace.due("eval_every", step):
            improved = self.evaluate_now()
        if self.pace.due("sample_every", step):
            self.sample_now()
        self.position.wall_seconds = time.perf_counter() - self._started
        if improved and self.config.checkpoint.best or self.pace.due("checkpoint.every", step):
            self.save_now()
        self.saver.check()
        self.control.publish(self.snapshot(report, rate))

    def _fix_length(self) -> None:
        total = steps_in_budget(self.config, self.position, self._recent, self.validate is not None)
        if total is not None:
            run = self.config.run
            self.config = replace(self.config, run=replace(run, steps=total))
            self.config.save(self.folder.config)
            self.pace.fix(self.config)
            self.display.planned(total)
            self.display.say(f"{run.minutes:g} minutes are {total:,} steps here, "
                             f"{1000 * statistics.median(self._recent):.0f} ms for the present ones")

    def _seconds_left(self) -> float | None:
        if self.total is None:
            return self.config.run.minutes * 60.0 - self.position.wall_seconds
        return (self.total - self.position.step) * statistics.median(self._recent)

    def record(self, row: dict) -> None:
        """Write a row to metrics.jsonl and to the loggers."""
        self.metrics.append(row)
        for logger in self.loggers:
            logger.log(row)

    def say(self, text: str) -> None:
        """Tell whoever watches the terminal."""
        self.display.say(text)

    def snapshot(self, report: StepReport | None = None, rate: float = 0.0) -> dict:
        """What `train.control RUN status` answers."""
        position = self.position
        state = "paused" if self.paused else "running"
        result = {"state": state, "step": position.step, "total": self.total, "tokens": position.cursor,
                  "elapsed_seconds": round(position.seconds, 3)}
        if report is not None:
            left = self._seconds_left()
            result |= {**report.row(), "tokens_per_second": round(rate, 1), "left_seconds": left and round(left)}
        return result

    def _log(self, report: StepReport, rate: float) -> None:
        steps, seconds = report.step - self._logged[0], self.position.seconds - self._logged[1]
        if steps > 1:
            rate = steps * report.batch_tokens / seconds
        self._logged = report.step, self.position.seconds
        self.record({**report.row(), "tokens_per_second": round(rate, 1),
                     "elapsed_seconds": round(self.position.seconds, 3), "grad_norms": self.optimizer.group_norms(),
                     **self.statistics.row(), **experts.row(self.model)})

    def evaluate_now(self) -> bool:
        """Evaluate, and write it down. Returns whether it is the best so far."""
        step, best = self.position.step, self.saver.best_score()
        with self.optimizer.averaged():
            result = self.last_evaluation = self.validate(step)
        total = result.total
        if not math.isfinite(total.loss):
            raise NonFiniteError(f"step {step}: the validation loss is {total.loss}; {self._last_good()}")
        self.record({"step": step, "tokens": self.position.cursor, **result.row()})
        self.display.say(f"step {step}  validation {result}")
        self._draw()
        return best is None or total.loss < best

    def sample_now(self) -> str:
        """Write a sample from the run's prompt into the folder."""
        text = self.sample(self.config.run.sample_prompt)
        self.folder.samples.mkdir(exist_ok=True)
        write_text(self.folder.samples / f"step-{self.position.step:06d}.txt", text + "\n", durable=False)
        self.display.say(f"step {self.position.step}  sample:\n{printable(text)}\n")
        return text

    def sample(self, prompt: str) -> str:
        """The model's continuation of a prompt, the prompt included."""
        try:
            with self.optimizer.averaged():
                return prompt + self.generate(prompt)
        except FloatingPointError as error:
            raise NonFiniteError(f"step {self.position.step}: {error}; {self._last_good()}") from None

    def _draw(self) -> None:
        if self._drawn_at != self.position.step:
            draw_loss(self.folder.metrics, self.folder.picture, f"{self.folder.path.name}: loss by step")
            self._drawn_at = self.position.step

    def save_now(self) -> None:
        """Save a checkpoint of this step, unless there is one."""
        bad = self.optimizer.first_bad_weight()
        if bad:
            raise NonFiniteError(f"step {self.position.step}: weight {bad} is not finite after the update; "
                                 f"{self._last_good()}")
        evaluated = self.last_evaluation
        score = evaluated.total.loss if evaluated and evaluated.step == self.position.step else None
        state = {**vars(self.position), "total_steps": self.total, "updates": self.optimizer.updates,
                 "seed": self.config.run.seed, "threads": kernels.threads(), "config": self.config.digest(),
                 "tokenizer": self.identity.tokenizer, "data": self.identity.data, "spikes": self.spikes.state(),
                 "statistics": self.statistics.state(), **experts.state(self.model)}
        self.saver.save(self.position.step, self.model.state_dict(), self.optimizer.state(), state, score,
                        first=self.metrics.sync)

    def _last_good(self) -> str:
        self.saver.finish()
        saved = list(checkpoints(self.folder.path).values())
        return f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved before"
