"""The benches of the seed's attention: both ways to write it in PyTorch agree, and small runs of both programs."""

import json

import pytest
import torch

from bench import input_cache, record, references, talking_heads


@pytest.mark.parametrize("tokens", [1, 7])
def test_both_ways_to_mix_heads_in_pytorch_agree(tokens):
    *given, _ = (value.double() for value in talking_heads._inputs(2, tokens))
    expected = references.talking_heads(*given, heads=talking_heads.HEADS)
    torch.testing.assert_close(talking_heads._by_linear_layers(*given), expected, rtol=1e-9, atol=1e-12)


def test_a_small_contest_of_attentions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert talking_heads.main(["--lengths", "4", "--batch", "1", "--rounds", "1", "--write"]) == 0
    output = capsys.readouterr()
    found = json.loads(output.out)["lengths"]["4"]
    assert list(found["mixed"]) == ["ours", "einsum", "linear"] and found["mixed"]["ours"]["over_ours"] == 1.0
    assert list(found["unmixed"]) == ["unmixed", "plain"]
    assert all(side["seconds"] > 0 for sides in found.values() for side in sides.values())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"} and "einsum" in output.err


def test_the_caches_are_timed_at_each_length(capsys):
    assert input_cache.main(["--lengths", "2", "5", "--rounds", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["microseconds"]) == {"2", "5"} and found["bytes_per_token_and_layer"]["keys"] == 12288
    assert found["bytes_per_token_and_layer"]["inputs"] == 3072
