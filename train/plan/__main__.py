"""Say what a run will take before it starts: python -m train.plan --help"""

from __future__ import annotations

import json

import train.pretrain  # noqa: F401  so that this process holds what the run's will
from train.arguments import arguments_from, given_values
from train.command import Parser, run_command
from train.configure import new_config, resumed_config
from train.config import Config
from train.curriculum import Stage
from train.errors import UserError
from train.folder import latest
from train.plan.cards import CARDS, MFU, Card, card
from train.plan.duration import duration
from train.plan.fitting import largest_micro_tokens
from train.plan.machine import GPU_RESERVED, available_memory
from train.plan.measure import StepTimes
from train.plan.memory import largest_batch, mapped_tokens, memory_by_part
from train.plan.reading import measure_reading, planned_vocabulary
from train.plan.tables import text
from train.plan.work import counts_first, flops_per_token, parameters

CARD_MICRO_TOKENS = 65_536


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m train.plan", description="Say what a run will take before it starts: parameters, "
                    "FLOPs, memory and time. Nothing is written but what reading leaves in the cache.",
                    epilog="All flags of python -m train.pretrain can be given, too.")
    parser.add_argument("--card", metavar="NAME", help=f"plan for a graphics card instead of this machine: one of "
                        f"{', '.join(one.name for one in CARDS)}")
    parser.add_argument("--mfu", type=float, default=MFU, metavar="X", help="share of the card's peak that the run "
                        f"reaches (default: {MFU})")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    own, rest = parser.parse_known_args(argv)
    if not 0.0 < own.mfu <= 1.0:
        raise UserError(f"--mfu must be in (0, 1]: got {own.mfu}")
    plan = planned(rest, own.card and card(own.card), own.mfu)
    print(json.dumps(plan) if own.json else text(plan))
    return 0


def planned(argv: list[str], on: Card | None, mfu: float = MFU) -> dict:
    """What a run with these flags of train.pretrain takes, as JSON values: times in seconds, memory in bytes."""
    arguments = arguments_from(argv)
    values = given_values(arguments)
    precision = values.pop("run.precision", "auto") if on else None
    if arguments.resume:
        config = resumed_config(arguments.out or latest(train.pretrain.RUNS), arguments, values)
    else:
        config = new_config(arguments, {**values, "run.device": "cpu"} if on else values)
    vocabulary = planned_vocabulary(config)
    if "model.vocab_size" not in values and not arguments.resume:
        pieces = vocabulary.vocab_size if vocabulary else config.tokenizer.vocab_size + 8
        config = config.with_values({"model.vocab_size": pieces})
    if on:
        config = config.with_values({"run.device": "cuda", "run.precision": precision})
    return plan_of(config, vocabulary, on, mfu, values.get("data.micro_tokens", 0))


def plan_of(config: Config, vocabulary, on: Card | None, mfu: float, micro_tokens: int) -> dict:
    """`planned`, the settings being known."""
    device, data, model = config.run.device, config.data, config.model
    available = max(0, on.memory - GPU_RESERVED) if on else available_memory(device)
    largest = largest_micro_tokens(config, available, device)
    if on and not micro_tokens:
        usual = CARD_MICRO_TOKENS if on.memory > 40 << 30 else CARD_MICRO_TOKENS // 4
        config = config.with_values({"data.micro_tokens": max(data.seq_len, min(usual, largest))})
    memory = memory_by_part(config, config.data.micro_tokens, device)
    counted_first = counts_first(config)
    flops = flops_per_token(model, data.seq_len, counted_first)
    fits = sum(memory.values()) <= available
    plan = {"preset": config.run.preset, "parameters": parameters(model),
            "active_parameters": parameters(model, active=True), "flops_per_token": flops,
            "device": on.name if on else device, "precision": _precision(config), "memory": memory,
            "memory_available": available, "fits": fits, "micro_tokens": config.data.micro_tokens,
            "largest_micro_tokens": largest, "step_tokens": largest_batch(config), "threads": config.run.threads}

    def work(stage: Stage) -> float:
        return sum(flops_per_token(model, stage.seq_len, counted_first).values())

    reading = measure_reading(config, vocabulary, max(1, data.batch_tokens // data.seq_len))
    plan["reading"] = reading._asdict()
    if on:
        peak = on.peak(_precision(config))
        plan |= {"peak_flops": peak, "mfu": mfu}

        def seconds(stage: Stage) -> float:
            return stage.batch_tokens * work(stage) / (peak * mfu)
    elif fits:
        seconds = StepTimes(config).seconds
    else:
        return plan
    time = duration(config, seconds, reading.batch)
    if device == "cpu":
        memory["token files, mapped"] = mapped_tokens(config, reading.file_bytes, reading.bytes_per_token, time.steps)
    plan["time"] = {"steps": time.steps, "tokens": time.tokens, "computing": time.computing,
                    "evaluating": time.evaluating, "sampling": time.sampling, "reading_batches": time.reading,
                    "whole": time.whole, "stages": [
                        {**part.stage._asdict(), "steps": part.steps, "step_seconds": part.seconds,
                         "tokens_per_second": part.stage.batch_tokens / part.seconds,
                         "flops_per_second": part.stage.batch_tokens / part.seconds
                         * work(part.stage)} for part in time.parts]}
    return plan


def _precision(config: Config) -> str:
    name = config.run.precision
    return {"cpu": "float32", "cuda": "bf16"}[config.run.device] if name == "auto" else name


if __name__ == "__main__":
    run_command(main)
