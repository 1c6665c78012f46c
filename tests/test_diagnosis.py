"""The first value that is not finite is named, and its batch can be run again."""

import json

import numpy as np
import pytest
import torch

from engine import Module, autograd, ops, random
from models.config import ModelConfig
from models.decoder import Decoder
from models.experts_config import ExpertsConfig
from tokenizer import ByteTokenizer
from train import checkpoint, replay
from train.config import Config
from train.data import Batch
from train.diagnosis import WEIGHTS_KEPT, Finding, diagnose, documents, load_finding, save_finding
from train.errors import UserError
from train.loop import next_token_loss
from train.optim import make_optimizer
from train.sections import DataConfig, RunConfig
from train.step import accumulate

ROWS, LENGTH, MICRO_ROWS = 6, 8, 2
SHAPE = ModelConfig(n_layers=3, d_model=16, n_heads=2, d_ff=32, max_seq_len=LENGTH, residual_init="scaled")
CONFIG = Config(model=SHAPE, data=DataConfig(seq_len=LENGTH, batch_tokens=ROWS * LENGTH),
                run=RunConfig(steps=9, device="cpu", precision="float32", seed=3))
TOKENIZER = ByteTokenizer()


def set_up(**changes):
    random.set_seed(CONFIG.run.seed)
    model = Decoder(ModelConfig(**{**vars(SHAPE), **changes}), seed=1)
    return model, make_optimizer(model, CONFIG.optim)


@pytest.fixture
def batch():
    ids = np.concatenate([np.arange(97, 97 + ROWS * LENGTH - 1) % 26 + 97, [TOKENIZER.eod]]).reshape(ROWS, LENGTH)
    ids[1, 2] = TOKENIZER.eod
    targets = np.roll(ids.ravel(), -1).reshape(ids.shape)
    return Batch(ids, targets, None, 480, targets.size, targets.size, np.full(ROWS, LENGTH))


def find(model, optimizer, batch, loss=next_token_loss):
    return diagnose(model, optimizer, batch, MICRO_ROWS, loss)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("part, name, operation, tensor", [
    ("attention", "norm.gain", "RMSNormLinear", "input gain"),
    ("attention", "qkv.weight", "RMSNormLinear", "input weight"),
    ("attention.out", "weight", "Linear", "input weight"),
    ("feed_forward", "gate_up.weight", "FeedForward", "input gate_up"),
])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_weight_that_is_not_finite(batch, layer, part, name, operation, tensor, value):
    model, optimizer = set_up()
    parameter = f"layers.{layer}.{part}.{name}"
    weight = optimizer.arena.parameters[parameter].data
    weight.view(-1)[5] = value
    finding = find(model, optimizer, batch)
    place = (5,) if weight.ndim == 1 else (0, 5)
    assert finding == Finding(MICRO_ROWS, f"layers.{layer}.{part}", operation, "forward", tensor, parameter, str(value),
                              place, tuple(weight.shape), 1)
    assert str(finding) == (f"first in layers.{layer}.{part}, {operation} forward: {tensor} ({parameter}) has {value} "
                            f"at {list(place)} (1 of {weight.numel():,} values not finite)")
    assert autograd.observer is None and "named_call" not in repr(Module.__call__)


@pytest.mark.parametrize("count", ["first_pass", "running"])
def test_a_mixture_is_run_again_with_the_counts_of_the_step(batch, count):
    experts = ExpertsConfig(n=4, width=8, balance_weight=1.0, count=count)
    model, optimizer = set_up(feed_forward="moe", experts=experts)
    accumulate(model, optimizer, batch, MICRO_ROWS, next_token_loss)
    gradients = optimizer.arena.grads.clone()
    assert str(find(model, optimizer, batch)) == "run again, the batch gave finite values only"
    assert torch.equal(optimizer.arena.grads, gradients)


