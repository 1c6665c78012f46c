"""A run from its first step, or from its last checkpoint, to its end: logs, evaluations, samples, checkpoints."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import kernels
from engine import Module
from models.run_folder import checkpoints, latest_checkpoint
from train import checkpoint
from train.config import Config
from train.errors import NonFiniteError, UserError
from train.evaluate import Evaluation
from train.files import write_text
from train.folder import RunFolder
from train.interrupts import Interrupts
from train.loop import Loop, Position, StepReport
from train.metrics import MetricsLog
from train.optim.adamw import AdamW
from train.plot import draw_loss
from train.profile import Profile
from train.progress import Display, printable
from train.schedule import learning_rate

MEASURED_STEPS = 10
SKIPPED_STEPS = 2
PROFILED_STEPS = 10
EVALUATIONS, SAMPLES = 10, 5
FORWARD_SHARE = 0.4
SAMPLE_SECONDS_PER_TOKEN = 0.008


@dataclass(frozen=True)
class Identity:
    """Fingerprints that a resumed run must find again."""

    tokenizer: str
    data: str


class Session:
    """Runs a `Loop` in a run folder.

    Args:
        config: its planned steps may be unknown: a run by minutes measures its first steps, fixes the number of steps
            and writes it to config.toml, so that from then on nothing depends on the clock.
        evaluate: validation, or None.
        sample: a text at a step.
    """

    def __init__(self, config: Config, folder: RunFolder, model: Module, optimizer: AdamW, loop: Loop,
                 identity: Identity, evaluate: Callable[[], Evaluation] | None, sample: Callable[[], str]):
        self.config, self.folder, self.model, self.optimizer, self.loop = config, folder, model, optimizer, loop
        self.identity, self._evaluate, self._sample = identity, evaluate, sample
        self.position: Position = loop.position
        self.total = config.planned_steps()
        self._drawn_at = -1
        self.last_evaluation: Evaluation | None = None
        self.last_sample = ""

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
        self.position.__dict__.update({key: saved.state[key] for key in vars(Position())})
        return True

    def run(self, profile: bool = False) -> int:
        """Train to the end. Returns the exit code: 0, or 128 + the signal that ended it early, after saving."""
        position, config = self.position, self.config
        started = time.perf_counter() - position.wall_seconds
        logged, stopping = (position.step, position.seconds), 0
        recent: list[float] = []
        profiler = _Profiling(self.model, self.folder) if profile else None
        metrics = MetricsLog(self.folder.metrics, position.step)
        with Interrupts() as interrupts, Display(self.total, config.run.log_every) as display:
            while self.total is None or position.step < self.total:
                lr = self._learning_rate(position.step + 1)
                try:
                    report = self.loop.step(lr) if profiler is None else profiler.step(self.loop, lr, display)
                except NonFiniteError as error:
                    raise NonFiniteError(f"{error}; {self._last_good()}") from None
                position.wall_seconds = time.perf_counter() - started
                recent = (recent + [report.seconds])[-50:]
                if self.total is None:
                    self._fix_length(recent, display)
                rate = config.data.batch_tokens / statistics.median(recent)
                display.step(report, rate, self._seconds_left(recent))
                if report.step % config.run.log_every == 0 or report.step in (1, self.total):
                    steps, seconds = report.step - logged[0], position.seconds - logged[1]
                    self._log(metrics, report, steps * config.data.batch_tokens / seconds)
                    logged = report.step, position.seconds
                stopping = interrupts.received if position.step != self.total else 0
                if not stopping:
                    self._every_so_often(report.step, metrics, display)
                position.wall_seconds = time.perf_counter() - started
                if stopping or self._due(config.checkpoint.every):
                    self._save(metrics)
                if stopping:
                    break
            if profiler is not None:
                profiler.finish(display)
        metrics.close()
        return 128 + stopping if stopping else 0

    def _learning_rate(self, step: int) -> float:
        optim = self.config.optim
        return learning_rate(step, self.total, peak=optim.lr, kind=optim.schedule, warmup=optim.warmup_steps,
                             min_ratio=optim.min_lr_ratio, decay_fraction=optim.decay_fraction)

    def _fix_length(self, seconds: list[float], display: Display) -> None:
        run, position = self.config.run, self.position
        budget = run.minutes * 60.0
        # The first steps compile and warm up; they count only when the whole budget has gone into them.
        measured = len(seconds) - SKIPPED_STEPS
        patience = budget / 4 if measured >= 1 else budget
        if measured < MEASURED_STEPS and position.wall_seconds < patience:
            return
        step_seconds = statistics.median(seconds[SKIPPED_STEPS:] or seconds[-1:])
        overhead = SAMPLES * run.sample_tokens * SAMPLE_SECONDS_PER_TOKEN
        if self._evaluate is not None:
            per_token = FORWARD_SHARE * step_seconds / self.config.data.batch_tokens
            overhead += EVALUATIONS * run.eval_tokens * per_token
        left = budget - position.wall_seconds
        left -= min(overhead, left / 2)
        self.total = position.step + max(1, round(left / step_seconds))
        self.config = replace(self.config, run=replace(run, steps=self.total))
        self.config.save(self.folder.config)
        display.planned(self.total)
        display.say(f"{run.minutes:g} minutes are {self.total:,} steps of {1000 * step_seconds:.0f} ms here")

    def _seconds_left(self, recent: list[float]) -> float | None:
        if self.total is None:
            return self.config.run.minutes * 60.0 - self.position.wall_seconds
        return (self.total - self.position.step) * statistics.median(recent)

    def _due(self, every: int) -> bool:
        return self.position.step == self.total or (every > 0 and self.position.step % every == 0)

    def _log(self, metrics: MetricsLog, report: StepReport, rate: float) -> None:
        metrics.append({"step": report.step, "tokens": report.tokens, "loss": report.loss,
                        "bits_per_byte": report.bits_per_byte, "lr": report.lr, "grad_norm": report.grad_norm,
                        "tokens_per_second": round(rate, 1), "elapsed_seconds": round(self.position.seconds, 3)})

    def _every_so_often(self, step: int, metrics: MetricsLog, display: Display) -> None:
        run = self.config.run
        if self._evaluate is not None and self._due(self._period(run.eval_every, EVALUATIONS)):
            result = self.last_evaluation = self._evaluate()
            if not math.isfinite(result.loss):
                raise NonFiniteError(f"step {step}: the validation loss is {result.loss}; {self._last_good()}")
            metrics.append({"step": step, "tokens": self.position.cursor, "val_loss": result.loss,
                            "val_bits_per_byte": result.bits_per_byte})
            display.say(f"step {step}  validation loss {result.loss:.4f}  bits/byte {result.bits_per_byte:.4f}")
            self._draw(step)
        if self._due(self._period(run.sample_every, SAMPLES)):
            try:
                self.last_sample = self._sample()
            except FloatingPointError as error:
                raise NonFiniteError(f"step {step}: {error}; {self._last_good()}") from None
            self.folder.samples.mkdir(exist_ok=True)
            write_text(self.folder.samples / f"step-{step:06d}.txt", self.last_sample + "\n", durable=False)
            display.say(f"step {step}  sample:\n{printable(self.last_sample)}\n")

    def _draw(self, step: int) -> None:
        if self._drawn_at != step:
            draw_loss(self.folder.metrics, self.folder.picture, f"{self.folder.path.name}: loss by step")
            self._drawn_at = step

    def _period(self, every: int, parts: int) -> int:
        return max(1, self.total // parts) if every == 0 and self.total else every

    def _save(self, metrics: MetricsLog) -> None:
        bad = self.optimizer.first_bad_weight()
        if bad:
            raise NonFiniteError(f"step {self.position.step}: weight {bad} is not finite after the update; "
                                 f"{self._last_good()}")
        metrics.sync()
        self._draw(self.position.step)
        state = {**vars(self.position), "total_steps": self.total, "updates": self.optimizer.updates,
                 "seed": self.config.run.seed, "threads": kernels.threads(), "config": self.config.digest(),
                 "tokenizer": self.identity.tokenizer, "data": self.identity.data}
        checkpoint.save(self.folder.path, self.position.step, self.model.state_dict(), self.optimizer.state(), state,
                        self.config.checkpoint.keep)

    def _last_good(self) -> str:
        saved = list(checkpoints(self.folder.path).values())
        return f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was saved before"


class _Profiling:
    """Profiles some steps once the first ones are over, then steps aside."""

    def __init__(self, model: Module, folder: RunFolder):
        self._profile, self._folder = Profile(model), folder
        self._waiting, self._steps, self._seconds = SKIPPED_STEPS, 0, 0.0

    def step(self, loop: Loop, lr: float, display: Display) -> StepReport:
        if self._waiting or self._steps == PROFILED_STEPS:
            self._waiting = max(0, self._waiting - 1)
            return loop.step(lr)
        with self._profile:
            report = loop.step(lr)
        self._steps += 1
        self._seconds += report.seconds
        if self._steps == PROFILED_STEPS:
            self._show(display)
        return report

    def finish(self, display: Display) -> None:
        """Show what a run shorter than the profile gathered."""
        if 0 < self._steps < PROFILED_STEPS:
            self._show(display)

    def _show(self, display: Display) -> None:
        text = self._profile.text(self._steps, self._seconds)
        display.say(text)
        write_text(self._folder.profile, text, durable=False)
