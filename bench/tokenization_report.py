"""The results of `bench.tokenization` for a person: tables and a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from bench.tokenization_goals import MIX, Goal, goals
from bench.tokenization_rivals import CONTESTANTS

KIND_NAMES = {"zh": "Chinese", "en": "English", "code": "code", MIX: "mix"}
COLOURS = ["#1f77b4", "#d62728", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f"]


def tables(results: dict) -> Iterator[Table]:
    """A table for each section that was measured, and one for the goals."""
    for section, draw in (("training", _training), ("speeds", _speeds), ("compression", _compression),
                          ("hard", _hard), ("models", _models)):
        if results.get(section):
            yield draw(results)
    found = [goal for goal in goals(results) if goal.measured is not None]
    if found:
        yield goals_table(found)


def _table(title: str, first: list[str], numbers: list[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in first:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _training(results: dict) -> Table:
    table = _table("Training (*: measured by an earlier run, and kept)", ["contestant"],
                   ["text MB", "pieces", "CPU s", "CPU s/MB", "wall s", "threads", "peak MiB"])
    for name, row in results["training"].items():
        megabytes = row["bytes"] / 1e6
        table.add_row(name + "*" * row.get("kept", False), f"{megabytes:.1f}", f"{row['pieces']:,}",
                      f"{row['cpu']:.1f}", f"{row['cpu'] / megabytes:.2f}", f"{row['wall']:.1f}", str(row["threads"]),
                      f"{row['peak_mb'] + (row['child_mb'] * row['threads'] if name == 'bytepiece' else 0):,.0f}")
    return table


def _speeds(results: dict) -> Table:
    table = _table("Speed of one thread, MB per CPU second (in brackets: ours is so many times as fast)",
                   ["text", "contestant"], ["cold", "warm", "decoding", "load ms", "same ids"])
    for row in results["speeds"]:
        cells = [_speed(row[phase]) for phase in ("cold", "warm", "decode")]
        same = results["same_ids"].get(row["contestant"])
        table.add_row(KIND_NAMES[row["kind"]], row["contestant"], *cells, f"{row['load_ms']:.0f}",
                      "" if same is None else f"{same:.1%}", style="bold" if row["contestant"] == "ours" else None)
    return table


def _speed(cell: dict) -> str:
    return f"{cell['median']:.1f}" + ("" if cell["ratio"] in (None, 1.0) else f" ({cell['ratio']:.2f}x)")


def _compression(results: dict) -> Table:
    names = list(results["compression"][0]["bytes_per_token"])
    table = _table("Bytes per token of held-out text (in brackets: ours gets so many times as many from the same "
                   "training text)", ["contestant", "trained on"], ["pieces"] + [KIND_NAMES.get(n, n) for n in names])
    for row in results["compression"]:
        cells = []
        for name in names:
            ratio = row["ratio"].get(name, 1.0)
            beside = "" if row["contestant"] == "ours" else f" ({ratio:.3f}x)"
            cells.append(f"{row['bytes_per_token'][name]:.3f}{beside}")
        table.add_row(row["contestant"], f"{results['corpus'][row['text']] / 1e6:.1f} MB", f"{row['pieces']:,}", *cells,
                      style="bold" if row["contestant"] == "ours" else None)
    return table


def _hard(results: dict) -> Table:
    table = _table("Hard texts: what a byte costs to encode", ["text"], ["ns per byte", "x English", "came back"])
    for name, cost in results["hard"]["ns"].items():
        table.add_row(name, f"{cost:.1f}", f"{cost / results['hard']['english']:.2f}",
                      "changed" if name in results["hard"]["wrong"] else "whole")
    return table


def _models(results: dict) -> Table:
    table = _table("The same small model, the same minutes", ["vocabulary"],
                   ["bits per byte", "pieces", "bytes per token", "steps", "MB of text seen", "epochs"])
    for row in results["models"]:
        table.add_row(row["contestant"], f"{row['bits_per_byte']:.4f}", f"{row['vocab_size']:,}",
                      f"{row['bytes_per_token']:.3f}", f"{row['steps']:,}", f"{row['train_bytes'] / 1e6:.1f}",
                      f"{row['epochs']:.2f}")
    return table


def goals_table(found: list[Goal]) -> Table:
    table = _table("Goals", ["goal"], ["wanted", "measured", "reached"])
    for goal in found:
        table.add_row(goal.name, f"{goal.sense} {goal.target:g}", f"{goal.measured:.3f}",
                      "yes" if goal.reached else "no", style=None if goal.reached else "red")
    return table


def plot(results: dict, path: Path) -> None:
    """Speed and compression of every contestant as bars, one panel each; PNG."""
    from matplotlib.figure import Figure

    speeds, compression = results.get("speeds", []), results.get("compression", [])
    panels = [panel for panel, there in ((_plot_speed, speeds), (_plot_compression, compression)) if there]
    if not panels:
        return
    figure = Figure(figsize=(9, 4.2 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels):
        panel(axes, results)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)


def _bars(axes, groups: list[str], heights: dict[str, list[float]], form: str) -> None:
    """Bars side by side, one colour for each contestant, the height written above."""
    width = 0.84 / len(heights)
    for i, (name, values) in enumerate(heights.items()):
        colour = COLOURS[list(CONTESTANTS).index(name.split()[0]) % len(COLOURS)]
        places = [group + (i - (len(heights) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(places, values, width * 0.94, label=name, color=colour)
        axes.bar_label(bars, [form.format(value) if value == value else "" for value in values], fontsize=7, padding=2)
    axes.set_xticks(range(len(groups)), groups)


def _plot_speed(axes, results: dict) -> None:
    kinds = list(dict.fromkeys(row["kind"] for row in results["speeds"]))
    groups = [(kind, phase) for kind in kinds for phase in ("cold", "warm")]
    heights = {}
    for name in dict.fromkeys(row["contestant"] for row in results["speeds"]):
        rows = {row["kind"]: row for row in results["speeds"] if row["contestant"] == name}
        heights[name] = [rows[kind][phase]["median"] if kind in rows else float("nan") for kind, phase in groups]
    _bars(axes, [f"{KIND_NAMES[kind]}\n{phase}" for kind, phase in groups], heights, "{:.0f}")
    axes.set_yscale("log")
    axes.set_ylabel("MB per CPU second (log scale)")
    axes.set_title(f"Encoding, one thread, {results['size']:,} pieces, documents of 4 KB", loc="left")
    axes.legend(ncols=len(heights), fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.0))
    axes.set_ylim(top=axes.get_ylim()[1] * 2.2)


def _plot_compression(axes, results: dict) -> None:
    rows = results["compression"]
    names = list(rows[0]["bytes_per_token"])
    labels = [f"{row['contestant']} ({results['corpus'][row['text']] / 1e6:.0f} MB)" for row in rows]
    heights = {label: [row["bytes_per_token"][name] for name in names] for label, row in zip(labels, rows)}
    _bars(axes, [KIND_NAMES.get(name, name) for name in names], heights, "{:.2f}")
    axes.set_ylabel("bytes per token")
    axes.set_title(f"Compression of held-out text, {results['size']:,} pieces (in brackets: training text)", loc="left")
    axes.legend(ncols=len(heights), fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.0))
    axes.set_ylim(top=axes.get_ylim()[1] * 1.15)
