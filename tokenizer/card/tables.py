"""The card's numbers as tables of strings, for the terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tokenizer.card.text import KINDS
from tokenizer.card.vocabulary import SELDOM, WIDTH

MOST_FILES = 20
WINDOW = 1024  # tokens
BYTE_BINS = ((1, 1), (2, 2), (3, 3), (4, 6), (7, 9), (10, 12), (13, 18), (19, 24), (25, None))
CHARACTER_BINS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 9), (10, 14), (15, None))


class Table(NamedTuple):
    """`says` explains it to somebody who sees one for the first time; `pieces` are the columns that show pieces."""

    title: str
    says: str
    columns: list[str]
    rows: list[list[str]]
    pieces: tuple[int, ...] = ()


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _compared(values: Sequence[float | None], digits: int = 2) -> list[str]:
    """The first as it is, the others with how much more or less they are."""
    first = values[0]
    return [_number(values[0], digits), *(
        "" if value is None else _number(value, digits) + (f"  ({100 * (value / first - 1):+.0f} %)" if first else "")
        for value in values[1:])]


def _names(card: dict) -> list[str]:
    return [one["name"] for one in card["tokenizers"]]


def at_a_glance(card: dict) -> Table:
    """The numbers that most choices hang on."""
    both = [(one["vocabulary"], one["text"]) for one in card["tokenizers"]]

    def row(label: str, show: Callable[[dict, dict], str]) -> list[str]:
        return [label, *(show(*pair) for pair in both)]

    rows = [
        row("ids, special tokens included", lambda v, t: _number(v["size"])),
        row("where pieces must end (rule)", lambda v, t: v["boundaries"] or "not known"),
        row("bits that an id takes on disk", lambda v, t: str(v["bits_per_id"])),
        row(f"weights of one table, {WIDTH} wide", lambda v, t: f"{v['weights'] / 1e6:.1f} M"),
        row("tokens for the whole text", lambda v, t: _number(t["tokens"])),
        ["bytes per token", *_compared([t["bytes_per_token"] for _, t in both], 3)],
        ["characters per token", *_compared([t["characters_per_token"] for _, t in both], 3)],
        row("ids that the text uses", lambda v, t: f"{_number(t['used'])}  ({_percent(t['used_share'])})"),
        row("ids that make up 90 % of the tokens", lambda v, t: _number(t["ids_for_share"]["90%"])),
        row("bits per byte, by frequency alone", lambda v, t: _number(t["bits_per_byte"], 3)),
        row("evenness of use (1 is even)", lambda v, t: _number(t["evenness"], 3)),
        row("tokens that are parts of a character", lambda v, t: _percent(t["half_character_share"])),
        row("stretches that do not come back unchanged",
            lambda v, t: f"{_number(t['changed_stretches'])} of {_number(t['stretches'])}"),
        row("text can forge special tokens", lambda v, t: "yes" if v["forgeable"] else "no"),
    ]
    return Table("At a glance", "", ["", *_names(card)], rows)


def by_kind(card: dict) -> Table:
    texts = [one["text"] for one in card["tokenizers"]]
    rows = []
    for kind, size in card["data"]["kinds"].items():
        rates = [text["kinds"][kind]["bytes_per_token"] for text in texts]
        rows.append([KINDS[kind], _number(size["bytes"]), *_compared(rates)])
    rows.append(["all", _number(card["data"]["bytes"]), *_compared([text["bytes_per_token"] for text in texts])])
    return Table("Bytes per token, by kind of text",
                 "How much text one token holds on average. More is better: the model then reads and writes the same "
                 "text in fewer steps. In brackets: compared with the first. An English letter is 1 byte, a Chinese "
                 "character 3. The kind is told from the text itself, paragraph by paragraph.",
                 ["kind", "bytes", *_names(card)], rows)


def by_file(card: dict) -> Table:
    texts = [one["text"] for one in card["tokenizers"]]
    files = card["data"]["files"]
    largest = sorted(range(len(files)), key=lambda i: (-files[i]["bytes"], i))[:MOST_FILES]
    rows = [[files[i]["name"], _number(files[i]["bytes"]),
             *_compared([text["files"][i]["bytes_per_token"] for text in texts])] for i in sorted(largest)]
    rest = len(files) - len(rows)
    says = f"The {MOST_FILES} largest; card.json has the other {rest} too." if rest else ""
    return Table("Bytes per token, by file", says, ["file", "bytes", *_names(card)], rows)


def by_unit(card: dict) -> Table:
    """What a reader can picture: words, characters, and how much fits into a window."""
    texts = [one["text"] for one in card["tokenizers"]]
    rows = []
    for kind in card["data"]["kinds"]:
        rates = [text["kinds"][kind] for text in texts]
        if kind == "latin":
            rows.append([f"{KINDS[kind]}: tokens for a word", *_compared([rate["tokens_per_word"] for rate in rates])])
            rows.append([f"{KINDS[kind]}: cuts inside a word", *_compared([text["cuts_in_words"] for text in texts])])
        rows.append([f"{KINDS[kind]}: characters in {WINDOW:,} tokens",
                     *_compared([WINDOW * (rate["characters_per_token"] or 0) for rate in rates], 0)])
    return Table("What fits", f"A model looks back over a fixed number of tokens, say {WINDOW:,}. The more characters "
                 "they hold, the more it remembers. A word that is cut inside, now here, now there, is harder to "
                 "learn; the number is cuts per word.", ["", *_names(card)], rows)


def _binned(counts: dict[str, int], bins: Sequence[tuple[int, int | None]]) -> list[int]:
    return [sum(n for length, n in counts.items() if low <= int(length) <= (high or int(length)))
            for low, high in bins]


def _bin_names(bins: Sequence[tuple[int, int | None]]) -> list[str]:
    return [f"{low} and more" if high is None else str(low) if low == high else f"{low} to {high}"
            for low, high in bins]


def by_length(card: dict) -> list[Table]:
    tables = []
    for unit, bins, says in (
        ("bytes", BYTE_BINS, ""),
        ("characters", CHARACTER_BINS, "Only pieces that are whole characters."),
    ):
        columns = [_binned(one["vocabulary"][f"lengths_in_{unit}"], bins) for one in card["tokenizers"]]
        rows = [[name, *map(_number, row)] for name, row in zip(_bin_names(bins), zip(*columns))]
        tables.append(Table(f"Pieces by length in {unit}", says, [unit, *_names(card)], rows))
    return tables


def by_script(card: dict) -> Table:
    vocabularies = [one["vocabulary"] for one in card["tokenizers"]]
    rows = [[name, *(f"{_number(v['scripts'][name])}  ({_percent(v['scripts'][name] / max(1, v['pieces']))})"
                     for v in vocabularies)]
            for name in vocabularies[0]["scripts"] if any(v["scripts"][name] for v in vocabularies)]
    han = [one["text"]["own_han_share"] for one in card["tokenizers"]]
    rows.append(["single Chinese characters", *(_number(v["han_characters"]) for v in vocabularies)])
    if han[0]["different"]:
        rows.append([f"the text's {han[0]['different']:,} Chinese characters: are pieces",
                     *(f"{_number(h['own'])}  ({_percent(h['share_of_text'])} of the text)" for h in han)])
    rows.append(["several words in one piece", *(_number(v["several_words"]) for v in vocabularies)])
    rows.append(["several digits in one piece", *(_number(v["several_digits"]) for v in vocabularies)])
    return Table("Pieces by script", "Raw bytes spell whatever has no piece of its own: a rare Chinese character then "
                 "takes three tokens. Half characters are longer pieces that begin or end inside a character.",
                 ["letters", *_names(card)], rows)


def waste(card: dict) -> Table:
    vocabularies = [one["vocabulary"] for one in card["tokenizers"]]
    rows = [["never used: always cut otherwise", *(_number(v["beaten"]["pieces"]) for v in vocabularies)],
            ["half characters, raw bytes apart", *(_number(v["half_characters"]["pieces"]) for v in vocabularies)],
            ["a plainer twin is a piece too", *(_number(v["doubled"]["pieces"]) for v in vocabularies)]]
    for key, by in vocabularies[0]["doubled"]["by"].items():
        rows.append([f"of these, set apart by {by['what']}",
                     *(_number(v["doubled"]["by"][key]["pieces"]) for v in vocabularies)])
    if any(v["seldom"] for v in vocabularies):
        rows += [[f"seen less than {int(limit):,} times in training", *(_number((v["seldom"] or {}).get(limit))
                                                                for v in vocabularies)] for limit in SELDOM]
    return Table("Pieces that may be wasted", "A piece that is never used is a row of weights that never learns. A "
                 "doubled piece (“word” with and without a space before, with and without a capital letter) is learnt "
                 "twice; that is a price, not a fault. For rivals the first line counts pieces whose own text is cut "
                 "otherwise.",
                 ["", *_names(card)], rows)


def numbers(card: dict) -> Table:
    rows = []
    every = [one["vocabulary"]["numbers"] for one in card["tokenizers"]]
    for i, row in enumerate(every[0]["by_digits"]):
        cells = [f"{_number(one['by_digits'][i]['tokens'], 2)}  ({_percent(one['by_digits'][i]['cut_alike'])} alike)"
                 for one in every]
        rows.append([f"{row['digits']} digit{'s' if row['digits'] > 1 else ''}", *cells])
    rows += [[text, *(" | ".join(one["examples"][text]) for one in every)] for text in every[0]["examples"]]
    return Table("Numbers", "Mean tokens for a number of so many digits, and how many of these numbers are cut in the "
                 "commonest way. Arithmetic is easier to learn where all numbers are cut alike.",
                 ["number", *_names(card)], rows)


def piece_lists(one: dict) -> list[Table]:
    """Lists of one tokenizer's pieces."""
    vocabulary, text = one["vocabulary"], one["text"]
    lists = [
        ("Longest pieces", "White space alone is left out.", vocabulary["longest"]),
        ("Longest Chinese pieces", "", vocabulary["longest_by_script"]["Han"]),
        ("Longest Latin pieces", "", vocabulary["longest_by_script"]["Latin"]),
        ("Longest pieces that the text uses", "", text["longest_used"]),
        ("Most used pieces", "", text["most_used"]),
        ("Rarest pieces", "Least often used by the text that the vocabulary was trained on.", vocabulary["rarest"]),
        ("Never used", "Every text that holds them is cut in another way.", vocabulary["beaten"]["examples"]),
        ("Half characters", "They begin or end inside a character.", vocabulary["half_characters"]["examples"]),
    ]
    return [_piece_list(title, says, entries) for title, says, entries in lists if entries]


