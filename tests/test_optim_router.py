"""Which parameter is moved by what, and where Muon's matrices lie."""

import numpy as np
import pytest
import torch

from engine import Arena, Linear, Module, Parameter
from models.config import ModelConfig
from models.decoder import Decoder
from train.optim import make_optimizer
from train.optim.router import muon_matrices, stacks
from train.sections import OptimConfig

SMALL = ModelConfig(vocab_size=20, n_layers=1, d_model=8, n_heads=2, d_ff=12, max_seq_len=8)


def table(model: ModelConfig = SMALL, **settings) -> dict[str, tuple]:
    """Parameter -> group, factor of the learning rate, decay, in the order of the arena."""
    optimizer = make_optimizer(Decoder(model), OptimConfig(lr=1e-3, weight_decay=0.1, **settings))
    assert all(route.shape == tuple(optimizer.arena.parameters[route.parameter].shape)
               for route in optimizer.routing())
    return {route.parameter: (route.group, route.lr_factor, route.weight_decay) for route in optimizer.routing()}


def test_the_table_of_muon():
    muon, adamw, plain = ("muon", 2.0, 0.05), ("adamw", 1.0, 0.1), ("adamw-no-decay", 1.0, 0.0)
    assert list(table(optimizer="muon", muon_lr=2e-3, muon_weight_decay=0.05).items()) == [
        ("layers.0.attention.out.weight", muon),
        ("layers.0.feed_forward.down.weight", muon),
        ("layers.0.attention.qkv.weight", muon),
        ("layers.0.feed_forward.gate_up.weight", muon),
        ("head.weight", adamw),
        ("embedding.weight", plain),
        ("layers.0.attention.norm.gain", plain),
        ("layers.0.attention.q_norm.gain", plain),
        ("layers.0.attention.k_norm.gain", plain),
        ("layers.0.feed_forward.norm.gain", plain),
        ("norm.gain", plain),
    ]


def test_the_head_may_be_muons_but_no_embedding():
    found = table(optimizer="muon", muon_head=True)
    assert found["head.weight"] == ("muon", 1.0, 0.1) and found["embedding.weight"][0] == "adamw-no-decay"
    tied = table(SMALL.with_(tie_embeddings=True), optimizer="muon", muon_head=True)
    assert tied["embedding.weight"][0] == "adamw-no-decay" and "head.weight" not in tied


def test_adamw_has_no_muon():
    assert {group for group, *_ in table().values()} == {"adamw", "adamw-no-decay"}


def test_the_table_says_what_comes_after_a_switch():
    optimizer = make_optimizer(Decoder(SMALL), OptimConfig(lr=1e-3, switch_to_muon_at=5, muon_weight_decay=0.2))
    first = optimizer.routing()[0]
    assert (first.group, first.lr_factor, first.weight_decay) == ("adamw, from 6 muon", 1.0, 0.1)
    assert not optimizer.advance_to(5) and optimizer.advance_to(6) and not optimizer.advance_to(7)
    first = optimizer.routing()[0]
    assert (first.group, first.lr_factor, first.weight_decay) == ("muon", 1.0, 0.2)


@pytest.mark.parametrize("per_head, qkv", [(False, ((8, 8), (4, 8), (4, 8))), (True, ((4, 8),) * 4)])
def test_packed_matrices_are_taken_apart(per_head, qkv):
    model = Decoder(SMALL.with_(n_kv_heads=1))
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon", muon_per_head=per_head))
    pieces = {route.parameter: route.pieces for route in optimizer.routing()}
    assert pieces["layers.0.attention.qkv.weight"] == qkv
    assert pieces["layers.0.feed_forward.gate_up.weight"] == ((12, 8), (12, 8))
    assert pieces["layers.0.attention.out.weight"] == ((8, 8),) and pieces["head.weight"] == ()


class Experts(Module):
    def __init__(self):
        self.experts, self.plain = Parameter(torch.zeros(3, 4, 5)), Linear(5, 4)
        self.more = [Linear(5, 4) for _ in range(2)]


@pytest.mark.parametrize("model, per_head", [
    (SMALL, False), (SMALL, True), (SMALL.with_(n_layers=3, n_kv_heads=1), False),
    (SMALL.with_(n_layers=3, n_kv_heads=1), True), (SMALL.with_(n_layers=2, d_model=6, n_heads=3, d_ff=5), False),
    (SMALL.with_(n_layers=2, d_model=6, n_heads=3, d_ff=5), True), (None, False)])
def test_stacks_hold_every_matrix_once(model, per_head):
    """Marks each element of each piece of each parameter, and finds the piece whole in one matrix of one stack."""
    module = Experts() if model is None else Decoder(model)
    matrices = muon_matrices(module, True, per_head)
    named = dict(module.named_parameters())
    arena = Arena([(name, named[name]) for name in matrices])
    wanted = []
    for number, (name, rows) in enumerate(matrices.items()):
        values = torch.arange(named[name].data.numel()).view(named[name].data.shape) + 1000 * number
        named[name].data.copy_(values)
        flat = values.view(-1, values.shape[-1]).numpy()
        wanted += [piece.tolist() for copy in np.split(flat, values.shape[:-2][0] if values.ndim > 2 else 1)
                   for piece in np.split(copy, np.cumsum(rows)[:-1])]
    found = [matrix.int().tolist() for stack in stacks(arena, matrices, lambda *_: 1.0)
             for matrix in stack.of(arena.weights)]
    assert sorted(found) == sorted(wanted)


def test_equal_matrices_of_all_layers_are_one_stack():
    model = Decoder(SMALL.with_(n_layers=4))
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon"))
    assert sorted((s.count, s.rows, s.columns) for s in optimizer.stacks) == [
        (4, 8, 8), (4, 8, 12), (8, 12, 8), (12, 8, 8)]
    assert {round(s.scale, 6) for s in optimizer.stacks} == {round(0.2 * 8**0.5, 6), round(0.2 * 12**0.5, 6)}