@pytest.mark.parametrize("name, operation", [("embedding.weight", "Embedding"), ("head.weight", "LinearCrossEntropy"),
                                             ("norm.gain", "RMSNorm")])
def test_weights_outside_the_layers(batch, name, operation):
    model, optimizer = set_up()
    optimizer.arena.parameters[name].data.fill_(float("nan"))
    finding = find(model, optimizer, batch)
    assert (finding.layer, finding.operation, finding.parameter) == (name.rpartition(".")[0], operation, name)
    assert finding.count == np.prod(finding.shape)


def scale(parameter, factor):
    parameter.data.copy_(torch.from_numpy(parameter.data.numpy() * np.float32(factor)))


@pytest.mark.parametrize("layer", [0, 1])
def test_an_overflow_names_row_and_token(batch, layer):
    model, optimizer = set_up()
    scale(model.layers[layer].attention.qkv.weight, 1e4)
    scale(model.layers[layer].attention.out.weight, 1e38)
    finding = find(model, optimizer, batch)
    assert (finding.layer, finding.operation) == (f"layers.{layer}.attention.out", "Linear")
    assert (finding.phase, finding.tensor, finding.parameter) == ("forward", "output", None)
    assert (finding.row, finding.token) == finding.place[:2]
    assert f"in row {finding.row}, token {finding.token} of the batch" in str(finding)


class Steep(Module):
    """x + sqrt(0 x): nothing forward, and an infinite slope."""

    def __init__(self, inner, only=None):
        self.inner, self.only, self.calls = inner, only, 0

    def forward(self, x, doc_start=None):
        y = self.inner(x, doc_start)
        self.calls += 1
        return y + ops.sqrt(y * 0.0) if self.only in (None, self.calls) else y


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_what_goes_wrong_backward_only(batch, layer, micro_batch):
    model, optimizer = set_up()
    model.layers[layer].feed_forward = Steep(model.layers[layer].feed_forward, micro_batch)
    finding = find(model, optimizer, batch)
    assert (finding.layer, finding.phase, finding.operation) == (f"layers.{layer}.feed_forward", "backward", "Sqrt")
    assert finding.tensor == "gradient of input x" and finding.row == 2 * (micro_batch - 1) and finding.token == 0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_gradient_that_overflows(batch, layer, recompute):
    model, optimizer = set_up(recompute=recompute)
    scale(model.layers[layer].attention.norm.gain, 1e-37)
    scale(model.layers[layer].attention.qkv.weight, 1e37)
    finding = find(model, optimizer, batch, lambda *given: next_token_loss(*given) * 1e6)
    assert (finding.layer, finding.phase) == (f"layers.{layer}.attention", "backward"), finding
    assert finding.tensor.startswith("gradient of input")


def test_a_loss_that_is_not_finite_by_itself(batch):
    model, optimizer = set_up()
    finding = find(model, optimizer, batch, lambda *given: ops.log(next_token_loss(*given) * 0.0))
    assert (finding.operation, finding.phase, finding.tensor, finding.value) == ("Log", "forward", "output", "-inf")
    assert finding.layer == "" and "the model, Log forward: output has -inf at [] (the only value" in str(finding)


@pytest.mark.filterwarnings("ignore:overflow")
def test_gradients_that_overflow_when_they_are_added(batch):
    model, optimizer = set_up()
    steep = torch.zeros(16)
    steep[3] = 2e38

    def loss(model, micro, normalizer):
        return next_token_loss(model, micro, normalizer) + (model.norm.gain * steep).sum()

    finding = find(model, optimizer, batch, loss)
    assert (finding.operation, finding.phase, finding.parameter) == ("accumulation", "backward", "norm.gain")


def test_finite_values_are_no_finding(batch):
    model, optimizer = set_up(dropout=0.1)
    finding = find(model, optimizer, batch)
    assert finding == Finding(MICRO_ROWS) and "finite values only" in str(finding)


