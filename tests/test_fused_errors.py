"""The fused operations refuse what their compiled kernels would read out of bounds."""

from __future__ import annotations

import pytest
import torch

from engine import UserError, ops, tensor


def t(*shape, dtype=torch.float32):
    return tensor(torch.ones(shape, dtype=dtype))


def starts(*positions):
    return torch.tensor([positions], dtype=torch.int32)


TABLE = torch.ones(5, 2)
WRONG = {
    "linear: width": lambda: ops.linear(t(2, 3), t(4, 5)),
    "linear: dtype": lambda: ops.linear(t(2, 3), t(4, 3, dtype=torch.float64)),
    "linear: 1-D weight": lambda: ops.linear(t(2, 3), t(3)),
    "linear: residual": lambda: ops.linear(t(2, 3), t(4, 3), t(4)),
    "rms_norm_linear: gain size": lambda: ops.rms_norm_linear(t(2, 3), t(2), t(4, 3)),
    "rms_norm_linear: gain dtype": lambda: ops.rms_norm_linear(t(2, 3), t(3, dtype=torch.float64), t(4, 3)),
    "swiglu_linear: width": lambda: ops.swiglu_linear(t(2, 5), t(4, 3)),
    "swiglu_linear: residual": lambda: ops.swiglu_linear(t(2, 6), t(4, 3), t(2, 3)),
    "feed_forward: gain": lambda: ops.feed_forward(t(2, 3), t(4), t(10, 3), t(3, 5)),
    "feed_forward: down": lambda: ops.feed_forward(t(2, 3), t(3), t(10, 3), t(3, 4)),
    "feed_forward: odd gate_up": lambda: ops.feed_forward(t(2, 3), t(3), t(9, 3), t(3, 4)),
    "attention: width": lambda: ops.attention(t(1, 5, 13), 1, 1),
    "attention: heads": lambda: ops.attention(t(1, 5, 28), 3, 2),
    "attention: one gain": lambda: ops.attention(t(1, 5, 12), 1, 1, q_gain=t(4)),
    "attention: gain size": lambda: ops.attention(t(1, 5, 12), 1, 1, q_gain=t(3), k_gain=t(4)),
    "attention: short table": lambda: ops.attention(t(1, 6, 12), 1, 1, (TABLE, TABLE)),
    "attention: narrow table": lambda: ops.attention(t(1, 5, 12), 1, 1, (TABLE[:, :1], TABLE)),
    "attention: wide table": lambda: ops.attention(t(1, 5, 12), 1, 1, (torch.ones(5, 3), torch.ones(5, 3))),
    "attention: window": lambda: ops.attention(t(1, 5, 12), 1, 1, window=0),
    "attention: alibi": lambda: ops.attention(t(1, 5, 12), 1, 1, alibi=torch.ones(2)),
    "attention: softcap": lambda: ops.attention(t(1, 5, 12), 1, 1, softcap=0.0),
    "attention: doc_start shape": lambda: ops.attention(t(2, 3, 12), 1, 1, doc_start=starts(0, 0, 0)),
    "attention: doc_start ahead": lambda: ops.attention(t(1, 3, 12), 1, 1, doc_start=starts(0, 2, 2)),
    "attention: doc_start falls": lambda: ops.attention(t(1, 3, 12), 1, 1, doc_start=starts(0, 1, 0)),
    "linear_cross_entropy: targets": lambda: ops.linear_cross_entropy(t(2, 3), t(4, 3), torch.tensor([0, 4])),
    "linear_cross_entropy: shape": lambda: ops.linear_cross_entropy(t(2, 3), t(4, 3), torch.tensor([0])),
    "linear_cross_entropy: dtype": lambda: ops.linear_cross_entropy(t(2, 3), t(4, 3), torch.tensor([0.0, 1.0])),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_in_one_line(name):
    with pytest.raises(UserError) as caught:
        WRONG[name]()
    assert name.split(":")[0] in str(caught.value) or "whole numbers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_targets_may_be_a_list():
    assert ops.linear_cross_entropy(t(2, 3), t(4, 3), [0, -100]).item() == pytest.approx(1.3862944)
