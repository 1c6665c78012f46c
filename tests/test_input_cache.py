"""Decoding from what the layers were given (EL-attention) gives what decoding from keys and values gives."""

import numpy as np
import pytest
from models_samples import disturbed

from engine import UserError
from models.cache import CACHES
from models.config import JERRY, PRESETS, ModelConfig
from models.decoding import next_logits
from models.generate import generate_ids
from models.sampling import Sampling

SMALL = ModelConfig(vocab_size=37, n_layers=2, d_model=24, n_heads=3, head_dim=16, d_ff=20, max_seq_len=24,
                    dtype="float64", **{**JERRY, "dropout": 0.0})
VARIANTS = {"mixed heads": {}, "heads apart": {"head_mixing": False}, "no scalars": {"parametrisation": "plain"},
            "norms before": {"block": "pre_norm", "final_norm": True}}
SAMPLING = Sampling(temperature=1.5)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_those_of_keys_and_of_a_whole_pass(changes):
    model, rng = disturbed(SMALL.with_(**changes)).eval(), np.random.default_rng(0)
    ids = rng.integers(0, 37, 20).tolist()
    caches = {name: kind(model.config) for name, kind in CACHES.items()}
    done = 0
    for part in (7, 1, 1, 4, 1, 6):  # several tokens at a time as well
        done += part
        expected = next_logits(model, ids[:done])
        for name, cache in caches.items():
            np.testing.assert_allclose(model.step(ids[done - part: done], cache), expected, rtol=1e-9, atol=1e-11,
                                       err_msg=name)


def test_the_same_text_when_the_context_is_outgrown():
    model = disturbed(SMALL)
    texts = [list(generate_ids(model, [3, 1, 4], 40, SAMPLING, cache=cache)) for cache in ("keys", "inputs", "none")]
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 1


def test_a_token_takes_a_quarter_of_the_numbers():
    sizes = {}
    for name, kind in CACHES.items():
        config = PRESETS["jerry-0.18b"].with_(n_layers=1, max_seq_len=8)
        sizes[name] = kind(config).store.nbytes / 8
    assert sizes == {"keys": 4 * 3072, "inputs": 4 * 768}


def test_attention_that_turns_its_keys_cannot_be_decoded_so():
    model = disturbed(ModelConfig(vocab_size=37, n_layers=1, d_model=16, n_heads=2, d_ff=8, max_seq_len=8))
    with pytest.raises(UserError, match="the cache must be one of keys, none for attention grouped_query: got inputs"):
        next(generate_ids(model, [1], 1, SAMPLING, cache="inputs"))
