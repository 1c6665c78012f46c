"""The report as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from train.plot import smoothed
from train.presets import PRESETS
from train.progress import printable
from train.report import experts, tables
from train.report.charts import Curve, Points, figure
from train.report.history import History, told
from train.report.reproduce import as_typed, command
from train.report.tables import Table

STYLE = Path(__file__).with_name("page.css")
MOST_EVENTS, MOST_ROWS, LONGEST_SAMPLE = 200, 40, 4000


def page(history: History) -> str:
    """The whole file as text."""
    name = escape(history.path.resolve().name)
    body = "".join((_heading(history, name), _curves(history), _experts(history), _samples(history),
                    _evaluation(history), _data(history), _speed(history), _cost(history), _events(history),
                    _reproduce(history), _settings(history)))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Training run {name}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _heading(history: History, name: str) -> str:
    config, total = history.config, history.total
    model = config.model
    state = ("finished" if history.finished else "not finished: this is how far it has come")
    length = f"step {history.step:,}" + (f" of {total:,}" if total else "")
    active = f", {model.n_parameters(active=True):,} of them for a token" if model.feed_forward == "moe" else ""
    made = f" First weights: {escape(history.facts['made']['how'])}." if history.facts["made"] else ""
    cards = "".join(f"<div><small>{escape(title)}</small><b>{escape(value)}</b><small>{escape(more)}</small></div>"
                    for title, value, more in tables.at_a_glance(history))
    return f"""<h1>Training run {name}</h1>
