"""The results of `bench.long_context` for a person: tables and plots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

COLOURS = {"none": "#7f7f7f", "linear": "#1f77b4", "ntk": "#ff7f0e", "abf": "#2ca02c", "yarn": "#d62728",
           "dca": "#9467bd"}


def tables(results: dict) -> Iterator[Table]:
    """One for perplexity, and one for the needle of each kind."""
    length = results["trained_length"]
    if "perplexity" in results:
        found = results["perplexity"]
        table = Table(title=f"Perplexity by position, trained on {length} tokens, {found['tokens']:,} tokens of text",
                      title_justify="left", header_style="bold")
        table.add_column("kind")
        for first, stop in found["bands"]:
            table.add_column(f"{first + 1}-{stop}", justify="right")
        for kind, values in found["by_band"].items():
            table.add_row(kind, *(f"{value:.4g}" for value in values))
        yield table
    if "needle" in results:
        found = results["needle"]
        table = Table(title=f"Needle: questions answered right, trained on {length} tokens, {found['trials']} a cell",
                      title_justify="left", header_style="bold")
        for name in ("kind", "tokens"):
            table.add_column(name)
        for depth in (*(f"depth {depth:g}" for depth in found["depths"]), "mean"):
            table.add_column(depth, justify="right")
        for kind, rows in found["grids"].items():
            for tokens, row in zip(found["lengths"], rows):
                table.add_row(kind, str(tokens), *(f"{share:.0%}" for share in (*row, sum(row) / len(row))))
            table.add_section()
        yield table


def plot_perplexity(results: dict, path: Path) -> None:
    """A curve for each kind over the position, the trained length marked; PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    found = results["perplexity"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    middles = [(first + stop) / 2 for first, stop in found["bins"]]
    for kind, values in found["by_bin"].items():
        axes.plot(middles, values, label=kind, color=COLOURS.get(kind), linewidth=1.5)
    axes.axvline(results["trained_length"], color="#333333", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_locator(LogLocator(10, (1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.set_xlabel("position in the text (tokens); dashed: the trained length")
    axes.set_ylabel("perplexity")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150, format="png")


def plot_needle(results: dict, path: Path) -> None:
    """A grid for each kind, length by depth, green where all answers are right; PNG."""
    from matplotlib.figure import Figure

    found = results["needle"]
    kinds = list(found["grids"])
    columns = min(3, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.6 * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for axes, kind in zip(places, kinds):
        by_depth = list(zip(*found["grids"][kind]))
        axes.imshow(by_depth, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for y, row in enumerate(by_depth):
            for x, share in enumerate(row):
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                          color="white" if share > 0.85 or share < 0.1 else "black")
        axes.set_xticks(range(len(found["lengths"])), found["lengths"])
        axes.set_yticks(range(len(found["depths"])), [f"{depth:g}" for depth in found["depths"]])
        axes.set_title(kind, loc="left", fontsize=10)
        axes.set_xlabel("tokens", fontsize=8)
        axes.set_ylabel("depth", fontsize=8)
    for axes in places[len(kinds):]:
        axes.set_visible(False)
    figure.suptitle(f"Questions answered right in %, trained on {results['trained_length']} tokens",
                    fontsize=11)
    figure.savefig(path, dpi=150, format="png")
