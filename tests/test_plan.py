"""The planner: its memory against what the pool really holds, its numbers against the model's, its refusals."""

import json
from dataclasses import replace

import pytest
import torch

import kernels
from engine import no_grad
from kernels import memory
from models.config import JERRY, PRESETS as MODELS, ModelConfig
from models.context import ContextConfig
from models.decoder import Decoder
from models.experts_config import ExpertsConfig
from train.config import Config
from train.errors import UserError
from train.loop import next_token_loss
from train.optim import AdamW, make_optimizer
from train.plan import check_fits, fitting, largest_micro_tokens, machine, measure
from train.plan.__main__ import main, planned
from train.plan.activations import Pass, known, scratch_bytes
from train.plan.cards import CARDS, card
from train.plan.duration import duration, stages_of
from train.plan.measure import random_batch
from train.plan.measured import MeasuredPass
from train.plan.memory import _with_weights, memory_by_part, micro_batches
from train.plan.pool import Pool
from train.plan.work import counts_first, flops_per_token, parameters
from train.presets import preset

SMALL = ModelConfig(vocab_size=1000, n_layers=2, d_model=96, n_heads=4, d_ff=160, max_seq_len=128)
MIXTURES = {
    "plain": {}, "dense layers between": {"every": 2}, "shared": {"shared": 2, "top_k": 3, "balance": "none"},
    "sigmoid, no loss": {"score": "sigmoid", "balance": "none", "bias_rate": 0.1, "temperature": 2.0},
    "chain": {"chain": 2, "shared": 1}, "chain with the stream": {"chain": 3, "top_k": 1, "outer_residual": True},
}


@pytest.fixture
def two_threads():
    before = kernels.threads()
    kernels.set_threads(2)
    yield
    kernels.set_threads(before)


def pool_bytes():
    return memory.allocated_bytes + sum(size * len(blocks) for size, blocks in memory._free.items())


@pytest.mark.parametrize("changes, rows, length", [
    ({}, 16, 128), ({}, 5, 100), ({"tie_embeddings": True}, 8, 128), ({"dropout": 0.1}, 8, 128),
    ({"recompute": True}, 8, 128), ({"recompute": True, "dropout": 0.1}, 8, 128), ({"n_kv_heads": 2}, 8, 128),
    ({"dtype": "float64"}, 4, 128), ({"vocab_size": 9000, "d_ff": 500}, 8, 128), ({"qk_norm": False}, 1, 128)])
def test_passes_hold_what_the_replay_says(changes, rows, length, two_threads):
    config = SMALL.with_(**changes)
    AdamW(model := Decoder(config))
    batch, item = random_batch(rows, length, config.vocab_size), 8 if config.dtype == "float64" else 4
    for train in (True, False):
        memory.release()
        before, pool = memory.allocated_bytes, Pool()
        one = Pass(pool, config, rows, length, item, 2)
        if train:
            next_token_loss(model.train(), batch, 1).backward()
            one.train()
        else:
            with no_grad():
                next_token_loss(model.eval(), batch, 1)
            one.evaluate()
        assert pool.bytes == pool_bytes() - before
    memory.release()


@pytest.mark.parametrize("name, changes", [
    *((name, {}) for name in MIXTURES), ("plain", {"recompute": True}), ("shared", {"dropout": 0.1}),
    ("dense layers between", {"dropout": 0.1}), ("chain with the stream", {"dropout": 0.1})])
def test_passes_through_experts_hold_about_what_the_replay_says(name, changes, two_threads):
    config = SMALL.with_(n_layers=3, feed_forward="moe", experts=ExpertsConfig(width=64, **MIXTURES[name]), **changes)
    AdamW(model := Decoder(config))
    batch = random_batch(16, 128, config.vocab_size)
    for train in (True, False):
        memory.release()
        before, pool = memory.allocated_bytes, Pool()
        one = Pass(pool, config, 16, 128, 4, 2)
        if train:
            next_token_loss(model.train(), batch, 1).backward()
            one.train()
        else:
            with no_grad():
                next_token_loss(model.eval(), batch, 1)
            one.evaluate()
        assert pool.bytes == pytest.approx(pool_bytes() - before, rel=0.05)
    memory.release()


