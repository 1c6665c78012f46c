"""The router's table: which parameter is moved by what, as a person reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from train.optim.router import Route

LAYER = re.compile(r"layers\.(\d+)\.")


def routing_text(routes: Iterable[Route]) -> str:
    """One line per parameter: name, shape, optimizer, factor of the learning rate, weight decay."""
    lines = []
    for route in routes:
        pieces = f" in {len(route.pieces)} matrices" if len(route.pieces) > 1 else ""
        lines.append(f"{route.parameter:40} {str(list(route.shape)):14} {route.group + pieces:28} "
                     f"lr x {route.lr_factor:<5g} decay {route.weight_decay:g}")
    return "\n".join(lines)


def folded(routes: Iterable[Route]) -> list[Route]:
    """The same with one row for a parameter that all layers have: layers.0-11.attention.norm.gain."""
    found: dict[Route, list[int]] = {}
    for route in routes:
        match = LAYER.match(route.parameter)
        name = f"layers.*.{route.parameter[match.end():]}" if match else route.parameter
        found.setdefault(route._replace(parameter=name), []).extend([int(match[1])] if match else [])
    return [route._replace(parameter=route.parameter.replace("*", _ranges(layers), 1))
            for route, layers in found.items()]


def _ranges(numbers: list[int]) -> str:
    """"0-3,7" of [0, 1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)
