"""Balance between experts: the losses, how they add up over micro-batches, the bias, and what a run writes of them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from models_samples import disturbed

from engine import Tensor, random
from models.balance import Balance
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts_config import ExpertsConfig
from models.router import Router
from models.run_folder import latest_checkpoint, load_run
from train import pretrain
from train.data import Batch
from train.loop import next_token_loss
from train.metrics import read_metrics
from train.optim.adamw import AdamW
from train.step import HostStep, accumulate

ROWS, LENGTH, WIDTH, VOCABULARY = 32, 7, 16, 41
CONFIG = ModelConfig(vocab_size=VOCABULARY, n_layers=2, d_model=WIDTH, n_heads=2, d_ff=12, max_seq_len=LENGTH,
                     dtype="float64", residual_init="scaled", feed_forward="moe")
NONE = ExpertsConfig(n=5, top_k=2, width=7, balance="none")


def configured(**changes) -> ModelConfig:
    return CONFIG.with_(experts=dataclasses.replace(NONE, **changes))


def batch(rows: int = ROWS, seed: int = 0) -> Batch:
    """Rows with very different numbers of targets, one of them with none."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, VOCABULARY, (2, rows, LENGTH))
    targets[np.arange(LENGTH) < rng.integers(0, LENGTH, (rows, 1))] = -100
    if rows > 5:
        targets[5] = -100
    counts = (targets != -100).sum(axis=1)
    return Batch(ids, targets, None, 3 * LENGTH, int(counts.sum()), int(counts.sum()), counts)


def stepped(config: ModelConfig, micro_rows: int, dropout: float = 0.0):
    """Loss, gradients and balance of one step in float64."""
    random.set_seed(3)
    model = disturbed(config.with_(dropout=dropout))
    for router in model.balance.routers:
        router.weight.data[1] *= 4  # far from even
    optimizer = AdamW(model)
    loss = accumulate(model, optimizer, batch(), micro_rows, next_token_loss)
    model.balance.end_step()
    return loss, optimizer.arena.grads.clone(), model.balance.row()


