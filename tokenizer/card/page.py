"""The card as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from tokenizer.card import charts, tables
from tokenizer.card.cut_view import Sample, samples_html
from tokenizer.card.sides import Side
from tokenizer.card.tables import Table
from tokenizer.card.text import KINDS

STYLE = Path(__file__).with_name("page.css")
DOUBLED_SHOWN = 16
LONGEST_DRAWN = 36  # bytes
LONGEST_DRAWN_CHARACTERS = 24


def page(card: dict, sides: Sequence[Side], samples: Sequence[Sample]) -> str:
    """The whole file as text."""
    name = escape(card["tokenizers"][0]["name"])
    body = "".join((
        _heading(card), _glance(card), _rates(card), _cuts(sides, samples), _curves(card), _vocabulary(card),
        *(_lists(one) for one in card["tokenizers"])))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Vocabulary {name}</title>
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _table(table: Table, heading: str = "h3") -> str:
    def cell(text: str, i: int, tag: str) -> str:
        kind = ' class="p left"' if tag == "td" and i in table.pieces else ' class="left"' if i in table.pieces else ""
        main, bracket, rest = text.partition("  (")
        shown = f"{escape(main)} <small>({escape(rest)}</small>" if bracket and i else escape(text)
        return f"<{tag}{kind}>{shown}</{tag}>"

    head = "".join(cell(column, i, "th") for i, column in enumerate(table.columns))
    rows = "".join("<tr>" + "".join(cell(text, i, "td") for i, text in enumerate(row)) + "</tr>\n"
                   for row in table.rows)
    title = f"<{heading}>{escape(table.title)}</{heading}>"
    says = f'<p class="soft">{escape(table.says)}</p>' if table.says else ""
    return (f'{title}{says}<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>'
            "</div>\n")


def _heading(card: dict) -> str:
    ours, data = card["tokenizers"][0], card["data"]
    rivals = ", ".join(escape(one["name"]) for one in card["tokenizers"][1:])
    built_in = ("<p class='note'>No text was given, so all that concerns text was measured on a few built-in "
                "paragraphs. That is too little to choose a vocabulary by: give your own with --data.</p>")
    return f"""<h1>Vocabulary {escape(ours["name"])}</h1>
<p class="lead soft">{ours["vocabulary"]["size"]:,} ids. {ours["text"]["bytes_per_token"] or 0:.2f} bytes per token on
{_size(data["bytes"])} of text.{f" Beside it: {rivals}." if rivals else ""}{_made_by(ours["vocabulary"]["made_by"])}</p>
<p>A language model does not read letters. A <em>tokenizer</em> first cuts the text into <em>pieces</em> out of a fixed
list, the <em>vocabulary</em>, and gives the model each piece’s number, its <em>id</em>. A piece in a text is called a
<em>token</em>. With longer pieces the same text takes fewer tokens, so the model works less and remembers more of it.
But every piece needs a row of weights of its own, and a piece that is rarely seen is badly learnt. This page helps to
choose.</p>
{built_in if data["built_in"] else ""}"""


def _made_by(made_by: dict) -> str:
    told = ", ".join(f"{name.replace('_', ' ')} {f'{value:,}' if isinstance(value, int) else value}"
                     for name, value in made_by.items())
    return f"<br>Made by: {escape(told)}." if told else ""


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB"


def _glance(card: dict) -> str:
    meanings = """<details><summary>What these lines mean</summary>
<dl>
<dt>Where pieces must end</dt><dd>The rule that the vocabulary was made by. With “default” digits stand alone, a line
end ends a piece, and a piece may hold several words; with “words” at most one word; with “characters” letters and marks
stand alone.</dd>
<dt>Bits that an id takes on disk</dt><dd>Up to 65,536 ids fit in 16 bits; above that training data takes twice the
space.</dd>
<dt>Weights of one table</dt><dd>The model has a row for every id where ids come in, and usually another where they go
out.</dd>
<dt>Ids that the text uses</dt><dd>The rest learns nothing from such a text.</dd>
<dt>Bits per byte, by frequency alone</dt><dd>What the text would cost if each token were guessed by how often it
occurs, without looking at the ones before. Less is better.</dd>
<dt>Evenness of use</dt><dd>The Rényi efficiency (Zouhar et al. 2023). It is low where a few ids do all the work.</dd>
<dt>Parts of a character</dt><dd>Tokens that are no text by themselves. A rare Chinese character is spelled with three
of them.</dd>
<dt>Come back unchanged</dt><dd>Whether decoding gives the text again, byte for byte.</dd>
<dt>Forge special tokens</dt><dd>Whether a user can write the name of a control token, such as the end of a turn, and
have it taken for the real one.</dd>
</dl></details>
"""
    return _table(tables.at_a_glance(card), "h2") + meanings


def _rates(card: dict) -> str:
    names = [one["name"] for one in card["tokenizers"]]
    texts = [one["text"] for one in card["tokenizers"]]
    groups = [(KINDS[kind], [text["kinds"][kind]["bytes_per_token"] for text in texts])
              for kind in card["data"]["kinds"]]
    groups.append(("all", [text["bytes_per_token"] for text in texts]))
    table = tables.by_kind(card)
    return (f'<h2>{table.title}</h2><p class="soft">{escape(table.says)}</p>{charts.bars(groups, names)}'
            + _table(table._replace(title="In numbers", says="")) + _table(tables.by_file(card))
            + _table(tables.by_unit(card)))


def _cuts(sides: Sequence[Side], samples: Sequence[Sample]) -> str:
    return f"""<h2>How a text is cut</h2>
