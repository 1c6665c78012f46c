"""The balance of experts in a report: the load of each layer's at the end, and how even it was on the way."""

from __future__ import annotations

import math
from html import escape

from train.dashboard.curves import is_table
from train.report.charts import Curve, Points
from train.report.history import History

WIDTH, LEFT, RIGHT, TOP = 400, 50, 8, 20
WITH_NUMBERS = 16  # experts whose cells have room for one
MOST_NAMES = 16  # of columns
STRONGEST = 2.0  # log2 of the share of the mean that has the full colour
LEGEND = ((0.25, "¼ or less"), (0.5, "½"), (1.0, "the mean"), (2.0, "twice"), (4.0, "4 or more"))


def layers(history: History) -> list[int]:
    """Those that have experts."""
    model = history.config.model
    return [layer for layer in range(model.n_layers) if model.feed_forward == "moe" and model.experts.here(layer)]


def rows(history: History) -> list[tuple[int, dict]]:
    """(step, what was counted since the row before) of the rows that tell it."""
    return [(row["step"], row["experts"]) for row in history.rows if isinstance(row.get("experts"), dict)]


def by_layer(history: History, key: str) -> dict[str, Points]:
    """(step, value) of a list that rows have under `key`, by layer."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, row in rows(history):
        values = row.get(key)
        for layer, value in zip(layers(history), values if isinstance(values, list) else ()):
            if isinstance(value, (int, float)):
                found.setdefault(f"layers.{layer}", []).append((step, value))
    return found


def dead(history: History) -> Points:
    """(step, experts of all layers together that no token came to)."""
    return [(step, sum(row["dead"])) for step, row in rows(history)
            if isinstance(row.get("dead"), list) and all(type(count) is int for count in row["dead"])]


def balance(history: History) -> Curve:
    """The balance loss, unweighted."""
    return Curve("balance loss", [(step, row["balance_loss"]) for step, row in rows(history)
                                  if isinstance(row.get("balance_loss"), (int, float))])


def in_words(history: History) -> tuple[str, str] | None:
    """The last row's mean MaxVio, and how many experts were idle."""
    last, idle = [points[-1][1] for points in by_layer(history, "max_vio").values()], dead(history)
    if not last or not idle:
        return None
    return f"{sum(last) / len(last):.3f}", f"MaxVio, mean of layers; {idle[-1][1]} without a token"


def heat_map(history: History) -> str:
    """Layers by experts, coloured by the share of the mean load since the row before the last; "" without any."""
    found = [(step, row["load"]) for step, row in rows(history) if is_table(row.get("load"))]
    if not found:
        return ""
    step, loads = found[-1]
    first = found[-2][0] + 1 if len(found) > 1 else 1
    names, count = layers(history), len(loads[0])
    cell = (WIDTH - LEFT - RIGHT) / count
    height = 20 if len(loads) <= 16 else 12
    bottom = TOP + height * len(loads)
    title = "Load of each expert"
    parts = [f'<svg viewBox="0 0 {WIDTH} {bottom + 52}" role="img" aria-label="{title}">']
    every = -(-count // MOST_NAMES)
    parts += [_text(LEFT + (i + 0.5) * cell, TOP - 6, i) for i in range(0, count, every)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 14, "expert"))
    for line, (layer, load) in enumerate(zip(names, loads)):
        top, mean = TOP + line * height, sum(load) / count
        parts.append(_text(LEFT - 5, top + height / 2 + 4, f"layer {layer}", "end"))
        for expert, tokens in enumerate(load):
            share = tokens / mean if mean else 0.0
            told = f"layer {layer}, expert {expert}: {tokens:,} choices, {share:.2f} times the mean"
            parts.append(f"<g><title>{told}</title>{_cell(LEFT + expert * cell, top, cell, height, share)}")
            if count <= WITH_NUMBERS:
                parts.append(_text(LEFT + (expert + 0.5) * cell, top + height / 2 + 4, f"{share:.2f}", more="number"))
            parts.append("</g>")
    wide = (WIDTH - LEFT - RIGHT) / len(LEGEND)
    parts.append(f'<rect class="frame" x="{LEFT}" y="{bottom + 24}" width="{WIDTH - LEFT - RIGHT}" height="8"/>')
    for i, (share, told) in enumerate(LEGEND):
        parts.append(_cell(LEFT + i * wide, bottom + 24, wide, 9, share))
        parts.append(_text(LEFT + (i + 0.5) * wide, bottom + 46, told))
    says = f"Tokens that came to an expert over the mean of its layer, steps {first:,} to {step:,}."
    says += " Cells with a dashed line had none." if any(0 in load for load in loads) else ""
    return f"<figure><h3>{title}</h3>{''.join(parts)}</svg><figcaption>{escape(says)}</figcaption></figure>"


def _cell(x: float, y: float, width: float, height: float, share: float) -> str:
    strength = min(1.0, abs(math.log2(share)) / STRONGEST) if share > 0 else 1.0
    kind = "few" if share < 1 else "many"
    gap = min(1.0, width / 8)
    return (f'<rect class="{kind}{" none" if share == 0 else ""}" x="{x:.2f}" y="{y}" width="{width - gap:.2f}" '
            f'height="{height - 1}" fill-opacity="{0.8 * strength:.2f}"/>')


def _text(x: float, y: float, told: object, anchor: str = "middle", more: str = "") -> str:
    kind = f' class="{more}"' if more else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{told}</text>'
