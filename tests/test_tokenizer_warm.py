"""What is compiled at installation is what a run needs."""

import importlib
import pkgutil

import pytest

import tokenizer as package
from tokenizer import StreamDecoder, compiled, warm
from train.data import prepare
from train.data.vocabulary import cached_vocabulary
from vocabulary_samples import recipe_of, rows_file, text_of


def signatures() -> dict[str, list]:
    """The argument types for which each loop of the tokenizer is compiled in this process."""
    found = {}
    for entry in pkgutil.walk_packages(package.__path__, "tokenizer."):
        if not entry.name.endswith("__main__"):
            for name, value in vars(importlib.import_module(entry.name)).items():
                if hasattr(value, "py_func") and value.py_func.__module__ == entry.name:
                    found[f"{entry.name}.{name}"] = list(value.signatures)
    return found


@pytest.mark.skipif(not compiled.AVAILABLE, reason="nothing is compiled without Numba")
def test_a_run_compiles_nothing_that_was_not_compiled_before(tmp_path):
    warm.warm()
    before = signatures()
    assert sum(map(bool, before.values())) > 10
    rows = rows_file(tmp_path / "rows.jsonl", [text_of(n) for n in range(100)])
    for _ in range(2):
        vocabulary = cached_vocabulary(recipe_of(rows), tmp_path / "cache")
        part = prepare([rows, *(tmp_path.glob("*.txt"))], vocabulary, cache_dir=tmp_path / "cache").train
        (tmp_path / "long.txt").write_text("".join(text_of(n) for n in range(5000)), encoding="utf-8")
    decoder = StreamDecoder(vocabulary)
    decoder.push(part.shards.gather(part.starts[:1], part.lengths[:1]))
    decoder.flush()
    assert {name: types for name, types in signatures().items() if types != before[name]} == {}