<p class="soft">Every coloured stretch is one token; the colours only set neighbours apart. Point at a token (or touch
it) and the foot of the page tells its number, its bytes and its cost: the cheaper a piece, the sooner it is used. A dot
<i class="sign">·</i> is a space, <i class="sign">⏎</i> a line end, <i class="sign">⇥</i> a tab. A small box such as
<i class="byte"><s>9A</s></i> is one byte of a character that is split between tokens; the character itself stands in
the box of its first byte.</p>
{samples_html(sides, samples)}"""


def _curves(card: dict) -> str:
    names = [one["name"] for one in card["tokenizers"]]
    figures = [
        _lengths(card, "Length of the pieces in the vocabulary", "vocabulary", "lengths_in_bytes", "bytes",
                 "Share of the pieces. Chinese characters have 3 bytes each, hence the peaks at 3, 6, 9.",
                 LONGEST_DRAWN),
        _lengths(card, "Length of the tokens in the text", "text", "token_lengths", "bytes",
                 "Share of the tokens: what is really used.", LONGEST_DRAWN),
        _lengths(card, "Length of the pieces in characters", "vocabulary", "lengths_in_characters", "characters",
                 "Share of the pieces that are whole characters.", LONGEST_DRAWN_CHARACTERS),
        _ranks(card),
    ]
    return f'<h2>Curves</h2>{charts.key(names)}<div class="plots">{"".join(figures)}</div>'


def _lengths(card: dict, title: str, part: str, field: str, unit: str, says: str, longest: int) -> str:
    curves = []
    for one in card["tokenizers"]:
        counts = one[part][field]
        total = sum(counts.values()) or 1
        last = min(longest, max(map(int, counts), default=1))
        curves.append([(i, 100 * counts.get(str(i), 0) / total) for i in range(1, last + 1)])
    across = charts.linear(unit, max(2, max(curve[-1][0] for curve in curves)), low=1)
    highest = max(value for curve in curves for _, value in curve)
    return charts.lines(title, across, charts.linear(says, highest or 1, "{:g} %".format), curves,
                        [one["name"] for one in card["tokenizers"]])


def _ranks(card: dict) -> str:
    curves = [[tuple(point) for point in one["text"]["rank_frequency"]] for one in card["tokenizers"]]
    points = [point for curve in curves for point in curve] or [(1, 1)]
    return charts.lines(
        "How often each id is used, most used first",
        charts.powers("rank of the id", max(rank for rank, _ in points)),
        charts.powers("Uses in the text. A long flat line is good use of the vocabulary; where it ends, the rest is "
                      "unused.", max(uses for _, uses in points)),
        curves, [one["name"] for one in card["tokenizers"]])


def _vocabulary(card: dict) -> str:
    groups = [(one["name"], list(one["vocabulary"]["scripts"].values())) for one in card["tokenizers"]]
    names = list(card["tokenizers"][0]["vocabulary"]["scripts"])
    lengths = "".join(f"<div>{_table(table)}</div>" for table in tables.by_length(card))
    return (f"<h2>What the vocabulary holds</h2>{charts.stacks(groups, names)}{_table(tables.by_script(card))}"
            f'<div class="lists">{lengths}</div>{_table(tables.waste(card))}{_table(tables.numbers(card))}')


def _lists(one: dict) -> str:
    found = [*tables.piece_lists(one), tables.doubled(one, DOUBLED_SHOWN)]
    hardest = tables.hardest(one)
    if hardest:
        found.append(hardest)
    drawn = "".join(f"<div>{_table(table)}</div>" for table in found)
    return (f'<details><summary>Lists of pieces: {escape(one["name"])} <small>longest, rarest, doubled, never used'
            f'</small></summary><div class="lists">{drawn}</div></details>')
