"""loss.png: the curves of metrics.jsonl."""

from __future__ import annotations

import itertools
from pathlib import Path

from train.files import write_whole
from train.metrics import read_metrics


def smoothed(values: list[float]) -> list[float]:
    """Mean over a window around each value, narrow where the curve starts and falls fast, so that it does not lag."""
    last, widest = len(values) - 1, len(values) // 30 + 1
    sums = [0.0, *itertools.accumulate(values)]
    result = []
    for place in range(len(values)):
        reach = min(widest, place // 4, last - place)
        result.append((sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1))
    return result


def draw_loss(metrics: Path, picture: Path, title: str) -> None:
    """Draw training and validation loss by step into a PNG file, written whole or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]
    if not train and not validation:
        return
    figure = Figure(figsize=(8.0, 4.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        steps, losses = zip(*train)
        axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label="training, each logged step")
        axes.plot(steps, smoothed(list(losses)), color="#08519c", linewidth=1.8, label="training, smoothed")
    if validation:
        axes.plot(*zip(*validation), color="#d94801", linewidth=1.2, marker="o", markersize=4.5,
                  label=f"validation, last {validation[-1][1]:.3f}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("cross-entropy (nats per token)")
    axes.set_title(title.encode("ascii", "replace").decode(), fontsize=11)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_whole(picture, lambda path: canvas.print_png(str(path), pil_kwargs={"compress_level": 6}), durable=False)
