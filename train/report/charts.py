"""Curves over optimizer steps as SVG whose colours come from the page's style, to fit both themes and paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from tokenizer.card.charts import Axis, colour

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 50, 20, 16, 34
MOST_POINTS = 700
Points = Sequence[tuple[float, float]]


class Curve(NamedTuple):
    """`kind`: "line", "thin" (what is not smoothed), or "dots" (few values)."""

    name: str
    points: Points
    kind: str = "line"
    colour: int = 0


class Mark(NamedTuple):
    """An event at a step."""

    number: int
    step: int
    told: str


def figure(title: str, says: str, curves: Sequence[Curve], marks: Sequence[Mark] = (), from_zero: bool = False) -> str:
    """A figure; "" when no curve has a point. The first values of a curve that falls fast may lie above the frame."""
    curves = [curve._replace(points=[p for p in curve.points if math.isfinite(p[1])]) for curve in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    last = max(curve.points[-1][0] for curve in curves)
    x = axis(0, max(last, 1))
    low, high = _range(curves, last)
    y = axis(0 if from_zero else low, high)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
             *_frame(x, y)]
    for mark in marks:
        place = _across(x, mark.step)
        parts.append(f'<g class="mark"><title>{escape(mark.told)}</title><line x1="{place:.1f}" x2="{place:.1f}" '
                     f'y1="{TOP}" y2="{HEIGHT - BOTTOM}"/><text x="{place:.1f}" y="{TOP - 4}" text-anchor="middle">'
                     f"{mark.number}</text></g>")
    frame = f'x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
    box = f"{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM}"
    parts += [f'<svg {frame} viewBox="{box}">', *[_drawn(curve, x, y) for curve in curves], "</svg>"]
    shown = [curve for curve in curves if curve.kind != "thin"]
    key = "".join(f'<span style="--of:{colour(curve.colour)}">{escape(curve.name)}</span>' for curve in shown)
    key = f'<div class="key">{key}</div>' if len(shown) > 1 else ""
    return (f"<figure><h3>{escape(title)}</h3>{''.join(parts)}</svg>{key}"
            f"<figcaption>{escape(says)}</figcaption></figure>")


def axis(low: float, high: float) -> Axis:
    """An axis with at most six round ticks that holds both ends."""
    span = max(high - low, abs(high) * 0.01, 1e-12)
    step = 10 ** math.floor(math.log10(span))
    step = next(step * part for part in (0.1, 0.2, 0.5, 1, 2, 5) if span / (step * part) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return Axis("", first * step, last * step, [(i * step, _name(i * step)) for i in range(first, last + 1)])


def _name(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most about MOST_POINTS of them: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    width = -(-2 * len(points) // MOST_POINTS)
    result = []
    for start in range(0, len(points), width):
        part = points[start: start + width]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        result += sorted(ends)
    return result


def _range(curves: Sequence[Curve], last: float) -> tuple[float, float]:
    """Of the values that the frame must hold: all but those of the first fiftieth, where there are others."""
    values = [value for curve in curves for step, value in curve.points if step >= last / 50]
    return min(values), max(values)


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value, name in y.ticks:
        place = _up(y, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
                     f'<text x="{LEFT - 5}" y="{place + 4:.1f}" text-anchor="end">{name}</text>')
    for value, name in x.ticks:
        parts.append(f'<text x="{_across(x, value):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{name}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">optimizer step</text>')
    return parts


def _drawn(curve: Curve, x: Axis, y: Axis) -> str:
    style = f'style="--of:{colour(curve.colour)}"'
    places = [(_across(x, step), _up(y, value)) for step, value in thinned(curve.points)]
    if curve.kind == "dots" or len(places) == 1:
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in places)
        line = _line(places, "line", style) if len(places) > 1 else ""
        return f'{line}<g class="dots" {style}><title>{escape(curve.name)}</title>{dots}</g>'
    return _line(places, curve.kind, style, escape(curve.name))


def _line(places: Points, kind: str, style: str, title: str = "") -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    told = f"<title>{title}</title>" if title else ""
    return f'<polyline class="{kind}" points="{points}" {style}>{told}</polyline>'


def _across(x: Axis, value: float) -> float:
    return LEFT + x.place(value) * (WIDTH - LEFT - RIGHT)


def _up(y: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM)