def _piece_list(title: str, says: str, entries: list[dict]) -> Table:
    known = [key for key in ("id", "bytes", "count", "cost", "uses") if key in entries[0]]
    digits = {"cost": 2}
    heads = {"count": "in training", "cost": "cost (nats)", "uses": "in this text"}
    rows = [[e["piece"], *(str(e[key]) if key == "id" else _number(e[key], digits.get(key, 0)) for key in known)]
            for e in entries]
    return Table(title, says, ["piece", *(heads.get(key, key) for key in known)], rows, pieces=(0,))


def doubled(one: dict, shown: int) -> Table:
    """One tokenizer's doubled pieces, `shown` examples of each way."""
    rows = [[by["what"], _number(by["pieces"]), "  ".join("|".join(pair) for pair in by["examples"][:shown])]
            for by in one["vocabulary"]["doubled"]["by"].values()]
    return Table("Doubled pieces", "Each with its plainer twin.", ["set apart by", "pieces", "such as"], rows,
                 pieces=(2,))


def hardest(one: dict) -> Table | None:
    entries = one["text"]["hardest"]
    rows = [[e["text"], _number(e["bytes_per_token"], 2), e["file"]] for e in entries]
    return Table("Hardest stretches", "Where a token holds least; the beginning of each.",
                 ["text", "bytes per token", "file"], rows, pieces=(0,)) if rows else None