<p class="soft">{length}, {state}. Preset {escape(config.run.preset)}: {model.n_parameters():,} parameters{active},
{model.n_layers} layers of width {model.d_model}, {model.vocab_size:,} ids.{made}</p>
<div class="cards">{cards}</div>
"""


def _curves(history: History) -> str:
    marks, series, groups = history.marks(), history.series, history.groups
    loss = series("loss")
    smooth = list(zip([step for step, _ in loss], smoothed([value for _, value in loss])))
    validation = Curve("validation", series("val_loss"), "dots", 1)
    bits = Curve("validation", series("val_bits_per_byte"), "dots", 1)
    trained = series("bits_per_byte")
    figures = [
        figure("Loss", "Cross-entropy in nats per token.", [Curve("training", loss, "thin"),
               Curve("training, smoothed", smooth), validation], marks),
        figure("Bits per byte", "Comparable between vocabularies; less is better.", [
               Curve("training, smoothed", list(zip([s for s, _ in trained], smoothed([v for _, v in trained])))),
               bits], marks),
        figure("Learning rate", "AdamW’s, as it was used.", [Curve("learning rate", series("lr"))], marks, True),
        figure("Gradient norm", "Of the whole gradient, before clipping.", [
               Curve("gradient norm", series("grad_norm"))], marks, True),
        _many("Gradient norm by group", "Before clipping.", groups("grad_norms"), marks),
        figure("Speed", "Tokens per second.", [Curve("tokens per second", series("tokens_per_second"))], marks, True),
    ]
    for key, title in (("seq_len", "Length of a row"), ("batch_tokens", "Tokens of a step")):
        values = series(key)
        if len({value for _, value in values}) > 1:
            figures.append(figure(title, "In tokens.", [Curve(title, values)], marks, True))
    figures += [_many("Validation by source", "Bits per byte.", groups("val_bits"), marks)]
    for key, title, says in tables.STATISTICS:
        values = series(key)
        figures.append(figure(title, says, [Curve(title, values)], marks) if values else
                       _many(title, says, groups(key), marks))
    drawn = "".join(filter(None, figures))
    numbers = (" Numbered dashed lines are events, listed below." if marks else "")
    if not drawn:
        return "<h2>Curves</h2><p class='soft'>No step has been logged yet.</p>"
    return f'<h2>Curves</h2><p class="soft">Over optimizer steps.{numbers}</p><div class="plots">{drawn}</div>'


def _many(title: str, says: str, groups: dict[str, Points], marks, from_zero: bool = False) -> str:
    """A figure with a curve for each name; of many layers the first, the last and some between."""
    names = list(groups)
    if len(names) > 9:
        layers = [name for name in names if name.startswith("layers.")]
        kept = {layers[round(i * (len(layers) - 1) / 4)] for i in range(5)} if layers else set()
        names = [name for name in names if name in kept or name not in layers][:9]
    curves = [Curve(name, groups[name], "line", i) for i, name in enumerate(names)]
    return figure(title, says, curves, marks, from_zero)


def _experts(history: History) -> str:
    marks = history.marks()
    dead = Curve("experts", experts.dead(history))
    drawn = "".join((
        experts.heat_map(history),
        _many("MaxVio by layer", "Tokens of the most used expert over the mean, less 1; 0 is even.",
              experts.by_layer(history, "max_vio"), marks, True),
        _many("Entropy of the load by layer", f"In nats; {math.log(history.config.model.experts.n):.3f} is even.",
              experts.by_layer(history, "entropy"), marks),
        figure("Experts without a token", "In all layers together, since the row before.", [dead], marks, True)
        if any(count for _, count in dead.points) else "",
        figure("Balance loss", "Mean of the routers, unweighted; 1 is even.", [experts.balance(history)], marks)))
    return f'<h2>Experts</h2><div class="plots">{drawn}</div>' if drawn else ""


def _samples(history: History) -> str:
    if not history.samples:
        return ""
    prompt = history.config.run.sample_prompt
    asked = f"the prompt “{escape(prompt)}”" if prompt else "no prompt"
    shown = "".join(f'<div class="sample"><h3>Step {step:,}</h3><div class="text">'
                    f"{escape(printable(text.rstrip())[:LONGEST_SAMPLE])}</div></div>"
                    for step, text in history.samples)
    return f'<h2>Samples along the way</h2><p class="soft">With {asked}, always the same seed.</p>{shown}'


def _evaluation(history: History) -> str:
    if not history.evaluations:
        return "<h2>Evaluation</h2><p class='soft'>The run has not been evaluated yet.</p>"
    return f"<h2>Evaluation</h2>{_table(tables.evaluations(history, MOST_ROWS))}"


def _data(history: History) -> str:
    table = tables.data(history)
    if table is None:
        return ""
    return f"<h2>Data</h2>{_table(table)}"


def _speed(history: History) -> str:
    both = "".join(f"<div><h3>{escape(title)}</h3>{_table(table)}</div>"
                   for title, table in tables.speed_and_memory(history))
    return f'<h2>Speed and memory</h2><div class="tables">{both}</div>'


def _cost(history: History) -> str:
    says, table = tables.cost(history)
    return f"<h2>Cost</h2><p>{escape(says)}</p>{_table(table) if table else ''}"


def _events(history: History) -> str:
    events = list(enumerate(history.events, 1))
    if not events:
        return ""
    counts = {}
    for _, row in events:
        counts[row["event"]] = counts.get(row["event"], 0) + 1
    summary = ", ".join(f"{count} {name}" for name, count in counts.items())
    left_out = f" The first {MOST_EVENTS} are shown." if len(events) > MOST_EVENTS else ""
    rows = [[str(number), f"{row['step']:,}", row["event"], told(row).partition(": ")[2].partition(" ")[2]]
            for number, row in events[:MOST_EVENTS]]
    return (f'<h2>Events</h2><p class="soft">{escape(summary)}.{left_out}</p>'
            + _table(Table(["", "step", "event", ""], rows, left=(2, 3))))


def _reproduce(history: History) -> str:
    sessions = history.facts["sessions"]
    flags = sessions[0].get("arguments", []) if sessions else []
    made = history.facts["made"]
    line = f"{made['command']}\n{as_typed(flags)}" if made else command(history.config, flags)
    steered = any(row["event"] in ("set", "undo") for row in history.events)
    told_more = (" Settings were changed while it ran: copy steering.jsonl into the new run folder after the first "
                 "steps and go on with --resume, or set them again at the steps listed above." if steered else "")
    versions = sessions[-1].get("versions", {}) if sessions else {}
    with_versions = ", ".join(f"{name} {value}" for name, value in versions.items())
    return f"""<h2>To train it again</h2>
<p class="soft">The same numbers to the last digit want the same text, machine, threads and versions{
        f" ({escape(with_versions)})" if versions else ""}.{told_more}</p>
<pre>{escape(line)}</pre>
"""


def _settings(history: History) -> str:
    base = PRESETS[history.config.run.preset].flat() if history.config.run.preset in PRESETS else {}
    sections: dict[str, list[str]] = {}
    for key, value in history.config.flat().items():
        section, _, name = key.partition(".")
        changed = ' class="changed"' if base and base[key] != value else ""
        sections.setdefault(section, []).append(
            f"<div{changed}><span>{escape(name)}</span><span>{escape(_shown(value))}</span></div>")
    drawn = "".join(f"<section><h3>{section}</h3>{''.join(lines)}</section>" for section, lines in sections.items())
    return (f'<h2>Configuration</h2><p class="soft">All settings; those that differ from the preset are bold.</p>'
            f'<div class="settings">{drawn}</div>')


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "“”" if value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def _table(table: Table) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f'<{tag}{" class=left" if i in table.left else ""}>{escape(cell)}</{tag}>'
                                for i, cell in enumerate(cells)) + "</tr>\n"

    head = f"<thead>{line(table.head, 'th')}</thead>" if any(table.head) else ""
    return (f'<div class="wide"><table>{head}<tbody>{"".join(line(row, "td") for row in table.rows)}</tbody></table>'
            "</div>\n")
