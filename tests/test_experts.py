"""Routing and grouping of a mixture of experts on both devices' programs, and what the table of cases does not draw."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

import kernels
from bench import references
from engine import Tensor, UserError, ops
from engine.autograd import run_backward
from harness import GPU, gpu_programs
from kernels.cpu.grouped_linear import pieces
from kernels.memory import poisoned


def programs(place: str):
    """(context, device) in which the kernels of kernels/cpu or kernels/gpu run."""
    if place == "gpu":
        pytest.importorskip("triton")
        return gpu_programs(), GPU
    return contextlib.nullcontext(), "cpu"


PLACES = pytest.mark.parametrize("place", ["cpu", "gpu"])
SCORES = pytest.mark.parametrize("score", ["softmax", "sigmoid"])


def routed(place, logits, k, **options):
    context, device = programs(place)
    with context, poisoned():
        there = {name: t.to(device) if isinstance(t, torch.Tensor) else t for name, t in options.items()}
        gates, scores, indices = ops.route(Tensor(logits.to(device)), k, **there)
    return gates.data.cpu(), scores.data.cpu(), indices.data.cpu()


@PLACES
@SCORES
def test_equal_logits_go_to_the_lowest_experts(place, score):
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0], [3.0, 0.0, 3.0, 3.0]])
    gates, _, indices = routed(place, logits, 2, score=score)
    assert indices.tolist() == [[0, 1], [1, 2], [0, 2]]
    torch.testing.assert_close(gates, torch.full((3, 2), 0.5))


@PLACES
@SCORES
def test_experts_are_real_and_distinct_for_any_logits(place, score):
    nan, infinity = math.nan, math.inf
    logits = torch.tensor([[nan, 1.0, nan], [-infinity, -infinity, 0.0], [nan, nan, nan], [0.0, infinity, 1.0]])
    gates, _, indices = routed(place, logits, 2, score=score, normalised=False)
    assert indices.tolist() == [[1, 0], [2, 0], [0, 1], [1, 2]]
    assert gates[1].tolist() == pytest.approx([1.0, 0.0] if score == "softmax" else [0.5, 0.0], abs=1e-30)
    assert gates[2].isnan().all()


@PLACES
def test_gates_whose_scores_all_vanish_are_finite(place):
    logits = torch.tensor([[-200.0, -300.0, 0.0], [-400.0, -300.0, -200.0]])
    bias = torch.tensor([5.0, 4.0, 0.0])
    gates, _, indices = routed(place, logits, 2, score="softmax", bias=bias)
    assert indices.tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(gates, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    gates, _, _ = routed(place, logits, 2, score="sigmoid", bias=bias)
    assert gates.flatten().tolist() == pytest.approx([0.0] * 4, abs=1e-15)


@PLACES
def test_the_bias_changes_the_choice_and_not_the_gates(place):
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    gates, scores, indices = routed(place, logits, 2, normalised=False, bias=torch.tensor([-1.0, 0.0, 1.0]))
    assert indices.tolist() == [[2, 1]]
    torch.testing.assert_close(gates, scores[:, [2, 1]])
    torch.testing.assert_close(scores, logits.softmax(-1))


def test_gumbel_noise_draws_by_the_probabilities():
    rng = np.random.default_rng(0)
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).expand(4000, 3)
    noise = torch.from_numpy(rng.gumbel(size=(4000, 3)).astype(np.float32))
    _, _, indices = routed("cpu", logits, 1, noise=noise)
    share = torch.bincount(indices[:, 0], minlength=3) / 4000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)


INDICES = {
    "uneven": torch.tensor([[0, 2], [2, 0], [5, 2], [2, 5], [0, 5], [2, 1]]),
    "one expert has all": torch.full((7, 1), 3),
    "one token": torch.tensor([[4]]),
    "an expert twice": torch.tensor([[1, 1], [0, 1]]),
    "many": torch.from_numpy(np.random.default_rng(0).integers(0, 6, (37, 3))),
    "no token": torch.zeros((0, 2), dtype=torch.int64),
}


@PLACES
@pytest.mark.parametrize("name", INDICES)
def test_grouping_is_a_stable_sort(place, name):
    indices, experts = INDICES[name], 6
    context, device = programs(place)
    with context, poisoned():
        offsets, order, rows = kernels.routing.group(indices.to(device), experts)
        counts = kernels.routing.count(indices.to(device), experts)
    flat = indices.flatten()
    expected = torch.from_numpy(np.argsort(flat.numpy(), kind="stable"))
    assert order.cpu().tolist() == expected.tolist()
    assert counts.cpu().tolist() == torch.bincount(flat, minlength=experts).tolist()
    assert offsets.cpu().tolist() == [0, *torch.cumsum(torch.bincount(flat, minlength=experts), 0).tolist()]
    assert order.cpu()[rows.cpu().flatten().long()].tolist() == list(range(flat.numel()))


def test_every_tile_of_rows_is_found_and_no_other():
    pytest.importorskip("triton")
    from kernels.gpu.grouped_linear import row_tiles

    counts = [0, 17, 1, 16, 0, 33, 0]
    offsets = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32, device=GPU)
    with gpu_programs():
        tiles = row_tiles(offsets, sum(counts), 16).cpu()
    there = [tuple(tile[:3].tolist()) for tile in tiles if tile[0] < len(counts)]
    assert there == [(1, 0, 17), (1, 16, 17), (2, 17, 18), (3, 18, 34), (5, 34, 67), (5, 50, 67), (5, 66, 67)]
    assert len(tiles) >= len(there) and (tiles[len(there):, 0] == len(counts)).all()


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_pieces_cover_every_row_once_and_keep_to_one_expert(lanes):
    offsets = np.cumsum([0, 0, 5, 1, 0, 90, 4, 0]).astype(np.int32)
    total = int(offsets[-1])
    cuts = [lane * total // lanes for lane in range(lanes + 1)]
    found = [piece for start, stop in zip(cuts, cuts[1:]) for piece in pieces(offsets, start, stop, 32)]
    assert [row for _, first, end in found for row in range(first, end)] == list(range(total))
    assert all(offsets[e] <= first < end <= offsets[e + 1] and end - first <= 32 for e, first, end in found)


def mixture(indices, experts=6, width=20, inner=12, dtype=torch.float64):
    rng = np.random.default_rng(1)
    shapes = (*indices.shape[:-1], width), indices.shape, (experts, 2 * inner, width), (experts, width, inner)
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype) for shape in shapes]


def run(place, tensors, indices, passes=1):
    """Result, and gradients after some passes."""
    context, device = programs(place)
    leaves = [Tensor(t.to(device), requires_grad=True) for t in tensors]
    with context:
        for _ in range(passes):
            with poisoned():
                y = ops.experts(leaves[0], leaves[1], indices.to(device), *leaves[2:])
                run_backward([(y, torch.ones_like(y.data))])
    return y.data.cpu(), [leaf.grad.cpu() for leaf in leaves]


@pytest.mark.parametrize("name", [name for name in INDICES if name != "no token"])
@pytest.mark.parametrize("threads", [1, 3])
def test_against_a_loop_over_experts(name, threads):
    indices, before = INDICES[name], kernels.threads()
    tensors = [t.requires_grad_() for t in mixture(indices)]
    truth = references.experts(tensors[0], tensors[1], indices, *tensors[2:])
    gradients = torch.autograd.grad(truth.sum(), tensors)
    kernels.set_threads(threads)
    try:
        y, ours = run("cpu", [t.detach() for t in tensors], indices)
    finally:
        kernels.set_threads(before)
    torch.testing.assert_close(y, truth.detach(), rtol=1e-10, atol=1e-10)
    for mine, true in zip(ours, gradients):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-10)


@PLACES
def test_idle_experts_have_gradients_of_zero(place):
    tensors = mixture(INDICES["one expert has all"], dtype=torch.float32)
    _, (_, _, dgate_up, ddown) = run(place, tensors, INDICES["one expert has all"])
    for gradient in (dgate_up, ddown):
        assert gradient[3].abs().min() > 0
        assert (gradient[[0, 1, 2, 4, 5]] == 0).all()


@PLACES
def test_gradients_of_several_passes_add_up(place):
    tensors, indices = mixture(INDICES["uneven"], dtype=torch.float32), INDICES["uneven"]
    context, device = programs(place)
    x, gates, gate_up, down = (t.to(device) for t in tensors)
    totals = [torch.zeros(t.shape, device=device) for t in (gate_up, down)]
    with context:
        groups = kernels.routing.group(indices.to(device), len(down))
        y, h = kernels.experts.forward(x, gates, groups, gate_up, down)
        _, _, *fresh = kernels.experts.backward(y, x, gates, groups, gate_up, down, h)
        for _ in range(3):
            results = kernels.experts.backward(y, x, gates, groups, gate_up, down, h, tuple(totals))
            assert results[2:] == (None, None)
    for once, total in zip(fresh, totals):
        torch.testing.assert_close(total, 3 * once, rtol=1e-5, atol=1e-5)


def test_half_precision_gradients_add_up_in_float32():
    pytest.importorskip("triton")
    tensors, indices = mixture(INDICES["uneven"], dtype=torch.bfloat16), INDICES["uneven"].to(GPU)
    x, gates, gate_up, down = (t.to(GPU) for t in tensors)
    totals = [torch.full(t.shape, 64.0, device=GPU) for t in (gate_up, down)]
    with gpu_programs():
        groups = kernels.routing.group(indices, len(down))
        y, h = kernels.experts.forward(x, gates, groups, gate_up, down)
        assert y.dtype == torch.bfloat16
        alone = [torch.zeros(t.shape, device=GPU) for t in totals]
        for into in (totals, alone):
            kernels.experts.backward(y, x, gates, groups, gate_up, down, h, tuple(into))
    for total, once in zip(totals, alone):
        torch.testing.assert_close(total - 64, once, rtol=1e-4, atol=1e-3)


@PLACES
def test_the_same_bits_every_time(place):
    tensors, indices = mixture(INDICES["many"], dtype=torch.float32), INDICES["many"]
    (y, gradients), (again, gradients_again) = (run(place, tensors, indices) for _ in range(2))
    assert torch.equal(y, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_again))


@PLACES
def test_no_token_at_all(place):
    y, gradients = run(place, mixture(INDICES["no token"], dtype=torch.float32), INDICES["no token"])
    assert y.shape == (0, 20)
    assert all((gradient == 0).all() for gradient in gradients)


def test_the_benchmark_of_a_gpu_runs(monkeypatch):
    pytest.importorskip("triton")
    from bench import moe, moe_sides
    from bench.gpu_timing import wall_clock

    plain = {name: side for name, side in moe_sides.GPU_SIDES.items() if "compiled" not in name}
    monkeypatch.setattr(moe, "GPU_SIDES", plain)
    monkeypatch.setattr(moe, "buffers", lambda shape, dtype, _device: moe_sides.buffers(shape, dtype, GPU))
    with gpu_programs():
        line = moe.gpu_line(moe_sides.Shape(20, 32, 16, 4, 2), wall_clock, 1)
    times = {side["side"]: side.get("ms", side.get("note")) for side in line["sides"]}
    assert all(isinstance(times[name], float) for name in ("ours", "dense", "torch_dense")), times
    assert line["of_dense"] > 0


def test_ratios_are_those_within_a_round():
    from bench.gpu_timing import Times
    from bench.moe import ratios

    found = {"ours": Times([1.0, 2.0, 3.0]), "dense": Times([2.0, 4.0, 6.0]), "torch_grouped": Times([3.0, 6.0, 9.0]),
             "torch_grouped_compiled": "RuntimeError", "torch_dense": Times([1.0, 1.0, 1.5])}
    assert ratios(found) == {"vs_torch": 3.0, "of_dense": 2.0}
    assert ratios({**found, "ours": "RuntimeError"}) == {}


def t(*shape, dtype=torch.float32):
    return Tensor(torch.ones(shape, dtype=dtype))


ONES = torch.ones(5, 2, dtype=torch.int64)
WRONG = {
    "route: k": lambda: ops.route(t(5, 4), 5),
    "route: no k": lambda: ops.route(t(5, 4), 0),
    "route: score": lambda: ops.route(t(5, 4), 2, score="tanh"),
    "route: bias": lambda: ops.route(t(5, 4), 2, bias=torch.ones(5)),
    "route: noise": lambda: ops.route(t(5, 4), 2, noise=torch.ones(4)),
    "route: dtype": lambda: ops.route(t(5, 4, dtype=torch.int64), 2),
    "experts: odd gate_up": lambda: ops.experts(t(5, 3), t(5, 2), ONES, t(4, 9, 3), t(4, 3, 4)),
    "experts: down": lambda: ops.experts(t(5, 3), t(5, 2), ONES, t(4, 8, 3), t(4, 4, 3)),
    "experts: x": lambda: ops.experts(t(5, 2), t(5, 2), ONES, t(4, 8, 3), t(4, 3, 4)),
    "experts: gates": lambda: ops.experts(t(5, 3), t(5, 1), ONES, t(4, 8, 3), t(4, 3, 4)),
    "experts: indices": lambda: ops.experts(t(5, 3), t(5, 2), ONES[:4], t(4, 8, 3), t(4, 3, 4)),
    "experts: range": lambda: ops.experts(t(5, 3), t(5, 2), 4 * ONES, t(4, 8, 3), t(4, 3, 4)),
    "experts: residual": lambda: ops.experts(t(5, 3), t(5, 2), ONES, t(4, 8, 3), t(4, 3, 4), t(5, 2)),
    "expert_counts: range": lambda: ops.expert_counts(-ONES, 4),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_in_one_line(name):
    with pytest.raises(UserError) as caught:
        WRONG[name]()
    assert name.split(":")[0] in str(caught.value) and "\n" not in str(caught.value)
