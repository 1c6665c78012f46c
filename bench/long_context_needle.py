"""A needle in a haystack: text of keys and values, a small model that learns to look them up, and its grid of scores.

A haystack is five sentences of filler over and over (arXiv 2305.16300, section 4.2), begun anywhere. Facts stand
between its words: a key, one of 26 capitals, and its value, one of 10 digits, as in "K7;". A question is "?K" and wants
the key's value. Guessing a digit is right one time in ten.

The model reads bytes. It is trained by train.pretrain on documents of exactly its context, mostly of facts and of
questions about them with their answers; the loss is that of all bytes, as for any text. The grid asks one question at
the end of a haystack of some length, about the fact at some depth, among `DISTRACTORS` other facts.
"""

from __future__ import annotations

import contextlib
import json
import string
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from engine import UserError, no_grad
from models.decoder import Decoder
from tokenizer import ByteTokenizer, Tokenizer
from train import pretrain
from train.files import write_text

FILLER = "the grass is green. the sky is blue. the sun is yellow. here we go. there and back again. "
KEYS, VALUES = list(string.ascii_uppercase), list(string.digits)
TRAINED_LENGTH = 64
DOCUMENTS = 40_000
MOST_FACTS = 6  # of a document
CHARACTERS_OF_A_FACT = 11  # of a document for each of its facts, at least
DISTRACTORS = 3
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEARNED = 0.5  # of the questions in texts as long as the trained ones: below, longer ones say nothing
BATCH_TOKENS = 16_384
ROWS = 32
SETTINGS = ("model.n_layers=2", "model.d_model=64", "model.n_heads=2", "model.d_ff=64", "run.eval_every=-1",
            "run.sample_every=-1", "data.val_fraction=0.01", "optim.warmup_steps=20", "optim.optimizer=muon",
            "optim.lr=1e-2", "optim.weight_decay=0.0")


def haystack(rng: np.random.Generator, pieces: Sequence[tuple[float, str]], length: int) -> str:
    """`length` characters of filler with pieces, each at its place from 0, the beginning, to 1, the end."""
    pieces = sorted(pieces)
    room = length - sum(len(text) for _, text in pieces)
    if room < 0:
        raise UserError(f"a haystack of {length} characters must hold its facts and questions: it lacks {-room}")
    start = int(rng.integers(len(FILLER)))
    filler = (FILLER * (room // len(FILLER) + 2))[start: start + room]
    parts, done = [], 0
    for place, text in pieces:
        upto = max(done, filler.rfind(" ", 0, round(place * room)) + 1) if place < 1 else room
        parts += [filler[done:upto], text]
        done = upto
    return "".join([*parts, filler[done:]])


def document(rng: np.random.Generator, length: int) -> str:
    """Training text: a few facts, crowded at its beginning or spread, and questions with their answers, each somewhere
    after its fact. Half of the text to all of it; filler is the rest."""
    count = int(rng.integers(1, max(1, min(MOST_FACTS, length // CHARACTERS_OF_A_FACT)) + 1))
    keys, values = rng.permutation(KEYS)[:count], rng.choice(VALUES, count)
    places = rng.random(count) * rng.random()
    facts = [f"{key}{value};" for key, value in zip(keys, values)]
    room = int(length * rng.uniform(0.5, 1.0)) - len("".join(facts))
    asked = rng.integers(0, count, max(1, room // len("?K7;")))
    questions = [(rng.uniform(places[fact], 1.0), f"?{facts[fact]}") for fact in asked]
    return haystack(rng, [*zip(places, facts), *questions], length)


def make_text(file: Path, length: int, documents: int = DOCUMENTS, seed: int = 0) -> None:
    """JSON lines with documents of `length` tokens, the last of which is the end-of-document id."""
    rng = np.random.default_rng(seed)
    lines = (json.dumps({"text": document(rng, length - 1)}) for _ in range(documents))
    write_text(file, "\n".join(lines) + "\n", durable=False)


def question(rng: np.random.Generator, length: int, depth: float) -> tuple[str, str]:
    """A text of `length` characters that ends with a question about the fact at `depth`, and the answer."""
    keys, values = rng.permutation(KEYS)[: DISTRACTORS + 1], rng.choice(VALUES, DISTRACTORS + 1)
    places = [depth, *rng.random(DISTRACTORS)]
    facts = [(place, f"{key}{value};") for place, key, value in zip(places, keys, values)]
    asked = f"?{keys[0]}"
    return haystack(rng, facts, length - len(asked)) + asked, values[0]


def trained_run(work: Path, seconds: float, length: int = TRAINED_LENGTH, documents: int = DOCUMENTS,
                settings: Sequence[str] = SETTINGS) -> Path:
    """The run folder of a model trained on such text for so many seconds; one that is there is finished, and taken."""
    run, text = work / f"needle-{length}-{seconds:g}s", work / f"needle-{length}.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    if not text.exists():
        make_text(text, length, documents)
    flags = ["--data", str(text), "--tokenizer", "bytes", "--minutes", str(seconds / 60), "--seq-len", str(length),
             "--batch-tokens", str(ROWS * length), "--set", f"model.max_seq_len={length}",
             f"data.cache_dir={work / 'cache'}", *settings, "--out", str(run)]
    if (run / "config.toml").exists():
        flags = ["--resume", "--out", str(run)]
    with contextlib.redirect_stdout(sys.stderr):
        code = pretrain.main(flags)
    if code:
        raise UserError(f"{run}: training ended with code {code}")
    return run


def grid(model: Decoder, tokenizer: Tokenizer, lengths: Sequence[int], trials: int, seed: int = 0,
         say: Callable[[str], None] = lambda line: None) -> list[list[float]]:
    """Share of `trials` questions answered right, by length and by depth of `DEPTHS`.

    An answer is right when its digit is the likeliest of all ids. The same questions for every model.
    """
    if not isinstance(tokenizer, ByteTokenizer):
        raise UserError(f"the needle needs a run on bytes: got {type(tokenizer).__name__}")
    rows = []
    for length in lengths:
        rng = np.random.default_rng([seed, length])
        rows.append([_share_right(model, tokenizer, [question(rng, length, depth) for _ in range(trials)])
                     for depth in DEPTHS])
        say(f"{length} tokens: " + ", ".join(f"{share:.0%}" for share in rows[-1]))
    return rows


def _share_right(model: Decoder, tokenizer: Tokenizer, asked: list[tuple[str, str]]) -> float:
    ids = np.stack([tokenizer.encode(text) for text, _ in asked]).astype(np.int64)
    answers = np.array([tokenizer.encode(answer)[0] for _, answer in asked])
    step, right = max(1, BATCH_TOKENS // ids.shape[1]), 0
    for first in range(0, len(ids), step):
        with no_grad():
            hidden = model.hidden(torch.from_numpy(ids[first: first + step]).to(model.device)).data[:, -1]
        likeliest = (hidden @ model.output.data.T).argmax(-1).cpu().numpy()
        right += int((likeliest == answers[first: first + step]).sum())
    return right / len(ids)