def test_making_the_model_and_several_micro_batches_are_in_the_replay(two_threads):
    config = preset("demo").with_values({"data.seq_len": 128, "data.batch_tokens": 128 * 7, "run.steps": 3,
                                         "data.micro_tokens": 128 * 3, "run.device": "cpu", "run.threads": 2})
    config = Config(SMALL, config.data, config.tokenizer, config.optim, config.run, config.checkpoint)
    memory.release()
    before = memory.allocated_bytes
    AdamW(model := Decoder(config.model))
    assert micro_batches(config, 128 * 3) == [(3, 128), (1, 128)]
    for rows in (3, 3, 1):
        next_token_loss(model, random_batch(rows, 128, 1000), 1).backward()
    with no_grad():
        next_token_loss(model.eval(), random_batch(4096 // 128, 128, 1000), 1)
    found = memory_by_part(config, 128 * 3, "cpu")
    held = sum(found[name] for name in ("first weights", "weights", "gradients", "activations", "logits"))
    arena = -(-model.config.n_parameters() * 4 // (1 << 20)) * 2 * (1 << 17)
    assert abs(held - (pool_bytes() - before)) <= arena
    memory.release()


@pytest.mark.parametrize("nbytes", [10, 65_535, 65_536, 70_000, 1_000_000, 5_000_001])
def test_blocks_are_rounded_as_the_pools(nbytes):
    before, pool = memory.allocated_bytes, Pool()
    kept = memory.empty((nbytes,), torch.uint8)
    assert pool.take(nbytes) == memory.allocated_bytes - before
    del kept


def test_a_freed_block_serves_its_own_size_on_the_cpu_and_any_on_a_gpu():
    for device, expected in (("cpu", 2), ("cuda", 1)):
        pool = Pool(device)
        pool.give(pool.take(1 << 20))
        pool.take(1 << 19)
        pool.take(1 << 19)
        assert round(pool.bytes / (1 << 20)) == expected


def test_scratch_is_what_the_threads_hold(two_threads):
    from kernels.cpu import launch

    AdamW(model := Decoder(SMALL))
    launch._local.__dict__.clear()
    next_token_loss(model, random_batch(16, 128, 1000), 1).backward()
    own = sum(base.numel() * base.itemsize for base in launch._local.bases.values())
    assert scratch_bytes(SMALL, 16, 128, 1, 4) == pytest.approx(own, rel=0.05)


@pytest.mark.parametrize("settings, names", [
    ({}, {"moments": 2}), ({"optim.ema": 0.9}, {"moments": 2, "average": 1}),
    ({"optim.optimizer": "muon"}, {}), ({"optim.optimizer": "muon", "optim.muon_head": True}, {}),
    ({"optim.switch_to_muon_at": 5}, {"moments": 2})])
def test_optimizer_state_is_what_the_optimizer_holds(settings, names):
    config = preset("shakespeare").with_values({**settings, "run.device": "cpu", "model.tie_embeddings": False})
    optimizer = make_optimizer(Decoder(config.model), config.optim)
    held = sum(t.numel() * t.itemsize for t in optimizer.state().values())
    found = memory_by_part(config, 64, "cpu")
    assert found["moments"] + found.get("average", 0) == held
    for name, times in names.items():
        assert found[name] == times * 4 * config.model.n_parameters()


@pytest.mark.parametrize("name", MODELS)
def test_parameters_add_up(name):
    model = MODELS[name]
    assert sum(parameters(model).values()) == model.n_parameters()


def test_flops_are_six_per_weight_of_a_product_and_attentions_own():
    model = MODELS["base-0.18b"]
    counts = parameters(model)
    weights = counts["attention"] + counts["feed-forward"] + counts["head"]
    assert sum(flops_per_token(model, 1024).values()) == 6 * weights + 7 * 12 * 6 * 128 * 1024
    more = sum(flops_per_token(model.with_(recompute=True), 1024).values())
    assert more == pytest.approx(sum(flops_per_token(model, 1024).values()) * 4 / 3, rel=0.2)


def test_flops_of_experts_are_those_that_a_token_goes_to():
    dense, model = MODELS["demo"], MODELS["moe-demo"]
    plain, found = flops_per_token(dense, 256), flops_per_token(model, 256)
    routers = 6 * model.n_layers * 8 * model.d_model
    assert found == {**plain, "routers": routers} and parameters(model)["feed-forward"] == 4 * parameters(
        model, active=True)["feed-forward"]
    mixed = model.with_(experts=replace(model.experts, chain=2, shared=1, first_dense=1, every=5))
    layer = 3 * model.d_model * 256
    assert flops_per_token(mixed, 256)["feed-forward"] == 6 * (2 * 3 * layer + 5 * 3 * model.d_model * 512)
    assert flops_per_token(mixed, 256)["routers"] == 6 * 2 * 8 * model.d_model
    twice = flops_per_token(model, 256, counted_first=True)
    scores = model.n_layers * model.n_heads * model.head_dim * 256
    layers = found["attention"] - 7 * scores + found["feed-forward"] + routers
    assert twice == {**found, "counting tokens": layers / 3 + 2 * scores}


@pytest.mark.parametrize("changes, counted", [
    ({}, True), ({"data.micro_tokens": 4096}, False), ({"model.experts.balance": "micro"}, False),
    ({"model.experts.count": "running"}, False), ({"model.feed_forward": "swiglu"}, False)])
def test_a_first_pass_counts_tokens_only_where_the_step_is_cut(changes, counted):
    assert counts_first(preset("moe-demo").with_values({"data.micro_tokens": 1024, **changes})) == counted


@pytest.mark.parametrize("settings", [{}, {"optim.optimizer": "muon"}])
def test_weights_and_state_of_experts_are_what_is_held(settings, two_threads):
    config = preset("moe-demo").with_values({**settings, "run.device": "cpu", "model.n_layers": 2, "model.d_model": 96,
                                             "model.experts.shared": 1, "model.experts.first_dense": 1})
    memory.release()
    before = pool_bytes()
    optimizer = make_optimizer(model := Decoder(config.model), config.optim)
    pool, held = _with_weights(config.model, "cpu", 4), pool_bytes() - before
    assert sum(pool.made.values()) == pytest.approx(held, rel=0.02)
    state = memory_by_part(config, 64, "cpu")["moments"]
    assert state == sum(t.numel() * t.itemsize for t in optimizer.state().values())
    del model
    memory.release()


def test_what_has_no_formulas_is_measured(two_threads):
    model = SMALL.with_(**JERRY, n_layers=4)
    assert known(SMALL) and not known(model) and not known(SMALL.with_(context=ContextConfig("dca", 2.0, 64)))
    AdamW(decoder := Decoder(model))
    memory.release()
    before, pool = memory.allocated_bytes, Pool()
    next_token_loss(decoder, random_batch(5, 128, model.vocab_size), 1).backward()
    held = pool_bytes() - before
    MeasuredPass(pool, model, 5, 128, 4, 2).train()
    assert pool.bytes == pytest.approx(held, rel=0.1)
    memory.release()


def ready(**settings):
    values = {"run.steps": 10, "run.device": "cpu", "run.threads": 2, "data.micro_tokens": 4096, **settings}
    return preset("demo").with_values(values)


def test_the_largest_micro_batch_is_the_last_that_fits():
    config = ready(**{"data.batch_tokens": 65_536})
    held = sum(memory_by_part(config, 16_384, "cpu").values()) + 100_000
    assert largest_micro_tokens(config, held, "cpu") == 16_384
    assert largest_micro_tokens(config, 1 << 40, "cpu") == 65_536
    assert largest_micro_tokens(config, 1 << 20, "cpu") == 0


def test_a_run_that_does_not_fit_is_refused_with_the_micro_batch_that_does(monkeypatch):
    config = ready(**{"data.batch_tokens": 65_536, "data.micro_tokens": 65_536})
    free = sum(memory_by_part(config, 8192, "cpu").values()) + 5_000_000
    monkeypatch.setattr(fitting, "available_memory", lambda device: free)
    with pytest.raises(UserError) as error:
        check_fits(config)
    assert str(error.value).endswith("the largest that fits is --set data.micro_tokens=8192")
    check_fits(config.with_values({"data.micro_tokens": 8192}))
    monkeypatch.setattr(fitting, "available_memory", lambda device: 1 << 20)
    with pytest.raises(UserError, match="not even one row of 256 tokens"):
        check_fits(config)


def test_a_control_group_limits_the_memory(tmp_path):
    group = tmp_path / "cgroup" / "a" / "b"
    group.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    for folder, limit in ((group, "max"), (group.parent, "5000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("3000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 1000000\n")
    assert machine._control_groups_free(tmp_path / "cgroup", own) == [3_000_000]
    assert 0 < machine.resident_bytes() <= machine.peak_bytes()
    assert machine.available_memory() > machine.resident_bytes()


def test_cards_are_found_by_any_spelling_of_their_names():
    assert [card(name).name for name in ("h100", "RTX4090", "NVIDIA GeForce RTX 4090", "4090", "a100 40gb")] == [
        "H100", "RTX 4090", "RTX 4090", "RTX 4090", "A100 40GB"]
    with pytest.raises(UserError, match="--card must be one of B200, .*got 'GT 710'"):
        card("GT 710")
    assert all(one.single <= one.tf32 <= one.half for one in CARDS)


def test_durations_add_up_over_the_stages():
    config = ready(**{"run.steps": 30, "data.lengths": "64:50%,256:50%", "data.window": 256, "run.eval_every": 10,
                      "run.sample_every": -1})
    found = duration(config, lambda stage: stage.seq_len / 100, 0.5)
    assert [(part.stage.seq_len, part.steps) for part in found.parts] == [(64, 15), (256, 15)]
    assert found.computing == pytest.approx(15 * 0.64 + 15 * 2.56) and found.reading == 15.0
    assert found.evaluating == pytest.approx(3 * config.run.eval_tokens * 0.4 * 2.56 / 4096)
    assert found.sampling == pytest.approx(200 * 0.008) and found.whole > found.computing


def test_a_run_by_minutes_takes_the_steps_that_fit():
    config = preset("demo")
    (_, fast), = stages_of(config, lambda stage: 0.1)
    (_, slow), = stages_of(config, lambda stage: 1.0)
    assert 2000 < fast < 3000 and fast > 9 * slow


def test_the_update_is_not_scaled_with_the_micro_batches(monkeypatch):
    times = iter([10.0, 4.0])
    monkeypatch.setattr(measure, "_typical", lambda work: next(times))
    config = ready(**{"data.batch_tokens": 2560, "data.micro_tokens": 256, "data.seq_len": 256}).with_values(
        {name: value for name, value in Config(SMALL.with_(max_seq_len=256)).flat().items()
         if name.startswith("model.")})
    steps = measure.StepTimes(config)
    stage, = {stage for stage, _ in stages_of(config, lambda stage: 1.0)}
    assert steps.seconds(stage) == pytest.approx((10.0 - 4.0) * 5 + 4.0)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(3000)))
    return ["--data", str(file), "--set", f"data.cache_dir={tmp_path / 'cache'}"]


TINY = ["--tokenizer", "bytes", "--seq-len", "16", "--batch-tokens", "64", "--steps", "5", "--set", "model.n_layers=1",
        "--set", "model.d_model=16", "--set", "model.n_heads=2", "--set", "model.d_ff=32"]


def test_the_command_prints_a_plan_for_this_machine(text, capsys):
    assert main([*text, *TINY, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["time"]["steps"] == 5 and plan["time"]["tokens"] == 320 and plan["fits"]
    assert plan["time"]["computing"] == pytest.approx(5 * plan["time"]["stages"][0]["step_seconds"])
    assert plan["largest_micro_tokens"] == 64 and plan["memory"]["weights"] >= 4 * sum(plan["parameters"].values())
    assert plan["reading"]["vocabulary"] and plan["reading"]["tokenising"] > 0


def test_the_command_prints_tables_for_a_card(text, capsys):
    assert main([*text, "--preset", "base-0.18b", "--card", "RTX 4090", "--mfu", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "165 TFLOP/s" in out and "50%" in out and "bf16" in out and "working copy" in out
    assert "vocabulary is trained before" in out and "program" not in out


def test_a_plan_tells_what_a_token_meets_of_experts(text, capsys):
    flags = [*text, *TINY, "--preset", "moe-demo", "--set", "model.experts.width=8", "--set", "data.micro_tokens=32"]
    assert main([*flags, "--card", "H100", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["feed-forward"] == 4 * plan["active_parameters"]["feed-forward"] == 8 * 3 * 16 * 8
    assert plan["flops_per_token"]["counting tokens"] > 0
    assert main([*flags, "--card", "H100"]) == 0
    out = capsys.readouterr().out
    assert "768 for a token" in out and "counting tokens" in out


def test_a_cards_time_is_its_flops_over_its_speed(text):
    plan = planned([*text, *TINY], card("H100"), 0.25)
    flops = sum(plan["flops_per_token"].values())
    assert plan["time"]["computing"] == pytest.approx(320 * flops / (989e12 * 0.25))
    single = planned([*text, *TINY, "--set", "run.precision=float32"], card("H100"), 0.25)
    assert single["peak_flops"] == 67e12 and single["memory"]["activations"] > plan["memory"]["activations"]


@pytest.mark.parametrize("flags, words", [(["--mfu", "0"], "--mfu must be in"),
                                          (["--card", "abacus"], "--card must be")])
def test_bad_flags_are_told(flags, words):
    with pytest.raises(UserError, match=words):
        main(flags)
