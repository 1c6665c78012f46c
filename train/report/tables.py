"""The tables of a report, as text by row."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from train.plan.activations import known
from train.plan.memory import memory_by_part
from train.plan.work import counts_first, flops_per_token, parameters
from train.progress import clock
from train.report import experts
from train.report.history import History

MB, GB = 1e6, 1e9
STATISTICS = (
    ("accuracy", "Accuracy", "Share of the validation tokens that the model thought likeliest."),
    ("confidence", "Confidence", "Mean probability of the right next token, in validation."),
    ("noise_scale", "Gradient noise scale", "In tokens: much larger batches than this gain little."),
    ("update_ratio", "Update to weight", "Norm of a step's change over the norm of the weights."),
    ("attention_entropy", "Attention entropy", "Mean over heads and queries, in nats; 0 is attention to one token."),
)


class Table(NamedTuple):
    """`left`: columns of words beside the first, which is one."""

    head: list[str]
    rows: list[list[str]]
    left: tuple[int, ...] = ()


def at_a_glance(history: History) -> list[tuple[str, str, str]]:
    """(title, value, more) of what one looks for first."""
    found = []
    evaluations, training = history.evaluations, history.training
    bits = [(row["val_bits_per_byte"], row["step"]) for row in evaluations if "val_bits_per_byte" in row]
    if bits:
        best, step = min(bits)
        found.append(("validation", f"{bits[-1][0]:.4f}", f"bits per byte; best {best:.4f} at step {step:,}"))
    if evaluations:
        loss = evaluations[-1]["val_loss"]
        found.append(("validation loss", f"{loss:.4f}", f"nats per token; perplexity {_perplexity(loss)}"))
    if training:
        last = training[-1]
        found.append(("training loss", f"{last['loss']:.4f}", f"at step {last['step']:,}"))
        if "tokens" in last:
            found.append(("tokens", _count(last["tokens"]), _epochs(history, last["tokens"])))
    seconds, _ = time_spent(history)
    if seconds:
        found.append(("time", clock(seconds), _cost_words(history, seconds)))
    rates = [value for _, value in history.series("tokens_per_second")]
    if rates:
        found.append(("speed", f"{statistics.median(rates):,.0f}", "tokens per second, median"))
    balance = experts.in_words(history)
    if balance:
        found.append(("expert load", *balance))
    peak = peak_memory(history)
    if peak:
        found.append(("memory", f"{peak / MB:,.0f} MB", "most that the process held"))
    return found


def evaluations(history: History, most: int) -> Table:
    """A row for each evaluation, or for `most` of them spread over the run."""
    rows = history.evaluations
    if len(rows) > most:
        rows = [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]
    names = list(history.groups("val_bits"))
    more = [key for key in ("accuracy", "confidence") if history.series(key)]
    head = ["step", "loss, nats per token", "perplexity", "bits per byte",
            *[f"bits per byte, {name}" for name in names], *more]
    return Table(head, [[f"{row['step']:,}", f"{row['val_loss']:.4f}", _perplexity(row["val_loss"]),
                         _number(row.get("val_bits_per_byte"), ".4f"),
                         *[_number(row.get("val_bits", {}).get(name), ".4f") for name in names],
                         *[_number(row.get(key), ".4f") for key in more]] for row in rows])


def data(history: History) -> Table | None:
    """Each source, or None where facts.json does not say."""
    facts = history.facts["data"]
    if not facts:
        return None
    rows, weights = [], facts.get("weights", {})
    for use in ("train", "validation"):
        for name, part in facts.get(use, {}).items():
            tokens, size = part["tokens"], part["bytes"]
            weight = f"{weights[name]:.1%}" if use == "train" and len(weights) > 1 else ""
            title = "training" if use == "train" else use
            rows.append([f"{title}, {name}" if name else title, f"{size / MB:,.2f} MB",
                         f"{part['documents']:,}", f"{tokens:,}",
                         f"{size / max(1, tokens - part['documents']):.2f}", weight])
    return Table(["text", "size", "documents", "tokens", "bytes per token",
                  "share of tokens" if len(weights) > 1 else ""], rows)


def speed_and_memory(history: History) -> list[tuple[str, Table]]:
    """Parameters and FLOPs by part, speed over the run, memory by part."""
    config = history.config
    counts, active = parameters(config.model), parameters(config.model, active=True)
    flops = flops_per_token(config.model, config.data.seq_len, counts_first(config))
    columns = [counts] if active == counts else [counts, active]
    parts = {**dict.fromkeys(counts), **dict.fromkeys(flops)}
    rows = [[name, *(_number(column.get(name), ",") for column in columns), _number(flops.get(name), ",.1f", 1e6)]
            for name in parts]
    rows.append(["all", *(f"{sum(column.values()):,}" for column in columns), f"{sum(flops.values()) / 1e6:,.1f}"])
    head = ["part", "parameters", "for a token"][:1 + len(columns)]
    found = [("The model", Table([*head, "MFLOP per token"], rows))]
    rates = [value for _, value in history.series("tokens_per_second")]
    if rates:
        work = sum(flops.values())
        rows = [[name, f"{rate:,.0f}", f"{rate * work / 1e9:,.1f}"]
                for name, rate in (("slowest", min(rates)), ("median", statistics.median(rates)),
                                   ("fastest", max(rates)))]
        found.append(("Speed of logged stretches", Table(["", "tokens per second", "GFLOP per second"], rows)))
    memory = _planned_memory(history)
    if memory:
        peak = peak_memory(history)
        rows = [[name, f"{size / MB:,.1f} MB"] for name, size in memory.items()]
        if peak:
            rows.append(["process at its peak, measured", f"{peak / MB:,.1f} MB"])
        found.append(("Memory by part, by formula", Table(["", ""], rows)))
    return found


def _planned_memory(history: History) -> dict[str, int]:
    config = history.config
    if not known(config.model) or config.run.device == "auto":
        return {}
    found = memory_by_part(config, config.data.micro_tokens or config.data.seq_len, config.run.device)
    return {name: size for name, size in found.items() if name != "program"}


def cost(history: History) -> tuple[str, Table | None]:
    """In a sentence, and by session."""
    sessions = history.facts["sessions"]
    seconds, measured = time_spent(history)
    if not seconds:
        return "No time has been recorded yet.", None
    says = f"{_cost_words(history, seconds)} in {clock(seconds)}"
    says += "." if measured else ", counting the steps that the log has."
    cpu = sum(session.get("cpu_seconds", 0) for session in sessions)
    if cpu:
        says += f" The processors worked for {cpu / 3600:,.2f} core-hours of it."
    rows = []
    for number, session in enumerate(sessions, 1):
        machine = session.get("machine", {})
        where = machine.get("card") or f"{machine.get('processor', '?')}, {machine.get('cores', '?')} cores"
        length = clock(session["seconds"]) if "seconds" in session else "not ended, or killed"
        rows.append([str(number), session.get("started", "?"), f"{session.get('first_step', 0):,}", length, where])
    return says, Table(["session", "began (UTC)", "after step", "took", "on"], rows, (1, 4)) if rows else None


def time_spent(history: History) -> tuple[float, bool]:
    """Seconds, and whether all sessions told theirs; else those of the steps that count, as far as they are known."""
    sessions = history.facts["sessions"]
    told = [session["seconds"] for session in sessions if "seconds" in session]
    logged = max([value for _, value in history.series("elapsed_seconds")], default=0.0)
    known_seconds = max(history.wall_seconds, logged)
    if told and len(told) == len(sessions):
        return max(sum(told), known_seconds), True
    return max(sum(told), known_seconds), False


def peak_memory(history: History) -> int:
    """Bytes that the largest session's process held; 0 where none told."""
    return max((session.get("peak_bytes", 0) for session in history.facts["sessions"]), default=0)


def _cost_words(history: History, seconds: float) -> str:
    run = history.config.run
    if run.device == "cuda":
        return f"{seconds / 3600:,.2f} device-hours"
    threads = run.threads or 1
    return f"{seconds * threads / 3600:,.2f} core-hours ({threads} {'core' if threads == 1 else 'cores'})"


def _epochs(history: History, tokens: int) -> str:
    train = history.facts["data"].get("train", {})
    total = sum(part["tokens"] for part in train.values())
    return f"{tokens / total:,.2f} times the training text" if total and len(train) == 1 else "trained on"


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 20 else "above 1e8"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,}"


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None else format(value if unit == 1 else value / unit, form)
