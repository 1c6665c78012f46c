"""Settings: types, near misses, rules, and config.toml there and back."""

import pytest
from hypothesis import given, settings, strategies as st

from train.config import Config, parse_settings
from train.errors import UserError
from train.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_their_rules_and_survive_toml(name):
    config = preset(name).validated()
    assert Config.from_toml(config.to_toml()) == config
    assert config.run.preset == name


@settings(derandomize=True, deadline=None, max_examples=30)
@given(lr=st.floats(1e-9, 10.0), text=st.text(max_size=20), paths=st.lists(st.text(max_size=20), max_size=3),
       beta=st.floats(0.0, 0.999), tokens=st.integers(0, 10**12))
def test_any_values_survive_toml(lr, text, paths, beta, tokens):
    config = Config().with_values({"optim.lr": lr, "run.sample_prompt": text, "data.paths": paths,
                                   "optim.betas": (beta, 0.5), "run.tokens": tokens})
    assert Config.from_toml(config.to_toml()) == config


@pytest.mark.parametrize("setting, value", [
    ("optim.lr=1e-4", 1e-4), ("run.steps=1_000", 1000), ("data.doc_mask=true", True),
    ("data.paths=a,b c", ["a", "b c"]),
    ('data.paths=["a,b"]', ["a,b"]), ("optim.betas=0.8,0.99", (0.8, 0.99)), ("optim.betas=[0.8, 0.99]", (0.8, 0.99)),
    ("run.sample_prompt=a = b", "a = b"), ("model.n_layers=3", 3), ("model.qk_norm=false", False),
])
def test_settings_are_parsed_by_type(setting, value):
    name = setting.partition("=")[0]
    config = Config().with_settings([setting])
    assert parse_settings([setting]) == {name: value}
    assert config.flat()[name] == value


@pytest.mark.parametrize("setting, words", [
    ("optim.lrr=1", ["optim.lrr", "optim.lr"]), ("weight_decay=0.1", ["weight_decay", "optim.weight_decay"]),
    ("zebra.q=1", ["zebra.q", "model, data, tokenizer, optim, run, checkpoint"]),
    ("optim.lr", ["section.key=value", "optim.lr"]),
    ("run.steps=2.5", ["run.steps", "int", "2.5"]), ("optim.lr=fast", ["optim.lr", "float", "fast"]),
    ("data.doc_mask=1", ["data.doc_mask", "bool", "1"]), ("optim.betas=0.9", ["optim.betas", "float", "0.9"]),
    ("optim.betas=[1, ", ["optim.betas", "[1,"]),
])
def test_bad_settings_name_key_type_and_value(setting, words):
    with pytest.raises(UserError) as error:
        Config().with_settings([setting])
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize("values, words", [
    ({"data.batch_tokens": 1000}, ["multiple of data.seq_len (256)", "1000"]),
    ({"data.seq_len": 512, "data.batch_tokens": 512}, ["at most model.max_seq_len (256)", "512"]),
    ({"optim.lr": 0.0}, ["optim.lr", "above 0"]), ({"optim.schedule": "step"}, ["cosine, wsd", "step"]),
    ({"checkpoint.keep": 0}, ["checkpoint.keep", "0"]), ({"run.minutes": 0.0}, ["run.steps, run.minutes, run.tokens"]),
    ({"data.val_fraction": 1.0}, ["[0, 1)", "1.0"]), ({"optim.betas": (0.9, 1.0)}, ["optim.betas", "1.0"]),
])
def test_rules(values, words):
    with pytest.raises(UserError) as error:
        preset("demo").with_values(values).validated()
    assert all(word in str(error.value) for word in words)


def test_one_length_takes_back_the_others():
    config = preset("demo").with_values({"run.steps": 7})
    assert (config.run.steps, config.run.minutes, config.run.tokens) == (7, 0, 0)
    by_tokens = preset("demo").with_values({"run.tokens": 4097})
    assert (by_tokens.run.steps, by_tokens.run.minutes, by_tokens.run.tokens) == (0, 0, 4097)
    with pytest.raises(UserError, match="run.steps=1 and run.tokens=2"):
        preset("demo").with_values({"run.steps": 1, "run.tokens": 2})


def test_foreign_toml_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown section 'extra'"):
        Config.from_toml("[extra]\nx = 1\n")
    with pytest.raises(UserError, match="optim.lr must be float: got 'x'"):
        Config.from_toml('[optim]\nlr = "x"\n')
    with pytest.raises(UserError, match="not TOML"):
        Config.from_toml("[optim\n")
    with pytest.raises(UserError, match="no run at"):
        Config.load(tmp_path / "config.toml")
    with pytest.raises(UserError, match="demo, shakespeare"):
        preset("huge")
