"""Plots as small pieces of SVG and HTML whose colours come from the page's style, so that they fit both themes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

COLOURS = 9
WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 40
DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 2", "12 4")


def colour(i: int) -> str:
    """The style's name for the colour of the tokenizer at place i."""
    return f"var(--s{i % COLOURS})"


def key(names: Sequence[str]) -> str:
    """Which colour is whose."""
    spans = "".join(f'<span style="--of:{colour(i)}">{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="key">{spans}</div>'


class Axis(NamedTuple):
    """A linear or logarithmic scale from `low` to `high`, with what stands at its ticks."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one."""
        scale = math.log if self.logarithmic else float
        return (scale(value) - scale(self.low)) / ((scale(self.high) - scale(self.low)) or 1)


def linear(label: str, high: float, show: Callable[[float], str] = "{:,.0f}".format, low: float = 0) -> Axis:
    """An axis with at most eight round ticks."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-9)))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if (high - low) / (step * part) <= 8)
    first, last = math.ceil(low / step), math.ceil(high / step - 1e-9)
    return Axis(label, low, last * step, [(i * step, show(i * step)) for i in range(first, last + 1)])


def powers(label: str, high: float) -> Axis:
    """A logarithmic axis from 1 with ticks at the powers of ten."""
    last = max(1, math.ceil(math.log10(max(high, 2)) - 1e-9))
    every = 1 + last // 7
    names = ("1", "10", "100", "1,000", "10 k", "100 k", "1 M", "10 M", "100 M", "1 G")
    ticks = [(10**i, names[i] if i < len(names) else f"1e{i}") for i in range(0, last + 1, every)]
    return Axis(label, 1, 10**last, ticks, logarithmic=True)


def lines(title: str, x: Axis, y: Axis, curves: Sequence[Sequence[tuple[float, float]]], names: Sequence[str]) -> str:
    """A figure with one curve for each name; points outside the axes are left out."""
    def across(value: float) -> float:
        return LEFT + x.place(value) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value, name in y.ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}"/>'
                     f'<text x="{LEFT - 5}" y="{up(value) + 4:.1f}" text-anchor="end">{escape(name)}</text>')
    for value, name in x.ticks:
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{escape(name)}'
                     "</text>")
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}'
                 "</text>")
    for i, (curve, name) in enumerate(zip(curves, names)):
        inside = [point for point in curve if x.low <= point[0] <= x.high and y.low <= point[1] <= y.high]
        points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in inside)
        parts.append(f'<polyline class="curve" points="{points}" style="stroke:{colour(i)}" '
                     f'stroke-dasharray="{DASHES[i % len(DASHES)]}"><title>{escape(name)}</title></polyline>')
    parts.append("</svg>")
    return f"<figure><h3>{escape(title)}</h3>{''.join(parts)}<figcaption>{escape(y.label)}</figcaption></figure>"


def bars(groups: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str]) -> str:
    """Groups of horizontal bars, one bar for each name."""
    most = max((value for _, values in groups for value in values if value), default=1)
    rows = []
    for label, values in groups:
        drawn = "".join(
            f'<div class="bar" style="--of:{colour(i)}" title="{escape(name, quote=True)}"><b>{value:.2f}</b>'
            f'<div><i style="width:{100 * value / most:.1f}%"></i></div></div>'
            for i, (name, value) in enumerate(zip(names, values)) if value is not None)
        rows.append(f"<div>{escape(label)}</div><div>{drawn}</div>")
    return f'{key(names)}<div class="bars">{"".join(rows)}</div>'


def stacks(groups: Sequence[tuple[str, Sequence[int]]], names: Sequence[str]) -> str:
    """One bar for each group, divided by names."""
    rows = []
    for label, values in groups:
        total = sum(values) or 1
        drawn = "".join(f'<i style="--of:{colour(i)};flex:{value / total:.5f} 0 0" title="{escape(name, quote=True)}: '
                        f'{value:,}"></i>' for i, (name, value) in enumerate(zip(names, values)) if value)
        rows.append(f'<div>{escape(label)}</div><div class="stack">{drawn}</div>')
    return f'{key(names)}<div class="bars">{"".join(rows)}</div>'
