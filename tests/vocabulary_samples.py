"""Texts, corpora and recipes that the tests about a run's vocabulary share."""

import argparse
import inspect
import json
import shutil

import numpy as np

from tokenizer import ByteTokenizer
from tokenizer.documents import ReadOptions, find_sources
from tokenizer.train import Settings
from train.data.vocabulary import Recipe

BYTE = ByteTokenizer()
LINES = (inspect.getsource(argparse) + inspect.getsource(shutil)).splitlines(keepends=True)
CHINESE = "北京 and 上海 are cities. 北京的冬天很冷，上海的夏天很热。\n"


def text_of(number: int, lines: int = 8) -> str:
    start = lines * number % (len(LINES) - lines)
    return f"{number}: {CHINESE}" + "".join(LINES[start : start + lines])


def rows_file(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def decoded(part, tokenizer=BYTE):
    stretches = zip(part.starts, part.lengths, strict=True)
    return [tokenizer.decode(part.shards.gather(np.array([s]), np.array([n]))) for s, n in stretches]


def recipe_of(path, **changes):
    values = {"val_fraction": 0.2, "sample_bytes": 1 << 20, "settings": Settings(300, rounds=2, allow_fewer=True)}
    return Recipe([(find_sources([path]), 1.0)], ReadOptions(), **{**values, **changes})
