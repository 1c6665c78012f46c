"""The results of `bench.extrapolation` for a person: tables, a plot, and what holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.table import Table

from bench.extrapolation_runs import SEED_FORMS

HOLDS = 0.9
UNDEFINED = "-"
COLOURS = ("#1f77b4", "#17becf", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#7f7f7f", "#8c564b")
MARKERS = "osD^vP*X"
APART = 0.05  # from one kind to the next, in doublings of the length, so that equal results do not hide each other


def names(results: dict, what: str) -> list[str]:
    """The tasks or kinds that were run, in the order of the runs."""
    return list(dict.fromkeys(run[what] for run in results["runs"].values()))


def runs_of(results: dict, task: str, kind: str) -> list[dict]:
    """Those of every seed."""
    return [run for run in results["runs"].values() if (run["task"], run["kind"]) == (task, kind)]


def shares(results: dict, task: str, kind: str, length: int) -> list[float] | None:
    """Share of wholly right answers of each seed; None where the positions are not defined or nothing was run."""
    found = [run["exact"][str(length)] for run in runs_of(results, task, kind)]
    return None if not found or None in found else found


def holds_to(results: dict, task: str, kind: str) -> int:
    """The longest length up to which, at each one tested, the mean over seeds is at least HOLDS; 0 for none."""
    reached = 0
    for length in results["settings"]["lengths"]:
        found = shares(results, task, kind, length)
        if found is None or np.mean(found) < HOLDS:
            break
        reached = length
    return reached


def tables(results: dict) -> Iterator[Table]:
    """A table for each task: exact match in percent, the mean over seeds, in brackets the lowest and the highest."""
    settings = results["settings"]
    for task in names(results, "task"):
        title = f"{task}: wholly right answers in %, by length (trained on 1 to {settings['trained_length']})"
        table = Table(title=title, title_justify="left", header_style="bold")
        table.add_column("positions")
        for heading in (*map(str, settings["lengths"]), "seeds", "steps", "loss"):
            table.add_column(heading, justify="right")
        for kind in names(results, "kind"):
            runs = runs_of(results, task, kind)
            if runs:
                cells = [_cell(shares(results, task, kind, length)) for length in settings["lengths"]]
                table.add_row(kind, *cells, str(len(runs)), f"{np.mean([run['steps'] for run in runs]):,.0f}",
                              f"{np.mean([run['loss'] for run in runs]):.3f}")
        yield table


def _cell(found: list[float] | None) -> str:
    if found is None:
        return UNDEFINED
    spread = f" ({100 * min(found):.0f}-{100 * max(found):.0f})" if max(found) > min(found) else ""
    return f"{100 * np.mean(found):.0f}{spread}"


def verdict(results: dict) -> list[str]:
    """What holds of the claim, in sentences."""
    settings = results["settings"]
    lines = [f"A kind holds to a length if at least {HOLDS:.0%} of the answers are wholly right there and at every "
             f"shorter length tested, mean over seeds. Trained on lengths 1 to {settings['trained_length']}, for "
             f"{settings['seconds']:g} CPU seconds."]
    for task in names(results, "task"):
        reached = {kind: holds_to(results, task, kind) for kind in names(results, "kind")
                   if runs_of(results, task, kind)}
        lines.append(f"{task}: " + ", ".join(f"{kind} {f'holds to {length}' if length else 'holds at none'}"
                                             for kind, length in reached.items()) + ".")
    for kind in SEED_FORMS:
        lines += _of_the_claim(results, kind)
    return lines


def _of_the_claim(results: dict, kind: str) -> list[str]:
    """The seed system's claim for its form, and whether a learned reach has a pole."""
    runs = [run for run in results["runs"].values() if run["kind"] == kind]
    if not runs:
        return []
    longest = results["settings"]["lengths"][-1]
    learned = [task for task in names(results, "task") if holds_to(results, task, kind)]
    kept = [task for task in learned if holds_to(results, task, kind) == longest]
    lines = [f"Unlimited extrapolation is claimed for {kind}, which learnt no task here: its runs say nothing of that."]
    if learned:
        tasks = "1 task" if len(learned) == 1 else f"{len(learned)} tasks"
        lines = [f"Unlimited extrapolation is claimed for {kind}: of {tasks} where it holds at all, it holds to the "
                 f"longest test, {longest}, in {len(kept)}{': ' + ', '.join(kept) if kept else ''}."]
    poles = sorted(-1 / reach for run in runs for reach in run["reach"] if reach < 0)
    if poles:
        lines.append(f"{kind}: of {sum(len(run['reach']) for run in runs)} learned reaches {len(poles)} are negative: "
                     f"1 + reach * distance is 0 at {poles[0]:,.0f} tokens (the nearest); scores have no bound there.")
    return lines


def plot(results: dict, path: Path) -> None:
    """Exact match by length, a panel for each task and a line for each kind; PNG."""
    from matplotlib.figure import Figure

    settings, tasks, kinds = results["settings"], names(results, "task"), names(results, "kind")
    figure = Figure(figsize=(4.6 * len(tasks) + 1.4, 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, task in zip(panels, tasks):
        for place, kind in enumerate(kinds):
            aside = 2 ** (APART * (place - (len(kinds) - 1) / 2))
            points = [(length * aside, 100 * np.mean(found)) for length in settings["lengths"]
                      if (found := shares(results, task, kind, length)) is not None]
            if points:
                axes.plot(*zip(*points), color=COLOURS[place % len(COLOURS)], marker=MARKERS[place % len(MARKERS)],
                          markersize=5, linewidth=1.2, label=kind, alpha=0.85)
        axes.axvline(settings["trained_length"], color="#888888", linestyle="--", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(settings["lengths"], [str(length) for length in settings["lengths"]])
        axes.set_title(task, loc="left")
        axes.set_xlabel(f"length in digits (trained up to {settings['trained_length']})")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("wholly right answers (%)")
    panels[0].set_ylim(-3, 103)
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.savefig(path, format="png")