def test_documents_of_a_batch(batch):
    found = documents(batch, TOKENIZER)
    assert [(one["row"], one["start"], one["stop"]) for one in found] == [
        (0, 0, 8), (1, 0, 3), (1, 3, 8), (2, 0, 8), (3, 0, 8), (4, 0, 8), (5, 0, 8)]
    assert found[1]["text"] == bytes(batch.ids[1, :2].tolist()).decode() and len(found[-1]["text"]) == 7


@pytest.fixture
def run(tmp_path):
    TOKENIZER.save(tmp_path / "vocabulary.json")
    CONFIG.save(tmp_path / "config.toml")
    return tmp_path


def spoiled():
    model, optimizer = set_up()
    optimizer.arena.parameters["layers.1.feed_forward.down.weight"].data.fill_(3e38)
    return model, optimizer


def test_a_replay_finds_the_same_on_the_checkpoint_before(run, batch, capsys):
    model, optimizer = spoiled()
    finding = find(model, optimizer, batch)
    checkpoint.write(run, 41, model.state_dict(), optimizer.state(), {})
    path = save_finding(run, 42, finding, batch, model.state_dict())
    assert path == run / "non-finite" / "step-000042"
    assert {file.name for file in path.iterdir()} == {"finding.json", "batch.safetensors"}
    assert load_finding(path).finding == finding
    assert replay.main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "batch of step 42: tokens 480 to 528, 6 rows of 8" in shown and "step-000041" in shown
    assert str(finding) in shown and shown.endswith("as the run found it\n")
    first = next(line for line in shown.splitlines() if line.startswith("row"))
    assert first.startswith(f"row {finding.row}, tokens 0 to 8: ")


def test_the_batch_is_written_whole(run, batch):
    masked = Batch(**{**vars(batch), "doc_start": np.zeros((ROWS, LENGTH), np.int32),
                      "row_sources": np.full((ROWS, 2), 4)})
    for given in (batch, masked):
        path = save_finding(run, 1, Finding(MICRO_ROWS), given)
        loaded = load_finding(path).batch
        for name, value in vars(given).items():
            assert np.array_equal(getattr(loaded, name), value) if isinstance(value, np.ndarray) else \
                getattr(loaded, name) == value, name
    record = json.loads((path / "finding.json").read_text())
    assert record["step"] == 1 and len(record["documents"]) == 7
    assert [entry.name for entry in path.parent.iterdir()] == ["step-000001"]


def test_without_a_checkpoint_the_weights_are_kept_for_some(run, batch, capsys):
    model, optimizer = spoiled()
    finding = find(model, optimizer, batch)
    paths = [save_finding(run, step, finding, batch, model.state_dict()) for step in range(1, WEIGHTS_KEPT + 2)]
    assert [(path / "model.safetensors").exists() for path in paths] == [True] * WEIGHTS_KEPT + [False]
    assert replay.main([str(paths[0])]) == 0 and f"weights in {paths[0]}" in capsys.readouterr().out
    with pytest.raises(UserError, match="no checkpoint of step 3: it has none"):
        replay.main([str(paths[-1])])
    good, moments = set_up()
    checkpoint.write(run, 2, good.state_dict(), moments.state(), {})
    assert replay.main([str(paths[-1]), "--checkpoint", "2"]) == 1
    assert "finite values only" in capsys.readouterr().out


def test_what_is_no_finding_is_refused(run, batch):
    with pytest.raises(UserError, match="holds no step with a value that is not finite: cannot read .*finding.json"):
        replay.main([str(run / "non-finite" / "step-000001")])
    path = save_finding(run, 1, Finding(MICRO_ROWS), batch)
    (path / "batch.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not what a run writes there: SafetensorError"):
        replay.main([str(path)])
    (path / "finding.json").write_text("{}")
    with pytest.raises(UserError, match="not what a run writes there: KeyError"):
        replay.main([str(path)])