def assert_equal(one, other) -> None:
    assert other[0] == pytest.approx(one[0], rel=1e-11)
    assert (other[1] - one[1]).norm() <= 1e-10 * one[1].norm()
    for name, expected in one[2].items():
        np.testing.assert_allclose(other[2][name], expected, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("changes, dropout", [
    ({"balance": "global", "balance_weight": 1.0}, 0.2),
    ({"balance": "global", "balance_weight": 1.0, "sampled": True, "chain": 2, "z_loss": 0.1}, 0.0),
    ({"balance": "global", "balance_weight": 1.0, "load": "soft", "score": "sigmoid"}, 0.0),
    ({"balance": "sequence", "balance_weight": 1.0, "bias_rate": 0.1}, 0.0),
    ({"balance": "none", "z_loss": 1.0}, 0.0),
])
def test_once_32_rows_are_32_times_one_row(changes, dropout):
    layers = 2 if dropout else 1
    whole = stepped(configured(**changes).with_(n_layers=layers), ROWS, dropout)
    for micro_rows in (1, 7)[:layers]:
        assert_equal(whole, stepped(configured(**changes).with_(n_layers=layers), micro_rows, dropout))
    same = {name: value for name, value in changes.items() if name in ("sampled", "chain", "score")}
    plain = stepped(configured(**same).with_(n_layers=layers), ROWS, dropout)
    assert plain[0] == whole[0]  # the loss that is reported is the cross-entropy
    assert (plain[1] - whole[1]).norm() > 1e-3 * plain[1].norm()


@pytest.mark.parametrize("changes", [{"balance": "micro"}, {"balance": "global", "count": "running"}])
def test_other_ways_to_count_depend_on_the_cut(changes):
    exact, other = (configured(balance_weight=1.0, **how) for how in ({"balance": "global"}, changes))
    assert_equal(stepped(exact, ROWS), stepped(other, ROWS))
    expected = stepped(exact, 8)[1]
    assert (stepped(other, 8)[1] - expected).norm() > 1e-4 * expected.norm()


def test_only_what_asks_for_it_is_counted_first():
    ways = {"first_pass": True, "running": False}
    for count, wanted in ways.items():
        balance = Decoder(configured(balance="global", count=count)).balance
        assert balance.counts_first(2) == wanted and not balance.counts_first(1)
    assert not Decoder(configured(balance="micro")).balance.counts_first(2)
    assert not Decoder(configured(balance="global", balance_weight=0.0)).balance.counts_first(2)


def routed(settings: ExpertsConfig, h: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor):
    """The weighted losses of one router, and its gradient."""
    config = CONFIG.with_(experts=settings)
    router = Router(config)
    router.weight.data, router.weight.grad = weight.clone(), None
    balance = Balance(config, [[router]])
    balance.begin_step(1)
    tally = balance.tally(targets, None)
    tally.take((Tensor(h), *tally.of(router(Tensor(h)))))
    if settings.has_loss:
        tally.beside(Tensor(torch.zeros((), dtype=torch.float64))).backward()
    else:
        tally.beside(Tensor(torch.zeros((), dtype=torch.float64)))
    balance.end_step()
    return balance, router


def by_hand(settings: ExpertsConfig, h, targets, weight):
    """E sum f p and the mean squared log-sum-exp, in PyTorch."""
    logits = h @ weight.T
    scores = logits.softmax(-1) if settings.score == "softmax" else logits.sigmoid() / logits.sigmoid().sum(-1, True)
    chosen = torch.nn.functional.one_hot(logits.topk(settings.top_k).indices, settings.n).sum(-2).double()
    total, count = 0.0, (targets != -100).sum()
    rows = range(len(h)) if settings.balance == "sequence" else [slice(None)]
    for row in rows:
        real = targets[row] != -100
        if real.any():
            p = scores[row][real].mean(0)
            f = p.detach() if settings.load == "soft" else chosen[row][real].mean(0) / settings.top_k
            total = total + int(real.sum()) / int(count) * settings.n * (f * p).sum()
    z = (logits.logsumexp(-1)[targets != -100] ** 2).mean()
    return total, z


@pytest.mark.parametrize("changes", [
    {"balance": "micro"}, {"balance": "micro", "top_k": 1}, {"balance": "sequence", "score": "sigmoid"},
    {"balance": "global", "load": "soft", "top_k": 4}])
def test_the_losses_are_their_formulas(changes):
    settings = dataclasses.replace(NONE, balance_weight=0.3, z_loss=0.2, **changes)
    rng = np.random.default_rng(6)
    h, weight = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((4, LENGTH, WIDTH), (5, WIDTH)))
    targets = torch.from_numpy(batch(4).targets)
    leaf = weight.clone().requires_grad_()
    expected, z = by_hand(settings, h, targets, leaf)
    (0.3 * expected + 0.2 * z).backward()
    balance, router = routed(settings, h, targets, weight)
    torch.testing.assert_close(router.weight.grad, leaf.grad, rtol=1e-9, atol=1e-12)
    row = balance.row()
    assert row["balance_loss"] == pytest.approx(expected.item(), rel=1e-12)
    assert row["z_loss"] == pytest.approx(z.item(), rel=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_even_loads_have_a_loss_of_one(top_k):
    settings = dataclasses.replace(NONE, balance="micro", top_k=top_k)
    h = torch.eye(5, WIDTH, dtype=torch.float64)[None]
    weight = torch.zeros(5, WIDTH, dtype=torch.float64)
    for choice in range(top_k):
        weight[:, :5] += torch.eye(5).roll(choice, 0) * 0.1
    balance, _ = routed(settings, h, torch.zeros((1, 5), dtype=torch.int64), weight)
    row = balance.row()
    assert row["balance_loss"] == pytest.approx(1.0) and row["load"] == [[top_k] * 5]
    assert row["max_vio"] == [pytest.approx(0.0)] and row["entropy"] == [pytest.approx(math.log(5))]


def test_the_loss_does_not_grow_with_layers_or_chains():
    for layers, chain in ((1, 1), (4, 1), (2, 3)):
        model = Decoder(configured(balance="micro", chain=chain).with_(n_layers=layers))
        model.balance.begin_step(1)
        model.loss(torch.from_numpy(batch().ids), torch.from_numpy(batch().targets))
        model.balance.end_step()
        assert 0.9 < model.balance.row()["balance_loss"] < 2.0


def test_a_row_says_what_was_chosen():
    model = Decoder(configured())
    balance = model.balance
    balance.begin_step(1)
    balance._choices[:] = torch.tensor([[4, 0, 4, 0, 0], [2, 2, 2, 1, 1]])
    balance.end_step()
    state = json.loads(json.dumps(balance.state()))
    row = balance.row()
    assert row["load"] == [[4, 0, 4, 0, 0], [2, 2, 2, 1, 1]] and row["dead"] == [3, 0]
    np.testing.assert_allclose(row["max_vio"], [1.5, 0.25])
    np.testing.assert_allclose(row["entropy"], [math.log(2), -(0.75 * math.log(0.25) + 0.25 * math.log(0.125))])
    assert balance.row()["load"] == [[0] * 5] * 2 and balance.row()["max_vio"] == [0.0, 0.0]
    balance.load_state(state)
    assert balance.row() == row
    json.dumps(row, allow_nan=False)


def test_the_bias_follows_the_load_in_training_alone():
    model = disturbed(configured(bias_rate=0.25))
    ids, targets = torch.from_numpy(batch().ids), torch.from_numpy(batch().targets)
    biases = [router.bias.data for router in model.balance.routers]
    model.eval()
    model.loss(ids, targets)
    model.train()
    assert not any(bias.any() for bias in biases)
    optimizer = AdamW(model)
    step = HostStep(model, optimizer, next_token_loss, 2 * LENGTH)
    step(batch(), 0.0)
    for place, bias in enumerate(biases):
        loads = model.balance._loads[place]
        assert torch.equal(bias, 0.25 * (loads.mean() - loads).sign()) and bias.any()
    before = [bias.clone() for bias in biases]
    model.balance.begin_step(1)
    model.balance.end_step()  # no token at all: no 0 / 0
    assert all(torch.equal(*pair) for pair in zip(before, biases))
    model.embedding.weight.data[:] = math.nan
    step(batch(), 0.1)
    assert all(torch.equal(*pair) for pair in zip(before, biases))
    assert {name for name, _ in model.named_buffers()} <= model.state_dict().keys()


def most_violation(steps: int = 25, **changes) -> float:
    model = disturbed(configured(**changes).with_(dtype="float32"))
    for router in model.balance.routers:
        router.weight.data[:, :] += router.weight.data.abs().max() * torch.linspace(0, 1, 5)[:, None] * 0.5
    step = HostStep(model, AdamW(model, weight_decay=0.0), next_token_loss, ROWS * LENGTH)
    for number in range(steps):
        if number == steps - 5:
            model.balance.row()
        step(batch(seed=number), 1e-3)
    return max(model.balance.row()["max_vio"])


def test_bias_and_losses_even_out_the_load():
    unbalanced = most_violation()
    assert most_violation(bias_rate=0.03) < 0.5 * unbalanced
    assert most_violation(balance="global", balance_weight=5.0) < 0.9 * unbalanced


def test_idle_experts_have_zero_gradients_and_decay():
    model = disturbed(configured(top_k=1, n=5))
    for router in model.balance.routers:
        router.bias = Tensor(torch.tensor([9.0, 0, 0, 0, 0], dtype=torch.float64))
    optimizer = AdamW(model, weight_decay=0.5)
    step = HostStep(model, optimizer, next_token_loss, 2 * LENGTH)
    down = model.layers[0].feed_forward.down
    before = down.data.clone()
    step(batch(), 0.1)
    assert (down.grad[1:] == 0).all() and (down.grad[0] != 0).any()
    torch.testing.assert_close(down.data[1:], before[1:] * (1 - 0.1 * 0.5))
    assert model.balance.row()["dead"] == [4, 4]


FLAGS = ["--tokenizer", "bytes", "--preset", "moe-demo", "--seq-len", "16", "--batch-tokens", "64", "--steps", "6",
         "--set", "model.n_layers=2", "model.d_model=16", "model.n_heads=2", "model.d_ff=8", "model.max_seq_len=16",
         "model.experts.n=4", "model.experts.width=8", "model.experts.bias_rate=0.01", "model.experts.first_dense=1",
         "data.micro_tokens=32", "run.sample_tokens=3", "run.log_every=2", "checkpoint.every=3", "checkpoint.keep=9",
         "optim.ema=0.5"]


def test_a_run_writes_loads_and_goes_on_as_if_it_had_not_stopped(tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(300)))
    flags = ["--data", str(text), "--set", f"data.cache_dir={tmp_path / 'cache'}"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert pretrain.main([*FLAGS, *flags, "--out", str(whole)]) == 0
    assert "of them for a token" in capsys.readouterr().out
    rows = [row["experts"] for row in read_metrics(whole / "metrics.jsonl") if "experts" in row]
    assert [sum(row["load"][0]) // 128 for row in rows] == [1, 1, 2, 2] and len(rows[0]["load"]) == 1
    assert all({"max_vio", "entropy", "dead", "balance_loss"} <= row.keys() for row in rows)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000006")
    assert pretrain.main(["--out", str(cut), "--resume"]) == 0
    run = load_run(whole)
    bias = run.model.layers[1].feed_forward.routers[0].bias.data
    assert bias.any() and torch.isfinite(bias).all()
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (latest_checkpoint(whole) / name).read_bytes() == (latest_checkpoint(cut) / name).read_bytes()
    again = [row["experts"] for row in read_metrics(cut / "metrics.jsonl") if "experts" in row]
    assert again[-2:] == rows[-2:]
